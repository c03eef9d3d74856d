"""The walk through a table: what ends it, what it remembers, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from libs.nftables import model as nft
from libs.nftables.evaluate import Evaluator, Packet
from libs.nftables.model import Base, Chain, DataType, Family, Field, Hook, Map, Rule, Ruleset, Set, Table

TABLE = Table(Family.IP, "t")
PACKET = Packet(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 6, 1000, 80, iif="calia", oif="eth0")


def run(*chains: Chain, sets: tuple[Set, ...] = (), maps: tuple[Map, ...] = (), packet: Packet = PACKET):
    return Evaluator(Ruleset(TABLE, chains, sets, maps)).run(Hook.FORWARD, packet)


def base(
    *rules: Rule, priority: int = 0, name: str = "base", policy: nft.Policy = nft.Policy.ACCEPT,
    hook: Hook = Hook.FORWARD,
) -> Chain:  # fmt: skip
    return Chain(name, rules, Base(hook, priority=priority, policy=policy))


def test_accept_ends_one_base_chain_and_drop_all():
    first = base(Rule((nft.ACCEPT,), "one"), Rule((nft.DROP,), "never"), priority=-1, name="first")
    second = base(Rule((nft.DROP,), "two"))
    outcome = run(second, first)
    assert not outcome.accepted
    assert [rule.comment for _, rule in outcome.fired] == ["one", "two"]
    assert outcome.decided_by == "two"


def test_policy_decides_when_no_rule_does():
    assert run(base()).accepted
    assert not run(base(policy=nft.Policy.DROP)).accepted


def test_return_goes_back_behind_the_jump_and_goto_does_not():
    target = Chain("target", (Rule((nft.RETURN,)), Rule((nft.ACCEPT,))))
    assert not run(base(Rule((nft.jump("target"),)), Rule((nft.DROP,))), target).accepted
    assert run(base(Rule((nft.goto("target"),)), Rule((nft.DROP,))), target).accepted


def test_mark_is_carried_from_chain_to_chain():
    first = base(Rule((nft.mark_or(0x20000),)), priority=-1, name="first")
    outcome = run(first, base(Rule((nft.mark_has(0x20000), nft.DROP))), packet=replace(PACKET, mark=1))
    assert (outcome.accepted, outcome.mark) == (False, 0x20001)


@pytest.mark.parametrize(
    ("expr", "matches"),
    [
        (nft.Match(Field.IP_SADDR, "10.0.0.0/8"), True),
        (nft.Match(Field.IP_SADDR, "10.0.0.0/8", negate=True), False),
        (nft.Match(Field.DPORT, "80-90"), True),
        (nft.Match(Field.L4PROTO, "tcp"), True),
        (nft.Match(Field.IIFNAME, "cali*"), True),
        (nft.Match(Field.OIFNAME, "cali*"), False),
        (nft.ct_state(nft.CtState.NEW), True),
        (nft.ct_state(nft.CtState.ESTABLISHED), False),
        (nft.InSet((Field.IP_SADDR,), "hosts"), True),
        (nft.InSet((Field.IP_DADDR,), "hosts"), False),
        (nft.InSet((Field.IP_DADDR,), "hosts", negate=True), True),
        (nft.InSet((Field.IP_DADDR,), "nets"), True),
        (nft.InSet((Field.IP_DADDR, Field.L4PROTO, Field.DPORT), "services"), True),
        (nft.InSet((Field.IP_SADDR, Field.L4PROTO, Field.DPORT), "services"), False),
    ],
)
def test_matches(expr, matches):
    sets = (
        Set("hosts", (DataType.IPV4,), frozenset({"10.0.0.1"})),
        Set("nets", (DataType.IPV4,), frozenset({"10.0.0.2/31", "10.0.0.0/29", "192.168.0.0/16"}), interval=True),
        Set("services", (DataType.IPV4, DataType.PROTO, DataType.PORT), frozenset({"10.0.0.2 . tcp . 80"})),
    )
    assert run(base(Rule((expr, nft.DROP))), sets=sets).accepted is not matches


@pytest.mark.parametrize(
    ("hook", "priority", "meets_it_as_sent"),
    [
        (Hook.PREROUTING, -300, True), (Hook.PREROUTING, -150, True), (Hook.PREROUTING, -100, False),
        (Hook.OUTPUT, -300, True), (Hook.OUTPUT, 0, False), (Hook.FORWARD, -150, False), (Hook.INPUT, -150, False),
    ],
)  # fmt: skip
def test_chains_before_translation_meet_the_packet_as_it_was_sent(
    hook: Hook, priority: int, meets_it_as_sent: bool
) -> None:
    sent = replace(PACKET, dst=ip_address("10.96.0.10"), dport=80)
    drop = base(Rule((nft.Match(Field.IP_DADDR, "10.96.0.10"), nft.DROP)), priority=priority, hook=hook)
    table = Evaluator(Ruleset(Table(Family.IP, "t"), (drop,)))
    assert table.run(hook, PACKET, sent).accepted is not meets_it_as_sent
    assert table.run(hook, PACKET).accepted
    assert not table.run(hook, sent).accepted


def test_verdict_map_leads_on_or_to_the_next_rule():
    verdicts = Map("by-name", (DataType.IFNAME,), {"calia": nft.goto("a")})
    chains = base(Rule((nft.Vmap((Field.IIFNAME,), "by-name"),)), Rule((nft.DROP,))), Chain("a", (Rule((nft.ACCEPT,)),))
    assert run(*chains, maps=(verdicts,)).accepted
    assert not run(*chains, maps=(verdicts,), packet=replace(PACKET, iif="calib")).accepted


def test_logged_lines_are_remembered():
    outcome = run(base(Rule((nft.Log("seen: "),), "log"), Rule((nft.ACCEPT,))))
    assert outcome.logged == ["seen: "]


def test_missing_targets_and_endless_jumps_are_refused():
    with pytest.raises(KeyError):
        run(base(Rule((nft.jump("gone"),))))
    with pytest.raises(KeyError):
        run(base(Rule((nft.InSet((Field.IP_SADDR,), "gone"), nft.DROP))))
    with pytest.raises(ValueError, match="nested deeper"):
        run(base(Rule((nft.jump("loop"),))), Chain("loop", (Rule((nft.jump("loop"),)),)))
