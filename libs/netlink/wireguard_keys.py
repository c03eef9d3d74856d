"""The public key of a private one (X25519, RFC 7748), for devices that do not tell it themselves.

Plain arithmetic, not in constant time: it is done once for a device, on the host that made the key.
"""

from __future__ import annotations

_P = 2**255 - 19
_A24 = 121665
_BASE = 9
_BITS = 255


def clamp(secret: bytes) -> bytes:
    """32 random octets as a private key (RFC 7748 section 5, decodeScalar25519)."""
    if len(secret) != 32:
        raise ValueError(f"a private key has 32 octets, not {len(secret)}")
    scalar = bytearray(secret)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    return bytes(scalar)


def public_key(private: bytes) -> bytes:
    """The Montgomery ladder from the base point (RFC 7748 section 5)."""
    scalar = int.from_bytes(clamp(private), "little")
    x1, x2, z2, x3, z3, swap = _BASE, 1, 0, _BASE, 1, 0
    for bit in reversed(range(_BITS)):
        now = scalar >> bit & 1
        if swap ^ now:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = now
        a, b = (x2 + z2) % _P, (x2 - z2) % _P
        aa, bb = a * a % _P, b * b % _P
        e = (aa - bb) % _P
        da, cb = (x3 - z3) * a % _P, (x3 + z3) * b % _P
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + _A24 * e) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")
