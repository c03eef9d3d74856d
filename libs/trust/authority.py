"""A certificate authority for development and for clusters without one of their own: files in one directory.

    ca.crt, ca.key              signs every identity
    peer-ca.crt, peer-ca.key    signs the links between servers (etcd's members, NATS's routes), nothing else: who may
                                speak there is above all permissions, so no node's certificate may pass
    IDENTITY/ca.crt, tls.crt, tls.key      and for servers peer-ca.crt, peer.crt, peer.key

Directories are named like the identity, with `.` for `:`. Keys have mode 0600. An authority is never replaced; an
identity is, when it is renewed.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.runtime.files import write_atomically
from libs.trust import identities
from libs.trust.issuing import authority, distinguished, issue, key_pem

AUTHORITY_LIFE = datetime.timedelta(days=3650)
LIFE = datetime.timedelta(days=365)


class AuthorityError(Exception):
    """Files are missing, damaged or in the way; the text names them."""


@dataclass(frozen=True, slots=True)
class _Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Authority:
    """Made by `create` or `load`."""

    def __init__(self, directory: Path, ordinary: _Signer, peers: _Signer) -> None:
        self.directory = directory
        self._ordinary, self._peers = ordinary, peers

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """Raises AuthorityError when there is anything of one already."""
        for name in ("ca", "peer-ca"):
            for ending in ("crt", "key"):
                if (path := directory / f"{name}.{ending}").exists():
                    raise AuthorityError(f"{path} exists: an authority is never replaced; remove it by hand first")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, common_name in (("ca", "calico-ca"), ("peer-ca", "calico-peer-ca")):
            key = ec.generate_private_key(ec.SECP256R1())
            write_atomically(directory / f"{name}.key", key_pem(key), mode=0o600)
            _write(directory / f"{name}.crt", authority(common_name, key, AUTHORITY_LIFE))
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        return cls(directory, _load(directory, "ca"), _load(directory, "peer-ca"))

    def issue(self, identity: str, *, names: Sequence[str] = (), life: datetime.timedelta = LIFE) -> Path:
        """Directory of the identity's files, replaced when there are some. names: that its servers answer to."""
        place = self.directory / identity.replace(":", ".")
        place.mkdir(mode=0o700, exist_ok=True)
        pairs = [("ca", "tls", self._ordinary)]
        if identity in identities.SERVERS:
            pairs.append(("peer-ca", "peer", self._peers))
        for ca, name, signer in pairs:
            key = ec.generate_private_key(ec.SECP256R1())
            made = issue(signer.certificate, signer.key, key, distinguished(identity), life=life, names=names)
            write_atomically(place / f"{name}.key", key_pem(key), mode=0o600)
            _write(place / f"{name}.crt", made)
            _write(place / f"{ca}.crt", signer.certificate)
        return place

    def issued(self) -> list[tuple[str, Path]]:
        """(identity, directory) of all that have a certificate here."""
        return [(_common_name(_certificate(path)), path.parent) for path in sorted(self.directory.glob("*/tls.crt"))]

    def renew(self, identity: str, *, life: datetime.timedelta = LIFE) -> Path:
        """A new key and certificate with the names of the old one. Raises AuthorityError when there is none."""
        path = self.directory / identity.replace(":", ".") / "tls.crt"
        return self.issue(identity, names=_names(_certificate(path)), life=life)


def expires(certificate: Path) -> datetime.datetime:
    """Raises AuthorityError."""
    return _certificate(certificate).not_valid_after_utc


def common_name(certificate: Path) -> str:
    """Whose it is. Raises AuthorityError."""
    return _common_name(_certificate(certificate))


def secret(name: str, namespace: str, directory: Path) -> Mapping[str, object]:
    """A Kubernetes Secret of an identity's files."""
    files = sorted(path for path in directory.iterdir() if path.suffix in (".crt", ".key"))
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in files}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": data,
    }


def _load(directory: Path, name: str) -> _Signer:
    certificate = _certificate(directory / f"{name}.crt")
    path = directory / f"{name}.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise AuthorityError(f"{path}: no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path}: not an ECDSA key")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{path} does not belong to {name}.crt")
    return _Signer(certificate, key)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise AuthorityError(f"{path}: no certificate in PEM") from error


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_atomically(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
