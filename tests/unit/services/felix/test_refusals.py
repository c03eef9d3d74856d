"""A kernel that refuses something: whose it is is denied, all others get what they want (capability P28)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from random import Random

import msgspec
import pytest

from libs.bus import wire
from libs.feed.delta import Delta
from libs.feed.feed import Apply
from libs.nftables.fake import FakeRuleset
from libs.nftables.model import Table
from libs.nftables.ops import AddElements, AddRules, Committed, Failure, NewChain, Op, TransactionRefused
from libs.nftables.reconcile import TableReconciler
from libs.policy.output import Action, Host, IPSet, IPSetType, Policy, Profile, Qos, Rule, Tier
from services.felix.core.routing import Routing
from services.felix.core.ruleset import RulesetBuilder
from services.felix.shell.dataplane import Dataplane
from tests.unit.services.felix.table import gnp, wl, workload

ALLOW = Rule(action=Action.ALLOW)
EPOCH = wire.Epoch("t", 1, 1)
OPEN = Profile(inbound=(ALLOW,), outbound=(ALLOW,))


class PickyKernel(FakeRuleset):
    """Refuses transactions that write the second rule of a policy to one of `chains`, or make it if it is a base
    chain, or write elements of one of `sets`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chains: set[str] = set()
        self.sets: set[str] = set()
        self.code = errno.EOPNOTSUPP

    async def commit(self, table: Table, ops: Sequence[Op], generation: int | None = None) -> Committed:
        for op in ops:
            match op:
                case AddRules(chain, rules) if chain in self.chains and any("/1 " in rule.comment for rule in rules):
                    raise TransactionRefused(table, [Failure(f'rule 0 "text" of chain {chain}', self.code, "no")])
                case NewChain(chain) if chain.startswith("hook-") and chain in self.chains:
                    raise TransactionRefused(table, [Failure(f"chain {chain}", self.code, "no")])
                case AddElements(spec) if spec.name in self.sets:
                    raise TransactionRefused(table, [Failure(f"elements of set {spec.name}", self.code, "no")])
        return await super().commit(table, ops, generation)


class NoRoutes:
    def resync(self) -> None: ...

    def resync_interfaces(self) -> None: ...

    def ipvs(self) -> bool:
        return False

    def host_addresses(self) -> dict[str, frozenset[str]]:
        return {}

    async def step(self, *_: object) -> dict[str, str]:
        return {}


class NoBandwidth:
    def resync(self) -> None: ...

    def interfaces_changed(self) -> None: ...

    async def step(self, *_: object) -> dict[str, str]:
        return {}


class NoOverlays:
    def resync(self) -> None: ...

    async def prepare(self, *_: object) -> tuple[bool, dict[str, str]]:
        return False, {}

    async def finish(self, *_: object) -> dict[str, str]:
        return {}


class Node:
    def __init__(self) -> None:
        self.kernel = PickyKernel()
        self.builder = RulesetBuilder()
        first, second = (TableReconciler(self.kernel, table) for table in RulesetBuilder.tables())
        first.in_sync = second.in_sync = True
        self.plane = Dataplane(
            self.builder, (first, second), Routing("n1"), NoRoutes(), NoBandwidth(),
            NoOverlays(), on_progress=lambda progress: None, random=Random(1),
        )  # fmt: skip
        self.rev = 0

    async def apply(self, **delta: object) -> dict[str, str]:
        self.rev += 1
        self.plane.push(Apply(Delta(**delta), self.rev, self.rev, EPOCH))  # type: ignore[arg-type]
        await self.plane._pass()
        return self.plane.progress.failures

    def rules(self, chain: str, version: int = 4) -> list[str]:
        table = RulesetBuilder.tables()[0 if version == 4 else 1]
        held = self.kernel.tables[table].chains.get(chain)
        return [] if held is None else [stored.rule.comment for stored in held.rules]

    def verdict(self, interface: str) -> str:
        """Where packets to a workload go."""
        held = self.kernel.tables[RulesetBuilder.tables()[0]].sets["to-wl"]
        return {key.rstrip(b"\0").decode(): str(verdict) for key, verdict in held.elements.items()}[interface]


