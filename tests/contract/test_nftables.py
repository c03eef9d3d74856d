"""The reconciler's promises, on the fake ruleset and on the kernel in a namespace of its own."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from libs.nftables.fake import FakeRuleset
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
    Match,
    Policy,
    Ruleset,
    Set,
    Table,
    Vmap,
    goto,
    jump,
    rule,
)
from libs.nftables.ops import (
    AddElements,
    AddRules,
    DelElements,
    FlushChain,
    KernelTable,
    NewChain,
    SetSpec,
    TransactionRefused,
)
from libs.nftables.reconcile import Applied, TableReconciler
from libs.nftables.types import unpack_element
from libs.testkit import netns

TABLE = Table(Family.IP, "cal")
FORWARD = Base(Hook.FORWARD)
SADDR = InSet((Field.IP_SADDR,), "s-web")


@dataclass
class World:
    transport: FakeRuleset | KernelTransport
    ns: netns.Namespace | None

    async def read(self) -> KernelTable:
        return await self.transport.read(TABLE)

    async def elements(self, name: str) -> set[str]:
        entry = (await self.read()).sets[name]
        assert entry.spec is not None
        return {unpack_element(entry.spec.key, element) for element in entry.elements}

    async def verdicts(self, name: str) -> dict[str, str]:
        entry = (await self.read()).sets[name]
        assert entry.spec is not None
        return {unpack_element(entry.spec.key, key): str(verdict) for key, verdict in entry.verdicts.items()}

    async def comments(self, chain: str) -> list[str]:
        return [r.wire.userdata[2:-1].decode() for r in (await self.read()).chains[chain].rules]

    async def foreign(self, *ops: object) -> None:
        """Somebody else edits our table."""
        await self.transport.commit(TABLE, ops)  # type: ignore[arg-type]

    def reconciler(self) -> TableReconciler:
        reconciler = TableReconciler(self.transport, TABLE)
        reconciler.in_sync = True
        return reconciler


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield World(FakeRuleset(), None)
        return
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("nft") as ns:
        transport = KernelTransport(ns.path)
        try:
            yield World(transport, ns)
        finally:
            transport.close()


def small() -> Ruleset:
    """One base chain, a dispatch map, two endpoints that share a policy with a set."""
    policy = Chain(
        "pi-web", (rule(Match(Field.L4PROTO, "tcp"), Match(Field.DPORT, 80), SADDR, COUNTER, ACCEPT, comment="web/0"),)
    )
    ends = tuple(Chain(f"tw-{n}", (rule(jump("pi-web")), rule(COUNTER, DROP, comment=f"end {n}"))) for n in ("a", "b"))
    base = Chain("fwd-to", (rule(Vmap((Field.OIFNAME,), "to-wl")), rule(COUNTER, DROP, comment="unknown")), FORWARD)
    return Ruleset(
        TABLE,
        (base, policy, *ends),
        (Set("s-web", (DataType.IPV4,), frozenset({"10.0.0.1", "10.0.0.2/32"})),),
        (Map("to-wl", (DataType.IFNAME,), {"calia": goto("tw-a"), "calib": goto("tw-b")}),),
    )


async def loaded(world: World) -> TableReconciler:
    reconciler = world.reconciler()
    reconciler.desired.replace(small())
    await reconciler.step()
    return reconciler


async def test_empty_kernel_gets_everything_in_one_transaction(world: World) -> None:
    reconciler = world.reconciler()
    reconciler.desired.replace(small())
    applied = await reconciler.step()
    assert (applied.changed_rules, applied.changed_elements, applied.transactions) == (7, 4, 1)
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2"}
    assert await world.verdicts("to-wl") == {"calia": "goto tw-a", "calib": "goto tw-b"}
    assert await world.comments("tw-a") == ["", "end a"]


async def test_second_step_writes_nothing(world: World) -> None:
    reconciler = await loaded(world)
    assert await reconciler.step() == Applied()


async def test_restarted_process_adopts_what_it_finds(world: World) -> None:
    await loaded(world)
    again = world.reconciler()
    again.desired.replace(small())
    assert await again.step() == Applied()


async def test_nothing_is_written_before_in_sync(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.in_sync = False
    reconciler.desired.del_map("to-wl")
    assert await reconciler.step() == Applied()
    assert await world.verdicts("to-wl") == {"calia": "goto tw-a", "calib": "goto tw-b"}


async def test_unreferenced_chain_is_not_written_until_something_leads_to_it(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("pi-late", (rule(ACCEPT),)))
    reconciler.desired.set_chain(Chain("blk", (rule(jump("pi-late")),)))
    assert await reconciler.step() == Applied()
    assert "pi-late" not in (await world.read()).chains
    reconciler.desired.set_chain(Chain("tw-a", (rule(jump("blk")), rule(DROP))))
    await reconciler.step()
    assert {"pi-late", "blk"} <= (await world.read()).chains.keys()
    reconciler.desired.set_chain(Chain("tw-a", (rule(DROP),)))
    await reconciler.step()
    assert not {"pi-late", "blk"} & (await world.read()).chains.keys()


async def test_one_element_costs_one_message(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.add_elements("s-web", ["10.0.0.9"])
    assert await reconciler.step() == Applied(changed_elements=1, messages=1, transactions=1)
    reconciler.desired.remove_elements("s-web", ["10.0.0.9", "10.0.0.77"])
    assert await reconciler.step() == Applied(changed_elements=1, messages=1, transactions=1)
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2"}


async def test_added_and_removed_between_steps_costs_nothing(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.add_elements("s-web", ["10.0.0.9"])
    reconciler.desired.remove_elements("s-web", ["10.0.0.9"])
    assert await reconciler.step() == Applied()


async def test_set_deleted_and_put_again_between_steps_is_diffed(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.del_set("s-web")
    reconciler.desired.put_set(Set("s-web", (DataType.IPV4,), frozenset({"10.0.0.2", "10.0.0.3"})))
    applied = await reconciler.step()
    assert (applied.changed_elements, applied.changed_rules) == (2, 0)
    assert await world.elements("s-web") == {"10.0.0.2", "10.0.0.3"}


async def test_changed_verdict_is_replaced_in_the_same_transaction(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.put_verdicts("to-wl", {"calia": goto("tw-b")})
    applied = await reconciler.step()
    assert (applied.changed_elements, applied.transactions) == (2, 1)
    assert await world.verdicts("to-wl") == {"calia": "goto tw-b", "calib": "goto tw-b"}
    assert "tw-a" not in (await world.read()).chains


async def test_endpoint_comes_and_goes_with_its_chain(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("tw-c", (rule(jump("pi-web")), rule(DROP))))
    reconciler.desired.put_verdicts("to-wl", {"calic": goto("tw-c")})
    await reconciler.step()
    assert (await world.verdicts("to-wl"))["calic"] == "goto tw-c"
    reconciler.desired.remove_verdicts("to-wl", ["calic"])
    reconciler.desired.del_chain("tw-c")
    await reconciler.step()
    assert "tw-c" not in (await world.read()).chains


@pytest.mark.parametrize("position", [0, 10, 19])
@pytest.mark.parametrize("extra", [0, 1, 3])
async def test_rules_are_spliced_into_a_long_chain(world: World, position: int, extra: int) -> None:
    names = [f"r{i}" for i in range(20)]
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("tw-a", tuple(rule(COUNTER, comment=name) for name in names)))
    await reconciler.step()
    names[position : position + 1] = [f"new{i}" for i in range(extra)]
    reconciler.desired.set_chain(Chain("tw-a", tuple(rule(COUNTER, comment=name) for name in names)))
    applied = await reconciler.step()
    assert applied.changed_rules == 1 + extra
    assert await world.comments("tw-a") == names


@pytest.mark.parametrize("length", [9, 11, 13, 30])
async def test_equal_rules_are_counted(world: World, length: int) -> None:
    """Head and tail of the comparison must not claim the same rule."""
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("tw-a", (rule(COUNTER),) * 12))
    await reconciler.step()
    reconciler.desired.set_chain(Chain("tw-a", (rule(COUNTER),) * length))
    assert (await reconciler.step()).changed_rules == abs(12 - length)
    assert await world.comments("tw-a") == [""] * length


async def test_policy_of_a_base_chain_changes_in_place(world: World) -> None:
    reconciler = await loaded(world)
    chain = reconciler.desired.chains["fwd-to"]
    reconciler.desired.set_chain(Chain("fwd-to", chain.rules, Base(Hook.FORWARD, policy=Policy.DROP)))
    applied = await reconciler.step()
    assert (applied.changed_rules, applied.messages) == (0, 1)
    assert (await world.read()).chains["fwd-to"].base == Base(Hook.FORWARD, policy=Policy.DROP)


async def test_base_chain_moves_to_another_hook(world: World) -> None:
    reconciler = await loaded(world)
    chain = reconciler.desired.chains["fwd-to"]
    reconciler.desired.set_chain(Chain("fwd-to", chain.rules, Base(Hook.INPUT, priority=-5)))
    assert (await reconciler.step()).transactions == 1
    found = (await world.read()).chains["fwd-to"]
    assert found.base == Base(Hook.INPUT, priority=-5)
    assert len(found.rules) == 2


@pytest.mark.parametrize("restart", [False, True])
async def test_set_changes_its_kind_under_rules_that_use_it(world: World, restart: bool) -> None:
    reconciler = await loaded(world)
    new = Set("s-web", (DataType.IPV4,), frozenset({"10.0.0.0/24"}), interval=True)
    if restart:
        reconciler = world.reconciler()
        reconciler.desired.replace(small())
    reconciler.desired.put_set(new)
    assert (await reconciler.step()).transactions == 1
    assert await world.elements("s-web") == {"10.0.0.0/24"}
    assert await world.comments("pi-web") == ["web/0"]


@pytest.mark.parametrize("restart", [False, True])
async def test_map_changes_its_kind_under_rules_that_use_it(world: World, restart: bool) -> None:
    reconciler = await loaded(world)
    if restart:
        reconciler = world.reconciler()
        reconciler.desired.replace(small())
    key = (DataType.IFNAME, DataType.IPV4)
    reconciler.desired.put_map(Map("to-wl", key, {"calia . 10.0.0.1": goto("tw-a")}))
    base = Chain("fwd-to", (rule(Vmap((Field.OIFNAME, Field.IP_DADDR), "to-wl")),), FORWARD)
    reconciler.desired.set_chain(base)
    assert (await reconciler.step()).transactions == 1
    assert await world.verdicts("to-wl") == {"calia . 10.0.0.1": "goto tw-a"}
    assert "tw-b" not in (await world.read()).chains


async def test_constant_set_changes_with_the_rules_that_use_it(world: World) -> None:
    reconciler = world.reconciler()
    reconciler.desired.replace(small())
    reconciler.desired.put_set(Set("s-web", (DataType.IPV4,), frozenset({"10.0.0.1"}), constant=True))
    await reconciler.step()
    for new, restart in ((frozenset({"10.0.0.1", "10.0.0.2"}), False), (frozenset({"10.0.0.3"}), True)):
        if restart:
            reconciler = world.reconciler()
            reconciler.desired.replace(small())
        reconciler.desired.put_set(Set("s-web", (DataType.IPV4,), new, constant=True))
        await reconciler.step()
        assert await world.elements("s-web") == set(new)
        assert await world.comments("pi-web") == ["web/0"]


async def test_unused_sets_and_everything_foreign_in_the_table_go(world: World) -> None:
    reconciler = await loaded(world)
    await world.foreign(
        NewChain("other", Base(Hook.INPUT)),
        NewChain("other2", None),
        AddRules("other", (rule(jump("other2")), rule(InSet((Field.IP_SADDR,), "s-web"), DROP))),
        AddRules("tw-a", (rule(ACCEPT, comment="mine"),)),
        AddElements(SetSpec("s-web", (DataType.IPV4,)), [bytes((1, 2, 3, 4))]),
    )
    reconciler.resync()
    applied = await reconciler.step()
    assert applied.transactions == 1
    found = await world.read()
    assert found.chains.keys() == {"fwd-to", "pi-web", "tw-a", "tw-b"}
    assert await world.comments("tw-a") == ["", "end a"]
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize(
    "edit",
    [
        [FlushChain("tw-a")],
        [FlushChain("tw-a"), AddRules("tw-a", (rule(COUNTER, DROP, comment="end a"), rule(jump("pi-web"))))],
        [FlushChain("tw-a"), AddRules("tw-a", (rule(jump("pi-web")), rule(COUNTER, ACCEPT, comment="end a")))],
        [FlushChain("tw-a"), AddRules("tw-a", (rule(jump("pi-web")), rule(COUNTER, DROP, comment="end x")))],
        [DelElements(SetSpec("s-web", (DataType.IPV4,)), [bytes((10, 0, 0, 1))])],
        [DelElements(SetSpec("to-wl", (DataType.IFNAME,), is_map=True), [b"calia".ljust(16, b"\0")])],
        [NewChain("fwd-to", Base(Hook.FORWARD, policy=Policy.DROP))],
    ],
    ids=["flushed", "reordered", "verdict", "comment", "element", "verdict element", "policy"],
)  # fmt: skip
async def test_manual_edit_is_found_and_mended(world: World, edit: list[object]) -> None:
    reconciler = await loaded(world)
    before = await world.read()
    await world.foreign(*edit)
    reconciler.resync()
    assert (await reconciler.step()).transactions == 1
    after = await world.read()
    assert _content(after) == _content(before)


def _content(table: KernelTable) -> object:
    chains = {name: (chain.base, [r.wire for r in chain.rules]) for name, chain in table.chains.items()}
    return chains, {name: (s.elements, s.verdicts) for name, s in table.sets.items()}


async def test_deleted_table_comes_back(world: World) -> None:
    reconciler = await loaded(world)
    before = await world.read()
    if isinstance(world.transport, FakeRuleset):
        del world.transport.tables[TABLE]
        world.transport.touched()
    else:
        assert world.ns is not None
        world.ns.run("nft", "delete", "table", "ip", "cal")
    reconciler.desired.add_elements("s-web", ["10.0.0.3"])  # without a resync: the kernel's refusal makes us look
    await reconciler.step()
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    assert (await world.read()).chains.keys() == before.chains.keys()


async def test_refusal_names_the_rule_and_keeps_the_old_content(world: World) -> None:
    reconciler = await loaded(world)
    before = _content(await world.read())
    reconciler.desired.add_elements("s-web", ["10.0.0.3"])
    bad = rule(jump("nowhere"), comment="bad one")
    reconciler.desired.set_chain(Chain("tw-a", (rule(COUNTER), bad)))
    with pytest.raises(TransactionRefused) as refused:
        await reconciler.step()
    assert refused.value.failures[0].object == 'rule 1 "bad one" of chain tw-a'
    assert refused.value.failures[0].code == errno.ENOENT
    assert _content(await world.read()) == before
    reconciler.desired.set_chain(Chain("tw-a", (rule(COUNTER, comment="good"),)))
    await reconciler.step()
    assert await world.comments("tw-a") == ["good"]
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}


async def test_refusal_names_the_element(world: World) -> None:
    spec = SetSpec("s-web", (DataType.IPV4,))
    await loaded(world)
    with pytest.raises(TransactionRefused) as refused:
        await world.transport.commit(
            TABLE, [DelElements(spec, [bytes((10, 0, 0, 1)), bytes((10, 9, 9, 9)), bytes((10, 0, 0, 2))])]
        )
    assert str(refused.value.failures[0].object) == "element 10.9.9.9 of set s-web"
    assert await world.elements("s-web") == {"10.0.0.1", "10.0.0.2"}


async def test_third_failure_rewrites_the_table_in_one_transaction(world: World) -> None:
    reconciler = await loaded(world)
    good = reconciler.desired.chains["tw-a"]
    reconciler.desired.set_chain(Chain("tw-a", (rule(jump("nowhere")),)))
    for _ in range(2):
        with pytest.raises(TransactionRefused):
            await reconciler.step()
    reconciler.desired.set_chain(good)
    applied = await reconciler.step()
    assert (applied.changed_rules, applied.changed_elements, applied.transactions) == (7, 4, 1)
    assert await reconciler.step() == Applied()


async def test_overlapping_networks_are_merged(world: World) -> None:
    reconciler = await loaded(world)
    nets = Set(
        "n",
        (DataType.IPV4,),
        frozenset({"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "255.0.0.0/8", "0.0.0.0/8"}),
        interval=True,
    )
    reconciler.desired.put_set(nets)
    await reconciler.step()
    assert await world.elements("n") == {"10.0.0.0/8", "255.0.0.0/8", "0.0.0.0/8"}
    reconciler.desired.remove_elements("n", ["10.0.0.0/8"])
    applied = await reconciler.step()
    assert applied.changed_elements == 2
    assert await world.elements("n") == {"10.1.0.0/16", "255.0.0.0/8", "0.0.0.0/8"}
    again = world.reconciler()
    again.desired.replace(small())
    again.desired.put_set(Set("n", nets.key, nets.elements - {"10.0.0.0/8"}, interval=True))
    assert await again.step() == Applied()


async def test_networks_of_one_interface_are_merged_in_a_concatenated_set(world: World) -> None:
    reconciler = await loaded(world)
    key = (DataType.IFNAME, DataType.IPV4)
    elements = frozenset({"calia . 10.0.0.0/8", "calia . 10.1.0.0/16", "calib . 10.1.0.0/16"})
    reconciler.desired.put_set(Set("spoof", key, elements, interval=True))
    await reconciler.step()
    assert await world.elements("spoof") == {"calia . 10.0.0.0/8", "calib . 10.1.0.0/16"}
    reconciler.desired.remove_elements("spoof", ["calia . 10.0.0.0/8"])
    await reconciler.step()
    assert await world.elements("spoof") == {"calia . 10.1.0.0/16", "calib . 10.1.0.0/16"}


async def test_many_elements_are_split_over_messages(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.set_elements("s-web", [f"10.1.{i >> 8}.{i & 255}" for i in range(10_000)])
    applied = await reconciler.step()
    assert applied.changed_elements == 10_002
    assert applied.transactions == 1
    assert len(await world.elements("s-web")) == 10_000


async def test_base_chain_must_not_be_jumped_to(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("tw-a", (rule(jump("fwd-to")),)))
    with pytest.raises(TransactionRefused):
        await reconciler.step()


async def test_loop_is_refused(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.desired.set_chain(Chain("tw-a", (rule(jump("x")),)))
    reconciler.desired.set_chain(Chain("x", (rule(jump("tw-a")),)))
    with pytest.raises(TransactionRefused):
        await reconciler.step()


async def test_commit_at_a_stale_generation_is_retried_on_fresh_knowledge(world: World) -> None:
    reconciler = await loaded(world)
    reconciler.resync()
    read = world.transport.read
    calls = 0

    async def read_then_foreign_write(table: Table) -> KernelTable:
        nonlocal calls
        calls += 1
        found = await read(table)
        if calls == 1:
            await world.foreign(AddRules("tw-b", (rule(ACCEPT, comment="late"),)))
        return found

    world.transport.read = read_then_foreign_write  # type: ignore[method-assign]
    reconciler.desired.add_elements("s-web", ["10.0.0.3"])
    await reconciler.step()
    world.transport.read = read  # type: ignore[method-assign]
    assert calls == 2
    assert await world.comments("tw-b") == ["", "end b"]


@pytest.fixture
def ns() -> Iterator[netns.Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("nft") as made:
        yield made


@pytest.mark.kernel
async def test_table_made_by_nft_is_taken_over(ns: netns.Namespace) -> None:
    foreign = """table ip cal {
        set s-web {
            type ipv4_addr
            flags interval
            elements = { 10.0.0.0/24 }
        }
        map to-wl {
            type ifname : verdict
            elements = { "calix" : goto old }
        }
        set odd {
            typeof ether saddr
            elements = { 02:00:00:00:00:01 }
        }
        chain old {
            ip saddr @s-web tcp dport { 80, 443 } accept
        }
        chain fwd-to {
            type filter hook forward priority 10; policy drop;
            ether saddr @odd accept
            oifname vmap @to-wl
        }
    }"""
    ns.run("nft", "-f", "-", text=foreign)
    transport = KernelTransport(ns.path)
    try:
        world = World(transport, ns)
        reconciler = world.reconciler()
        reconciler.desired.replace(small())
        assert (await reconciler.step()).transactions == 1
        assert (await world.read()).chains.keys() == {"fwd-to", "pi-web", "tw-a", "tw-b"}
        assert (await world.read()).sets.keys() == {"s-web", "to-wl"}
        reconciler.resync()
        assert await reconciler.step() == Applied()
    finally:
        transport.close()
