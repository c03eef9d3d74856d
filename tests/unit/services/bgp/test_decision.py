"""Which path wins and why the others lost: RFC 4271 section 9.1.2.2, RFC 4456 section 9, facts 4.2."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from services.bgp.core.paths import Attributes, Origin
from services.bgp.core.rib.decision import MAX_MULTIPATH, Reason, decide, next_hops
from services.bgp.core.rib.path import NextHop, NextHopState, Path, Preference, Source
from tests.unit.services.bgp.speakers import HOP, V4, Speaker, external, key, path, peer


def of(
    n: int,
    *,
    internal: bool = False,
    router_id: int = 10,
    metric: int = 0,
    reachable: bool = True,
    preference: int = 100,
    path_id: int = 0,
    hop: int = 1,
    **attributes: object,
) -> Path:
    """A path of peer 10.9.0.n. By default equal to all others but for the peer's address."""
    source = Source(f"peer{n}", remote=True)
    source.internal, source.router_id, source.address_key = internal, router_id, (4, bytes((10, 9, 0, n)))
    made = Attributes(**{"as_path": path(65001), **attributes})  # type: ignore[arg-type]
    next_hop = NextHop(bytes((10, 8, 0, hop)), NextHopState(reachable, metric))
    return Path(source, V4, made, made, next_hop, preference, path_id)


STEPS = {
    Reason.UNREACHABLE: (of(1), of(2, reachable=False, local_pref=900)),
    Reason.LLGR_STALE: (of(1, local_pref=1), of(2, communities=(0xFFFF0006,))),
    Reason.PREFERENCE: (of(1, preference=Preference.LEARNED_URGENT), of(2, local_pref=900)),
    Reason.LOCAL_PREF: (of(1, local_pref=200, as_path=path(1, 2, 3)), of(2, local_pref=199)),
    Reason.PATH_LENGTH: (of(1, origin=Origin.INCOMPLETE), of(2, as_path=path(65001, 65002))),
    Reason.ORIGIN: (of(1, med=10), of(2, origin=Origin.EGP, med=0)),
    Reason.MED: (of(1, internal=True, med=0), of(2, med=10)),
    Reason.EXTERNAL: (of(1, metric=10), of(2, internal=True, metric=0)),
    Reason.IGP_METRIC: (of(2, metric=1, router_id=11), of(1, metric=2)),
    Reason.ROUTER_ID: (of(2, cluster_list=(1, 2)), of(1, router_id=11)),
    Reason.CLUSTER_LIST: (of(2, cluster_list=(1,)), of(1, cluster_list=(1, 2))),
    Reason.PEER_ADDRESS: (of(1, path_id=9), of(2, path_id=1)),
    Reason.PATH_ID: (of(1, path_id=1), of(1, path_id=2)),
}
BY_LAST_STEPS = (Reason.ROUTER_ID, Reason.CLUSTER_LIST, Reason.PEER_ADDRESS, Reason.PATH_ID)


@pytest.mark.parametrize("reason", STEPS)
def test_step(reason: Reason) -> None:
    """Each winner is worse in the next step, so nothing else can have decided."""
    winner, loser = STEPS[reason]
    for order in ((winner, loser), (loser, winner)):
        why: dict[Path, Reason] = {}
        chosen = decide(order, why)
        assert chosen[0] is winner
        assert why[winner] is Reason.BEST
        if reason in BY_LAST_STEPS:
            assert chosen == [winner, loser]
            assert why[loser] is Reason.MULTIPATH
        else:
            assert chosen == [winner]
            assert why[loser] is reason


def test_missing_local_pref_is_100() -> None:
    assert decide([of(1, local_pref=99), of(2)])[0].source.name == "peer2"
    assert decide([of(1, local_pref=101), of(2)])[0].source.name == "peer1"


def test_missing_med_is_0() -> None:
    assert [chosen.source.name for chosen in decide([of(1, med=1), of(2)])] == ["peer2"]


def test_med_of_different_neighbours_is_not_compared() -> None:
    """RFC 4271 section 9.1.2.2 c; both stay in the ECMP set."""
    assert len(decide([of(1, med=10, as_path=path(65001)), of(2, med=0, as_path=path(65002))])) == 2


