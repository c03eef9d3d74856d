"""Calico itself as a judge: the pretend node's rules are those of a running Felix 3.28.5, the packets are real.

Each cluster is in etcd before Felix starts, so that what it says of its readiness is of all of it. What that release
does not know, or knows in another way than later ones, is left out of the drawn clusters (`known`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from libs import model
from libs.model import codec
from libs.model.kubernetes import KubernetesEndpointSlice
from libs.resources.codec import to_storage, with_metadata
from libs.store.api import Put
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit import bootstrap
from libs.testkit.calico.felix import RealFelix, program
from libs.testkit.netns_relay import NetnsRelay
from libs.testkit.servers import EtcdServer
from tests.judges.draw import NODE, PODS, own
from tests.judges.kernel_judge import KernelJudge
from tests.judges.shots import Shot
from tests.unit.libs.policy import build

UID, CREATED = "0d6ff9f3-43d5-4a4a-9c0f-3d0b6f3a7c11", "2026-01-01T00:00:00Z"
_BATCH = 100  # etcd's limit is 128 operations
Policy = model.NetworkPolicy | model.GlobalNetworkPolicy


class FelixJudge(KernelJudge):
    def __init__(self, directory: Path) -> None:
        super().__init__({pod: {4: own(pod, 4), 6: own(pod, 6)} for pod in PODS})
        self._stack = contextlib.ExitStack()
        self._directory = directory

    def start(self) -> None:
        super().start()
        etcd = self._stack.enter_context(EtcdServer(netns=self.node.name, directory=self._directory / "etcd"))
        relay = self._stack.enter_context(NetnsRelay(self.node.path, [("127.0.0.1", etcd.port)]))
        self._store = self._loop.run_until_complete(self._connected(f"http://127.0.0.1:{relay.ports[0]}"))
        self._felix = RealFelix(
            NODE, self.node, etcd=etcd.endpoint, directory=self._directory, WorkloadSourceSpoofing="Any",
            DefaultEndpointToHostAction="ACCEPT",
        )  # fmt: skip
        self._stack.callback(self._felix.kill)
        self._stack.callback(lambda: self._loop.run_until_complete(self._store.close()))

    def stop(self) -> None:
        try:
            self._stack.close()
        finally:
            super().stop()

    def hold(self, resources: Iterable[model.Resource]) -> None:
        """Its Felix enforces these, and nothing from before."""
        self._felix.kill()
        self._loop.run_until_complete(self._write(resources))
        self._felix.start()
        self._loop.run_until_complete(self._felix.ready())
        self.verify_checksums(False)

    @staticmethod
    async def _connected(endpoint: str) -> EtcdStore:
        """gRPC wants to be born in the loop that it is used in."""
        return EtcdStore(StoreConfig((endpoint,)))

    async def _write(self, resources: Iterable[model.Resource]) -> None:
        for kv in (await self._store.list("/calico/", keys_only=True)).kvs:
            await self._store.delete(kv.key)
        ready = {"clusterGUID": "00", "datastoreReady": True}
        puts = [
            Put(bootstrap.key("clusterinformations", "default"),
                bootstrap.resource("ClusterInformation", "default", ready)),
            *(Put(*to_storage(with_metadata(one, uid=UID, creation_timestamp=CREATED))) for one in resources),
        ]  # fmt: skip
        for start in range(0, len(puts), _BATCH):
            await self._store.txn([], puts[start : start + _BATCH])


def known(resources: Sequence[model.Resource], random: Random) -> list[model.Resource]:
    """The same cluster as 3.28.5 can have it: all policies in the one tier, each with an order of its own; nothing
    staged; no services, which it does not read from etcd; no foreign source prefixes, at which it panics, as it writes
    those of IPv4 into the rules of IPv6 and the other way round.
    """
    out: list[model.Resource] = [build.tier("default", 1e6)]
    orders = random.sample(range(10_000), len(resources))
    for resource, order in zip(resources, orders, strict=True):
        if isinstance(resource, model.Tier | KubernetesEndpointSlice) or "Staged" in resource.kind:
            continue
        made = codec.copy(resource)
        out.append(made)
        if isinstance(made, model.WorkloadEndpoint):
            made.spec.allow_spoofed_source_prefixes = []
        if isinstance(made, Policy):
            made.spec.tier, made.spec.order = "default", float(order)
            if made.spec.service_account_selector == "all()":  # in later releases only of pods that have an account
                made.spec.service_account_selector = "has(role)"
        if isinstance(made, Policy | model.Profile):
            for rules in (made.spec.ingress, made.spec.egress):
                rules[:] = [rule for rule in rules or () if _known(rule)]
    return out


def _known(rule: model.Rule) -> bool:
    """Others have it end itself (it gives iptables a protocol twice, or ICMP types to rules of the other family), or
    leave out the whole policy (names of ports without a protocol, which only later releases admit).
    """
    ends = [end for end in (rule.source, rule.destination) if end is not None]
    if any(end.services for end in ends) or (rule.protocol is not None and rule.not_protocol is not None):
        return False
    if rule.protocol is None and any(end.ports or end.not_ports for end in ends):
        return False
    return str(rule.protocol) in ("ICMP", "ICMPv6") or (rule.icmp is None and rule.not_icmp is None)


def honest(shot: Shot) -> bool:
    """Whether a pod sends it from an address of its own."""
    return shot.sender not in PODS or str(shot.packet.src) == own(shot.sender, shot.packet.version)


@contextlib.contextmanager
def running_felix() -> Iterator[FelixJudge]:
    """Raises FelixMissing."""
    program()  # before anything is made
    with tempfile.TemporaryDirectory(prefix="felix-judge-") as directory:
        judge = FelixJudge(Path(directory))
        try:
            judge.start()
            yield judge
        finally:
            judge.stop()
