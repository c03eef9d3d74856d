"""Garbage collection of addresses, carried out: reads, lets `gc.decide` decide, and releases through IpamClient.

One round may be called at any time and cut short anywhere: everything is compare-and-swap and releases carry handle and
sequence number, so a stale decision releases nothing. Users are read a second time right before each batch and the
decision is made again on them; what does not stand twice is not released.

What a round suspects is kept in memory only. A process that starts again waits the grace period anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from libs.ipam import keys
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import BlockNotEmpty, IpamError
from libs.ipam.gc import Decision, Memory, decide
from libs.ipam.pods import ClusterUnknown, ClusterView, Kubernetes, Pod
from libs.ipam.view import Ledger, Users, Workload, read_ledger, read_users
from libs.ipam.wire import Address, Network
from libs.store.api import Conflict, Store

log = logging.getLogger(__name__)

GRACE_S = 900.0  # leakGracePeriod's default
BATCH = 10_000  # addresses between two looks at who uses them
_ASKED_AT_ONCE = 20  # requests to the API server


@dataclass(slots=True)
class Collected:
    """What a round did. refused: leaks whose release was refused, because somebody else changed them meanwhile.
    ledger: what address management had when the round began; suspected: addresses of it.
    """

    ledger: Ledger | None = None
    suspected: frozenset[Address] = frozenset()
    endpoints: list[str] = field(default_factory=list)  # deleted, because their pods are gone: namespace/name
    released: list[Address] = field(default_factory=list)
    refused: dict[Address, str] = field(default_factory=dict)
    idle_blocks: list[Network] = field(default_factory=list)
    cold_blocks: list[Network] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    kept_blocks: list[Network] = field(default_factory=list)  # of a gone node, still in use by others
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def suspects(self) -> int:
        return len(self.suspected)


class GarbageCollector:
    """Raises StoreError when the datastore is away; the next round goes on.

    kubernetes: given, nothing is released or deleted without its word, asked for at that moment; what it does not
    answer is left as it is and named among the failures.
    """

    def __init__(
        self,
        store: Store,
        ipam: IpamClient,
        *,
        grace_s: float = GRACE_S,
        kubernetes: Kubernetes | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """grace_s 0: nothing is released because of its age alone. May be changed between rounds."""
        self.grace_s = grace_s
        self._store = store
        self._ipam = ipam
        self._kubernetes = kubernetes
        self._monotonic = monotonic
        self._wall = wall
        self._memory = Memory()

    @property
    def interval_s(self) -> float:
        """How long to wait until the next round when nothing calls for one earlier."""
        return self.grace_s / 2 if self.grace_s > 0 else 300.0

    async def round(self) -> Collected:
        cluster = self._kubernetes.view() if self._kubernetes is not None else None
        if self._kubernetes is not None and cluster is None:
            return Collected(failures={"kubernetes": "not all pods and nodes are known yet"})
        ledger = await read_ledger(self._store)
        cooldown_s = (await self._ipam.inputs()).config.cooldown_s
        now_s, now = self._monotonic(), self._wall()

        def decision(seen: Users) -> Decision:
            return decide(
                ledger.blocks,
                ledger.affinities,
                seen,
                self._memory,
                now_s=now_s,
                now=now,
                grace_s=self.grace_s,
                cooldown_s=cooldown_s,
                hosts=ledger.hosts,
            )

        done = Collected(ledger)
        witness = _Witness(self._store, self._kubernetes, cluster, done.failures)
        first = decision(await witness.users(ledger.revision))
        await self._delete_lost(first.lost_endpoints, decision, witness, done)
        found = decision(await witness.users()) if done.endpoints else first
        done.suspected = frozenset(held.address for held in found.memory.suspects)
        await self._release(found.leaks, ledger, decision, witness, done)
        await self._give_up_idle(found.idle_blocks, done)
        if found.cold_blocks:
            done.cold_blocks = await self._ipam.collect_cooled()
        await self._clean_nodes(found.gone_nodes, decision, witness, done)
        self._memory = found.memory
        return done

    async def _delete_lost(
        self, lost: tuple[tuple[Pod, Workload], ...], decision: _Decide, witness: _Witness, done: Collected
    ) -> None:
        if not lost:
            return
        await witness.ask({pod for pod, _ in lost}, {workload.node for _, workload in lost})
        sure = set(decision(await witness.users()).lost_endpoints)
        for pod, workload in lost:
            if (pod, workload) not in sure:
                continue
            namespace, name = workload.name.split("/", 1)
            key = keys.resource(f"workloadendpoints/{namespace}", name)
            try:
                await self._store.delete(key, mod_revision=workload.revision)
            except Conflict:
                continue  # written anew: another pod of that name, or gone
            done.endpoints.append(workload.name)
            log.warning(
                "deleted an endpoint whose pod is gone",
                extra={"endpoint": workload.name, "pod": "/".join(pod), "node": workload.node},
            )

    async def _release(
        self,
        leaks: tuple[ReleaseOption, ...],
        ledger: Ledger,
        decision: _Decide,
        witness: _Witness,
        done: Collected,
    ) -> None:
        attrs = {a.address: a.attrs for block in ledger.blocks for a in block.allocated()} if leaks else {}
        for batch in _batches(leaks):
            owners = [attrs[option.address] for option in batch]
            pods = {(o["namespace"], o["pod"]) for o in owners if o.get("namespace") and o.get("pod")}
            await witness.ask(pods, {o["node"] for o in owners if o.get("node")})
            sure = set(decision(await witness.users()).leaks)
            options = [option for option in batch if option in sure]
            if not options:
                continue
            result = await self._ipam.release_ips(options)
            done.released += [address for address, _ in result.freed]
            done.refused |= {address: str(error) for address, error in result.refused.items()}
            for address, handle in result.freed:
                log.warning("released a leaked address", extra={"address": str(address), "handle": handle})

    async def _give_up_idle(self, blocks: Iterable[tuple[str, Network]], done: Collected) -> None:
        for node, cidr in blocks:
            try:
                await self._ipam.release_affinity(node, cidr, must_be_empty=True)
            except BlockNotEmpty:
                continue  # in use again
            except IpamError as error:
                done.failures[str(cidr)] = str(error)
                continue
            done.idle_blocks.append(cidr)

    async def _clean_nodes(self, nodes: Iterable[str], decision: _Decide, witness: _Witness, done: Collected) -> None:
        for node in nodes:
            await witness.ask(set(), {node})
            if node not in decision(await witness.users()).gone_nodes:
                continue  # it came back
            try:
                kept = await self._ipam.remove_host(node)
            except IpamError as error:
                done.failures[node] = str(error)
                continue
            done.kept_blocks += kept
            if not kept:
                done.nodes.append(node)
                log.info("cleaned up after a node", extra={"node": node})


_Decide = Callable[[Users], Decision]


class _Witness:
    """Who uses addresses, for one round: the datastore as it is when asked, and Kubernetes as last heard, put right by
    what it answered since.
    """

    def __init__(
        self, store: Store, kubernetes: Kubernetes | None, cluster: ClusterView | None, failures: dict[str, str]
    ) -> None:
        self._store = store
        self._kubernetes = kubernetes
        self._cluster = cluster
        self._failures = failures

    async def users(self, revision: int = 0) -> Users:
        return replace(await read_users(self._store, revision), cluster=self._cluster)

    async def ask(self, pods: set[Pod], nodes: set[str]) -> None:
        """About each of these, now. What is not answered counts as there."""
        if self._kubernetes is None or self._cluster is None:
            return
        kubernetes, limit = self._kubernetes, asyncio.Semaphore(_ASKED_AT_ONCE)
        known, unknown, present = dict(self._cluster.pods), set(self._cluster.unreadable), set(self._cluster.nodes)

        async def ask_pod(pod: Pod) -> None:
            async with limit:
                try:
                    found = await kubernetes.pod(pod)
                except ClusterUnknown as error:
                    unknown.add(pod)
                    self._failures["kubernetes"] = str(error)
                    return
            known.pop(pod, None)
            if found is not None:
                known[pod] = found

        async def ask_node(node: str) -> None:
            async with limit:
                try:
                    there = await kubernetes.node_exists(node)
                except ClusterUnknown as error:
                    there = True
                    self._failures["kubernetes"] = str(error)
            (present.add if there else present.discard)(node)

        await asyncio.gather(*map(ask_pod, pods), *map(ask_node, nodes))
        self._cluster = ClusterView(known, frozenset(unknown), frozenset(present))


def _batches(leaks: tuple[ReleaseOption, ...]) -> Iterable[list[ReleaseOption]]:
    """The addresses of one handle stay together."""
    batch: list[ReleaseOption] = []
    by_handle: dict[str | None, list[ReleaseOption]] = {}
    for option in leaks:
        by_handle.setdefault(option.handle, []).append(option)
    for options in by_handle.values():
        batch += options
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
