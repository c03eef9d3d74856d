"""`python -m services.apiserver` as it runs: real etcd, real NATS, certificates, signals (rows A12, V03, X07)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from libs.bus import subjects
from libs.bus.api import Msg
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus, connect
from libs.runtime import release
from libs.testkit.servers import EtcdServer, NatsServer, free_port
from services.calicoctl.explain import system
from tests.contract.apiserver_stage import POLICIES, Pki, issue
from tests.contract.test_apiserver_front import ADMIN, ROLES, TOKENS, until
from tests.contract.typha_stage import Child

pytestmark = pytest.mark.servers


class Process:
    """An apiserver with its files. env, flags: added to what it needs to start."""

    def __init__(self, home: Path, etcd: EtcdServer, nats: NatsServer) -> None:
        self.pki = Pki(home / "pki")
        self.home, self.port, self.health = home, free_port(), free_port()
        for name, text in (("tokens", TOKENS), ("roles", ROLES)):
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        self.env = {
            "ETCD_ENDPOINTS": etcd.endpoint, "NATS_URL": nats.url, "APISERVER_INSTANCE": "one", "LOG_LEVEL": "debug",
            "APISERVER_HEALTHHOST": "127.0.0.1", "APISERVER_HEALTHPORT": str(self.health),
            "APISERVER_BIND_ADDRESS": "127.0.0.1", "APISERVER_RELOAD_INTERVAL_S": "0.05",
            "APISERVER_TLS_CERT_FILE": str(self.pki.home / "server.crt"),
            "APISERVER_TLS_PRIVATE_KEY_FILE": str(self.pki.home / "server.key"),
            "APISERVER_CLIENT_CA_FILE": str(self.pki.home / "people.crt"),
            "APISERVER_TOKEN_AUTH_FILE": str(home / "tokens"),
            "APISERVER_AUTHORIZATION_ROLE_FILE": str(home / "roles"),
        }  # fmt: skip
        self.child: Child | None = None

    def start(self, *flags: str, **env: str) -> Child:
        port = f"--secure-port={self.port}"
        log = self.home / "apiserver.log"
        self.child = Child("services.apiserver", port, *flags, env=self.env | env, log=log)
        return self.child

    @property
    def log(self) -> str:
        return (self.home / "apiserver.log").read_text()

    async def get(self, url: str, **more: Any) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(url, **more) as answer:
            return answer.status, await answer.text()

    async def api(self, path: str, **more: Any) -> tuple[int, str]:
        return await self.get(f"https://127.0.0.1:{self.port}{path}", ssl=self.pki.client(), **more)

    async def probe(self, path: str) -> tuple[int, str]:
        return await self.get(f"http://127.0.0.1:{self.health}{path}")

    async def answers(self, path: str = "/readyz", status: int = 200) -> None:
        deadline = time.monotonic() + 40
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if (await self.api(path))[0] == status:
                    return
            assert self.child is not None
            assert self.child.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            await asyncio.sleep(0.05)


@pytest.fixture
async def servers() -> AsyncIterator[tuple[EtcdServer, NatsServer]]:
    async with EtcdServer() as etcd, NatsServer() as nats:
        yield etcd, nats


@pytest.fixture
def process(tmp_path: Path, servers: tuple[EtcdServer, NatsServer]) -> Any:
    made = Process(tmp_path, *servers)
    yield made
    if made.child is not None:
        made.child.kill()


async def told_of(bus: NatsBus, status: str) -> system.Row:
    """What the bus tells of the one apiserver, once its status begins like this."""
    async with asyncio.timeout(60):
        while True:
            seen = system.Seen()
            await system.of_bus(bus, [], seen, timeout_s=1)
            rows = [row for row in system.rows(seen, []) if row.component == "apiserver"]
            if rows and rows[0].status.startswith(status):
                (row,) = rows
                return row


async def test_life_with_etcd_and_nats(process: Process, servers: tuple[EtcdServer, NatsServer]) -> None:
    """Health on both ports, audit on a real bus also after it was away, certificates renewed, an orderly end, and no
    secret in what was written meanwhile.
    """
    etcd, nats = servers
    events: list[dict[str, Any]] = []
    bus = await connect(BusConfig.from_env({"NATS_URL": nats.url}), name="auditor", timeout_s=20)

    def take(message: Msg) -> None:
        events.append(json.loads(message.data))

    bus.subscribe(subjects.audit("one"), take)
    await bus.barrier()
    child = process.start()
    await process.answers()
    row = await told_of(bus, "serves")
    assert (row.where, row.status, row.version, row.good) == ("one", "serves", release.version(), True)
    status, text = await process.probe("/readiness")
    assert status == 200
    assert "Datastore" in text, "V03: the body lists reporters"
    status, text = await process.api("/readyz?verbose")
    assert "[+]datastore ok" in text
    assert (await process.api(POLICIES, headers=dict(ADMIN)))[0] in (200, 404)
    assert (await process.api(POLICIES))[0] == 401
    await until(lambda: len(events) == 2, "audit events arrive")
    assert [(event["user"].get("username"), event["responseStatus"]["code"] == 401) for event in events] == [
        ("adam", False), (None, True)
    ]  # fmt: skip

    nats.kill()
    assert (await process.api(POLICIES, headers=dict(ADMIN)))[0] in (200, 404), "the bus is away, requests go on"
    assert (await process.api("/readyz"))[0] == 200
    await nats.start_async()
    deadline = time.monotonic() + 30
    while len(events) < 3:
        assert time.monotonic() < deadline, process.log[-2000:]
        await process.api(POLICIES, headers=dict(ADMIN))
        await asyncio.sleep(0.2)

    etcd.pause()
    await process.answers(status=500)
    assert not (await told_of(bus, "Datastore: ")).good
    assert (await process.probe("/readiness"))[0] == 503
    assert (await process.probe("/liveness"))[0] == 200
    etcd.resume()
    await process.answers()

    before = process.log.count('"certificate"')
    process.pki.new_server("renewed")
    await until(lambda: process.log.count('"certificate"') > before, "the certificate is taken")
    assert (await process.api("/livez"))[0] == 200
    stranger = process.pki.client(issue("carl", process.pki.other))
    with pytest.raises(aiohttp.ClientError):
        await process.get(f"https://127.0.0.1:{process.port}/livez", ssl=stranger)
    status, text = await process.probe("/metrics")
    assert "apiserver_audit_event_total" in text
    assert "apiserver_tls_handshake_errors_total 0.0" not in text, "a client may have tried twice"
    child.process.send_signal(signal.SIGTERM)
    assert await child.status() == 0
    await bus.close()
    written = process.log + json.dumps(events)
    secrets = ["tok-admin-12345", "tok-reader-12345", "PRIVATE KEY", "Bearer"]
    assert [secret for secret in secrets if secret in written] == [], "X07"
    assert all(json.loads(line) for line in process.log.splitlines()), "one structured line each"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"APISERVER_TLS_CERT_FILE": "", "APISERVER_TLS_PRIVATE_KEY_FILE": ""}, "no certificate"),
        ({"APISERVER_CLIENT_CA_FILE": "", "APISERVER_TOKEN_AUTH_FILE": ""}, "nobody could be authenticated"),
        ({"APISERVER_AUTHORIZATION_ROLE_FILE": ""}, "nothing could be authorized"),
        ({"APISERVER_DEVELOPMENT": "true", "APISERVER_BIND_ADDRESS": "0.0.0.0"}, "loopback alone"),
        ({"TLS_MIN_VERSION": "VersionTLS11"}, "VersionTLS12, VersionTLS13"),
        ({"TLS_CIPHER_SUITES": "TLS_RSA_WITH_RC4_128_SHA"}, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        ({"APISERVER_CLIENT_CA_FILE": "/nowhere/ca.crt"}, "/nowhere/ca.crt"),
        ({"APISERVER_TOKEN_AUTH_FILE": "/etc/hostname"}, "line 1"),
    ],
)
async def test_nothing_starts_open_or_half_configured(process: Process, changes: dict[str, str], words: str) -> None:
    child = process.start(**changes)
    assert await child.status(40) == 2
    assert words in process.log


async def test_development_is_open_on_loopback_and_says_so(process: Process) -> None:
    plain = free_port()
    files = ["APISERVER_TLS_CERT_FILE", "APISERVER_TLS_PRIVATE_KEY_FILE", "APISERVER_CLIENT_CA_FILE",
             "APISERVER_TOKEN_AUTH_FILE", "APISERVER_AUTHORIZATION_ROLE_FILE", "APISERVER_BIND_ADDRESS"]  # fmt: skip
    process.start("--development", f"--insecure-port={plain}", **dict.fromkeys(files, ""))
    deadline = time.monotonic() + 40
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            if (await process.get(f"http://127.0.0.1:{plain}/readyz"))[0] == 200:
                break
        assert time.monotonic() < deadline, process.log
        await asyncio.sleep(0.05)
    assert (await process.get(f"http://127.0.0.1:{plain}{POLICIES}"))[0] in (200, 404)
    assert (await process.get(f"https://localhost:{process.port}/livez", ssl=False))[0] == 200
    for words in ("everybody on this host", "self-signed", "plain HTTP on loopback"):
        assert words in process.log
    assert {listening_on(port) for port in (plain, process.port)} == {"0100007F"}, "127.0.0.1 alone"


def listening_on(port: int) -> str:
    """Address of the IPv4 listener on the port, as /proc/net/tcp writes it (proc(5))."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return next(fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"))
