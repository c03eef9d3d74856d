"""Whatever is edited, by us or by others, and whatever fails meanwhile: a step ends in what a recompute from nothing
would write.

The same machine runs on the fake and, with fewer examples, on the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.nftables.codec import WireRule, encode_rule
from libs.nftables.fake import FakeRuleset
from libs.nftables.intervals import merge
from libs.nftables.kernel import KernelTransport
from libs.nftables.model import (
    ACCEPT,
    COUNTER,
    DROP,
    Base,
    Chain,
    DataType,
    Family,
    Field,
    Hook,
    InSet,
    Map,
    Policy,
    Rule,
    Set,
    Table,
    Verdict,
    Vmap,
    goto,
    jump,
)
from libs.nftables.ops import (
    AddElements,
    AddRules,
    DelElements,
    FlushChain,
    KernelTable,
    NewChain,
    SetSpec,
    TransactionError,
)
from libs.nftables.reconcile import Applied, TableReconciler
from libs.nftables.types import pack_elements
from libs.testkit import netns

R = TypeVar("R")
TABLE = Table(Family.IP, "cal")
# chains jump only to later ones: loops are refused by the kernel and tested elsewhere
CHAINS = ("c0", "c1", "c2", "c3", "c4")
HOSTS = tuple(f"10.0.0.{i}" for i in range(6))
NETS = ("10.0.0.0/24", "10.0.0.0/28", "10.0.0.4/30", "10.0.0.1/32", "10.0.1.0/24", "255.255.255.0/24", "0.0.0.0/8")
PLAIN = SetSpec("s", (DataType.IPV4,))
NETTED = SetSpec("n", (DataType.IPV4,), interval=True)
DISPATCH = SetSpec("m", (DataType.IFNAME,), is_map=True)


def simple_rules(after: int) -> st.SearchStrategy[Rule]:
    targets = [Rule((jump(name),)) for name in CHAINS[after:]]
    others = [Rule((COUNTER,), f"r{i}") for i in range(4)] + [Rule((ACCEPT,)), Rule((DROP,))]
    return st.sampled_from(
        others + targets + [Rule((InSet((Field.IP_SADDR,), "s"),)), Rule((InSet((Field.IP_SADDR,), "n"), DROP))]
    )


BODIES = st.integers(0, len(CHAINS) - 1).flatmap(
    lambda i: st.tuples(st.just(CHAINS[i]), st.lists(simple_rules(i + 1), max_size=14).map(tuple))
)
VERDICTS = st.sampled_from([ACCEPT, DROP, *(goto(name) for name in CHAINS), jump("c4")])


FOREIGN = st.one_of(
    st.builds(lambda name, text: AddRules(name, (Rule((COUNTER,), text),)), st.sampled_from(["base", *CHAINS]),
    st.text("xyz")), st.builds(FlushChain, st.sampled_from(["base", *CHAINS])),
    st.builds(lambda name: NewChain(name, Base(Hook.FORWARD)), st.sampled_from(["base", "other"])),
    st.builds(lambda host: AddElements(PLAIN, [packed_host(host)]), st.sampled_from(HOSTS)),
    st.builds(lambda host: DelElements(PLAIN, [packed_host(host)]), st.sampled_from(HOSTS)),
    st.builds(lambda name: DelElements(DISPATCH, sorted(pack_elements(DISPATCH.key, [name], interval=False))),
    st.sampled_from("ab")),
)  # fmt: skip


def packed_host(text: str) -> bytes:
    return pack_elements(PLAIN.key, [text], interval=False).pop()


class Machine(RuleBasedStateMachine):
    """`chains`, `sets`, `verdicts` are the model: plain values of what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.transport = self.make_transport()
        self.chains: dict[str, tuple[Rule, ...]] = {}
        self.policy = Policy.ACCEPT
        self.sets: dict[str, set[str]] = {"s": set(), "n": set()}
        self.interval = {"s": False, "n": True}
        self.verdicts: dict[str, Verdict] = {}
        self.disturbed = False
        self.unknown = True  # whether the reconciler has to read
        self.restart()
        self.chain("base", (Rule((jump("c0"),)), Rule((Vmap((Field.IIFNAME,), "m"),))))
        lookups = (Rule((InSet((Field.IP_SADDR,), "s"),)), Rule((InSet((Field.IP_SADDR,), "n"), DROP)))
        self.chain("c0", (*lookups, Rule((jump("c1"),))))
        for name, after in pairwise(CHAINS[1:]):
            self.chain(name, (Rule((COUNTER,)), Rule((goto(after),))))
        self.chain("c4", ())
        self.step()

    def make_transport(self) -> Any:
        return FakeRuleset()

    def wait(self, work: Coroutine[Any, Any, R]) -> R:
        return self.loop.run_until_complete(work)

    def base(self) -> Base:
        return Base(Hook.FORWARD, policy=self.policy)

    def teardown(self) -> None:
        self.loop.close()

    # --- what the owner does

    @rule()
    def restart(self) -> None:
        self.unknown = True
        self.reconciler = TableReconciler(self.transport, TABLE)
        self.reconciler.in_sync = True
        desired = self.reconciler.desired
        for name, elements in self.sets.items():
            desired.put_set(Set(name, (DataType.IPV4,), frozenset(elements), interval=self.interval[name]))
        desired.put_map(Map("m", (DataType.IFNAME,), dict(self.verdicts)))
        for name, rules in self.chains.items():
            desired.set_chain(Chain(name, rules, self.base() if name == "base" else None))

    def chain(self, name: str, rules: tuple[Rule, ...]) -> None:
        self.chains[name] = rules
        self.reconciler.desired.set_chain(Chain(name, rules, self.base() if name == "base" else None))

    @rule(body=BODIES)
    def set_chain(self, body: tuple[str, tuple[Rule, ...]]) -> None:
        self.chain(*body)

    @rule(body=BODIES, cut=st.integers(0, 14), insert=simple_rules(5))
    def edit_chain(self, body: tuple[str, tuple[Rule, ...]], cut: int, insert: Rule) -> None:
        """Change one rule in the middle of what is there."""
        name = body[0]
        have = self.chains.get(name, ())
        self.chain(name, (*have[:cut], insert, *have[cut + 1 :]))

    @rule(name=st.sampled_from(CHAINS))
    def del_chain(self, name: str) -> None:
        self.chains.pop(name, None)
        self.reconciler.desired.del_chain(name)

    @rule(policy=st.sampled_from(list(Policy)))
    def set_policy(self, policy: Policy) -> None:
        self.policy = policy
        self.chain("base", self.chains["base"])

    @rule(texts=st.sets(st.sampled_from(HOSTS), max_size=3), add=st.booleans())
    def edit_hosts(self, texts: set[str], add: bool) -> None:
        self.edit("s", texts, add)

    @rule(texts=st.sets(st.sampled_from(NETS), max_size=3), add=st.booleans())
    def edit_nets(self, texts: set[str], add: bool) -> None:
        self.edit("n", texts, add)

    def edit(self, name: str, texts: set[str], add: bool) -> None:
        if name not in self.sets:
            return
        if add:
            self.sets[name] |= texts
            self.reconciler.desired.add_elements(name, texts)
        else:
            self.sets[name] -= texts
            self.reconciler.desired.remove_elements(name, texts)

    @rule(texts=st.sets(st.sampled_from(HOSTS)), interval=st.booleans(), bury=st.booleans())
    def redefine(self, texts: set[str], interval: bool, bury: bool) -> None:
        """`s` becomes a hash or an interval set, with or without having been deleted first."""
        if bury:
            self.reconciler.desired.del_set("s")
        self.sets["s"], self.interval["s"] = set(texts), interval
        self.reconciler.desired.put_set(Set("s", (DataType.IPV4,), frozenset(texts), interval=interval))

    @rule(name=st.sampled_from(["a", "b", "c"]), verdict=VERDICTS | st.none())
    def edit_verdict(self, name: str, verdict: Verdict | None) -> None:
        if verdict is None:
            self.verdicts.pop(name, None)
            self.reconciler.desired.remove_verdicts("m", [name])
        else:
            self.verdicts[name] = verdict
            self.reconciler.desired.put_verdicts("m", {name: verdict})

    # --- what others do

    @rule(edit=FOREIGN)
    def foreign_edit(self, edit: Any) -> None:
        if self.interval["s"] and isinstance(edit, AddElements | DelElements) and edit.spec == PLAIN:
            return
        self.foreign(edit)

    def foreign(self, op: Any) -> None:
        with suppress(TransactionError):
            self.wait(self.transport.commit(TABLE, [op]))
            self.disturbed = True

    # --- what must hold

    @rule()
    def step_now(self) -> None:
        self.step()

    @rule(texts=st.sets(st.sampled_from(HOSTS), max_size=2), add=st.booleans())
    def edit_hosts_twice_and_step(self, texts: set[str], add: bool) -> None:
        self.edit_hosts(texts, add)
        self.edit_hosts(texts, not add)
        self.step()

    @rule(texts=st.sets(st.sampled_from(HOSTS)), interval=st.booleans(), bury=st.booleans())
    def redefine_and_step(self, texts: set[str], interval: bool, bury: bool) -> None:
        self.redefine(texts, interval, bury)
        self.step()

    def step(self) -> None:
        if self.disturbed:
            self.reconciler.resync()
        reads = self.reads()
        try:
            self.wait(self.reconciler.step())
        except TransactionError:
            assert self.missing(), "refused although everything that is referred to is there"
            self.unknown = True
            return
        assert not self.missing()
        if not (self.disturbed or self.unknown):
            assert self.reads() == reads, "a plan from what was touched was refused"
        self.disturbed = self.unknown = False
        self.check()
        assert self.wait(self.reconciler.step()) == Applied()

    @precondition(lambda self: isinstance(self.transport, FakeRuleset))
    @rule()
    def step_while_the_kernel_is_out_of_order(self) -> None:
        before = self.wait(self.transport.read(TABLE))
        self.transport.broken = OSError(errno.ENOMEM, "out of memory")
        with suppress(OSError):
            self.wait(self.reconciler.step())
        self.transport.broken, self.unknown = None, True
        assert self.content(self.wait(self.transport.read(TABLE))) == self.content(before)

    def reads(self) -> int:
        return self.transport.reads if isinstance(self.transport, FakeRuleset) else 0

    def live(self) -> dict[str, tuple[Rule, ...]]:
        """Chains that something leads to, computed from nothing."""
        found: dict[str, tuple[Rule, ...]] = {}
        queue = ["base", *(verdict.chain for verdict in self.verdicts.values() if verdict.chain)]
        while queue:
            name = queue.pop()
            if name in self.chains and name not in found:
                found[name] = self.chains[name]
                queue += [target for r in self.chains[name] for target in r.chains()]
        return found

    def missing(self) -> bool:
        led = {target for rules in self.live().values() for r in rules for target in r.chains()}
        led |= {verdict.chain for verdict in self.verdicts.values() if verdict.chain}
        return not led <= self.chains.keys()

    def content(self, table: KernelTable) -> object:
        return (
            {name: (chain.base, [r.wire for r in chain.rules]) for name, chain in table.chains.items()},
            {name: (entry.spec, entry.elements, entry.verdicts) for name, entry in table.sets.items()},
        )

    def check(self) -> None:
        chains: dict[str, tuple[Base | None, list[WireRule]]] = {
            name: (self.base() if name == "base" else None, [encode_rule(TABLE.family, r) for r in rules])
            for name, rules in self.live().items()
        }
        sets: dict[str, object] = {}
        for name, texts in self.sets.items():
            packed = pack_elements((DataType.IPV4,), texts, interval=self.interval[name])
            elements = set(merge(packed)) if self.interval[name] else packed
            sets[name] = SetSpec(name, (DataType.IPV4,), self.interval[name]), elements, {}
        verdicts = {pack_elements(DISPATCH.key, [n], interval=False).pop(): v for n, v in self.verdicts.items()}
        sets["m"] = DISPATCH, set(), verdicts
        assert self.content(self.wait(self.transport.read(TABLE))) == (chains, sets)

    @invariant()
    def desired_state_describes_the_model(self) -> None:
        """The desired state always describes the model, whatever was edited in between."""
        for name, texts in self.sets.items():
            packed = pack_elements((DataType.IPV4,), texts, interval=self.interval[name])
            wanted = set(merge(packed)) if self.interval[name] else packed
            assert self.reconciler.desired.sets[name].wanted == wanted


class KernelMachine(Machine):
    ns: ClassVar[netns.Namespace]
    clean: ClassVar[Callable[[], object]]

    def make_transport(self) -> Any:
        self.ns.run("nft", "flush", "ruleset")
        return KernelTransport(self.ns.path)

    def teardown(self) -> None:
        self.transport.close()
        super().teardown()


TestOnTheFake = Machine.TestCase
TestOnTheFake.settings = settings(
    max_examples=100 if os.environ.get("HYPOTHESIS_PROFILE") != "hunt" else 3000, stateful_step_count=40
)


@pytest.mark.kernel
def test_on_the_kernel() -> None:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("prop") as ns:
        KernelMachine.ns = ns
        case = KernelMachine.TestCase
        case.settings = settings(max_examples=20, stateful_step_count=30)
        case().runTest()
