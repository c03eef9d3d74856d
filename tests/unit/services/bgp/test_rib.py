"""The tables as a whole: reflection (RFC 4456), next hops, communities, graceful restart (RFC 4724, 9494)."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from services.bgp.core.paths import Attributes, Family, Reach, Unreach
from services.bgp.core.rib.decision import Reason
from services.bgp.core.rib.outgoing import Out, Withheld
from services.bgp.core.rib.path import NextHop, Path, Rejected
from services.bgp.core.rib.rib import STALE_PATH_TIME_S
from services.bgp.core.settings import NextHopMode, Originated, PeerKind
from services.bgp.core.wire.context import Context
from tests.unit.services.bgp.speakers import (
    AS,
    HOP,
    OURS,
    ROUTE,
    V4,
    V6,
    Speaker,
    client,
    external,
    internal,
    key,
    path,
    peer,
    reflector,
    session,
)


def rejected(speaker: Speaker) -> Rejected | None:
    return speaker.rib.explain(V4, key(ROUTE)).paths[0].rejected


# --- who is told ---


def test_internal_routes_stay_with_their_hearer() -> None:
    """RFC 4271 section 9.2: a full mesh tells each other only its own."""
    speaker = Speaker(peer(1), peer(2), peer(3, 65003))
    speaker.up()
    speaker.tell("Global_1", internal(), ROUTE)
    assert speaker.read("Global_2") == {}
    assert speaker.read("Global_3").keys() == {ROUTE}
    told = {told.peer: told.withheld for told in speaker.rib.explain(V4, key(ROUTE)).advertised}
    assert told == {"Global_1": Withheld.SPLIT_HORIZON, "Global_2": Withheld.INTERNAL, "Global_3": None}


def test_reflector_tells_clients_and_from_clients() -> None:
    """G03, RFC 4456 section 6."""
    speaker = reflector(client(1), client(2), peer(3), peer(4))
    speaker.tell("Global_1", internal(), "10.1.0.0/26")
    speaker.tell("Global_3", internal(), "10.3.0.0/26")
    assert speaker.read("Global_1").keys() == {"10.3.0.0/26"}
    assert speaker.read("Global_2").keys() == {"10.1.0.0/26", "10.3.0.0/26"}
    assert speaker.read("Global_3").keys() == {"10.1.0.0/26"}
    assert speaker.read("Global_4").keys() == {"10.1.0.0/26"}


def test_reflected_attributes() -> None:
    """RFC 4456 section 8: ORIGINATOR_ID of who said it, our cluster first; the next hop and the rest as they were."""
    speaker = reflector(client(1), client(2))
    sent = internal(med=5, as_path=path(65009), local_pref=300, cluster_list=(3,), communities=(1, 2))
    speaker.tell("Global_1", sent, ROUTE)
    told = speaker.read("Global_2")[ROUTE]
    assert told == replace(sent, originator_id=1, cluster_list=(7, 3))
    speaker.tell("Global_1", replace(sent, originator_id=44), ROUTE)
    assert speaker.read("Global_2")[ROUTE].originator_id == 44


def test_two_clusters_each_adds_that_of_its_client() -> None:
    speaker = reflector(client(1, 8), client(2, 9), peer(3))
    speaker.tell("Global_1", internal(), ROUTE)
    assert speaker.read("Global_2")[ROUTE].cluster_list == (8,)
    speaker.tell("Global_3", internal(), "10.6.0.0/16")
    assert speaker.read("Global_2")["10.6.0.0/16"].cluster_list == (9,)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"originator_id": 99}, Rejected.ORIGINATOR_LOOP),
        ({"cluster_list": (3, 7)}, Rejected.CLUSTER_LOOP),
        ({"as_path": path(65001, AS)}, Rejected.AS_LOOP),
        ({"next_hop": ip_address("10.9.9.8").packed}, Rejected.OWN_NEXT_HOP),
        ({"next_hop": b""}, Rejected.NO_NEXT_HOP),
    ],
)
def test_loops(changes: dict[str, object], reason: Rejected) -> None:
    """RFC 4271 section 9.1.2, RFC 4456 section 8: kept, so that people see them, and not used."""
    speaker = Speaker(client(1), client(2), cluster_id=7, addresses=(ip_address("10.9.9.8"),))
    speaker.up()
    speaker.tell("Global_1", internal(**changes), ROUTE)
    assert speaker.read("Global_2") == {}
    assert speaker.kernel() == {}
    assert rejected(speaker) is reason
    assert speaker.rib.explain(V4, key(ROUTE)).paths[0].reason is Reason.REJECTED


def test_allowed_local_as() -> None:
    """G05: as often as it says, changed live."""
    speaker = Speaker(peer(1, 65001, allowed_local_as=1))
    speaker.up()
    speaker.tell("Global_1", external(65001, AS), ROUTE)
    speaker.tell("Global_1", external(65001, AS, AS), "10.6.0.0/16")
    assert speaker.kernel().keys() == {ROUTE}
    speaker.rib.configure(replace(speaker.settings, peers=(peer(1, 65001),)))
    assert speaker.kernel() == {}


def test_local_as_of_the_session() -> None:
    """G05: it is what loops are looked for by, and what is put before the path."""
    speaker = Speaker(replace(peer(1, 65001), local_as=65100), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001, AS), "10.5.0.0/16")
    speaker.tell("Global_1", external(65001, 65100), "10.6.0.0/16")
    speaker.tell("Global_2", external(65002), "10.7.0.0/16")
    assert speaker.read("Global_1")["10.7.0.0/16"].as_path == path(65100, 65002)
    assert speaker.read("Global_2").keys() == {"10.5.0.0/16"}


# --- attributes on the way out ---


def test_to_another_as() -> None:
    """RFC 4271 sections 5.1.2 to 5.1.5: our AS first, our next hop, neither MED nor LOCAL_PREF of others."""
    speaker = Speaker(peer(1, rr_client_cluster=7), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", internal(med=7, as_path=path(65009), originator_id=5, cluster_list=(3,)), ROUTE)
    told = speaker.read("Global_2")[ROUTE]
    assert told == Attributes(as_path=path(AS, 65009), next_hop=OURS[V4])


@pytest.mark.parametrize(
    ("mode", "keep_ebgp", "to_internal", "to_external"),
    [
        (NextHopMode.AUTO, False, HOP, OURS[V4]),
        (NextHopMode.AUTO, True, HOP, HOP),
        (NextHopMode.SELF, False, OURS[V4], OURS[V4]),
        (NextHopMode.KEEP, False, HOP, HOP),
    ],
)
def test_next_hop_modes(mode: NextHopMode, keep_ebgp: bool, to_internal: bytes, to_external: bytes) -> None:
    """G08, as BIRD does with sessions that are all multihop; what this node originates always has its own."""
    changes = {"next_hop_mode": mode, "keep_ebgp_next_hop": keep_ebgp}
    speaker = Speaker(peer(1, 65001), peer(2, **changes), peer(3, 65003, **changes))
    speaker.up()
    speaker.tell("Global_1", external(65001), ROUTE)
    speaker.rib.originate([Originated(V4, key("10.7.0.1/32"), Attributes(), interface="cali1")])
    assert speaker.read("Global_2")[ROUTE].next_hop == to_internal
    assert speaker.read("Global_3")[ROUTE].next_hop == to_external
    assert speaker.read("Global_2")["10.7.0.1/32"].next_hop == OURS[V4]
    assert speaker.read("Global_3")["10.7.0.1/32"].next_hop == OURS[V4]


def test_next_hop_mode_changes_live() -> None:
    """The session moves to another update group: told again what differs, nothing is withdrawn."""
    speaker = Speaker(peer(1, 65001), peer(2))
    speaker.up()
    speaker.tell("Global_1", external(65001), ROUTE)
    assert speaker.read("Global_2")[ROUTE].next_hop == HOP
    changed = (peer(1, 65001), peer(2, next_hop_mode=NextHopMode.SELF))
    speaker.rib.configure(replace(speaker.settings, peers=changed))
    assert speaker.read("Global_2")[ROUTE].next_hop == OURS[V4]
    assert speaker.views["Global_2"].withdrawn == []
    assert speaker.views["Global_2"].ends == [V4, V6]


def test_external_route_gets_the_normal_metric_in_our_as() -> None:
    speaker = Speaker(peer(1, 65001), peer(2))
    speaker.up()
    speaker.tell("Global_1", external(65001, med=5), ROUTE)
    told = speaker.read("Global_2")[ROUTE]
    assert told == external(65001, med=5, local_pref=2147483647 - 1024)


def test_no_next_hop_of_the_family() -> None:
    """An IPv6 route of our own over a session that has no IPv6 address of ours: not told, and it says why."""
    speaker = Speaker(peer(1))
    speaker.up(addresses={V4: OURS[V4]})
    speaker.rib.originate([Originated(V6, key("fd00::1/128"), Attributes(), interface="cali1")])
    assert speaker.read("Global_1") == {}
    assert speaker.rib.explain(V6, key("fd00::1/128")).advertised[0].withheld is Withheld.NO_NEXT_HOP


@pytest.mark.parametrize(
    ("community", "to_internal", "to_external"),
    [(0xFFFFFF01, True, False), (0xFFFFFF02, False, False), (0xFFFFFF03, True, False)],
)
def test_well_known_communities(community: int, to_internal: bool, to_external: bool) -> None:
    """RFC 1997."""
    speaker = reflector(client(1), client(2), peer(3, 65003))
    speaker.tell("Global_1", internal(communities=(community,)), ROUTE)
    assert bool(speaker.read("Global_2")) is to_internal
    assert bool(speaker.read("Global_3")) is to_external
    assert speaker.kernel().keys() == {ROUTE}


def test_graceful_shutdown_makes_a_path_the_last_choice() -> None:
    """RFC 8326 section 4.2, on external sessions."""
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001, communities=(0xFFFF0000,)), ROUTE)
    speaker.tell("Global_2", external(65002, 65005), ROUTE)
    found = speaker.rib.explain(V4, key(ROUTE)).paths
    assert [(one.source, one.reason) for one in found] == [
        ("Global_2", Reason.BEST),
        ("Global_1", Reason.LOCAL_PREF),
    ]


# --- update groups ---


def test_one_update_carries_many_prefixes() -> None:
    speaker = reflector(client(1), client(2))
    prefixes = [f"10.{n}.0.0/24" for n in range(200)]
    for at in range(0, 200, 10):
        speaker.tell("Global_1", internal(), *prefixes[at : at + 10])
    assert speaker.read("Global_2").keys() == set(prefixes)
    assert [len(reached) for reached in speaker.views["Global_2"].reached] == [200]
    for at in range(0, 200, 10):
        speaker.withdraw("Global_1", *prefixes[at : at + 10])
    assert speaker.read("Global_2") == {}
    assert [len(gone) for gone in speaker.views["Global_2"].withdrawn] == [200]


def test_prefix_that_changes_twice_is_told_once() -> None:
    speaker = reflector(client(1), client(2))
    speaker.read("Global_2")
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.tell("Global_1", internal(med=1), ROUTE)
    speaker.tell("Global_1", internal(), "10.6.0.0/16")
    speaker.withdraw("Global_1", "10.6.0.0/16")
    assert speaker.read("Global_2")[ROUTE].med == 1
    assert speaker.views["Global_2"].reached == [[key(ROUTE)]]
    assert speaker.views["Global_2"].withdrawn == []


def test_same_again_is_not_told_again() -> None:
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.read("Global_2")
    speaker.tell("Global_1", internal(), ROUTE)
    assert not speaker.rib.has_messages("Global_2")
    assert speaker.rib.take_fib(10) != []
    speaker.tell("Global_1", internal(med=3), ROUTE)
    assert speaker.rib.take_fib(10) == []


def test_nobody_is_told_what_came_from_himself() -> None:
    """Not even that it is gone."""
    speaker = reflector(client(1), client(2))
    speaker.read("Global_1")
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.read("Global_2")
    speaker.withdraw("Global_1", ROUTE)
    assert speaker.read("Global_2") == {}
    assert speaker.rib.take_messages("Global_1", 65536) == b""


def test_new_source_is_no_longer_told_what_others_said() -> None:
    speaker = reflector(client(1), client(2), client(3))
    speaker.tell("Global_1", internal(), ROUTE)
    assert speaker.read("Global_2").keys() == {ROUTE}
    speaker.tell("Global_2", internal(local_pref=200), ROUTE)
    assert speaker.read("Global_2") == {}
    assert speaker.read("Global_1")[ROUTE].local_pref == 200
    assert speaker.read("Global_3")[ROUTE].local_pref == 200
    speaker.withdraw("Global_2", ROUTE)
    assert speaker.read("Global_1") == {}
    assert speaker.read("Global_2")[ROUTE].local_pref == 100


def test_slow_member_costs_one_entry_for_a_prefix() -> None:
    """It takes nothing while everything changes a hundred times, and then gets the last of it once."""
    speaker = reflector(client(1), client(2), client(3))
    speaker.read("Global_2")
    speaker.read("Global_3")
    prefixes = [f"10.{n}.0.0/24" for n in range(20)]
    for med in range(100):
        speaker.tell("Global_1", internal(med=med), *prefixes)
        speaker.read("Global_2")
    assert speaker.views["Global_2"].messages == 2 + 100
    assert {told.med for told in speaker.read("Global_3").values()} == {99}
    assert speaker.views["Global_3"].messages == 2 + 1


def test_budget_takes_up_where_it_stopped() -> None:
    speaker = reflector(client(1), client(2))
    speaker.read("Global_2")
    prefixes = [f"10.{n}.{m}.0/24" for n in range(20) for m in range(200)]
    speaker.tell("Global_1", internal(), *prefixes)
    sizes = []
    while speaker.rib.has_messages("Global_2"):
        data = speaker.rib.take_messages("Global_2", 1)
        sizes.append(len(data))
        speaker.views["Global_2"].feed(data)
    assert len(sizes) == 4
    assert max(sizes) <= 4096
    assert speaker.read("Global_2").keys() == set(prefixes)


def test_withdrawals_that_are_on_their_way_survive_a_change_of_group() -> None:
    """The member is in the midst of a batch when its settings change: what it has not read of it still goes."""
    speaker = Speaker(client(1), client(2), cluster_id=7)
    speaker.up("Global_1")
    speaker.up("Global_2", context=Context(internal=True, max_message=200))
    prefixes = [f"10.{n}.0.0/24" for n in range(200)]
    speaker.tell("Global_1", internal(), *prefixes)
    assert speaker.read("Global_2").keys() == set(prefixes)
    speaker.withdraw("Global_1", *prefixes)
    speaker.views["Global_2"].feed(speaker.rib.take_messages("Global_2", 1))
    assert 0 < len(speaker.views["Global_2"].routes) < 200
    changed = (client(1), replace(client(2), next_hop_mode=NextHopMode.SELF))
    speaker.rib.configure(replace(speaker.settings, peers=changed))
    assert speaker.read("Global_2") == {}


def test_refresh_tells_everything_again() -> None:
    """RFC 2918."""
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE, "10.6.0.0/16")
    speaker.read("Global_2")
    speaker.rib.refresh("Global_2", V4)
    speaker.withdraw("Global_1", "10.6.0.0/16")
    assert speaker.read("Global_2").keys() == {ROUTE}
    assert [key(ROUTE) in reached for reached in speaker.views["Global_2"].reached] == [True, True]
    assert speaker.views["Global_2"].ends == [V4, V6]


def test_refreshes_of_who_takes_nothing_are_one() -> None:
    """Each would be a copy of the table otherwise. One that is asked for while the last is being told is answered."""
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.read("Global_2")
    for med in range(5):
        speaker.tell("Global_1", internal(med=med), "10.6.0.0/16")
        speaker.rib.has_messages("Global_2")
        speaker.rib.refresh("Global_2", V4)
    assert speaker.read("Global_2")["10.6.0.0/16"].med == 4
    told = [prefix for reached in speaker.views["Global_2"].reached for prefix in reached]
    assert told.count(key(ROUTE)) == 2
    speaker.rib.refresh("Global_2", V4)
    speaker.views["Global_2"].feed(speaker.rib.take_messages("Global_2", 1))
    speaker.rib.refresh("Global_2", V4)
    speaker.read("Global_2")
    told = [prefix for reached in speaker.views["Global_2"].reached for prefix in reached]
    assert told.count(key(ROUTE)) == 4


def test_long_attributes_that_leave_no_room_withdraw() -> None:
    """The peer must not keep what was there before (RFC 8654 section 4)."""
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    assert speaker.read("Global_2").keys() == {ROUTE}
    speaker.tell("Global_1", internal(communities=tuple(range(1100))), ROUTE)
    assert speaker.read("Global_2") == {}


# --- several paths of one prefix from one peer ---


def test_add_path_receive() -> None:
    """RFC 7911: each identifier is a path of its own; without any of them the prefix is gone."""
    speaker = Speaker(peer(1))
    context = Context(internal=True, add_path_receive=frozenset((V4,)))
    speaker.up("Global_1", context=context)
    other = ip_address("10.9.0.2").packed
    speaker.rib.receive("Global_1", [Reach(V4, internal(), [key(ROUTE)], [1])])
    speaker.rib.receive("Global_1", [Reach(V4, internal(next_hop=other), [key(ROUTE)], [2])])
    assert speaker.kernel() == {ROUTE: ["10.9.0.1", "10.9.0.2"]}
    speaker.rib.receive("Global_1", [Unreach(V4, [key(ROUTE)], [1])])
    assert speaker.kernel() == {ROUTE: ["10.9.0.2"]}
    assert speaker.rib.counts("Global_1", V4).received == 1
    speaker.rib.receive("Global_1", [Unreach(V4, [key(ROUTE)], [2])])
    assert speaker.kernel() == {}
    assert speaker.rib.counts("Global_1", V4).received == 0


def test_add_path_sweep_takes_only_what_was_not_said_again() -> None:
    speaker = Speaker(peer(1))
    context = Context(internal=True, add_path_receive=frozenset((V4,)))
    speaker.up("Global_1", context=context)
    other = ip_address("10.9.0.2").packed
    speaker.rib.receive("Global_1", [Reach(V4, internal(), [key(ROUTE)], [1])])
    speaker.rib.receive("Global_1", [Reach(V4, internal(next_hop=other), [key(ROUTE)], [2])])
    speaker.rib.peer_down("Global_1", 1.0, keep=Family)
    speaker.up("Global_1", context=context, now=2.0)
    speaker.rib.receive("Global_1", [Reach(V4, internal(next_hop=other), [key(ROUTE)], [2])])
    assert speaker.kernel() == {ROUTE: ["10.9.0.1", "10.9.0.2"]}
    speaker.end_of_rib("Global_1")
    assert speaker.kernel() == {ROUTE: ["10.9.0.2"]}


# --- graceful restart ---


def test_end_of_rib_comes_after_everything() -> None:
    """RFC 4724 section 2; for each family, once."""
    speaker = reflector(client(1), client(2))
    assert speaker.read("Global_2") == {}
    assert speaker.views["Global_2"].ends == [V4, V6]
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_2", 1.0)
    speaker.up("Global_2", now=2.0)
    assert speaker.read("Global_2").keys() == {ROUTE}
    assert speaker.views["Global_2"].ends == [V4, V6]
    assert speaker.views["Global_2"].messages == 3


def test_paths_stay_while_their_peer_restarts() -> None:
    """G14, RFC 4724 section 4.2: nothing is withdrawn, nothing told again, only what is not said again goes."""
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE, "10.6.0.0/16")
    speaker.read("Global_2")
    speaker.kernel()
    speaker.rib.peer_down("Global_1", 10.0, keep=Family)
    assert speaker.rib.explain(V4, key(ROUTE)).paths[0].stale
    speaker.up("Global_1", now=20.0)
    speaker.tell("Global_1", internal(), ROUTE)
    assert not speaker.rib.has_messages("Global_2")
    assert speaker.rib.take_fib(10) == []
    assert not speaker.rib.explain(V4, key(ROUTE)).paths[0].stale
    speaker.end_of_rib("Global_1", now=30.0)
    assert speaker.read("Global_2").keys() == {ROUTE}
    assert speaker.kernel().keys() == {ROUTE}
    assert speaker.views["Global_2"].withdrawn == [[key("10.6.0.0/16")]]


def test_peer_that_does_not_return() -> None:
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_1", 10.0, keep=[V4])
    assert speaker.rib.deadline() == 130.0
    speaker.rib.expire(129.0)
    assert speaker.kernel().keys() == {ROUTE}
    speaker.rib.expire(130.0)
    assert speaker.kernel() == {}
    assert speaker.read("Global_2") == {}
    assert speaker.rib.deadline() is None


def test_peer_that_returns_without_its_forwarding_state() -> None:
    """RFC 4724 section 4.2: the F bit is not set, or the capability is gone."""
    speaker = reflector(client(1))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_1", 10.0, keep=Family)
    speaker.up("Global_1", now=20.0, preserved=frozenset())
    assert speaker.kernel() == {}


def test_peer_that_never_sends_end_of_rib() -> None:
    speaker = reflector(client(1))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_1", 10.0, keep=Family)
    speaker.up("Global_1", now=20.0)
    assert speaker.rib.deadline() == 20.0 + STALE_PATH_TIME_S
    speaker.rib.expire(20.0 + STALE_PATH_TIME_S)
    assert speaker.kernel() == {}


def test_stale_from_an_earlier_restart_are_not_kept_again() -> None:
    """RFC 4724 section 4.2: consecutive restarts."""
    speaker = reflector(client(1))
    speaker.tell("Global_1", internal(), ROUTE, "10.6.0.0/16")
    speaker.rib.peer_down("Global_1", 10.0, keep=Family)
    speaker.up("Global_1", now=20.0)
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_1", 30.0, keep=Family)
    assert speaker.kernel().keys() == {ROUTE}


def test_nothing_that_waits_for_the_kernel_takes_no_room() -> None:
    """A dict that was emptied one by one keeps its table: 5 MB after 100,000 routes."""
    speaker = Speaker(peer(1, 65001))
    speaker.up()
    speaker.tell("Global_1", external(65001), *(f"10.{n >> 8}.{n & 255}.0/24" for n in range(2000)))
    assert len(speaker.kernel()) == 2000
    assert sys.getsizeof(speaker.rib._fibs[V4]._dirty) == sys.getsizeof({})


def test_own_restart_waits_for_the_peers() -> None:
    """RFC 4724 section 4.1: nothing selected and told, nothing taken from the kernel, before all have told theirs."""
    speaker = Speaker(client(1), client(2), peer(3, restart_time_s=None), deferral_s=100.0, cluster_id=7)
    speaker.up("Global_1")
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.end_of_rib("Global_1", now=1.0)
    assert not speaker.rib.sweep_allowed(V4)
    assert speaker.rib.take_fib(10) == []
    assert speaker.rib.take_messages("Global_1", 100) == b""
    speaker.up("Global_2", now=2.0)
    assert not speaker.rib.has_messages("Global_2")
    speaker.end_of_rib("Global_2", V4, now=3.0)
    assert speaker.rib.sweep_allowed(V4)
    assert not speaker.rib.sweep_allowed(V6)
    assert speaker.read("Global_2").keys() == {ROUTE}
    assert speaker.views["Global_2"].ends == [V4]
    assert speaker.kernel().keys() == {ROUTE}
    assert speaker.rib.deadline() == 100.0
    speaker.rib.expire(100.0)
    assert speaker.rib.sweep_allowed(V6)
    speaker.read("Global_2")
    assert speaker.views["Global_2"].ends == [V4, V6]


def test_own_restart_does_not_wait_for_who_sends_no_end_of_rib() -> None:
    speaker = Speaker(client(1), client(2), deferral_s=100.0, cluster_id=7)
    speaker.up("Global_1", graceful=frozenset())
    assert not speaker.rib.sweep_allowed(V4)
    speaker.up("Global_2", graceful=frozenset())
    assert speaker.rib.sweep_allowed(V4)


def test_speakers_that_restart_together_do_not_wait_for_each_other() -> None:
    """RFC 4724 section 4.1: not for a peer that says it is restarting; and it gets what we have, End-of-RIB too."""
    speaker = Speaker(client(1), client(2), deferral_s=100.0, cluster_id=7)
    speaker.up("Global_1", restarting=True)
    assert not speaker.rib.sweep_allowed(V4)
    speaker.up("Global_2")
    assert not speaker.rib.sweep_allowed(V4)
    speaker.end_of_rib("Global_2")
    assert speaker.rib.sweep_allowed(V4)
    speaker.read("Global_1")
    assert speaker.views["Global_1"].ends == [V4, V6]


def test_own_restart_does_not_wait_for_who_never_comes() -> None:
    """Held down for want of a password, taken out of the settings, or a workload's."""
    workload = replace(client(3), kind=PeerKind.LOCAL_WORKLOAD)
    speaker = Speaker(client(1), client(2), workload, deferral_s=100.0, cluster_id=7)
    speaker.up("Global_1")
    speaker.end_of_rib("Global_1")
    assert not speaker.rib.sweep_allowed(V4)
    speaker.rib.hold_down(["Global_2"])
    assert speaker.rib.sweep_allowed(V4)
    speaker.read("Global_1")
    assert speaker.views["Global_1"].ends == [V4, V6]


