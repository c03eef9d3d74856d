"""BGPFilters (G09): each condition and operation, on import and on export, as the peer sees it.

What is expected follows from the functions that Calico's confd writes for BIRD (facts, section 4.4).
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from services.bgp.core.filters import Chain, RouteFacts, begins_with, prepend
from services.bgp.core.paths import Attributes, SegmentType
from services.bgp.core.rib.path import NextHopState
from services.bgp.core.settings import Filter, FilterRule, PoolExport
from tests.unit.services.bgp.speakers import AS, HOP, V4, V6, Speaker, external, internal, key, path, peer

SIXTEEN, EIGHT = ip_network("10.5.0.0/16"), ip_network("10.0.0.0/8")
ROUTES = ("10.5.0.0/16", "10.5.1.0/24", "10.5.1.1/32", "10.6.0.0/16")
ALL = frozenset(ROUTES)

# (rule, attributes of all routes, which of them it matches)
MATRIX = {
    "Equal": (FilterRule("Accept", SIXTEEN, "Equal"), {}, {"10.5.0.0/16"}),
    "NotEqual": (FilterRule("Accept", SIXTEEN, "NotEqual"), {}, ALL - {"10.5.0.0/16"}),
    "In": (FilterRule("Accept", SIXTEEN, "In"), {}, {"10.5.0.0/16", "10.5.1.0/24", "10.5.1.1/32"}),
    "NotIn": (FilterRule("Accept", SIXTEEN, "NotIn"), {}, {"10.6.0.0/16"}),
    "In, at least": (FilterRule("Accept", EIGHT, "In", 24), {}, {"10.5.1.0/24", "10.5.1.1/32"}),
    "In, at most": (FilterRule("Accept", EIGHT, "In", None, 24), {}, ALL - {"10.5.1.1/32"}),
    "In, between": (FilterRule("Accept", EIGHT, "In", 17, 31), {}, {"10.5.1.0/24"}),
    "NotIn, between": (FilterRule("Accept", EIGHT, "NotIn", 17, 31), {}, ALL - {"10.5.1.0/24"}),
    "source": (FilterRule("Accept", source="RemotePeers"), {}, ALL),
    "interface": (FilterRule("Accept", interface="eth*"), {}, ALL),
    "another interface": (FilterRule("Accept", interface="eth"), {}, set()),
    "peerType eBGP": (FilterRule("Accept", peer_type="eBGP"), {}, ALL),
    "peerType iBGP": (FilterRule("Accept", peer_type="iBGP"), {}, set()),
    "community": (FilterRule("Accept", communities=((65000, 100),)), {"communities": (65000 << 16 | 100,)}, ALL),
    "no such community": (FilterRule("Accept", communities=((65000, 100),)), {"communities": (65000,)}, set()),
    "large community": (FilterRule("Accept", communities=((1, 2, 3),)), {"large": ((1, 2, 3),)}, ALL),
    "no such large community": (FilterRule("Accept", communities=((1, 2, 3),)), {"large": ((1, 2, 4),)}, set()),
    "asPathPrefix": (FilterRule("Accept", as_path_prefix=(65001, 65002)), {}, ALL),
    "asPathPrefix, not there": (FilterRule("Accept", as_path_prefix=(65002,)), {}, set()),
    "all of several": (
        FilterRule("Accept", SIXTEEN, "In", source="RemotePeers", as_path_prefix=(65001,), peer_type="eBGP"),
        {},
        {"10.5.0.0/16", "10.5.1.0/24", "10.5.1.1/32"},
    ),
    "one of several fails": (FilterRule("Accept", SIXTEEN, "In", as_path_prefix=(65009,)), {}, set()),
}


def speaker(direction: str, *rules: FilterRule, remote_as: int = 65009) -> Speaker:
    """Routes come from Global_1, of AS 65001; Global_2 of `remote_as` is told. The filter is the last word."""
    rules = (*rules, FilterRule("Reject"))
    made = {V4: rules, V6: rules}
    filters = {"f": Filter(imports=made) if direction == "import" else Filter(exports=made)}
    one = peer(1, 65001, filters=("f",) if direction == "import" else ())
    two = peer(2, remote_as, filters=("f",) if direction == "export" else ())
    found = Speaker(one, two, filters=filters)
    found.states[HOP] = NextHopState(True, interface="eth0")
    found.up()
    return found


@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.parametrize("case", MATRIX)
def test_rule_matches(case: str, direction: str) -> None:
    rule, changes, matched = MATRIX[case]
    found = speaker(direction, rule)
    found.tell("Global_1", external(65001, 65002, **changes), *ROUTES)
    assert found.read("Global_2").keys() == matched


@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.parametrize("case", ["Equal", "NotIn", "community", "asPathPrefix"])
def test_matching_rule_rejects(case: str, direction: str) -> None:
    rule, changes, matched = MATRIX[case]
    rejecting = FilterRule(
        "Reject", rule.network, rule.match_operator, communities=rule.communities, as_path_prefix=rule.as_path_prefix
    )
    found = speaker(direction, rejecting, FilterRule("Accept"))
    found.tell("Global_1", external(65001, 65002, **changes), *ROUTES)
    assert found.read("Global_2").keys() == ALL - matched


def test_priority_is_the_complement_of_local_pref() -> None:
    """G17: a route of metric 512, heard in our AS, told to another one by a rule for 512 (a live migration)."""
    export = Filter(exports={V4: (FilterRule("Accept", priority=512, add_communities=((65000, 100),)),)})
    found = Speaker(peer(1), peer(2, 65009, filters=("f",)), filters={"f": export})
    found.up()
    found.tell("Global_1", internal(local_pref=2147483647 - 512), "10.5.1.1/32")
    found.tell("Global_1", internal(local_pref=2147483647 - 1024), "10.5.1.2/32")
    told = found.read("Global_2")
    assert told["10.5.1.1/32"].communities == (65000 << 16 | 100,)
    assert told["10.5.1.2/32"].communities == ()


def test_operations_on_export() -> None:
    rule = FilterRule("Accept", add_communities=((65000, 7), (1, 2, 3)), prepend=(65003, 65004), set_priority=100)
    found = speaker("export", rule, remote_as=AS)
    found.tell("Global_1", external(65001, communities=(5,)), "10.5.0.0/16")
    told = found.read("Global_2")["10.5.0.0/16"]
    assert told.communities == (5, 65000 << 16 | 7)
    assert told.large == ((1, 2, 3),)
    assert told.as_path == path(65003, 65004, 65001)
    assert told.local_pref == 2147483647 - 100


def test_operations_on_import_count_in_the_decision() -> None:
    rule = FilterRule("Accept", prepend=(65003, 65004))
    filters = {"longer": Filter(imports={V4: (rule,)})}
    found = Speaker(peer(1, 65001, filters=("longer",)), peer(2, 65002), peer(3, 65003), filters=filters)
    found.up()
    found.tell("Global_1", external(65001), "10.5.0.0/16")
    found.tell("Global_2", external(65002, 65005), "10.5.0.0/16")
    assert found.read("Global_3")["10.5.0.0/16"].as_path == path(AS, 65002, 65005)


def test_set_priority_on_import_makes_a_route_beat_the_local_one() -> None:
    """G17: learned with a metric below the normal one, it is preferred even over what this node has."""
    filters = {"f": Filter(imports={V4: (FilterRule("Accept", communities=((65000, 100),), set_priority=512),)})}
    found = Speaker(peer(1, 65001, filters=("f",)), filters=filters)
    found.up()
    found.tell("Global_1", external(65001, communities=(65000 << 16 | 100,)), "10.5.1.1/32")
    (best,) = found.rib.explain(V4, key("10.5.1.1/32")).paths
    assert best.preference == 200
    assert best.where == "f import rule 1"
    assert found.rib.take_fib(10)[0].route.metric == 512  # type: ignore[union-attr]


def test_first_filter_with_a_matching_rule_decides() -> None:
    filters = {
        "first": Filter(imports={V4: (FilterRule("Reject", SIXTEEN, "Equal"),)}),
        "second": Filter(imports={V4: (FilterRule("Accept", SIXTEEN, "In"), FilterRule("Reject"))}),
    }
    found = Speaker(peer(1, 65001, filters=("first", "second")), peer(2, 65002), filters=filters)
    found.up()
    found.tell("Global_1", external(65001), *ROUTES)
    assert found.read("Global_2").keys() == {"10.5.1.0/24", "10.5.1.1/32"}
    assert found.rib.explain(V4, key("10.6.0.0/16")).paths[0].where == "second import rule 2"


def test_no_match_on_export_leaves_it_to_the_pools() -> None:
    filters = {"f": Filter(exports={V4: (FilterRule("Accept", ip_network("172.16.0.0/12"), "In"),)})}
    found = Speaker(peer(1, 65001), peer(2, 65002, filters=("f",)), filters=filters)
    found.up()
    found.tell("Global_1", external(65001), "10.5.0.0/16", "172.16.0.0/24", "192.168.0.0/24", "0.0.0.0/0")
    assert found.read("Global_2").keys() == {"10.5.0.0/16", "172.16.0.0/24"}


def test_accepted_by_a_filter_even_when_its_pool_is_not_to_leave() -> None:
    """As in Calico: the filter's functions come before `calico_export_to_bgp_peers`."""
    filters = {"f": Filter(exports={V4: (FilterRule("Accept", SIXTEEN, "Equal"),)})}
    pools = (PoolExport(EIGHT, export=False),)
    found = Speaker(peer(1, 65001), peer(2, 65002, filters=("f",)), filters=filters, pools=pools)
    found.up()
    found.tell("Global_1", external(65001), *ROUTES)
    assert found.read("Global_2").keys() == {"10.5.0.0/16"}