def tier(*names: str) -> Tier:
    return Tier(name="default", ingress=tuple(map(gnp, names)))


def policy(*rules: Rule) -> Policy:
    return Policy(tier="default", inbound=rules)


def test_a_policy_whose_rules_are_refused_denies_and_the_others_are_written() -> None:
    async def story() -> None:
        node = Node()
        a, b = workload("a", "10.0.0.1", tier("bad")), workload("b", "10.0.0.2", tier("good"))
        await node.apply(
            profiles={"kns.ns1": OPEN}, workloads={wl("a"): a, wl("b"): b},
            policies={gnp("bad"): policy(ALLOW), gnp("good"): policy(ALLOW)},
        )  # fmt: skip
        before = node.rules("pi-gnp/bad")
        node.kernel.chains = {"pi-gnp/bad"}
        failures = await node.apply(policies={gnp("bad"): policy(ALLOW, ALLOW), gnp("good"): policy(ALLOW, ALLOW)})
        assert failures.keys() == {"gnp/bad"}
        assert len(node.rules("pi-gnp/good")) == len(node.rules("pi-gnp/good", 6)) == 2
        assert node.rules("pi-gnp/bad") == node.rules("pi-gnp/bad", 6) == ["gnp/bad refused by the kernel"]
        assert node.plane.workloads.keys() == {wl("a"), wl("b")}
        assert await node.apply(policies={gnp("good"): policy(ALLOW)}) == failures  # still so, after another change
        assert await node.apply(policies={gnp("bad"): policy(ALLOW)}) == {}
        assert node.rules("pi-gnp/bad") == before
        # It is tried again with each comparison, and stays denied while the kernel is as it was.
        await node.apply(policies={gnp("bad"): policy(ALLOW, ALLOW)})
        node.plane.resync_tables()
        assert (await node.apply()).keys() == {"gnp/bad"}
        node.kernel.chains = set()
        node.plane.resync_tables()
        assert await node.apply() == {}
        assert len(node.rules("pi-gnp/bad")) == 2

    asyncio.run(story())


def test_a_set_that_is_refused_denies_the_policies_that_look_into_it() -> None:
    async def story() -> None:
        node = Node()
        ipset = IPSet(IPSetType.NET, frozenset({"10.1.0.1/32"}))
        rule = Rule(action=Action.ALLOW, src_sets=("s:x",))
        node.kernel.sets = {"s-x-h"}
        failures = await node.apply(
            profiles={"kns.ns1": OPEN}, sets={"s:x": ipset, "s:y": ipset},
            workloads={wl("a"): workload("a", "10.0.0.1", tier("bad", "good"))},
            policies={gnp("bad"): policy(rule), gnp("good"): policy(Rule(action=Action.ALLOW, src_sets=("s:y",)))},
        )  # fmt: skip
        assert failures.keys() == {"gnp/bad"}
        assert len(node.rules("pi-gnp/good")) == 1
        node.kernel.sets = set()
        assert await node.apply(set_changes={"s:x": ({"10.1.0.2/32"}, set())}) == {}
        assert node.rules("pi-gnp/bad") == ["gnp/bad/0 allow"]

    asyncio.run(story())


