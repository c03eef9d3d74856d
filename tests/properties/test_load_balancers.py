"""Any history of services, of people who meddle, of controllers that start again and of an informer that lags: no two
services are ever shown one address, and once things are quiet status equals address management, nothing is leaked, and
everybody has what is to be had.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.ipam.client import IpamClient
from libs.ipam.source import StoreSource
from libs.kube.objects import SERVICES, Key
from libs.resources.mirror import Mirror
from libs.store.memory import MemoryEtcd, MemoryStore
from services.kube_controllers.core import load_balancers as core
from services.kube_controllers.core.settings import Environment, Running, default_configuration, running
from services.kube_controllers.shell.load_balancers import LoadBalancers
from tests.contract.ipam_stage import Cluster
from tests.unit.services.kube_controllers.services_api import ServicesApi

NAMES = ("s0", "s1", "s2", "s3", "s4")
DUAL: dict[str, Any] = {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}
SPECS: tuple[dict[str, Any], ...] = (
    {}, {}, DUAL, {"type": "ClusterIP"}, {"loadBalancerClass": "other"}, {"loadBalancerClass": "calico"},
    {"loadBalancerIP": "10.0.0.2"},
)  # fmt: skip
ANNOTATIONS: tuple[dict[str, str], ...] = (
    {}, {}, {core.ADDRESSES: '["10.0.0.1"]'}, {core.ADDRESSES: '["10.0.0.1", "fd00::1"]'}, {core.POOLS4: '["b"]'},
    {core.POOLS4: '["10.0.0.0/30"]'}, {core.ADDRESSES: "not json"}, {core.POOLS4: '["nowhere"]'},
)  # fmt: skip
names = st.sampled_from(NAMES)
steps = st.tuples(
    st.sampled_from(["put", "put", "put", "put", "delete", "meddle", "release", "restart", "away"]),
    names,
    st.integers(0, len(SPECS) - 1),
    st.integers(0, len(ANNOTATIONS) - 1),
    st.sampled_from(["", "hear", "hear and round", "hear and round", "round"]),
)
SETTINGS: Running = running(default_configuration().spec, Environment(kubernetes=True))


class World:
    def __init__(self) -> None:
        self.store = MemoryStore(MemoryEtcd())
        self.api = ServicesApi(patched=self.look)
        self.meddled: set[Key] = set()  # shown by somebody else, or taken from them: nobody can vouch for those
        self.mirror = Mirror(self.store, LoadBalancers.reads, lambda kinds: None, Random(1))
        self.controller: LoadBalancers
        self.ipam: IpamClient

    async def start(self) -> None:
        cluster = Cluster(_Backend(self.store))  # type: ignore[arg-type]
        for name, cidr, size in (("a", "10.0.0.0/30", 30), ("b", "10.1.0.0/30", 30), ("six", "fd00::/126", 126)):
            await cluster.pool(name, cidr, size, allowedUses=["LoadBalancer"])
        await cluster.pool("pods", "10.9.0.0/24", 26)
        self.restart()

    def restart(self) -> None:
        source = StoreSource(self.store, asyncio.get_running_loop().time, 0.0)
        self.ipam = IpamClient(self.store, source)
        self.controller = LoadBalancers(self.mirror, self.ipam, self.api.kubernetes())

    async def round(self) -> None:
        await self.controller.round(SETTINGS)

    def look(self, patched: Key) -> None:
        self.meddled.discard(patched)
        shown = defaultdict(list)
        for key in self.api.services.keys() - self.meddled:
            for address in self.api.shown(key.name):
                shown[address].append(key.name)
        assert all(len(those) == 1 for those in shown.values()), f"one address for several: {dict(shown)}"

    async def held(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for block in await self.ipam.blocks():
            for one in block.allocated():
                if one.released_at is None:
                    found[str(one.handle)].add(str(one.address))
        return dict(found)

    async def do(self, step: tuple[str, str, int, int, str]) -> None:
        what, name, x, y, then = step
        await self.user(what, name, x, y)
        if "hear" in then:
            self.api.hear()
        if "round" in then:
            await self.round()

    async def user(self, what: str, name: str, x: int, y: int) -> None:
        key = Key("ns", name)
        match what:
            case "put":
                before = self.api.services.get(key)
                if before is not None and before["spec"].get("loadBalancerClass") not in (
                    None, SPECS[x].get("loadBalancerClass"),
                ):  # fmt: skip
                    return  # it cannot be changed while the type is LoadBalancer
                self.api.put(name, annotations=ANNOTATIONS[y], **SPECS[x])
            case "delete":
                self.api.delete(name)
                self.meddled.discard(key)
            case "meddle" if key in self.api.services and self.api.services[key]["spec"]["type"] == "LoadBalancer":
                self.meddled.add(key)
                self.api.show(name, *[f"10.{x % 2}.0.{y % 4}", f"fd00::{x}"][: 1 + x % 2])
            case "release" if held := await self.held():
                handle = sorted(held)[x % len(held)]
                self.meddled |= {k for k, d in self.api.services.items() if core.handle(SERVICES.decode(d)) == handle}
                await self.ipam.release_by_handle(handle)
            case "restart":
                self.restart()
            case "away":
                self.api.away = not self.api.away

    async def settle(self) -> None:
        self.api.away = False
        for _ in range(3):
            self.api.hear()
            await self.round()
        self.api.hear()
        before = {key: document["metadata"]["resourceVersion"] for key, document in self.api.services.items()}
        held = await self.held()
        await self.round()
        assert await self.held() == held
        assert before == {key: d["metadata"]["resourceVersion"] for key, d in self.api.services.items()}, "restless"


class _Backend:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def store(self) -> MemoryStore:
        return self._store


@settings(max_examples=max(150, settings().max_examples))
@given(st.lists(steps, min_size=8, max_size=30))
def test_services_have_what_address_management_says_and_nobody_else_has_it(
    history: list[tuple[str, str, int, int, str]],
) -> None:
    async def run() -> None:
        world = World()
        await world.start()
        following = asyncio.create_task(world.mirror.run())
        try:
            await world.mirror.reached(1)
            for step in history:
                await world.do(step)
            await world.settle()
            await check(world)
        finally:
            following.cancel()

    asyncio.run(run())


async def check(world: World) -> None:
    held = await world.held()
    mine, wanting = set(), 0
    for key, document in world.api.services.items():
        service = SERVICES.decode(document)
        handle = core.handle(service)
        has = held.get(handle, set())
        if not core.managed(service, "AllServices")[0]:
            assert not has
            continue
        mine.add(handle)
        assert set(world.api.shown(key.name)) == has
        assert len({":" in address for address in has}) == len(has), "two of one family"
        try:
            wish = core.wish_of(service)
        except ValueError:
            continue
        if wish.addresses:
            assert has <= {str(address) for address in wish.addresses}
        for version in wish.versions if not wish.addresses else ():
            got = [address for address in has if (":" in address) == (version == 6)]
            if not got and wish.pools.get(version) != ("nowhere",):
                wanting += 1
                told = [e["message"] for e in world.api.events if e["involvedObject"]["uid"] == service.metadata.uid]
                assert told, f"{key} has nothing and nobody says why"
    assert set(held) == mine & set(held), "addresses of a service that is gone, or not ours"
    taken = {address for addresses in held.values() for address in addresses}
    assert sum(map(len, held.values())) == len(taken)
    assert not wanting or len(taken) >= 4, "somebody waits while addresses are free"
