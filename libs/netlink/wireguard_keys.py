"""WireGuard's keys (X25519, RFC 7748): a private one from random octets, and the public one that belongs to it."""

from __future__ import annotations


def clamp(secret: bytes) -> bytes:
    """32 random octets as a private key (RFC 7748 section 5, decodeScalar25519)."""
    if len(secret) != 32:
        raise ValueError(f"a private key has 32 octets, not {len(secret)}")
    scalar = bytearray(secret)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    return bytes(scalar)


def public_key(private: bytes) -> bytes:
    """For devices that do not tell it themselves."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # 8 MB that most nodes do not need

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
