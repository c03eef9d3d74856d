from __future__ import annotations

import asyncio
from pathlib import Path

from libs.runtime.config import load
from services.bgp.config import BgpConfig
from services.bgp.core.settings import SecretRef
from services.bgp.shell.kubernetes_secrets import NAMESPACE, own_namespace
from services.bgp.shell.secrets import SecretDirectory

REF = SecretRef("bgp", "pw")


def read(directory: Path | None, ref: SecretRef = REF) -> bytes | str:
    return asyncio.run(SecretDirectory(directory).read([ref]))[ref]


def test_password_is_found_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    (tmp_path / "bgp").mkdir()
    (tmp_path / "bgp" / "pw").write_bytes(b"secret\n")
    assert read(tmp_path) == b"secret"


def test_volume_of_one_secret(tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(b" with spaces ")
    assert read(tmp_path) == b" with spaces "


def test_why_there_is_none(tmp_path: Path) -> None:
    told = "no directory of secrets is configured (CALICO_BGP_SECRETS_DIR), and no Kubernetes API"
    assert read(None) == f"key 'pw' of secret 'bgp': {told}"
    assert read(tmp_path) == "key 'pw' of secret 'bgp' is missing"
    (tmp_path / "pw").write_bytes(b"\n")
    assert read(tmp_path) == "key 'pw' of secret 'bgp' is empty"
    (tmp_path / "bgp").mkdir()
    (tmp_path / "bgp" / "pw").mkdir()
    assert "irectory" in str(read(tmp_path))


def test_reference_does_not_leave_the_directory(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"no")
    inside = tmp_path / "inside"
    inside.mkdir()
    for ref in (
        SecretRef("..", "outside"),
        SecretRef("x", "../outside"),
        SecretRef("", "outside"),
        SecretRef("a/b", "c"),
    ):
        assert "not a name" in str(read(inside, ref))


def test_a_directory_wins_over_the_kubernetes_api() -> None:
    by_api = load(BgpConfig, [], {"KUBECONFIG": "/etc/kubeconfig"}, prog="test")
    assert by_api.kubernetes() == Path("/etc/kubeconfig")
    both = load(BgpConfig, [], {"KUBECONFIG": "/etc/kubeconfig", "CALICO_BGP_SECRETS_DIR": "/secrets"}, prog="test")
    assert both.kubernetes() is None


def test_secrets_are_those_of_the_pods_namespace(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("calico-system")
    assert own_namespace("", tmp_path / "namespace") == "calico-system"
    assert own_namespace("other", tmp_path / "namespace") == "other"
    assert own_namespace("", tmp_path / "absent") == NAMESPACE
