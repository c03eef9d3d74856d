from __future__ import annotations

from pathlib import Path

from services.bgp.core.settings import SecretRef
from services.bgp.shell.secrets import SecretDirectory

REF = SecretRef("bgp", "pw")


def read(directory: Path | None, ref: SecretRef = REF) -> bytes | str:
    return SecretDirectory(directory).read([ref])[ref]


def test_password_is_found_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    (tmp_path / "bgp").mkdir()
    (tmp_path / "bgp" / "pw").write_bytes(b"secret\n")
    assert read(tmp_path) == b"secret"


def test_volume_of_one_secret(tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(b" with spaces ")
    assert read(tmp_path) == b" with spaces "


def test_why_there_is_none(tmp_path: Path) -> None:
    assert read(None) == "key 'pw' of secret 'bgp': no directory of secrets is configured (CALICO_BGP_SECRETS_DIR)"
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
