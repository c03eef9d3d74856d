from __future__ import annotations

import pytest

from libs.nftables.model import ACCEPT, DROP, Chain, DataType, Family, Field, Map, Match, Ruleset, Set, Table, rule
from libs.nftables.state import TableState
from libs.nftables.text import print_ruleset
from libs.nftables.types import ElementError

TABLE = Table(Family.IP, "cal")
KEY = (DataType.IPV4,)


@pytest.fixture
def state() -> TableState:
    made = TableState(TABLE)
    made.put_set(Set("s", KEY, frozenset({"10.0.0.1"})))
    made.put_map(Map("m", (DataType.IFNAME,), {"a": ACCEPT}))
    made.set_chain(Chain("c", (rule(DROP),)))
    return made


def test_bad_element_leaves_the_set_as_it_was(state: TableState) -> None:
    with pytest.raises(ElementError):
        state.add_elements("s", ["10.0.0.2", "10.0.0.0/8"])
    with pytest.raises(ElementError):
        state.put_set(Set("s", KEY, frozenset({"nonsense"})))
    assert state.sets["s"].texts() == ["10.0.0.1"]


def test_bad_rule_leaves_the_chain_as_it_was_and_is_named(state: TableState) -> None:
    with pytest.raises(ElementError, match="chain c rule 1"):
        state.set_chain(Chain("c", (rule(DROP), rule(Match(Field.DPORT, 99999)))))
    assert state.chains["c"].rules == (rule(DROP),)


def test_unknown_set_is_a_key_error(state: TableState) -> None:
    with pytest.raises(KeyError):
        state.add_elements("nowhere", ["10.0.0.1"])


def test_sets_and_maps_share_their_names(state: TableState) -> None:
    with pytest.raises(ValueError, match="is a map"):
        state.put_set(Set("m", KEY))
    with pytest.raises(ValueError, match="is a set"):
        state.put_map(Map("s", KEY))


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_names_have_a_length(state: TableState, name: str) -> None:
    with pytest.raises(ValueError, match="must have 1 to 255"):
        state.put_set(Set(name, KEY))
    with pytest.raises(ValueError, match="must have 1 to 255"):
        state.set_chain(Chain(name))


@pytest.mark.parametrize("key", [(DataType.MARK,), (DataType.IFNAME,)])
def test_values_without_order_have_no_intervals(state: TableState, key: tuple[DataType, ...]) -> None:
    with pytest.raises(ValueError, match="no intervals"):
        state.put_set(Set("x", key, interval=True))


def test_one_key_with_two_verdicts_is_refused(state: TableState) -> None:
    with pytest.raises(ElementError, match="two verdicts"):
        state.put_map(Map("v", KEY, {"10.0.0.1": ACCEPT, "10.0.0.1/32": DROP}))


def test_equal_chain_is_no_edit(state: TableState) -> None:
    state.dirty_chains.clear()
    state.set_chain(Chain("c", (rule(DROP),)))
    assert not state.dirty_chains


def test_ruleset_of_the_state_makes_the_same_state(state: TableState) -> None:
    copy = TableState(TABLE)
    copy.replace(state.ruleset())
    assert copy.ruleset() == state.ruleset()


def test_replace_removes_what_is_not_there(state: TableState) -> None:
    state.replace(Ruleset(TABLE))
    assert state.ruleset() == Ruleset(TABLE)
    with pytest.raises(ValueError, match="not ip cal"):
        state.replace(Ruleset(Table(Family.IP6, "cal")))


def test_state_prints_as_nft_text(state: TableState) -> None:
    state.put_set(Set("n", KEY, frozenset({"10.0.0.0/8", "10.1.0.0/16"}), interval=True))
    assert print_ruleset(state.ruleset()) == (
        "table ip cal {\n"
        "\tset n {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.0.0.0/8 }\n\t}\n\n"
        "\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n\n"
        '\tmap m {\n\t\ttype ifname : verdict\n\t\telements = { "a" : accept }\n\t}\n\n'
        "\tchain c {\n\t\tdrop\n\t}\n\n"
        "}\n"
    )
