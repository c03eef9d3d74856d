"""Metrics for readers elsewhere: TLS, certificates of readers, files that change (rows V02, X01, X02)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import Counter

from libs.model.metrics import MetricsPlace
from libs.runtime.health import Aggregator
from libs.runtime.http import new_registry
from libs.runtime.metrics_server import MetricsServer, context
from libs.runtime.service import Service
from libs.testkit.pki import Authority, KeyPair
from libs.testkit.servers import free_port
from tests.contract.store_backends import eventually


@pytest.fixture
def place(tmp_path: Path) -> MetricsPlace:
    ca = Authority("ca", tmp_path)
    pair = ca.issue("felix", names=("127.0.0.1",))
    ca.issue("prometheus")
    Authority("other", tmp_path / "other").issue("prometheus")
    return MetricsPlace(
        host="127.0.0.1", port=free_port("127.0.0.1"), ca=str(ca.cert), cert=str(pair.cert), key=str(pair.key),
        client_auth="RequireAndVerifyClientCert",
    )  # fmt: skip


@contextlib.asynccontextmanager
async def serving(place: MetricsPlace) -> AsyncIterator[MetricsServer]:
    async with asyncio.TaskGroup() as tasks:
        registry = new_registry(process=False)
        Counter("things", "Things.", registry=registry).inc()
        server = MetricsServer(Service("test", tasks, Aggregator(), registry), place, look_s=0.02, retry_s=0.02)
        task = tasks.create_task(server.run())
        try:
            yield server
        finally:
            task.cancel()


async def read(place: MetricsPlace, scheme: str = "https", *, own: KeyPair | None = None, path: str = "metrics") -> str:
    """What a reader gets, or "" for one who is refused."""
    tls: ssl.SSLContext | bool = True
    if scheme == "https":
        tls = ssl.create_default_context(cafile=place.ca)
        if own is not None:
            tls.load_cert_chain(own.cert, own.key)
    url = f"{scheme}://127.0.0.1:{place.port}/{path}"
    try:
        async with aiohttp.ClientSession() as session, session.get(url, ssl=tls) as answer:
            return await answer.text() if answer.status == 200 else ""
    except aiohttp.ClientError:
        return ""


def of(place: MetricsPlace, name: str) -> KeyPair:
    at = Path(place.ca).parent
    return KeyPair(at / f"{name}.crt", at / f"{name}.key")


def content(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def write(path: str, what: bytes) -> None:
    Path(path).write_bytes(what)


async def test_only_readers_with_a_certificate_of_the_authority_are_told(place: MetricsPlace) -> None:
    async with serving(place) as server:
        await eventually(lambda: server.port == place.port)
        assert "things_total 1.0" in await read(place, own=of(place, "prometheus"))
        assert await read(place) == ""
        assert await read(place, "http") == ""
        assert await read(place, own=of(place, "other/prometheus")) == ""
        assert await read(place, own=of(place, "prometheus"), path="liveness") == ""


async def test_certificates_that_are_given_are_verified_and_none_need_be(place: MetricsPlace) -> None:
    async with serving(replace(place, client_auth="VerifyClientCertIfGiven")) as server:
        await eventually(lambda: server.port > 0)
        assert await read(place)
        assert await read(place, own=of(place, "prometheus"))
        assert await read(place, own=of(place, "other/prometheus")) == ""
        server.serve_at(replace(place, ca="", client_auth="NoClientCert"))
        async with asyncio.timeout(20):
            while not await read(place, own=of(place, "other/prometheus")):  # noqa: ASYNC110 - a server's state
                await asyncio.sleep(0.01)
        assert await read(place)
        assert await read(place, "http") == ""


async def test_files_that_change_are_taken_and_half_of_them_is_nothing(place: MetricsPlace) -> None:
    reader = of(place, "prometheus")
    async with serving(place) as server:
        await eventually(lambda: server.port > 0)
        whole = content(place.key)
        write(place.key, b"-----BEGIN")
        await eventually(lambda: server.port == 0)
        assert await read(place, own=reader) == ""
        assert await read(place, "http") == ""
        write(place.key, whole)
        await eventually(lambda: server.port > 0)
        assert await read(place, own=reader)
        # Another authority is trusted from now on.
        write(place.ca, content(of(place, "other/other").cert))
        made = Authority("again", Path(place.ca).parent / "again").issue("felix", names=("127.0.0.1",))
        trusting = replace(place, ca=str(made.cert.parent / "again.crt"))
        write(place.cert, content(made.cert))
        write(place.key, content(made.key))
        async with asyncio.timeout(20):
            while not await read(trusting, own=of(place, "other/prometheus")):  # noqa: ASYNC110 - a server's state
                await asyncio.sleep(0.01)
        assert await read(trusting, own=reader) == ""


async def test_it_moves_and_ends_and_says_what_is_in_the_way(
    place: MetricsPlace, caplog: pytest.LogCaptureFixture
) -> None:
    plain = MetricsPlace(host="127.0.0.1", port=place.port)
    async with serving(plain) as server:
        await eventually(lambda: server.port > 0)
        assert await read(plain, "http")
        other = replace(plain, port=free_port("127.0.0.1"))
        server.serve_at(other)
        await eventually(lambda: server.port == other.port)
        assert await read(plain, "http") == ""
        server.serve_at(replace(plain, cert=str(place.cert)))
        await eventually(lambda: server.port == 0)
        assert "must be set together" in str([record.__dict__.get("error") for record in caplog.records])
        server.serve_at(MetricsPlace())
        server.serve_at(plain)
        await eventually(lambda: server.port == plain.port)


async def test_a_port_that_is_busy_is_tried_again_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = MetricsPlace(host="127.0.0.1", port=other.getsockname()[1])
        tries = 0

        def counted(place: MetricsPlace) -> None:
            nonlocal tries
            tries += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("libs.runtime.metrics_server.context", counted)
            async with serving(place) as server:
                await eventually(lambda: tries >= 3)
                assert server.port == 0
                other.close()
                await eventually(lambda: server.port == place.port)
                assert "things_total 1.0" in await read(place, "http")
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["metrics are not served"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": ""}, "set together"),
        ({"cert": "", "key": ""}, "needs a certificate"),
        ({"ca": ""}, "needs a CA file"),
        ({"client_auth": "RequireSome"}, "not one of"),
        ({"wrong": "a slip"}, "a slip"),
    ],
)
def test_settings_that_would_show_metrics_to_anybody_are_refused(
    place: MetricsPlace, change: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        context(replace(place, **change))  # type: ignore[arg-type]
    assert context(MetricsPlace(port=1)) is None
