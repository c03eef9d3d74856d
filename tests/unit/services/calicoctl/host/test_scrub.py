"""Secrets in every dress that configuration, environment, logs and commands give them are taken out; the rest stays."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.calicoctl.host.bundle import NEWEST_BYTES, bundle
from services.calicoctl.host.scrub import scrub

SECRET = "Zx9qLm4TtV0w7Rk2"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "text",
    [
        f"ETCD_PASSWORD={SECRET}",
        f"  etcdPassword: {SECRET}",
        f'"etcdPassword": "{SECRET}"',
        f"'password' : '{SECRET}'",
        f"NATS_TOKEN={SECRET}\nNEXT=1",
        f"nats://user:{SECRET}@bus:4222",
        f"https://{SECRET}@host:2379/path",
        f"Authorization: Bearer {SECRET}",
        f"curl -H 'Authorization: Basic {SECRET}'",
        f"K8S_API_TOKEN={SECRET}",
        f"    token: {SECRET}",
        f"    client-key-data: {SECRET}",
        f"privateKey: {SECRET}=",
        f"PrivateKey = {SECRET}=",
        f"  private key: {SECRET}=",
        f"  preshared key: {SECRET}=",
        f"PresharedKey={SECRET}",
        f"WIREGUARD_PRIVATE_KEY={SECRET}",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n",
        f"  etcdKey: |\n    -----BEGIN\n    {SECRET}\n\n    {SECRET}\n",
        f"spec:\n  k8sAPIToken: >-\n    {SECRET}\n    {SECRET}",
        f"calicoctl --etcd-password {SECRET} get",
        f"etcd --password={SECRET}",
        f'{{"level": "info", "apiKey":"{SECRET}", "n": 1}}',
        f"password='a b {SECRET} c'",
        f'"secret": "quote \\" {SECRET}"',
        f"passphrase: {SECRET}",
        f"aws_secret_access_key = {SECRET}",
    ],
)
def test_values_go(text: str) -> None:
    assert SECRET not in scrub(text)
    assert "***" in scrub(text)


def test_tokens_of_service_accounts_go_wherever_they_stand() -> None:
    assert JWT not in scrub(f"seen {JWT} in the log")


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0/24 via 192.0.2.1 dev eth0 proto 80",
        "  private key: (hidden)",
        "  public key: 6+WKzkN1e0BBd2m5YrSsb1bX0JqzVd0o2V3SgB7z0Bk=",
        "passwordSecretRef:\n  name: bgp-secrets\n  key: rack-a",
        "secretKeyRef: {name: bgp-secrets, key: rack-a}",
        "ETCD_KEY_FILE=/etc/calico/certs/key.pem",
        "K8S_TOKEN_FILE=/var/run/secrets/token",
        "K8S_INSECURE_SKIP_TLS_VERIFY=false",
        "nft add rule ip calico filter counter packets 10 bytes 840",
        "selector: projectcalico.org/name == 'a' && has(secretive)",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "2001:db8::1 dev cali123 lladdr ee:ee:ee:ee:ee:ee REACHABLE",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrub(text) == text


@given(st.text(max_size=300))
def test_any_text_is_taken_and_scrubbed_text_stays_as_it_is(text: str) -> None:
    once = scrub(text)
    assert scrub(once) == once


@given(st.from_regex(r"[A-Za-z0-9+/]{12,40}", fullmatch=True), st.sampled_from(["=", ": ", " = ", ":"]))
def test_no_value_of_a_password_survives(value: str, sign: str) -> None:
    assert value not in scrub(f"before\nsome_password{sign}{value}\nafter")


def test_everything_of_a_bundle_is_scrubbed_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.log").write_bytes(f"x\nETCD_PASSWORD={SECRET}\n\xff\n".encode("latin-1"))
    (source / "long").write_text(f"token={SECRET}{'x' * NEWEST_BYTES}\nlast line\n")
    with bundle("top") as made:
        made.add("direct.txt", f"password: {SECRET}\n")
        made.copy_tree("tree", source)
        made.copy_tree("absent", tmp_path / "none")
        made.copy("gone.txt", tmp_path / "gone")
        target = made.pack(tmp_path / "x.tar.gz")
        directory = made.directory
    assert not directory.exists()
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        texts = {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]
    assert sorted(texts) == [
        "top/absent/MISSING",
        "top/direct.txt",
        "top/gone.txt",
        "top/tree/deep/a.log",
        "top/tree/long",
    ]
    assert not any(SECRET.encode() in text for text in texts.values())
    assert texts["top/tree/deep/a.log"].endswith(b"\xff\n")
    assert texts["top/tree/long"] == b"last line\n"