def test_med_removes_within_a_neighbour_before_others_are_compared() -> None:
    """The case in which pairwise comparison depends on order (RFC 3345): by elimination it does not."""
    a = of(1, med=10, as_path=path(65001), metric=1)
    b = of(2, med=0, as_path=path(65001), metric=5)
    c = of(3, med=0, as_path=path(65002), metric=3)
    for order in ((a, b, c), (c, b, a), (b, a, c), (a, c, b)):
        why: dict[Path, Reason] = {}
        assert decide(order, why) == [c]
        assert why[a] is Reason.MED
        assert why[b] is Reason.IGP_METRIC


def test_as_set_counts_as_one() -> None:
    """RFC 4271 section 9.1.2.2 a."""
    from services.bgp.core.paths import SegmentType

    with_set = (*path(65001), (SegmentType.SET, (1, 2, 3)))
    assert len(decide([of(1, as_path=with_set), of(2, as_path=path(65001, 65002))])) == 2


def test_originator_stands_for_the_router() -> None:
    """RFC 4456 section 9."""
    first, second = of(1, router_id=50, originator_id=3), of(2, router_id=4)
    assert decide([second, first])[0] is first


def test_nothing_usable() -> None:
    why: dict[Path, Reason] = {}
    lost = of(1, reachable=False)
    assert decide([lost], why) == []
    assert why == {lost: Reason.UNREACHABLE}
    assert decide([]) == []


def test_ecmp_each_next_hop_once_and_not_too_many() -> None:
    """G18: BIRD's `merge paths` takes 16."""
    paths = decide([of(n, hop=n % 20) for n in range(40)])
    taken, beyond = next_hops(paths)
    assert len(taken) == MAX_MULTIPATH
    assert len({one.next_hop.address for one in taken}) == MAX_MULTIPATH
    assert {one.next_hop.address for one in beyond}.isdisjoint(one.next_hop.address for one in taken)


def test_two_next_hops_in_the_kernel() -> None:
    """G18: two peers of equal paths, two next hops; one peer gone, one next hop."""
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    other = ip_address("10.9.0.2").packed
    speaker.tell("Global_1", external(65001), "10.5.0.0/16")
    speaker.tell("Global_2", external(65002, next_hop=other), "10.5.0.0/16")
    assert speaker.kernel() == {"10.5.0.0/16": ["10.9.0.1", "10.9.0.2"]}
    speaker.rib.peer_down("Global_1", 1.0)
    assert speaker.kernel() == {"10.5.0.0/16": ["10.9.0.2"]}


def test_next_hop_lost_and_found() -> None:
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001), "10.5.0.0/16")
    assert speaker.read("Global_2").keys() == {"10.5.0.0/16"}
    assert speaker.rib.next_hops() == {HOP}
    speaker.rib.next_hops_changed({HOP: NextHopState(False)})
    assert speaker.kernel() == {}
    assert speaker.read("Global_2") == {}
    assert speaker.rib.explain(V4, key("10.5.0.0/16")).paths[0].reason is Reason.UNREACHABLE
    speaker.rib.next_hops_changed({HOP: NextHopState(True)})
    assert speaker.kernel() == {"10.5.0.0/16": ["10.9.0.1"]}
    assert speaker.read("Global_2").keys() == {"10.5.0.0/16"}


def test_explained_losers_name_their_step() -> None:
    speaker = Speaker(peer(1, 65001), peer(2, 65002), peer(3, 65003))
    speaker.up()
    speaker.tell("Global_1", external(65001, 65004), "10.5.0.0/16")
    speaker.tell("Global_2", external(65002), "10.5.0.0/16")
    speaker.tell("Global_3", external(65003), "10.5.0.0/16")
    found = speaker.rib.explain(V4, key("10.5.0.0/16"))
    assert [(one.source, one.reason, one.step) for one in found.paths] == [
        ("Global_2", Reason.BEST, None),
        ("Global_3", Reason.MULTIPATH, Reason.ROUTER_ID),
        ("Global_1", Reason.PATH_LENGTH, None),
    ]
