"""Certificate authorities for tests, and what they sign: servers, clients, and keys for signing tokens.

    ca = Authority("cluster", directory)
    server = ca.issue("apiserver", names=("127.0.0.1", "localhost"))
    alice = ca.issue("alice", groups=("dev",))              # Kubernetes reads the groups from O, the user from CN

All is written to files as PEM, keys with mode 0600. Keys are ECDSA P-256: made in a millisecond.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.runtime.files import write_atomically
from libs.trust.issuing import authority, distinguished, issue, key_pem

_LIFE = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a certificate and its private key, PEM both."""

    cert: Path
    key: Path


class Authority:
    """One certificate authority. `cert`: its own certificate, what others trust."""

    def __init__(self, name: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._made = authority(name, self._key, _LIFE)
        self.pair = KeyPair(directory / f"{name}.crt", directory / f"{name}.key")
        _write(self.pair, self._made, self._key)

    @property
    def cert(self) -> Path:
        return self.pair.cert

    def issue(
        self,
        common_name: str,
        *,
        groups: Sequence[str] = (),
        names: Sequence[str] = (),
        file: str = "",
        life: datetime.timedelta = _LIFE,
    ) -> KeyPair:
        """A certificate for servers and clients alike. names: addresses and DNS names a server answers to. file: name
        of the files without their ending, else the common name; an existing pair is replaced. life: negative for one
        that has expired already.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = issue(self._made, self._key, key, distinguished(common_name, groups), life=life, names=names)
        base = file or common_name.replace(":", "-").replace("/", "-")
        pair = KeyPair(self._directory / f"{base}.crt", self._directory / f"{base}.key")
        _write(pair, made, key)
        return pair


def signing_keys(directory: Path, name: str) -> tuple[Path, Path]:
    """(private, public) key files, for tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    write_atomically(private, key_pem(key), mode=0o600)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def _write(pair: KeyPair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    write_atomically(pair.key, key_pem(key), mode=0o600)
    pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
