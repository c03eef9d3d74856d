"""One client process: an IpamClient for its node, several tasks that use it at once, every operation in the journal.

The allocations of its pods outlive the process, as pods outlive an agent; the next process of the same slot goes on
with them, and releases the handles of which its predecessor did not learn whether they got something.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Any, Self, cast

from libs.ipam.affinity import Owner
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.ipam.pools import Use
from libs.ipam.requests import AssignIpRequest, AssignRequest, ReleaseResult
from libs.store.api import Conflict, KeyExists, Store, StoreUnavailable
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from tests.jepsen import mutations
from tests.jepsen.history import Instance, Journal
from tests.jepsen.points import PREFIX, Arm, Loss, TroubledStore
from tests.jepsen.world import COOLDOWN_S, HOT, NODES, POOL4, POOL6, fast_clock

TASKS = 4
GROUPS = 6  # handles that all processes share

# How often each operation is chosen.
MIX = {
    "pod": 30,
    "fixed": 8,
    "balancer": 5,
    "tunnel": 5,
    "group": 6,
    "spare": 4,
    "release_ips": 20,
    "release_handle": 12,
    "release_group": 2,
    "release_stale": 5,
    "cancelled": 3,
    "claim": 3,
    "give_up": 3,
    "clear_host": 1,
    "remove_host": 1,
    "ensure_block": 1,
    "collect": 1,
    "attributes": 2,
    "look": 3,
    "settings": 0.3,
    "half_given_up": 1,
    "half_claimed": 1,
}
# What a client that is to die at a rare point, or that makes a mistake which rarely shows, does more often.
FOCUS = {
    "write settings": ["settings"],
    "delete host": ["remove_host"],
    "rewrite block": ["attributes", "collect"],
    "announce claim": ["claim", "give_up"],
    "create block": ["claim", "give_up"],
    "take over block": ["spare"],
    "confirm claim": ["half_given_up", "claim"],
    "remove stale affinity": ["half_claimed", "claim", "give_up"],
    "give up used block": ["give_up"],
    "give up empty block": ["give_up", "claim"],
    "list blocks": ["spare"],
    "release-ignores-sequence": ["release_stale", "release_stale"],
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a client process is told. JSON of `to_json` on its way to the process."""

    name: str  # slot and incarnation: "s3.1"
    node: str
    seed: int
    endpoints: tuple[str, ...]
    journal: str
    origin_ns: int
    arm: Arm | None = None
    loss: Loss = Loss()  # noqa: RUF009 - frozen
    mutation: str = ""
    held: tuple[Instance, ...] = ()
    doubtful: tuple[str, ...] = ()
    most_held: int = 8

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"held": [list(instance) for instance in self.held]}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        arm, loss = raw.pop("arm"), raw.pop("loss")
        held = tuple(Instance(*one) for one in raw.pop("held"))
        lists = {name: tuple(raw.pop(name)) for name in ("endpoints", "doubtful")}
        return cls(arm=Arm(**arm) if arm else None, loss=Loss(**loss), held=held, **lists, **raw)


def main(spec: Spec) -> None:
    """Runs until SIGTERM, or until the point it was armed with."""
    if spec.mutation:
        mutations.MUTATIONS[spec.mutation].apply()
    asyncio.run(_main(spec))


async def _main(spec: Spec) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with EtcdStore(StoreConfig(spec.endpoints, request_timeout_s=8.0)) as store:
        await Client(spec, store).run(stop)


