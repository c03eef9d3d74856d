"""Which token buckets a workload's limits become, and what is written for them. Without a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from libs.netlink import qdisc
from libs.netlink.links import Link, link_change, link_removal, new_ifb, no_link_local
from libs.netlink.qdisc import BucketState, Filter, Qdisc, TokenBucket, ticks
from libs.policy.output import Qos, Workload, WorkloadKey
from services.felix.core.bandwidth import (
    HANDLE,
    QUEUED_MAX,
    Limit,
    Limits,
    Seen,
    Todo,
    asked_for_filters,
    ifb_name,
    is_ours,
    limits,
    plan,
)

CALI = "cali0ef24ba1c2d"
IFB = ifb_name(CALI)
EGRESS = Limits(egress=Limit(8_000_000, 800_000))
INTO = Limits(ingress=Limit(8_000_000, 800_000))
BUCKET = Limit(8_000_000, 800_000).bucket(1500)


def link(index: int, name: str, kind: str = "veth", *, mtu: int = 1500, up: bool = True) -> Link:
    return Link(index, name, kind, "", mtu, up, up, 0, 0)


def root(index: int, bucket: TokenBucket = BUCKET) -> Qdisc:
    state = BucketState(bucket.rate, bucket.limit, ticks(bucket.burst, bucket.rate))
    return Qdisc(index, HANDLE, qdisc.ROOT, "tbf", state)


def ingress(index: int, kind: str = "ingress") -> Qdisc:
    return Qdisc(index, qdisc.INGRESS_HANDLE, qdisc.INGRESS, kind)


def redirect(index: int, to: int | None, *, handle: int = 0x80000800, priority: int = 1) -> Filter:
    return Filter(index, qdisc.INGRESS_FILTERS, handle, priority, 3, "u32", to)


def seen(links: Iterable[Link], qdiscs: Iterable[Qdisc] = (), filters: Iterable[Filter] = ()) -> Seen:
    by_index: dict[int, tuple[Qdisc, ...]] = {}
    for one in qdiscs:
        by_index[one.index] = (*by_index.get(one.index, ()), one)
    return Seen({one.name: one for one in links}, by_index, {5: tuple(filters)})


VETH, OUR_IFB = link(5, CALI), link(6, IFB, "ifb")
WHOLE = seen([VETH, OUR_IFB], [root(6), ingress(5)], [redirect(5, 6)])


def todo(wanted: Limits, what: Seen) -> dict[str, Todo]:
    return plan({CALI: wanted} if wanted != Limits() else {}, what, [CALI])


def requests(wanted: Limits, what: Seen) -> list[qdisc.Request]:
    found = todo(wanted, what)
    assert all(not one.problem for one in found.values())
    return [request for one in found.values() for _, request in one.requests]


@pytest.mark.parametrize(
    ("limit", "bucket"),
    [
        (Limit(8_000_000, 800_000), TokenBucket(1_000_000, 100_000, 125_000)),
        (Limit(8_000_000), TokenBucket(1_000_000, 1 << 29, 25_000 + QUEUED_MAX)),
        (Limit(8_000, 1_000), TokenBucket(1_000, 1_514, 1_539)),
        (Limit(8_000, 34_359_738_360), TokenBucket(1_000, 0xFFFFFFFF, 25 + QUEUED_MAX)),
        (Limit(10**15, 1 << 40), TokenBucket(125 * 10**12, 0xFFFFFFFF, 0xFFFFFFFF)),
        (Limit(8_000, 80_000, 16_000), TokenBucket(1_000, 10_000, 10_025, 2_000, 1_514)),
        (Limit(8_000, 80_000, 16_000, 3_000), TokenBucket(1_000, 10_000, 10_025, 2_000, 3_000)),
        (Limit(8_000, 80_000, 8_007, 3_000), TokenBucket(1_000, 10_000, 10_025)),
    ],
    ids=str,
)
def test_bits_become_bytes_and_stay_inside_what_the_kernel_holds(limit: Limit, bucket: TokenBucket) -> None:
    assert limit.bucket(1500) == bucket


def test_limits_are_by_interface_and_the_lowest_endpoint_has_it() -> None:
    def workload(name: str, **fields: int) -> Workload:
        return Workload(name=name, qos=Qos(**fields) if fields else None)

    found = limits(
        {
            WorkloadKey("k8s", "ns/b", "eth0"): workload("cali1", egress_bandwidth=1_000),
            WorkloadKey("k8s", "ns/a", "eth0"): workload("cali1", ingress_bandwidth=2_000, ingress_minburst=3_000),
            WorkloadKey("k8s", "ns/c", "eth0"): workload("cali2", egress_packet_rate=5, ingress_burst=9_000),
            WorkloadKey("k8s", "ns/d", "eth0"): workload("cali3"),
            WorkloadKey("k8s", "ns/e", "eth0"): workload("cali3", egress_bandwidth=1_000),
        }
    )
    assert found == {"cali1": Limits(ingress=Limit(2_000, minburst=3_000))}


def test_ifb_has_a_name_that_calico_gives_it_and_that_is_known_again() -> None:
    assert IFB == "bwcali3012e1543"
    assert is_ours(OUR_IFB)
    assert not is_ours(link(6, IFB, "veth"))
    assert not any(is_ours(link(6, name, "ifb")) for name in ("ifb0", "bwtheirs", "bwcali", "bwcali3012e154z"))


def test_what_is_as_wanted_is_left_alone() -> None:
    assert todo(EGRESS, WHOLE) == {}
    assert todo(INTO, seen([VETH], [root(5)])) == {}
    assert todo(Limits(), seen([VETH], [Qdisc(5, 0, qdisc.ROOT, "pfifo_fast")])) == {}


def test_interface_that_is_not_there_waits_and_its_ifb_goes() -> None:
    assert todo(EGRESS, seen([])) == {}
    assert requests(EGRESS, seen([OUR_IFB], [root(6)])) == [link_removal(6)]


def test_egress_needs_its_ifb_first_and_the_redirect_last() -> None:
    assert requests(EGRESS, seen([VETH])) == [new_ifb(IFB, 1500)]
    assert requests(EGRESS, seen([VETH, replace(OUR_IFB, up=False)])) == [
        no_link_local(6),
        link_change(6, up=True, mtu_bytes=1500),
        qdisc.new_bucket(6, BUCKET, HANDLE),
        qdisc.new_ingress(5),
        qdisc.new_redirect(5, 6, 1),
    ]


def test_redirect_goes_before_its_ifb() -> None:
    gone = [qdisc.delete_filter(redirect(5, 6, handle=0)), qdisc.delete_ingress(5), link_removal(6)]
    assert requests(Limits(), WHOLE) == gone


def test_other_filters_keep_the_ingress_qdisc_and_their_classifier() -> None:
    table = Filter(5, qdisc.INGRESS_FILTERS, 0x80000000, 1, 3, "u32")
    beside = [table, redirect(5, 6), redirect(5, 99, handle=0x80000801)]
    found = requests(Limits(), seen([VETH, OUR_IFB], [root(6), ingress(5)], beside))
    assert found == [qdisc.delete_filter(redirect(5, 6)), link_removal(6)]
    elsewhere = [table, redirect(5, 6), redirect(5, None, priority=7)]
    found = requests(Limits(), seen([VETH, OUR_IFB], [root(6), ingress(5)], elsewhere))
    assert found == [qdisc.delete_filter(redirect(5, 6, handle=0)), link_removal(6)]


def test_stale_and_doubled_redirects_go() -> None:
    stale = seen([VETH, OUR_IFB], [root(6), ingress(5)], [redirect(5, 0)])
    assert requests(EGRESS, stale) == [qdisc.delete_filter(redirect(5, 0, handle=0)), qdisc.new_redirect(5, 6, 1)]
    doubled = seen([VETH, OUR_IFB], [root(6), ingress(5)], [redirect(5, 6), redirect(5, 6, handle=0x80000801)])
    assert requests(EGRESS, doubled) == [qdisc.delete_filter(redirect(5, 6, handle=0x80000801))]
    theirs = seen([VETH, OUR_IFB], [root(6), ingress(5)], [redirect(5, 0, priority=4), redirect(5, 6)])
    assert todo(EGRESS, theirs) == {}


def test_mtu_of_the_interface_is_that_of_the_ifb_and_of_the_least_burst() -> None:
    low = Limit(8_000_000, 8_000)
    qdiscs = [root(6, low.bucket(1500)), ingress(5)]
    jumbo = seen([replace(VETH, mtu_bytes=9000), OUR_IFB], qdiscs, [redirect(5, 6)])
    assert requests(Limits(egress=low), jumbo) == [
        link_change(6, up=True, mtu_bytes=9000),
        qdisc.new_bucket(6, TokenBucket(1_000_000, 9014, 34_014), HANDLE, change=True),
    ]


@pytest.mark.parametrize("handle", [0x70000, 0x80010000])
def test_root_qdisc_of_others_is_named_and_stays(handle: int) -> None:
    there = seen([VETH], [replace(root(5), handle=handle)])
    assert todo(Limits(), there) == {}
    assert todo(INTO, there)[CALI].requests == []
    assert f"tbf {handle >> 16:x}:" in todo(INTO, there)[CALI].problem


def test_clsact_of_others_is_named_and_the_other_direction_is_limited_all_the_same() -> None:
    both = Limits(INTO.ingress, EGRESS.egress)
    found = todo(both, seen([VETH], [ingress(5, "clsact")]))[CALI]
    assert "clsact" in found.problem
    assert [request for _, request in found.requests] == [qdisc.new_bucket(5, BUCKET, HANDLE)]


def test_device_of_another_kind_in_the_place_of_the_ifb_is_named() -> None:
    found = todo(EGRESS, seen([VETH, link(6, IFB, "bridge")]))[CALI]
    assert (found.requests, "bridge" in found.problem) == ([], True)


def test_filters_are_asked_for_where_there_can_be_any() -> None:
    links = {one.name: one for one in (VETH, OUR_IFB, link(7, "eth0"))}
    qdiscs = {5: (ingress(5),), 6: (root(6),), 7: (ingress(7),)}
    assert asked_for_filters(links, qdiscs, [CALI, "cali-gone"]) == [5]


def test_of_two_problems_the_first_is_told():
    foreign = [Qdisc(5, 0x20000, qdisc.ROOT, "htb"), Qdisc(6, 0x30000, qdisc.ROOT, "htb"), ingress(5)]
    both = Limits(ingress=INTO.ingress, egress=EGRESS.egress)
    found = plan({CALI: both}, seen([VETH, OUR_IFB], foreign, [redirect(5, 6)]), [CALI])
    assert found[CALI].problem == f"{CALI} has a root qdisc of another program (htb 2:)"
