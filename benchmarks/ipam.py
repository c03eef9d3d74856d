"""How many addresses a second: 1, 10 and 50 concurrent callers, all on one node or each on its own, against a real
etcd.

    python -m benchmarks.ipam [--count 600] [--no-fsync] [--json FILE]

Each row is measured for `libs.ipam` and, in the same run on the same etcd, for the plain way: read settings, pools,
node and blocks for every address, write the handle, then compare-and-swap the block, and start again on a conflict.
After each row the addresses are compared with what the blocks say, and must all be different. One process does all
the work, so a row with 50 nodes also pays for 50 nodes' worth of Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from pathlib import Path
from random import Random

from libs.ipam import keys
from libs.ipam.affinity import Owner
from libs.ipam.block import allocate, decode_block, encode_block, written
from libs.ipam.claims import Claims, Shell
from libs.ipam.client import IpamClient
from libs.ipam.draft import Cache
from libs.ipam.errors import BlockClaimed
from libs.ipam.handles import Handle, decode_handle, encode_handle
from libs.ipam.pools import Use, select_pools
from libs.ipam.requests import AssignRequest
from libs.ipam.source import read_inputs, read_node_labels
from libs.ipam.wire import Address
from libs.store.api import Conflict, KeyExists, Store
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore, connect
from libs.testkit.servers import EtcdServer

Assign = Callable[[str], Awaitable[Address]]


@dataclass(frozen=True, slots=True)
class Result:
    way: str  # "ours" or "naive"
    place: str  # "one node" or "own nodes"
    callers: int
    count: int
    per_second: float
    p50_ms: float
    p99_ms: float
    writes_per_address: float  # etcd revisions
    releases_per_second: float | None


class Naive:
    """Read, change, write, and again when somebody else was faster. Nothing is kept between calls."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._owner = Owner.host(node)
        self._shell = Shell(store, time.time_ns, Random(), asyncio.sleep)

    async def assign(self, handle: str) -> Address:
        while True:
            inputs = await read_inputs(self._store)
            labels = await read_node_labels(self._store, self._owner.name)
            pool = select_pools(inputs.pools, version=4, use=Use.WORKLOAD, node_labels=labels, namespace_labels=None)[0]
            for affinity in (await self._store.list(keys.affinities(self._owner, 4))).kvs:
                cidr = keys.cidr_of(affinity.key)
                kv = await self._store.get(keys.block(cidr)) if cidr else None
                if cidr is None or kv is None:
                    continue
                block, got = allocate(decode_block(kv.value), 1, handle, {"node": self._owner.name})
                if not got:
                    continue
                await self._change_handle(handle, str(cidr), 1)
                try:
                    value = encode_block(written(block))
                    await self._store.update(kv.key, value, mod_revision=kv.mod_revision)
                except Conflict:
                    await self._change_handle(handle, str(cidr), -1)
                    break
                return got[0]
            else:
                taken = await self._store.list(keys.blocks(4), keys_only=True)
                existing = [c for kv in taken.kvs if (c := keys.cidr_of(kv.key))]
                for cidr in pool.free_blocks(str(self._owner), existing):
                    try:
                        await Claims(self._shell, Cache()).claim(self._owner, cidr, cooldown_s=0)
                    except BlockClaimed:
                        continue
                    break

    async def _change_handle(self, identity: str, cidr: str, by: int) -> None:
        key, network = keys.handle(identity), ip_network(cidr)
        while True:
            kv = await self._store.get(key)
            handle = decode_handle(kv.value) if kv else Handle()
            handle = handle.add(network, by) if by > 0 else handle.remove(network, -by)
            try:
                if kv is None:
                    await self._store.create(key, encode_handle(handle))
                elif handle.blocks:
                    await self._store.update(key, encode_handle(handle), mod_revision=kv.mod_revision)
                else:
                    await self._store.delete(key, mod_revision=kv.mod_revision)
                return
            except (Conflict, KeyExists):
                continue


async def prepare(store: Store, nodes: int) -> None:
    for kv in (await store.list("/calico/", keys_only=True)).kvs:
        await store.delete(kv.key)
    pool = {"cidr": "10.0.0.0/16", "blockSize": 26, "nodeSelector": "all()", "allowedUses": ["Workload"]}
    await store.put(keys.resource("ippools", "pool"), _resource("IPPool", "pool", pool))
    for n in range(nodes):
        await store.put(keys.resource("nodes", f"node{n}"), _resource("Node", f"node{n}", {}))