def test_a_union_of_a_skip_block_that_is_refused_denies_the_policies_behind_it() -> None:
    async def story() -> None:
        node = Node()
        keys = [f"p{number}" for number in range(40)]
        nets = [f"10.{number}.0.0/16" for number in range(40)]
        rules = [Rule(action=Action.ALLOW, src_nets=(net,)) for net in nets]
        await node.apply(
            profiles={"kns.ns1": OPEN}, workloads={wl("a"): workload("a", "10.200.0.1", tier(*keys))},
            policies={gnp(key): policy(one) for key, one in zip(keys, rules, strict=True)},
        )  # fmt: skip
        held = node.kernel.tables[RulesetBuilder.tables()[0]].sets
        unions = [name for name in held if name not in {"wl-addrs", "wl-down", "to-wl", "from-wl", "all-hosts-net"}]
        assert unions
        again = Node()
        again.kernel.sets = set(unions)
        failures = await again.apply(
            profiles={"kns.ns1": OPEN},
            workloads={wl("a"): workload("a", "10.200.0.1", tier(*keys)), wl("b"): workload("b", "10.200.0.2")},
            policies={gnp(key): policy(one) for key, one in zip(keys, rules, strict=True)},
        )  # fmt: skip
        assert failures
        assert failures.keys() <= {f"gnp/{key}" for key in keys}
        assert again.verdict("calib") == "goto tw-calib"

    asyncio.run(story())


def test_limits_and_host_endpoints_that_are_refused_deny_theirs_alone() -> None:
    async def story() -> None:
        node = Node()
        limited = msgspec.structs.replace(workload("a", "10.0.0.1"), qos=Qos(ingress_max_connections=3))
        node.kernel.chains = {"hook-qos-forward", "hook-fh-dnat"}
        before = (Tier(name="default", default_action="Pass", ingress=(gnp("early"),)),)
        failures = await node.apply(
            profiles={"kns.ns1": OPEN}, workloads={wl("a"): limited, wl("b"): workload("b", "10.0.0.2")},
            policies={gnp("early"): Policy(tier="default", inbound=(ALLOW,), pre_dnat=True)},
            hosts={"h": Host(name="eth0", profiles=("kns.ns1",), pre_dnat_tiers=before),
                   "k": Host(name="eth1", profiles=("kns.ns1",))},
        )  # fmt: skip
        assert failures.keys() == {"workload interface calia", "host endpoint h"}
        assert node.verdict("calia") == "goto wl-down"
        assert node.verdict("calib") == "goto tw-calib"
        assert len(node.rules("fh-eth0")) == len(node.rules("fh-eth1")) - 1  # no profile: failsafe ports, then drop
        assert await node.apply(workloads={wl("a"): workload("a", "10.0.0.1")}, hosts={"h": None}) == {}
        assert node.verdict("calia") == "goto tw-calia"

    asyncio.run(story())


def test_a_value_that_cannot_even_be_encoded_is_as_good_as_refused() -> None:
    async def story() -> None:
        node = Node()
        bad = msgspec.structs.replace(workload("a", "10.0.0.1"), qos=Qos(ingress_packet_rate=1 << 70))
        failures = await node.apply(
            profiles={"kns.ns1": OPEN}, workloads={wl("a"): bad, wl("b"): workload("b", "10.0.0.2")}
        )
        assert failures.keys() == {"workload interface calia"}
        assert node.verdict("calia") == "goto wl-down"
        assert node.verdict("calib") == "goto tw-calib"

    asyncio.run(story())


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOBUFS])
def test_a_kernel_short_of_memory_blames_nobody(code: int) -> None:
    async def story() -> None:
        node = Node()
        node.kernel.code = code
        await node.apply(
            profiles={"kns.ns1": OPEN}, policies={gnp("p"): policy(ALLOW)},
            workloads={wl("a"): workload("a", "10.0.0.1", tier("p"))},
        )  # fmt: skip
        node.kernel.chains = {"pi-gnp/p"}
        failures = await node.apply(
            policies={gnp("p"): policy(ALLOW, ALLOW)}, workloads={wl("b"): workload("b", "10.0.0.2")}
        )
        assert failures.keys() == {"nftables"}
        assert node.rules("pi-gnp/p") == ["gnp/p/0 allow"]  # the last good ones
        assert node.plane.workloads.keys() == {wl("a")}  # so nobody takes the new one for protected
        node.kernel.chains = set()
        assert await node.apply() == {}
        assert node.plane.workloads.keys() == {wl("a"), wl("b")}

    asyncio.run(story())
