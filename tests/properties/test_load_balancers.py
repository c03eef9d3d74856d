"""Any history of services, of people who meddle, of controllers that start again and of an informer that lags: no two
services are ever shown one address, none is released while it is shown, none is shown that its service does not hold;
and once things are quiet status equals address management, nothing is leaked, and everybody has what is to be had.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs.ipam.block import Block, ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.requests import ReleaseResult
from libs.ipam.source import StoreSource
from libs.kube.objects import SERVICES, Key, Service
from libs.resources.mirror import Mirror
from libs.store.api import FenceLost
from libs.store.memory import MemoryEtcd, MemoryStore
from services.kube_controllers.core import load_balancers as core
from services.kube_controllers.core.settings import Environment, Running, default_configuration, running
from services.kube_controllers.shell.load_balancers import SYNC_S, LoadBalancers
from tests.contract.ipam_stage import Cluster
from tests.unit.services.kube_controllers.services_api import Document, ServicesApi

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
thens = st.sampled_from(["hear and round", "round", "hear", "", "hear and round"])
x, y, none = st.integers(0, len(SPECS) - 1), st.integers(0, len(ANNOTATIONS) - 1), st.just(0)
put = st.tuples(st.just("put"), names, x, y, thens)
steps = st.one_of(  # each draws what it needs and no more: a history that fails is made small soon
    put, put, put, put,
    st.tuples(st.just("delete"), names, none, none, thens),
    st.tuples(st.just("recreate"), names, x, y, thens),
    st.tuples(st.just("meddle"), names, x, y, thens),
    st.tuples(st.just("release"), st.just(NAMES[0]), x, none, thens),
    st.tuples(st.just("restart"), st.just(NAMES[0]), none, none, thens),
    st.tuples(st.just("away"), st.just(NAMES[0]), none, none, thens),
)  # fmt: skip
SETTINGS: Running = running(default_configuration().spec, Environment(kubernetes=True))


class World:
    def __init__(self) -> None:
        self.store = MemoryStore(MemoryEtcd())
        self.api = _Api(patched=self.look)
        self.api.then = self.shows_what_it_holds
        self.meddled: set[Key] = set()  # shown by somebody else, or taken from them: nobody can vouch for those
        self.mirror = Mirror(self.store, LoadBalancers.reads, lambda kinds: None, Random(1))
        self.controller: LoadBalancers
        self.ipam: IpamClient
        self.leads = True
        self.now_s = 0.0
        self.reads = 0  # of all of address management

    async def start(self) -> None:
        cluster = self.cluster = Cluster(_Backend(self.store))  # type: ignore[arg-type]
        for name, cidr, size in (("a", "10.0.0.0/30", 30), ("b", "10.1.0.0/30", 30), ("six", "fd00::/126", 126)):
            await cluster.pool(name, cidr, size, allowedUses=["LoadBalancer"])
        await cluster.pool("pods", "10.9.0.0/24", 26)
        self.restart()

    def restart(self) -> None:
        source = StoreSource(self.store, asyncio.get_running_loop().time, 0.0)
        self.ipam = IpamClient(self.store, source)
        guarded = _Guarded(self.store, source)
        guarded.releasing = self.may_release
        guarded.reading = self.count
        self.controller = LoadBalancers(
            self.mirror, guarded, self.api.kubernetes(), self.confirm, monotonic=lambda: self.now_s
        )

    def count(self) -> None:
        self.reads += 1

    async def confirm(self) -> None:
        if not self.leads:
            raise FenceLost("another one leads")

    async def change_pool(self, name: str, cidr: str, **spec: object) -> None:
        await self.cluster.pool(name, cidr, 30, allowedUses=["LoadBalancer"], **spec)
        await self.mirror.reached((await self.store.status()).revision)

    async def round(self) -> None:
        self.now_s += SYNC_S  # or blocks that were changed by hand would not be looked at
        failures = (await self.controller.round(SETTINGS)).failures
        if self.api.away or failures:
            return
        held, heard = await self.held(), self.heard()
        for key, (handle, _) in self.ours().items():
            if handle in heard and key not in self.meddled:
                assert set(self.api.shown(key.name)) == held.get(handle, set()), f"{key} is told something else"

    def ours(self) -> dict[Key, tuple[str, Service]]:
        """Services that are ours to serve, as the API server has them, with their handles."""
        found = {key: SERVICES.decode(document) for key, document in self.api.services.items()}
        return {key: (core.handle(one), one) for key, one in found.items() if core.managed(one, "AllServices")[0]}

    def heard(self) -> set[str]:
        """Handles of services that are ours, as the informer has them and as they are."""
        known: Mapping[Key, Service] = self.api.kubernetes().follow(SERVICES).objects
        actual = self.ours()
        return {
            core.handle(one)
            for key, one in known.items()
            if key in actual
            and one.spec == actual[key][1].spec
            and one.metadata.annotations == actual[key][1].metadata.annotations
        }

    def may_release(self, options: list[ReleaseOption]) -> None:
        """What the controller releases is shown no more, and a service that it has not heard of loses nothing."""
        ours, heard = {handle: key for key, (handle, _) in self.ours().items()}, self.heard()
        for option in options:
            key = ours.get(str(option.handle))
            if key is not None:
                assert option.handle in heard, f"{key} loses {option.address}, the informer was behind"
                told = f"{option.address} is released, and {key} still shows it"
                assert key in self.meddled or str(option.address) not in self.api.shown(key.name), told

    async def shows_what_it_holds(self, key: Key) -> None:
        handle, _ = self.ours().get(key, ("", None))
        if handle:
            assert set(self.api.shown(key.name)) <= (await self.held()).get(handle, set()), f"{key} shows another's"

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
            case "recreate":
                self.api.delete(name)
                self.meddled.discard(key)
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
        """Until a round changes nothing, the fourth at the latest."""
        self.api.away = False
        after = await self.all_there_is()
        for _ in range(4):
            before = after
            self.api.hear()
            await self.round()
            after = await self.all_there_is()
            if before == after:
                return
        raise AssertionError(f"restless: {before}, then {after}")

    async def all_there_is(self) -> tuple[dict[Key, str], dict[str, set[str]]]:
        versions = {key: str(one["metadata"]["resourceVersion"]) for key, one in self.api.services.items()}
        return versions, await self.held()


class _Api(ServicesApi):
    """then: called after each patch of a status, before it is answered."""

    then: Callable[[Key], Awaitable[None]]

    async def patch(self, path: str, body: Document, kind: str) -> Document:
        answer = await super().patch(path, body, kind)
        await self.then(Key(answer["metadata"]["namespace"], answer["metadata"]["name"]))
        return answer


class _Guarded(IpamClient):
    """releasing: called before anything is released."""

    releasing: Callable[[list[ReleaseOption]], None]
    reading: Callable[[], None]

    async def blocks(self) -> list[Block]:
        self.reading()
        return await super().blocks()

    async def release_ips(self, options: Iterable[ReleaseOption]) -> ReleaseResult:
        listed = list(options)
        self.releasing(listed)
        return await super().release_ips(listed)


class _Backend:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def store(self) -> MemoryStore:
        return self._store


PHASES = tuple(phase for phase in settings().phases if phase is not Phase.explain)


@settings(max_examples=max(150, settings().max_examples), phases=PHASES, report_multiple_bugs=False)
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
