"""Address management when blocks are full: assignments and releases beside hardly any free address, and a whole pool
filled to its last address by fifty nodes at once.

    python -m benchmarks.ipam_fill [--quick] [--json FILE]

The first rows compare a node whose blocks are empty with the same node when only as many addresses are free as there
are callers. The last row counts: every address must be given exactly once, and no request may go short before the pool
is full; anything else ends the run without figures.
"""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_network

from benchmarks.common import Row, machine, parser, report, spread
from benchmarks.ipam import _resource
from libs.ipam import keys
from libs.ipam.block import decode_block
from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignRequest
from libs.store.api import Store
from libs.store.config import StoreConfig
from libs.store.etcd import connect
from libs.testkit.servers import EtcdServer

BLOCKS = 20  # of 64 addresses: what one node may own
NODES = 50
AT_ONCE = 4  # requests on their way per node
EACH = 16  # addresses per request


async def prepare(store: Store, cidr: str, nodes: int) -> None:
    for kv in (await store.list("/calico/", keys_only=True)).kvs:
        await store.delete(kv.key)
    spec: dict[str, object] = {"cidr": cidr, "blockSize": 26, "nodeSelector": "all()", "allowedUses": ["Workload"]}
    await store.put(keys.resource("ippools", "pool"), _resource("IPPool", "pool", spec))
    for n in range(nodes):
        await store.put(keys.resource("nodes", f"node{n}"), _resource("Node", f"node{n}", {}))


async def pairs(config: StoreConfig, callers: int, *, full: bool, count: int) -> Row:
    """Every caller assigns one address and releases it, over and over."""
    store = await connect(config)
    try:
        await prepare(store, "10.0.0.0/16", 1)
        ipam = IpamClient(store)
        fill = BLOCKS * 64 - callers if full else 0
        for start in range(0, fill, 64):
            number = min(64, fill - start)
            got = await ipam.auto_assign(AssignRequest(handle=f"base{start}", node="node0", num4=number))
            if not got.complete:
                raise SystemExit("could not prepare the blocks")
        todo, spans = iter(range(count)), []

        async def caller() -> None:
            for number in todo:
                started = time.perf_counter()
                got = await ipam.auto_assign(AssignRequest(handle=f"h{number}", node="node0", num4=1))
                if not got.complete:
                    raise SystemExit(f"no address although one is free: {got.reasons}")
                await ipam.release_by_handle(f"h{number}")
                spans.append((time.perf_counter() - started) * 1000)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        wall_s = time.perf_counter() - started
    finally:
        await store.close()
    blocks = f"all but {callers} in use" if full else "empty"
    return {"what": f"{callers} callers, blocks {blocks}", "ops_per_s": round(2 * count / wall_s), **spread(spans)}


async def filled(config: StoreConfig, cidr: str) -> Row:
    stores = [await connect(config) for _ in range(NODES)]
    try:
        await prepare(stores[0], cidr, NODES)
        size = ip_network(cidr).num_addresses
        given: list[str] = []
        spans: list[float] = []
        short = 0

        async def worker(node: int, ipam: IpamClient, number: int) -> None:
            nonlocal short
            turn = 0
            while True:
                turn += 1
                handle = f"h{node}.{number}.{turn}"
                started = time.perf_counter()
                got = await ipam.auto_assign(
                    AssignRequest(handle=handle, node=f"node{node}", num4=EACH, max_blocks_per_host=10**6)
                )
                spans.append((time.perf_counter() - started) * 1000)
                given.extend(str(interface.ip) for interface in got.v4)
                if not got.complete:
                    short += 1
                    return

        clients = [IpamClient(store) for store in stores]
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for node, client in enumerate(clients):
                for number in range(AT_ONCE):
                    group.create_task(worker(node, client, number), name=f"node{node}.{number}")
        wall_s = time.perf_counter() - started
        if len(given) != size or len(set(given)) != size:
            raise SystemExit(f"{len(given)} addresses given, {len(set(given))} of them different; the pool has {size}")
        stored = [decode_block(kv.value) for kv in (await stores[0].list(keys.blocks(4))).kvs]
        if sum(len(list(block.allocated())) for block in stored) != size:
            raise SystemExit("the blocks do not hold what was given")
    finally:
        for store in stores:
            await store.close()
    what = f"{cidr} to the last address, {NODES} nodes, {EACH} at a time"
    return {"what": what, "ops_per_s": round(size / wall_s), "seconds": round(wall_s, 1), **spread(spans)}


async def measure(*, quick: bool) -> list[Row]:
    with EtcdServer() as server:
        config = StoreConfig(endpoints=(server.endpoint,))
        rows = []
        for callers in (1, 10, 100):
            for full in (False, True):
                count = (20 if quick else 300) * (1 if callers == 1 else 5)
                rows.append(await pairs(config, callers, full=full, count=count))
        rows.append(await filled(config, "10.0.0.0/21" if quick else "10.0.0.0/16"))
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    described = machine()
    rows = asyncio.run(measure(quick=options.quick))
    report("Address management with full blocks", rows, options.json, described)


if __name__ == "__main__":
    main()
