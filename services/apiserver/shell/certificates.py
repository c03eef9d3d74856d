"""Which of our authorities vouches for a client's certificate, and whom the certificate names.

OpenSSL verified the chain in the handshake, but against all authorities together. Those of the front proxy and those of
people must not be confused, so the chain is verified once more against one bundle alone, at each request's time: a
certificate that has run out since the handshake is refused, as is one whose authority was taken away meanwhile.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.apiserver.core.bounded import Recent
from services.apiserver.core.request import User

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
_REMEMBERED = 4096
_REMEMBER_S = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's certificate and what it sent along with it, DER."""

    leaf: bytes
    chain: tuple[bytes, ...] = ()


def peer_of(ssl_object: Any) -> Peer | None:
    """Of a connection's ssl.SSLObject; None when the client showed no certificate."""
    leaf = ssl_object.getpeercert(True)
    if leaf is None:
        return None
    # Public only since Python 3.13; what it returns there is DER, before that objects of the _ssl module.
    if hasattr(ssl_object, "get_unverified_chain"):
        shown = [bytes(one) for one in ssl_object.get_unverified_chain() or ()]
    else:
        shown = [
            ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in ssl_object._sslobj.get_unverified_chain() or ()
        ]
    return Peer(leaf, tuple(one for one in shown if one != leaf))


def _must_be_ca(_: verification.Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("the issuer is no authority")


# Kubernetes' client certificates have no subject alternative names, and private authorities seldom follow the Web's
# profile in their extensions; what decides is the chain, the validity, CA:TRUE of issuers and the use as a client.
_ISSUERS = verification.ExtensionPolicy.permit_all().require_present(
    x509.BasicConstraints, verification.Criticality.AGNOSTIC, _must_be_ca
)
_CLIENTS = verification.ExtensionPolicy.permit_all()


class Bundle:
    """Authorities of one purpose. Raises ValueError for a PEM text without a certificate."""

    def __init__(self, pem: bytes) -> None:
        self.pem = pem
        self._store = verification.Store(x509.load_pem_x509_certificates(pem))
        self._verified: Recent[tuple[bytes, tuple[bytes, ...]], tuple[x509.Certificate, ...] | str] = Recent(
            _REMEMBERED
        )

    def verify(self, peer: Peer, now: datetime) -> x509.Certificate:
        """The certificate, parsed, when one of these authorities vouches for it. Raises ValueError with the reason."""
        at = now.timestamp()
        key = (hashlib.sha256(peer.leaf).digest(), tuple(hashlib.sha256(one).digest() for one in peer.chain))
        known = self._verified.get(key, at)
        if known is None:
            known = self._ask(peer, now)
            self._verified.put(key, known, at + _REMEMBER_S)
        if isinstance(known, str):
            raise ValueError(known)
        for one in known:
            if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
                raise ValueError("certificate has expired or is not yet valid")
        return known[0]

    def _ask(self, peer: Peer, now: datetime) -> tuple[x509.Certificate, ...] | str:
        builder = verification.PolicyBuilder().store(self._store).time(now.astimezone(UTC).replace(tzinfo=None))
        verifier = builder.extension_policies(ca_policy=_ISSUERS, ee_policy=_CLIENTS).build_client_verifier()
        try:
            leaf = x509.load_der_x509_certificate(peer.leaf)
            chain = [x509.load_der_x509_certificate(one) for one in peer.chain]
            verified = verifier.verify(leaf, chain)
        except verification.VerificationError:
            return "certificate signed by unknown authority"
        except ValueError as error:
            return f"certificate cannot be read: {error}"
        if not _for_clients(leaf):
            return "certificate is not for clients (extended key usage)"
        return tuple(verified.chain)


def _for_clients(leaf: x509.Certificate) -> bool:
    """A certificate that names its uses must name this one."""
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in uses or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in uses


def common_name(certificate: x509.Certificate) -> str:
    return next((str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def user_of(certificate: x509.Certificate, der: bytes) -> User | None:
    """CN is the user, each O a group; None without a CN."""
    name = common_name(certificate)
    if not name:
        return None
    groups = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    extra = {CREDENTIAL_ID: (f"X509SHA256={hashlib.sha256(der).hexdigest()}",)}
    return User(name, tuple(str(group.value) for group in groups), extra=extra)