def test_settings_without_the_peer_that_is_missing_end_the_wait() -> None:
    speaker = Speaker(client(1), client(2), deferral_s=100.0, cluster_id=7)
    speaker.up("Global_1")
    speaker.end_of_rib("Global_1")
    assert not speaker.rib.sweep_allowed(V4)
    speaker.rib.configure(replace(speaker.settings, peers=(client(1),)))
    assert speaker.rib.sweep_allowed(V4)
    speaker.read("Global_1")
    assert speaker.views["Global_1"].ends == [V4, V6]


def test_own_restart_without_peers_is_no_wait() -> None:
    assert Speaker(deferral_s=100.0).rib.sweep_allowed(V4)
    dynamic = replace(peer(1), prefix=ip_network("10.9.0.0/24"))
    assert Speaker(dynamic, deferral_s=100.0).rib.sweep_allowed(V4)


def test_session_that_replaces_one_keeps_what_it_may() -> None:
    """The other end has restarted before the end of the first connection was seen."""
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.read("Global_2")
    speaker.up("Global_1", now=5.0)
    assert speaker.rib.explain(V4, key(ROUTE)).paths[0].stale
    assert not speaker.rib.has_messages("Global_2")
    speaker.end_of_rib("Global_1", now=6.0)
    assert speaker.read("Global_2") == {}


