"""A whole apiserver as a process of its own over a real etcd, and clients of it: some polite, some not.

`Running.ask` is one request over one connection and gives back what came; whatever is not a success must be a Status
whose code is that of the answer, which is checked at once for every test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from libs.testkit.apiserver import CalicoApiserver, RoleFile, standing_alone
from libs.testkit.pki import Authority
from libs.testkit.servers import EtcdServer, free_port
from services.apiserver.core.request import API_PREFIX

JsonObject = dict[str, Any]

API = "projectcalico.org/v3"
POLICIES = f"{API_PREFIX}/globalnetworkpolicies"
TIERS = f"{API_PREFIX}/tiers"
SETS = f"{API_PREFIX}/namespaces/default/networksets"
ADMIN, NOBODY = "admin-token", "nobody-token"
TOKENS = f'{ADMIN},admin,1,"system:masters"\n{NOBODY},nobody,2,"people"\n'
ANSWER_S = 60.0
"""Deadline of every wait here: far longer than anything takes on a loaded machine."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> JsonObject:
        found: JsonObject = json.loads(self.body)
        return found

    @property
    def reason(self) -> str:
        return str(self.json.get("reason", ""))

    @property
    def message(self) -> str:
        return str(self.json.get("message", ""))

    @property
    def fields(self) -> list[str]:
        """Paths of the causes."""
        return [cause.get("field", "") for cause in self.json.get("details", {}).get("causes", ())]

    def checked(self) -> Answer:
        """Raises AssertionError when a failure is not told as Kubernetes tells it."""
        if self.status >= 400:
            found = self.json
            assert (found["kind"], found["apiVersion"], found["status"]) == ("Status", "v1", "Failure"), found
            assert found["code"] == self.status, found
            assert found["reason"], found
            assert found["message"], found
            assert len(self.body) < 64 * 1024, "the whole input must not come back"
        return self


class Running:
    """The server, over plain HTTP on loopback: what is sent is seen as it is."""

    def __init__(self, server: CalicoApiserver, etcd: EtcdServer, port: int) -> None:
        self.server, self.etcd, self.port = server, etcd, port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def rss_bytes(self) -> int:
        """Memory of the server that is in use now (proc(5), VmRSS)."""
        for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    @property
    def log(self) -> str:
        """All that the server has said so far."""
        return self.server.log_path.read_text(errors="replace")

    @contextlib.asynccontextmanager
    async def session(self, token: str = ADMIN, *, connections: int = 100) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connector = aiohttp.TCPConnector(limit=connections)
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(self.url, headers=headers, connector=connector, timeout=timeout) as made:
            yield made

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | JsonObject | list[Any] | None = None,
        *,
        token: str = ADMIN,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        async with self.session(token) as session:
            return await ask(session, method, path, body, headers)

    async def raw(self, *parts: bytes, half_close: bool = False) -> bytes:
        """What the server says to these bytes until it closes; half_close: we say that no more comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with contextlib.suppress(ConnectionError):  # it may close before it has heard all
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                if half_close:
                    writer.write_eof()
            async with asyncio.timeout(ANSWER_S):
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
            return b""
        finally:
            writer.close()

    async def answers(self) -> None:
        """Others are still served. Raises AssertionError."""
        assert (await self.ask("GET", TIERS + "/default")).status == 200


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    body: bytes | JsonObject | list[Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else headers
    async with session.request(method, path, data=data, headers=sent) as response:
        return Answer(response.status, response.headers.copy(), await response.read()).checked()


def policy(name: str, **spec: Any) -> JsonObject:
    return {"apiVersion": API, "kind": "GlobalNetworkPolicy", "metadata": {"name": name}, "spec": spec}


def network_set(name: str, nets: list[str], **metadata: Any) -> JsonObject:
    meta = {"name": name, "namespace": "default", **metadata}
    return {"apiVersion": API, "kind": "NetworkSet", "metadata": meta, "spec": {"nets": nets}}


@contextmanager
def running(directory: Path, **flags: str) -> Iterator[Running]:
    """flags: settings with underscores, as in services/apiserver/config.py."""
    port = free_port()
    (directory / "tokens").write_text(TOKENS)
    given = {
        "insecure-port": str(port),
        "token-auth-file": str(directory / "tokens"),
        **{name.replace("_", "-"): value for name, value in flags.items()},
    }
    with EtcdServer() as etcd:
        ca = Authority("tests", directory / "pki")
        roles = RoleFile(directory / "roles.yaml")
        with standing_alone(etcd, ca, roles, directory=directory, flags=given) as server:
            yield Running(server, etcd, port)
