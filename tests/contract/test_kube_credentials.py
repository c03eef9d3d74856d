"""A client of the Kubernetes API whose certificate is renewed while it runs: over real TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from libs.kube.api import KubeApi, KubeError
from libs.testkit.pki import Authority
from libs.testkit.servers import free_port


async def _who(request: web.Request) -> web.Response:
    """The common name of the client's certificate, on this connection."""
    peer: Any = request.transport.get_extra_info("peercert") if request.transport else None
    ((_, name),) = [pair for one in peer["subject"] for pair in one if pair[0] == "commonName"]
    return web.json_response({"name": name})


@pytest.fixture
async def authority(tmp_path: Path) -> Authority:
    return Authority("cluster", tmp_path / "pki")


@pytest.fixture
async def url(authority: Authority) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/who", _who)
    pair = authority.issue("server", names=("127.0.0.1",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.cert))
    context.load_cert_chain(pair.cert, pair.key)
    context.verify_mode = ssl.CERT_REQUIRED
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    yield f"https://127.0.0.1:{port}"
    await runner.cleanup()


async def test_a_renewed_client_certificate_is_used_without_a_restart(
    authority: Authority, url: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()

    def renew(name: str) -> None:
        pair = authority.issue(name)
        for source, target in ((pair.cert, "client.crt"), (pair.key, "client.key")):
            (own / f"{target}.new").write_bytes(source.read_bytes())
            (own / f"{target}.new").replace(own / target)

    renew("first")
    (own / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(authority.cert)}}],
                "users": [
                    {
                        "name": "u",
                        "user": {
                            "client-certificate": str(own / "client.crt"),
                            "client-key": str(own / "client.key"),
                        },
                    }
                ],
            }
        )
    )
    async with await KubeApi.open(own / "kubeconfig", reload_check_s=0) as api:
        assert await api.get("/who") == {"name": "first"}
        for name in ("second", "third"):
            renew(name)
            assert await api.get("/who") == {"name": name}
        (own / "client.crt").write_text("half a fi")
        assert await api.get("/who") == {"name": "third"}, "what cannot be used changes nothing"
        renew("fourth")
        assert await api.get("/who") == {"name": "fourth"}


@pytest.mark.parametrize("check_s", [0, 3600], ids=["the file changes", "the server refuses"])
async def test_a_renewed_token_is_used_without_a_restart(tmp_path: Path, check_s: float) -> None:
    """tokenFile relative to the kubeconfig, as bound tokens of service accounts are, which live for an hour."""
    wanted, asked = "one", 0

    async def who(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if request.headers.get("Authorization") != f"Bearer {wanted}":
            return web.json_response({"message": "Unauthorized", "reason": "Unauthorized"}, status=401)
        return web.json_response({"name": wanted})

    app = web.Application()
    app.router.add_post("/who", who)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    (tmp_path / "token").write_text(wanted)
    (tmp_path / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"tokenFile": "token"}}],
            }
        )
    )
    try:
        async with await KubeApi.open(tmp_path / "kubeconfig", reload_check_s=check_s) as api:
            assert await api.create("/who", {}) == {"name": "one"}
            wanted = "another"
            (tmp_path / "token").write_text(wanted)
            assert await api.create("/who", {}) == {"name": "another"}
            assert asked == (2 if check_s == 0 else 3), "asked again only where the file's change was not seen"
            wanted, asked = "third", 0
            with pytest.raises(KubeError) as refused:
                await api.create("/who", {})
            assert refused.value.code == 401
            assert asked == 1, "with the same token it is not asked again"
    finally:
        await runner.cleanup()


NO_FORM = (
    "", "[]", "text",
    "{current-context: c, contexts: 5, clusters: [], users: []}",
    "{current-context: c, contexts: [{name: c, context: 7}], clusters: [], users: []}",
    "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: [1]}],"
    " users: [{name: u, user: 3}]}",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_FORM)
async def test_a_kubeconfig_of_another_form_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(ValueError, match=f"kubeconfig {tmp_path}.*: .*form"):
        await KubeApi.open(tmp_path / "kubeconfig")