def _resource(kind: str, name: str, spec: dict[str, object]) -> bytes:
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}
    return json.dumps(document).encode()


async def measure(server: EtcdServer, way: str, callers: int, *, own_nodes: bool, count: int) -> Result:
    """One row. Every caller asks for one address after the other until all callers together have `count`."""
    config = StoreConfig(endpoints=(server.endpoint,))
    nodes = callers if own_nodes else 1
    stores: list[EtcdStore] = [await connect(config) for _ in range(nodes)]
    try:
        await prepare(stores[0], nodes)
        clients = [IpamClient(store) for store in stores]
        naives = [Naive(store, f"node{n}") for n, store in enumerate(stores)]

        async def ours(handle: str, n: int) -> Address:
            got = await clients[n].auto_assign(AssignRequest(handle=handle, node=f"node{n}", num4=1))
            return got.v4[0].ip

        async def assign(handle: str, n: int) -> Address:
            return await (ours(handle, n) if way == "ours" else naives[n].assign(handle))

        warm = [await assign(f"warm{n}", n) for n in range(nodes)]  # first blocks and connections
        revision = (await stores[0].status()).revision
        todo = iter(range(count))
        got: dict[str, Address] = {}
        mine: list[list[str]] = [[] for _ in range(callers)]  # handles by caller
        spans: list[float] = []

        async def caller(n: int) -> None:
            for number in todo:
                started = time.perf_counter()
                handle = f"h{number}"
                got[handle] = await assign(handle, n if own_nodes else 0)
                mine[n].append(handle)
                spans.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(caller(n) for n in range(callers)))
        wall_s = time.perf_counter() - started
        writes = (await stores[0].status()).revision - revision
        await verify(stores[0], got, warm)
        released = await release_all(clients, mine, own_nodes=own_nodes) if way == "ours" else None
        spans.sort()
        return Result(
            way,
            "own nodes" if own_nodes else "one node",
            callers,
            count,
            round(count / wall_s, 1),
            round(spans[len(spans) // 2] * 1000, 2),
            round(spans[min(len(spans) - 1, len(spans) * 99 // 100)] * 1000, 2),
            round(writes / count, 2),
            released,
        )
    finally:
        for store in stores:
            await store.close()


async def release_all(clients: list[IpamClient], mine: list[list[str]], *, own_nodes: bool) -> float:
    """Releases a second: every caller releases what it got, by handle."""

    async def caller(n: int) -> None:
        for handle in mine[n]:
            await clients[n if own_nodes else 0].release_by_handle(handle)

    started = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(len(mine))))
    return round(sum(map(len, mine)) / (time.perf_counter() - started), 1)


async def verify(store: Store, got: dict[str, Address], warm: list[Address]) -> None:
    """Every address once, and the blocks say the same as the callers were told."""
    addresses = [*got.values(), *warm]
    if len(set(addresses)) != len(addresses):
        raise SystemExit("an address was given twice")
    stored = {
        allocation.handle: allocation.address
        for kv in (await store.list(keys.blocks(4))).kvs
        for allocation in decode_block(kv.value).allocated()
    }
    if any(stored.get(handle) != address for handle, address in got.items()):
        raise SystemExit("the blocks do not hold what was given")


def show(results: list[Result]) -> None:
    header = ("place", "callers", "way", "assign/s", "p50 ms", "p99 ms", "writes/address", "release/s", "faster")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    naive = {(r.place, r.callers): r.per_second for r in results if r.way == "naive"}
    for r in results:
        factor = f"{r.per_second / naive[r.place, r.callers]:.1f}x" if r.way == "ours" else ""
        cells = (r.place, r.callers, r.way, r.per_second, r.p50_ms, r.p99_ms, r.writes_per_address)
        print("| " + " | ".join(map(str, (*cells, r.releases_per_second or "", factor))) + " |")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600, help="addresses per row; one node may own 20 blocks of 64")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--no-fsync", action="store_true", help="etcd does not wait for the disk")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    results: list[Result] = []
    with EtcdServer(fsync=not args.no_fsync) as server:
        for own_nodes in (False, True):
            for callers in args.callers:
                for way in ("naive", "ours"):
                    count = args.count if way == "ours" or callers > 1 else max(50, args.count // 4)
                    row = await measure(server, way, callers, own_nodes=own_nodes, count=count)
                    results.append(row)
                    print(row, file=sys.stderr)
    show(results)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "fsync": not args.no_fsync}
    report = json.dumps({"machine": machine, "results": [asdict(result) for result in results]}, indent=1)
    if args.json:
        args.json.write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    asyncio.run(main())
