"""Whose certificate a node was given, asked as calico-node asks (X01)."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from libs.trust import identities, own
from libs.trust.authority import Authority


def certificate(path: Path, *names: x509.NameAttribute[str]) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(names)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_certificate_without_a_common_name_is_nobodys_own(tmp_path: Path) -> None:
    nameless = certificate(tmp_path / "a.crt", x509.NameAttribute(NameOID.ORGANIZATION_NAME, "operators"))
    named = certificate(tmp_path / "b.crt", x509.NameAttribute(NameOID.COMMON_NAME, "all-nodes"))
    assert await own.check("node1", {"ETCD_CERT_FILE": str(nameless)}) == "(no common name)"
    assert await own.check("node1", {"ETCD_CERT_FILE": str(named)}) == "all-nodes"
    mine = Authority.create(tmp_path / "pki").issue(identities.node("node1")) / "tls.crt"
    assert await own.check("node1", {"ETCD_CERT_FILE": str(mine)}) == ""
    assert await own.check("node1", {"ETCD_CERT_FILE": str(nameless), "NATS_CERT": str(mine)}) == "(no common name)"


async def test_what_is_no_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("x")
    with pytest.raises(own.NotOwn, match=r"tls\.crt: no certificate in PEM"):
        await own.check("node1", {"NATS_CERT": str(tmp_path / "tls.crt")})


def test_keys_that_every_user_can_read_are_named(tmp_path: Path) -> None:
    place, key = tmp_path / "certs", tmp_path / "certs/tls.key"
    place.mkdir()
    key.touch()
    environ = {"ETCD_KEY_FILE": str(key), "NATS_KEY": str(key), "ETCD_CERT_FILE": str(place / "tls.crt")}
    for directory, file, expected in ((0o755, 0o644, [str(key)]), (0o700, 0o644, []), (0o755, 0o640, [])):
        place.chmod(directory)
        key.chmod(file)
        assert own.exposed(environ) == expected
    assert own.exposed({"NATS_KEY": str(tmp_path / "none.key")}) == []