def test_nothing_stays_of_what_is_gone() -> None:
    """Caches by path must not keep it: a peer that changes its attributes for days must not fill memory."""

    def alive() -> int:
        return sum(isinstance(one, Path | Out | NextHop) for one in gc.get_objects())

    speaker = reflector(client(1), client(2), peer(3, 65003))
    before = alive()
    for med in range(50):
        hop = bytes((10, 9, 1, med))
        speaker.tell("Global_1", internal(med=med, next_hop=hop), ROUTE, f"10.6.{med}.0/24")
        speaker.read("Global_2")
        speaker.read("Global_3")
        speaker.kernel()
    assert alive() > before
    speaker.withdraw("Global_1", ROUTE, *(f"10.6.{med}.0/24" for med in range(50)))
    speaker.read("Global_1")
    speaker.read("Global_2")
    speaker.read("Global_3")
    assert speaker.kernel() == {}
    gc.collect()
    assert alive() <= before + 2  # withdrawals of the last batch, for each group
    assert speaker.rib.next_hops() == frozenset()


# --- people ---


def test_tables_of_a_peer() -> None:
    speaker = reflector(client(1), client(2))
    speaker.tell("Global_1", internal(), ROUTE)
    assert [(prefix, one.source.name) for prefix, one in speaker.rib.received("Global_1", V4)] == [
        (key(ROUTE), "Global_1")
    ]
    assert [prefix for prefix, _ in speaker.rib.advertised("Global_2", V4)] == [key(ROUTE)]
    assert list(speaker.rib.advertised("Global_1", V4)) == []
    counts = speaker.rib.counts("Global_2", V4)
    assert (counts.received, counts.advertised, counts.end_of_rib, counts.stale) == (0, 1, False, False)
    assert list(speaker.rib.received("nobody", V4)) == []
    assert speaker.rib.prefixes(V4) == [key(ROUTE)]


def test_session_of_one_family() -> None:
    speaker = Speaker(peer(1), peer(2, 65002))
    speaker.up("Global_1")
    only = session(speaker.settings.peers[1], [V4])
    speaker.up("Global_2", context=only.context)
    speaker.tell("Global_1", internal(next_hop=bytes(15) + b"\1"), "fd00::/64")
    speaker.tell("Global_1", internal(), ROUTE)
    assert speaker.read("Global_2").keys() == {ROUTE}
    assert speaker.views["Global_2"].ends == [V4]
