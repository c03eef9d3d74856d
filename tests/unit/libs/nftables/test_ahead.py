"""New networks of sets go ahead of the rules that need them (libs/nftables/reconcile.py)."""

from __future__ import annotations

import asyncio

from libs.nftables import model as nft
from libs.nftables.fake import FakeRuleset
from libs.nftables.model import Base, Chain, DataType, Family, Field, Hook, Rule, Set, Table
from libs.nftables.ops import AddElements, AddRules, DelElements, NewChain, NewSet, NewTable, Op
from libs.nftables.reconcile import TableReconciler

TABLE = Table(Family.IP, "t")


def uses(*names: str) -> Chain:
    rules = tuple(Rule((nft.InSet((Field.IP_SADDR,), name), nft.ACCEPT)) for name in names)
    return Chain("c", rules, Base(Hook.FORWARD))


def addresses(name: str, *elements: str, interval: bool = False) -> Set:
    return Set(name, (DataType.IPV4,), frozenset(elements), interval=interval)


class Node:
    def __init__(self) -> None:
        self.kernel = FakeRuleset()
        self.table = TableReconciler(self.kernel, TABLE)
        self.table.in_sync = True

    def step(self) -> list[list[type[Op]]]:
        """Kinds of the operations of each transaction."""
        before = len(self.kernel.commits)
        applied = asyncio.run(self.table.step())
        commits = [[type(op) for op in ops] for ops in self.kernel.commits[before:]]
        assert applied.transactions == len(commits)
        return commits


def test_a_new_set_of_networks_comes_with_all_it_holds_before_its_rules() -> None:
    node = Node()
    node.table.desired.put_set(addresses("n", "10.0.0.0/8", interval=True))
    node.table.desired.set_chain(uses("n"))
    assert node.step() == [[NewTable, NewSet, AddElements], [NewChain, AddRules]]
    node.table.desired.put_set(addresses("h", "10.0.0.1"))
    node.table.desired.set_chain(uses("n", "h"))
    assert len(node.step()) == 1
    assert node.step() == []


def test_a_network_is_there_before_the_addresses_that_it_covers_leave() -> None:
    node = Node()
    node.table.desired.put_set(addresses("n", "10.0.0.0/8", interval=True))
    node.table.desired.put_set(addresses("h", "192.0.2.1"))
    node.table.desired.set_chain(uses("n", "h"))
    node.step()
    node.table.desired.add_elements("n", ["192.0.2.0/24"])
    node.table.desired.remove_elements("h", ["192.0.2.1"])
    assert node.step() == [[AddElements], [DelElements]]
    node.table.desired.remove_elements("n", ["192.0.2.0/24"])
    node.table.desired.add_elements("h", ["192.0.2.1"])
    assert len(node.step()) == 1
    node.table.desired.add_elements("n", ["192.0.2.0/24"])
    assert node.step() == [[AddElements]]


def test_networks_that_come_with_rules_are_not_seen_by_the_old_ones() -> None:
    node = Node()
    node.table.desired.put_set(addresses("n", "10.0.0.0/8", interval=True))
    node.table.desired.set_chain(uses("n"))
    node.step()
    node.table.desired.add_elements("n", ["192.0.2.0/24"])
    node.table.desired.set_chain(Chain("c", (), Base(Hook.FORWARD)))
    assert len(node.step()) == 1


def test_networks_that_overlap_with_what_goes_are_one_transaction() -> None:
    node = Node()
    node.table.desired.put_set(addresses("n", "10.1.0.0/16", interval=True))
    node.table.desired.set_chain(uses("n"))
    node.step()
    node.table.desired.remove_elements("n", ["10.1.0.0/16"])
    node.table.desired.add_elements("n", ["10.0.0.0/8"])
    assert node.step() == [[DelElements, AddElements]]


def test_a_process_that_starts_over_a_table_of_its_own_writes_the_same_way() -> None:
    node = Node()
    node.table.desired.put_set(addresses("n", "10.0.0.0/8", interval=True))
    node.table.desired.set_chain(uses("n"))
    node.step()
    again = TableReconciler(node.kernel, TABLE)
    again.in_sync = True
    again.desired.put_set(addresses("n", "10.0.0.0/8", interval=True))
    again.desired.put_set(addresses("m", "10.9.0.0/16", interval=True))
    again.desired.set_chain(uses("n", "m"))
    node.table = again
    first, second = node.step()
    assert first == [NewSet, AddElements]
    assert NewSet not in second
    assert node.step() == []
