from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
import yaml
from aiohttp import web

from libs.runtime.config import load
from libs.testkit.servers import free_port
from services.bgp.config import BgpConfig
from services.bgp.core.settings import SecretRef
from services.bgp.shell.kubernetes_secrets import NAMESPACE, KubernetesSecrets, own_namespace
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


async def test_a_value_that_is_no_base64_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kube-apiserver takes none such, but what stands before one may."""
    monkeypatch.setattr("services.bgp.shell.kubernetes_secrets.FIRST_ANSWER_S", 60.0)  # a busy machine
    data = {"good": "b25l", "bad": "b25", "other": "\u00fc"}
    secret = {"metadata": {"namespace": "calico", "name": "bgp", "resourceVersion": "1"}, "data": data}

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return web.Response()
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [secret]})

    app = web.Application()
    app.router.add_get("/api/v1/namespaces/calico/secrets", answer)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    secrets = KubernetesSecrets(tmp_path / "kubeconfig", "calico", Random(1))
    following = asyncio.create_task(secrets.run())
    try:
        good, bad, other, absent = (SecretRef("bgp", key) for key in (*data, "absent"))
        assert await secrets.read([good, bad, other, absent]) == {
            good: b"one",
            bad: "key 'bad' of secret 'bgp' is no base64",
            other: "key 'other' of secret 'bgp' is no base64",
            absent: "key 'absent' of secret 'bgp' is missing in namespace calico",
        }
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await runner.cleanup()
