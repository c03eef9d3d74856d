"""Resources through an API server, followed for long, with credentials that are renewed meanwhile."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
import yaml

from libs.model.base import Resource
from libs.resources import codec
from libs.resources.api import Changed
from libs.resources.client import ResourceClient
from libs.resources.remote import connect
from libs.resources.remote_access import open_access
from libs.resources.remote_settings import Settings
from libs.store import StoreAuthError
from libs.store.memory import MemoryStore
from libs.testkit.pki import Authority
from tests.contract.rest_stage import RestStage, rest_stage

WAIT_S = 20.0


def network_set(name: str) -> Resource:
    return codec.from_json(
        {"kind": "GlobalNetworkSet", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": {}}
    )


async def told(following: AsyncGenerator[Changed, None]) -> str:
    async with asyncio.timeout(WAIT_S):
        return (await anext(following)).resource.metadata.name


async def restarted(stage: RestStage) -> None:
    """Watches end, and must be asked for again."""
    await stage.stop()
    await stage.start()


def kubeconfig(directory: Path, *servers: str, current: str = "c0") -> Path:
    """Contexts c0, c1 …, one for each server, with the token in the file `token`; `stranger`: c0 with another one."""
    text = yaml.safe_dump(
        {
            "current-context": current,
            "contexts": [
                {"name": f"c{at}", "context": {"cluster": f"s{at}", "user": "u"}} for at in range(len(servers))
            ]
            + [{"name": "stranger", "context": {"cluster": "s0", "user": "stranger"}}],
            "clusters": [{"name": f"s{at}", "cluster": {"server": server}} for at, server in enumerate(servers)],
            "users": [
                {"name": "u", "user": {"tokenFile": "token"}},
                {"name": "stranger", "user": {"token": "another"}},
            ],
        }
    )
    (directory / "kubeconfig.new").write_text(text)
    return (directory / "kubeconfig.new").replace(directory / "kubeconfig")


@pytest.mark.parametrize("check_s", [0, 3600], ids=["the file changes", "the server refuses"])
async def test_a_watch_goes_on_with_a_renewed_token(tmp_path: Path, check_s: float) -> None:
    store = MemoryStore()
    direct = ResourceClient(store)
    (tmp_path / "token").write_text("first-token")
    async with rest_stage(store, token="first-token") as stage:
        access = await open_access(Settings(kubeconfig=str(kubeconfig(tmp_path, stage.url))))
        async with connect(access, reload_check_s=check_s) as remote:
            listed = await remote.list("GlobalNetworkSet")
            async with aclosing(remote.follow("GlobalNetworkSet", listed)) as following:
                await direct.create(network_set("a"))
                assert await told(following) == "a"
                stage.token = "second-token"
                (tmp_path / "token").write_text("second-token")
                await restarted(stage)
                await direct.create(network_set("b"))
                assert await told(following) == "b"
            await remote.create(network_set("c"))
            assert stage.refused == (0 if check_s == 0 else 1), "refused only where the file's change was not seen"
            stage.token = "third-token"
            asked = len(stage.requests)
            with pytest.raises(StoreAuthError):
                await remote.create(network_set("d"))
            assert len(stage.requests) == asked + 1, "with the same token it is not asked again"


async def test_a_watch_goes_on_with_a_renewed_certificate(tmp_path: Path) -> None:
    authority = Authority("cluster", tmp_path / "pki")
    server = authority.issue("server", names=("127.0.0.1",))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.cert))
    tls.load_cert_chain(server.cert, server.key)
    tls.verify_mode = ssl.CERT_REQUIRED
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"

    def renew(name: str) -> None:
        pair = authority.issue(name)
        for source, target in ((pair.cert, cert), (pair.key, key)):
            target.with_suffix(".new").write_bytes(source.read_bytes())
            target.with_suffix(".new").replace(target)

    renew("first")
    store = MemoryStore()
    direct = ResourceClient(store)
    async with rest_stage(store, tls=tls) as stage:
        settings = Settings(endpoint=stage.url, ca_file=str(authority.cert), cert_file=str(cert), key_file=str(key))
        async with connect(await open_access(settings), reload_check_s=0) as remote:
            listed = await remote.list("GlobalNetworkSet")
            async with aclosing(remote.follow("GlobalNetworkSet", listed)) as following:
                for name in ("first", "second", "third"):
                    renew(name)
                    await restarted(stage)
                    await direct.create(network_set(name))
                    assert await told(following) == name
                    assert stage.peers[-1] == name
                cert.write_text("half a fi")
                await restarted(stage)
                await direct.create(network_set("fourth"))
                assert await told(following) == "fourth"
                assert stage.peers[-1] == "third", "what cannot be used changes nothing"


async def test_another_context_or_server_in_the_kubeconfig_is_not_followed(tmp_path: Path) -> None:
    """The user looks at another cluster meanwhile; a watch goes on where it was."""
    store = MemoryStore()
    direct = ResourceClient(store)
    (tmp_path / "token").write_text("token")
    async with rest_stage(store, token="token") as stage, rest_stage(MemoryStore(), token="token") as other:
        access = await open_access(Settings(kubeconfig=str(kubeconfig(tmp_path, stage.url, other.url))))
        async with connect(access, reload_check_s=0) as remote:
            listed = await remote.list("GlobalNetworkSet")
            async with aclosing(remote.follow("GlobalNetworkSet", listed)) as following:
                for current in ("c1", "stranger"):
                    kubeconfig(tmp_path, stage.url, other.url, current=current)
                    await restarted(stage)
                    await direct.create(network_set(current))
                    assert await told(following) == current
                kubeconfig(tmp_path, other.url)
                await restarted(stage)
                await direct.create(network_set("b"))
                assert await told(following) == "b"
        assert other.requests == []
        assert stage.refused == 0
