"""The apiserver as a process of its own over a real etcd, on loopback without TLS: requests a second of several
connections, a list of 50,000 objects, and 1,000 watchers beside a server that opens a watch on etcd for each of them.

One process makes the load and is on the same cores, so requests a second are what both together can do; server_cpu_ms
is what one request costs the server. peak_mb is VmHWM of the server (proc(5)), set back before each row. Delays of
watchers run from the moment a write is sent to the frame with it at the last of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb, spread
from libs.model import NetworkSet, NetworkSetSpec, ObjectMeta
from libs.resources.codec import to_storage
from libs.store.api import Put
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.apiserver import RoleFile, standing_alone
from libs.testkit.pki import Authority
from libs.testkit.servers import EtcdServer, free_port

ROOT = Path(__file__).resolve().parents[1]
API = "/apis/projectcalico.org/v3"
SETS = f"{API}/namespaces/shop/networksets"
TOKEN = "bench"
CONNECTIONS = 16
PUTS_AT_ONCE = 100
MARK = b"bench/mark"

Ask = Callable[[aiohttp.ClientSession, int], Awaitable[None]]


def main() -> None:
    options = parser(__doc__).parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    described = machine()
    rows: list[Row] = []
    asyncio.run(_run(rows, quick=options.quick))
    report("apiserver", rows, options.json, described)
    print(markdown(rows))


async def _run(rows: list[Row], *, quick: bool) -> None:
    seconds, many, watchers, writes = (0.5, 2_000, 50, 5) if quick else (3.0, 50_000, 1_000, 20)
    with tempfile.TemporaryDirectory() as name, EtcdServer() as etcd, serving(Path(name), etcd) as (port, pid):
        async with session(port) as client:
            await _requests(rows, client, pid, seconds)
            await _watched(rows, "watchers of one etcd watch", client, port, pid, SETS, watchers, writes)
            with naive(etcd) as (other, naive_pid):
                path = "/watch/NetworkSet/shop"
                await _watched(rows, "naive: one each", client, other, naive_pid, path, watchers, writes)
            await _large(rows, client, etcd, pid, many)


# --- what is measured -------------------------------------------------------------------------------------------------


async def _requests(rows: list[Row], client: aiohttp.ClientSession, pid: int, seconds: float) -> None:
    async def get(session: aiohttp.ClientSession, number: int) -> None:
        await call(session, "GET", f"{SETS}/s{number % 100}")

    async def listed(session: aiohttp.ClientSession, number: int) -> None:
        await call(session, "GET", SETS)

    async def create(session: aiohttp.ClientSession, number: int) -> None:
        await call(session, "POST", f"{API}/namespaces/new/networksets", network_set(f"c{number}", "new"))

    async def patch(session: aiohttp.ClientSession, number: int) -> None:
        body = {"metadata": {"annotations": {"bench/number": str(number)}}}
        await call(session, "PATCH", f"{SETS}/s{number % 100}", body, "application/merge-patch+json")

    async def apply(session: aiohttp.ClientSession, number: int) -> None:
        body = network_set(f"s{number % 100}", "shop", nets=[f"10.1.{number % 256}.0/24"])
        path = f"{SETS}/s{number % 100}?fieldManager=bench&force=true"
        await call(session, "PATCH", path, body, "application/apply-patch+yaml")

    for number in range(100):
        await call(client, "POST", SETS, network_set(f"s{number}", "shop"))
    works: dict[str, Ask] = {
        "get one": get, "list of 100": listed, "create": create, "merge patch": patch, "server-side apply": apply,
    }  # fmt: skip
    for what, work in works.items():
        rows.append({"what": what} | await _load(client, pid, work, seconds))


async def _load(client: aiohttp.ClientSession, pid: int, work: Ask, seconds: float) -> Row:
    times: list[float] = []
    numbers = iter(range(10**9))
    before, begun = cpu_s(pid), time.perf_counter()

    async def one() -> None:
        while (sent := time.perf_counter()) < begun + seconds:
            await work(client, next(numbers))
            times.append((time.perf_counter() - sent) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        for number in range(CONNECTIONS):
            tasks.create_task(one(), name=f"connection {number}")
    took = time.perf_counter() - begun
    cpu_ms = round((cpu_s(pid) - before) * 1e3 / len(times), 2)
    return {"a_second": round(len(times) / took)} | spread(times) | {"server_cpu_ms": cpu_ms}


class Watcher(asyncio.Protocol):
    """Reads a watch without decoding it: thousands of clients must not cost more than the server. seen: awaited by who
    wrote; told each time that a frame with the mark came.
    """

    def __init__(self, path: str, ready: Callable[[], None], seen: Callable[[], None]) -> None:
        self._path, self._ready, self._seen = path, ready, seen
        self._begun, self._rest = False, b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        head = f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            if b"BOOKMARK" in data:  # the end of what there was
                self._begun = True
                self._ready()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if MARK in line:
                self._seen()


async def _watched(
    rows: list[Row], what: str, client: aiohttp.ClientSession, port: int, pid: int, path: str, count: int, writes: int
) -> None:
    """client: writes; port and pid: of the server that is watched."""
    loop = asyncio.get_running_loop()
    missing, all_here = count, asyncio.Event()

    def told() -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            all_here.set()

    reset_peak(pid)
    empty_mb = rss_mb(pid)
    query = "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    made: list[Watcher] = []
    try:
        for _ in range(count):
            _, one = await loop.create_connection(lambda: Watcher(path + query, told, told), "127.0.0.1", port)
            made.append(one)
        async with asyncio.timeout(60):
            await all_here.wait()
        held_mb = rss_mb(pid)
        times, before = [], cpu_s(pid)
        for number in range(writes):
            missing = count
            all_here.clear()
            body = {"metadata": {"annotations": {MARK.decode(): str(number)}}}
            sent = time.perf_counter()
            write = asyncio.create_task(call(client, "PATCH", f"{SETS}/s0", body, "application/merge-patch+json"))
            async with asyncio.timeout(60):
                await all_here.wait()
            times.append((time.perf_counter() - sent) * 1e3)
            await write
        cpu_ms = round((cpu_s(pid) - before) * 1e3 / writes, 1)
    finally:
        for one in made:
            if one.transport is not None:
                one.transport.abort()
    rows.append(
        {"what": f"{count:,} {what}"} | spread(times)
        | {"server_cpu_ms": cpu_ms, "memory_mb": round(held_mb - empty_mb, 1), "peak_mb": peak_mb(pid)}
    )  # fmt: skip


async def _large(rows: list[Row], client: aiohttp.ClientSession, etcd: EtcdServer, pid: int, count: int) -> None:
    store = EtcdStore(StoreConfig.from_env({"ETCD_ENDPOINTS": etcd.endpoint}))
    try:
        before_mb = rss_mb(pid)
        puts = [_put(number) for number in range(count)]
        for at in range(0, count, PUTS_AT_ONCE):
            await store.txn([], puts[at : at + PUTS_AT_ONCE])
    finally:
        await store.close()
    path = f"{API}/namespaces/large/networksets"
    listing = json.loads(await call(client, "GET", path))
    assert len(listing["items"]) == count, len(listing["items"])
    revision = listing["metadata"]["resourceVersion"]
    rows.append({"what": f"cache of {count:,} objects", "memory_mb": round(rss_mb(pid) - before_mb, 1)})
    for what, query in {
        "list, JSON": "",
        "list, Table": "",
        "list in chunks of 500": "?limit=500",
        "list of an exact revision, from etcd": f"?resourceVersion={revision}&resourceVersionMatch=Exact",
    }.items():
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io" if "Table" in what else "application/json"
        times, size = [], 0
        reset_peak(pid)
        before = cpu_s(pid)
        rounds = 3 if what.startswith("list, ") else 1  # the others take seconds each
        for _ in range(rounds):
            begun, size = time.perf_counter(), 0
            sign, token = ("&" if query else "?"), ""
            while True:
                more = f"{sign}continue={token}" if token else ""
                body = await call(client, "GET", path + query + more, accept=accept)
                size += len(body)
                token = json.loads(body)["metadata"].get("continue", "") if "chunks" in what else ""
                if not token:
                    break
            times.append((time.perf_counter() - begun) * 1e3)
        rows.append(
            {"what": f"{what}, {count:,}"} | spread(times)
            | {"server_cpu_ms": round((cpu_s(pid) - before) * 1e3 / rounds), "peak_mb": peak_mb(pid),
               "answer_mb": round(size / 2**20, 1)}
        )  # fmt: skip


# --- parts ------------------------------------------------------------------------------------------------------------


def network_set(name: str, namespace: str, nets: list[str] | None = None) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"role": "bench"}}
    spec = {"nets": nets or ["10.0.0.0/24", "2001:db8::/64"]}
    return {"apiVersion": "projectcalico.org/v3", "kind": "NetworkSet", "metadata": metadata, "spec": spec}


def _put(number: int) -> Put:
    name = f"s{number:06}"
    metadata = ObjectMeta(name=name, namespace="large", labels={"role": "bench"})
    metadata.uid, metadata.creation_timestamp = f"{number:032x}", "2026-11-28T00:00:00Z"
    key, value = to_storage(NetworkSet(metadata=metadata, spec=NetworkSetSpec(nets=["10.0.0.0/24"])))
    return Put(key, value)


async def call(
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    content_type: str = "application/json",
    accept: str = "application/json",
) -> bytes:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = content_type
    async with session.request(method, path, data=data, headers=headers) as answer:
        text = await answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
        return text


@asynccontextmanager
async def session(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, connector=connector) as made:
        yield made


@contextmanager
def serving(directory: Path, etcd: EtcdServer) -> Iterator[tuple[int, int]]:
    """(port, pid)."""
    tokens = directory / "tokens"
    tokens.write_text(f'{TOKEN},bench,1,"system:masters"\n')
    tokens.chmod(0o600)
    port = free_port()
    flags = {"insecure-port": str(port), "token-auth-file": str(tokens)}
    ca, roles = Authority("bench", directory / "pki"), RoleFile(directory / "roles.yaml")
    with standing_alone(etcd, ca, roles, directory=directory / "server", flags=flags) as server:
        yield port, server.pid


@contextmanager
def naive(etcd: EtcdServer) -> Iterator[tuple[int, int]]:
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ETCD_ENDPOINTS": etcd.endpoint}
    command = [sys.executable, "-m", "benchmarks.naive_watches", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"serving\n":
                raise RuntimeError("the naive server does not start")
            yield port, process.pid
        finally:
            process.kill()


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 2**10, 1)
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def markdown(rows: list[Row]) -> str:
    """For docs/benchmarks.md."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main()
