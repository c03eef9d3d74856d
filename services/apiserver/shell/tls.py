"""The server's side of TLS: one SSLContext at a time, replaced as a whole when a file of it changes.

New connections get the new one, those that stand keep theirs. Client certificates are asked for and not demanded
(who has none may have a token); one that no authority of ours signed ends the handshake with `unknown ca`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.apiserver.core import tlsnames
from services.apiserver.shell.certificates import Bundle

SELF_SIGNED_DAYS = 365


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM; chain: the server's certificate first."""

    chain: bytes
    key: bytes = field(repr=False)


def read_pair(certificate: Path, key: Path) -> KeyPair:
    return KeyPair(certificate.read_bytes(), key.read_bytes())


class ServerTls:
    """min_version, suites: Go's names (`core.tlsnames`). Clients are asked for certificates when `asks_clients`, also
    while no authority is known yet.
    """

    def __init__(self, *, min_version: str, suites: Sequence[str], asks_clients: bool) -> None:
        self._min_version, self._suites, self._asks = min_version, tuple(suites), asks_clients
        self._pair: KeyPair | None = None
        self._bundles: dict[str, Bundle] = {}
        self._context: ssl.SSLContext | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        assert self._context is not None, "no certificate was taken yet"
        return self._context

    def take_pair(self, pair: KeyPair) -> None:
        """Raises OSError (ssl.SSLError) when certificate and key cannot be used together; the old ones stay then."""
        self._context = self._make(pair, self._bundles)
        self._pair = pair

    def take_bundle(self, purpose: str, bundle: Bundle | None) -> None:
        """Authorities of clients for a purpose, None for none any more. Raises as `take_pair` does."""
        bundles = {name: one for name, one in self._bundles.items() if name != purpose}
        if bundle is not None:
            bundles[purpose] = bundle
        if self._pair is not None:
            self._context = self._make(self._pair, bundles)
        self._bundles = bundles

    def _make(self, pair: KeyPair, bundles: dict[str, Bundle]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion[tlsnames.MIN_VERSIONS[self._min_version]]
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
        ciphers = tlsnames.openssl(self._suites)
        if ciphers:
            context.set_ciphers(ciphers)
        else:  # only suites of TLS 1.3 were named
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        with in_memory(pair.chain) as chain, in_memory(pair.key) as key:
            # A password callback, or OpenSSL would ask for one on the terminal.
            context.load_cert_chain(chain, key, password=_no_password)
        if self._asks:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # any certificate of a bundle is trusted, as in Go
            for bundle in bundles.values():
                context.load_verify_locations(cadata=bundle.pem.decode("ascii", "replace"))
        return context


def _no_password() -> str:
    raise ValueError("the private key is encrypted; give one that is not")


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """A path under which this process can read the content, and which is in no file system."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def self_signed(names: Sequence[str]) -> KeyPair:
    """A certificate for hosts and addresses that only this process has; nobody can know it beforehand."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "calico-apiserver development")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), private)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