class Client:
    def __init__(self, spec: Spec, store: EtcdStore) -> None:
        self._spec = spec
        self._rng = Random(spec.seed)
        self._journal = Journal(Path(spec.journal))
        self._raw = store
        self._store = TroubledStore(store, self._journal, spec.arm, spec.loss, self._rng)
        self._ipam = IpamClient(
            cast(Store, self._store), clock_ns=fast_clock(spec.origin_ns), rng=Random(self._rng.random())
        )
        self._held = dict.fromkeys(spec.held)
        self._doubtful = dict.fromkeys(spec.doubtful)
        self._past: list[Instance] = []  # released, for releases that come too late
        self._number = 0
        self._mix = dict(MIX)
        for reason in (spec.arm.kind if spec.arm else "", spec.mutation):
            for choice in FOCUS.get(reason, []):
                self._mix[choice] += 20

    async def run(self, stop: asyncio.Event) -> None:
        self._journal.write(e="start", pid=self._spec.name)
        tasks = [asyncio.create_task(self._work(stop), name=f"work {number}") for number in range(TASKS)]
        await asyncio.gather(*tasks)
        await self._store.settle()

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._doubtful:
                handle = next(iter(self._doubtful))
                del self._doubtful[handle]
                await self._release_handle(handle)
                continue
            choice = self._rng.choices(list(self._mix), list(self._mix.values()))[0]
            if len(self._held) >= self._spec.most_held and choice in ("pod", "fixed", "balancer", "cancelled"):
                choice = "release_ips"
            await getattr(self, f"_do_{choice}")()

    async def _note(self, kind: str, call: Callable[[str], Awaitable[Any]], **arguments: Any) -> tuple[str, Any]:
        """One operation with its lines in the journal. `call` gets the operation's id and returns the result to note.

        Returns (outcome, result).
        """
        self._number += 1
        id_ = f"{self._spec.name}.{self._number}"
        self._journal.invoke(id_, kind, **arguments)
        outcome, result = "info", None
        try:
            outcome, result = "ok", await call(id_)
        except IpamError as error:
            outcome, result = "fail", error.reason.value
        except StoreUnavailable as error:
            result = str(error)
        except asyncio.CancelledError:
            result = "cancelled"
        except Exception:
            result = traceback.format_exc()
            self._journal.write(e="bug", r=f"{id_} {kind}: {result}")
        self._journal.answer(id_, outcome, result)
        return outcome, result

    # --- assigning ---------------------------------------------------------------------------------------------------

    async def _do_pod(self) -> None:
        num4, num6 = self._rng.choice([(1, 0), (0, 1), (1, 1), (1, 1), (2, 1), (1, 2)])
        await self._assign(self._handle("pod"), num4, num6)

    async def _do_balancer(self) -> None:
        await self._assign(self._handle("lb"), 1, 0, use=Use.LOAD_BALANCER)

    async def _do_group(self) -> None:
        """Several processes write one handle, and anybody may release all of it."""
        await self._assign(f"group-{self._rng.randrange(GROUPS)}", *self._rng.choice([(1, 0), (0, 1)]), keep=False)

    async def _do_spare(self) -> None:
        """From the pool of two blocks, for a moment: mostly another host's, and idle."""
        handle = self._handle("spare")
        await self._assign(handle, 1, 0, keep=False, pools4=("spare",))
        await self._release_handle(handle)

    async def _do_tunnel(self) -> None:
        """At most one for the node, however many of its processes ask."""
        handle = f"vxlan-tunnel-addr-{self._spec.node}"
        await self._assign(handle, 1, self._rng.choice([0, 1]), keep=False, use=Use.TUNNEL, once=True)
        if self._rng.random() < 0.5:
            await self._release_handle(handle)

    async def _assign(
        self,
        handle: str,
        num4: int,
        num6: int,
        *,
        keep: bool = True,
        use: Use = Use.WORKLOAD,
        once: bool = False,
        pools4: tuple[str, ...] = (),
        cancel_after_s: float | None = None,
    ) -> None:
        """keep: the pod's own, released by this slot. once: what the handle has already is given again."""

        async def call(id_: str) -> Any:
            request = AssignRequest(
                handle=handle,
                node=self._spec.node,
                num4=num4,
                num6=num6,
                attrs={"node": self._spec.node, "pod": id_, "namespace": "jepsen"},
                use=use,
                max_per_handle=1 if once else 0,
                pools4=pools4,
            )
            async with asyncio.timeout(cancel_after_s):
                got = await self._ipam.auto_assign(request)
            return {"got": [(str(a), n) for a, n in got.sequences.items()], "why": list(got.reasons.values())}

        arguments = {"handle": handle, "num4": num4, "num6": num6, "keep": keep, "once": once, "use": use.value}
        outcome, result = await self._note("assign", self._or_cancelled(call), **arguments)
        if outcome == "ok" and keep:
            self._held |= {Instance(address, handle, sequence): None for address, sequence in result["got"]}
        elif outcome == "info":
            self._doubtful[handle] = None

    async def _do_fixed(self) -> None:
        pool = ip_network(self._rng.choice([POOL4, POOL6]))
        address, handle = pool[self._rng.randrange(pool.num_addresses)], self._handle("fixed")

        async def call(id_: str) -> Any:
            attrs = {"node": self._spec.node, "pod": id_, "namespace": "jepsen"}
            request = AssignIpRequest(address=address, handle=handle, node=self._spec.node, attrs=attrs)
            await self._ipam.assign_ip(request)
            return {"got": [(str(address), -1)]}

        arguments = {"handle": handle, "address": str(address), "keep": False}
        outcome, _ = await self._note("assign_ip", call, **arguments)
        if outcome == "fail":
            return
        if outcome == "ok":
            await asyncio.sleep(self._rng.uniform(0, 0.2))
        await self._release_handle(handle)

    async def _do_cancelled(self) -> None:
        """The caller goes away; what it would have got is given back by whoever comes next."""
        await self._assign(self._handle("gone"), 1, 1, cancel_after_s=self._rng.choice([0.0, 0.002, 0.01, 0.05]))

    @staticmethod
    def _or_cancelled(call: Callable[[str], Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
        async def inner(id_: str) -> Any:
            try:
                return await call(id_)
            except TimeoutError:
                raise asyncio.CancelledError from None

        return inner

    # --- releasing ---------------------------------------------------------------------------------------------------

    async def _do_release_ips(self) -> None:
        mine = self._rng.sample(list(self._held), min(len(self._held), self._rng.choice([1, 1, 2, 3])))
        if mine:
            for instance in mine:
                del self._held[instance]
            await self._release_ips(mine, stale=False)

    async def _do_release_stale(self) -> None:
        """Once more what was released before: whoever has the address now must keep it."""
        if self._past:
            old = self._past[self._rng.randrange(len(self._past))]
            handle = self._rng.choice([None, old.handle])
            await self._release_ips([old], stale=True, handle=handle)

    async def _release_ips(self, instances: list[Instance], *, stale: bool, handle: str | None = "") -> None:
        options = [
            ReleaseOption(ip_address(i.address), i.handle if handle == "" else handle, i.sequence) for i in instances
        ]

        async def call(_: str) -> Any:
            return _told(await self._ipam.release_ips(options))

        noted = [(str(option.address), option.handle, option.sequence) for option in options]
        outcome, _ = await self._note("release_ips", call, options=noted, stale=stale)
        if outcome == "ok" and not stale:
            self._past = (self._past + instances)[-40:]
        elif not stale:
            self._doubtful |= dict.fromkeys(instance.handle for instance in instances)

    async def _do_release_handle(self) -> None:
        if self._held:
            handle = self._rng.choice(list(self._held)).handle
            released = [instance for instance in self._held if instance.handle == handle]
            for instance in released:
                del self._held[instance]
            if await self._release_handle(handle) == "ok":
                self._past = (self._past + released)[-40:]

    async def _do_release_group(self) -> None:
        await self._release_handle(f"group-{self._rng.randrange(GROUPS)}")

    async def _release_handle(self, handle: str) -> str:
        async def call(_: str) -> Any:
            return _told(await self._ipam.release_by_handle(handle))

        self._held = {instance: None for instance in self._held if instance.handle != handle}
        outcome, _ = await self._note("release_handle", call, handle=handle)
        if outcome == "info":
            self._doubtful[handle] = None
        return outcome

    # --- blocks ------------------------------------------------------------------------------------------------------

    async def _do_claim(self) -> None:
        cidr, node = self._rng.choice(HOT), self._spec.node

        async def call(_: str) -> Any:
            await self._ipam.claim_affinity(node, cidr)

        await self._note("claim", call, node=node, cidr=str(cidr))

    async def _do_give_up(self) -> None:
        cidr, node = self._rng.choice(HOT), self._rng.choice(NODES)
        only_empty = self._rng.random() < 0.3

        async def call(_: str) -> Any:
            await self._ipam.release_affinity(Owner.host(node), cidr, must_be_empty=only_empty)

        await self._note("give_up", call, node=node, cidr=str(cidr), only_empty=only_empty)

    async def _do_clear_host(self) -> None:
        node, only_empty = self._rng.choice(NODES), self._rng.random() < 0.7

        async def call(_: str) -> Any:
            return [str(c) for c in await self._ipam.release_host_affinities(node, must_be_empty=only_empty)]

        await self._note("clear_host", call, node=node, only_empty=only_empty)

    async def _do_remove_host(self) -> None:
        node = self._rng.choice(NODES)

        async def call(_: str) -> Any:
            return [str(c) for c in await self._ipam.remove_host(node)]

        await self._note("remove_host", call, node=node)

    async def _do_ensure_block(self) -> None:
        version = self._rng.choice([4, 6])

        async def call(_: str) -> Any:
            return str(await self._ipam.ensure_block(self._spec.node, version))

        await self._note("ensure_block", call, version=version)

    async def _do_collect(self) -> None:
        async def call(_: str) -> Any:
            return [str(c) for c in await self._ipam.collect_cooled()]

        await self._note("collect", call)

    async def _do_half_given_up(self) -> None:
        """Another make of client dies after its first step: affinity pendingDeletion (facts: section 7)."""
        prefix = f"{PREFIX}host/{self._rng.choice(NODES)}/ipv{self._rng.choice([4, 6])}/block/"

        async def call(_: str) -> Any:
            found = (await self._raw.list(prefix)).kvs
            kv = self._rng.choice(found) if found else None
            if kv is not None and b'"confirmed"' in kv.value:
                value = b'{"state":"pendingDeletion","deleted":false}'
                with contextlib.suppress(Conflict):
                    await self._raw.update(kv.key, value, mod_revision=kv.mod_revision)

        await self._note("half_given_up", call, prefix=prefix)

    async def _do_half_claimed(self) -> None:
        """The same after the first step of a claim: affinity pending, while the block may be anybody's."""
        cidr, node = self._rng.choice(HOT), self._rng.choice(NODES)
        key = f"{PREFIX}host/{node}/ipv{cidr.version}/block/{str(cidr).replace('/', '-')}"

        async def call(_: str) -> Any:
            with contextlib.suppress(KeyExists):
                await self._raw.create(key, b'{"state":"pending","deleted":false}')

        await self._note("half_claimed", call, node=node, cidr=str(cidr))

    # --- the rest ----------------------------------------------------------------------------------------------------

    async def _do_attributes(self) -> None:
        if not self._held:
            return
        instance = self._rng.choice(list(self._held))
        attrs = {"node": self._spec.node, "pod": f"moved-{instance.handle}", "namespace": "jepsen"}
        alternate = {"node": self._rng.choice(NODES)} if self._rng.random() < 0.5 else {}

        async def call(_: str) -> Any:
            await self._ipam.set_attributes(ip_address(instance.address), instance.handle, attrs, alternate)

        await self._note("attributes", call, address=instance.address, handle=instance.handle)

    async def _do_look(self) -> None:
        handle = self._rng.choice([*(i.handle for i in self._held), f"group-{self._rng.randrange(GROUPS)}"])

        async def call(_: str) -> Any:
            return [(str(a.address), a.sequence) for a in await self._ipam.ips_by_handle(handle)]

        await self._note("look", call, handle=handle)

    async def _do_settings(self) -> None:
        """Makes every client's idea of the settings old."""
        cooldown_s = self._rng.choice([0, 0, COOLDOWN_S])

        async def call(_: str) -> Any:
            await self._ipam.set_config(cooldown_s=cooldown_s)

        await self._note("settings", call, cooldown_s=cooldown_s)

    def _handle(self, sort: str) -> str:
        return f"{sort}-{self._spec.name}.{self._number + 1}-{self._rng.getrandbits(20):x}"


def _told(result: ReleaseResult) -> dict[str, Any]:
    return {
        "freed": [(str(address), handle) for address, handle in result.freed],
        "unallocated": [str(address) for address in result.unallocated],
        "refused": {str(address): error.reason.value for address, error in result.refused.items()},
    }
