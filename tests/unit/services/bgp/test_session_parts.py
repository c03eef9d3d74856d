"""Parts of the session alone: the table of states, what new settings cost, patience."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from services.bgp.core.paths import Family
from services.bgp.core.session import states
from services.bgp.core.session.change import COSTS, Cost, cost_of_change
from services.bgp.core.session.graceful import kept_families
from services.bgp.core.session.negotiation import Restart, afi_safi, negotiate, our_open
from services.bgp.core.session.patience import Patience
from services.bgp.core.session.states import TRANSITIONS, Event, State, step
from services.bgp.core.settings import NextHopMode, PeerKind, PeerSettings, SecretRef
from tests.properties.bgp_pair import settings

OTHERS = {
    "name": "x", "resource": "x", "kind": PeerKind.GLOBAL,
    "address": ip_address("10.9.9.9"), "remote_as": 1, "local_as": 2,
    "port": 1179, "passive": True, "prefix": ip_network("10.0.0.0/24"), "source": ip_address("10.0.0.9"),
    "password": SecretRef("a", "b"), "ttl_security": 1, "restart_time_s": None, "hold_time_s": 30,
    "keepalive_time_s": 7, "next_hop_mode": NextHopMode.SELF, "keep_ebgp_next_hop": True, "rr_client_cluster": 1,
    "allowed_local_as": 1, "filters": ("f",), "gateway": ip_address("10.0.0.8"), "interface": "cali1",
    "families": (Family.IPV6,), "add_path_receive": False, "add_path_send": True, "long_lived_time_s": 1,
    "delay_open_s": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", [one.name for one in fields(PeerSettings)])
def test_every_setting_has_a_cost(name: str) -> None:
    """A new field of PeerSettings fails here until someone thought of what changing it means."""
    old = settings(0)
    assert cost_of_change(old, old) is Cost.NOTHING
    assert cost_of_change(old, replace(old, **{name: OTHERS[name]})) is COSTS[name]  # type: ignore[arg-type]


def test_what_tcp_or_the_open_said_costs_the_session() -> None:
    assert {name for name, cost in COSTS.items() if cost is Cost.RESET} == {
        "address", "port", "prefix", "source", "password", "ttl_security",  # TCP
        "remote_as", "local_as", "hold_time_s", "restart_time_s", "long_lived_time_s", "families",  # the OPEN
        "add_path_receive", "add_path_send",
    }  # fmt: skip


def test_the_dearest_change_counts() -> None:
    old = settings(0)
    assert cost_of_change(old, replace(old, name="x", filters=("f",), hold_time_s=9)) is Cost.RESET
    assert cost_of_change(old, replace(old, name="x", filters=("f",))) is Cost.SOFT


def test_every_state_can_be_reached_and_left() -> None:
    reached, todo = set(), [State.IDLE]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += [to for (from_state, _), tos in TRANSITIONS.items() if from_state is state for to in tos]
    assert reached == set(State)
    for state in State:
        assert state is State.IDLE or State.IDLE in TRANSITIONS[state, Event.MANUAL_STOP]


def test_only_openconfirm_leads_to_established() -> None:
    """RFC 4271 section 8.2.2: by a KEEPALIVE, and by nothing else."""
    ways = [(state, event) for (state, event), tos in TRANSITIONS.items() if State.ESTABLISHED in tos]
    assert [way for way in ways if way[0] is not State.ESTABLISHED] == [(State.OPEN_CONFIRM, Event.KEEPALIVE_MSG)]


def test_a_transition_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Idle to Established by KEEPALIVE_MSG"):
        step(State.IDLE, Event.KEEPALIVE_MSG, State.ESTABLISHED)


def test_the_document_shows_the_table() -> None:
    """`python -m services.bgp.core.session.states` made it."""
    page = Path(__file__).resolve().parents[4] / "docs/design/bgp-session.md"
    assert states.table() in page.read_text()


def test_patience_grows_and_is_forgotten() -> None:
    patience = Patience(5, 30, 300)
    assert [patience.error(now) for now in (0, 10, 20, 30, 330, 631)] == [5, 10, 20, 30, 30, 5]


def test_long_lived_says_for_itself_what_stays() -> None:
    """RFC 9494 section 4.2: flags of its own; what graceful restart leaves out has a restart time of 0 and is kept."""
    both = (Family.IPV4, Family.IPV6)
    mine = our_open(settings(0, families=both, long_lived_time_s=5), 1, Restart())
    other = our_open(settings(1, families=both, long_lived_time_s=9), 2, Restart(preserved=frozenset((Family.IPV6,))))
    assert other.capabilities is not None
    assert other.capabilities.graceful_restart is not None
    graceful = replace(other.capabilities.graceful_restart, families=((afi_safi(Family.IPV4), True),))
    theirs = replace(other, capabilities=replace(other.capabilities, graceful_restart=graceful))
    agreed = negotiate(settings(0, families=both, long_lived_time_s=5), mine, theirs)
    assert agreed.forwarding == {Family.IPV4}
    assert agreed.long_lived_forwarding == {Family.IPV6}
    assert agreed.long_lived == ((Family.IPV4, 9), (Family.IPV6, 9))
    assert kept_families(agreed, sent=None, received=None) == both
    alone = replace(other, capabilities=replace(other.capabilities, graceful_restart=None))
    agreed = negotiate(settings(0, families=both, long_lived_time_s=5), mine, alone)
    assert (agreed.long_lived, agreed.long_lived_forwarding) == ((), frozenset())
    assert kept_families(agreed, sent=None, received=None) == ()