def test_filters_are_of_their_family() -> None:
    filters = {"f": Filter(imports={V6: (FilterRule("Reject"),)})}
    found = Speaker(peer(1, 65001, filters=("f",)), peer(2, 65002), filters=filters)
    found.up()
    found.tell("Global_1", external(65001), "10.5.0.0/16")
    found.tell("Global_1", external(65001, next_hop=bytes(15) + b"\1"), "fd00:5::/64")
    assert found.read("Global_2").keys() == {"10.5.0.0/16"}
    assert found.rib.explain(V6, key("fd00:5::/64")).paths[0].where == "f import rule 1"


def test_name_without_a_filter_changes_nothing() -> None:
    found = Speaker(peer(1, 65001, filters=("missing",)), peer(2, 65002, filters=("missing",)))
    found.up()
    found.tell("Global_1", external(65001), "10.5.0.0/16")
    assert found.read("Global_2").keys() == {"10.5.0.0/16"}


def test_rules_that_do_not_ask_for_prefixes_leave_one_outcome() -> None:
    """What is asked of the path is answered once: no test is left for its prefixes."""
    rules = [
        ("1", FilterRule("Reject", SIXTEEN, "In", communities=((1, 1),))),
        ("2", FilterRule("Accept", source="RemotePeers")),
        ("3", FilterRule("Reject", EIGHT, "In")),
    ]
    chain = Chain(rules, internal=False)
    assert [(test, outcome.where) for test, outcome in chain.resolve(RouteFacts(Attributes(), True))] == [(None, "2")]
    local = chain.resolve(RouteFacts(Attributes(communities=(1 << 16 | 1,)), False))
    assert [outcome.where for _, outcome in local] == ["1", "3"]


def test_as_set_stands_for_one_number() -> None:
    with_set = ((SegmentType.SET, (65001, 65002)), (SegmentType.SEQUENCE, (65003,)))
    assert begins_with(with_set, (65002, 65003))
    assert not begins_with(with_set, (65003,))
    assert begins_with((), ())
    assert not begins_with(path(65001), (65001, 65002))


def test_prepend_begins_a_new_segment_when_one_is_full() -> None:
    """RFC 4271 section 5.1.2."""
    full = path(*range(1, 255))
    assert prepend(full, (65000,)) == path(65000, *range(1, 255))
    assert prepend(prepend(full, (65000,)), (65001,)) == (
        (SegmentType.SEQUENCE, (65001,)),
        *path(65000, *range(1, 255)),
    )
    behind_set = ((SegmentType.SET, (1,)),)
    assert prepend(behind_set, (65000,)) == ((SegmentType.SEQUENCE, (65000,)), *behind_set)
