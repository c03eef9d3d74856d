from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice

import pytest

from libs.ipam.errors import IpamError, Reason
from libs.ipam.pools import Pool, Reservations, Use, first_block, pool_of, select_pools
from libs.ipam.source import pool_from_resource, reservations_from_resources
from libs.ipam.wire import Network
from libs.model.base import Condition, ObjectMeta
from libs.model.pools import IPPool, IPPoolSpec, IPPoolStatus, IPReservation, IPReservationSpec

POOLS = [
    Pool("a", IPv4Network("10.0.0.0/24"), 26),
    Pool("zoned", IPv4Network("10.1.0.0/24"), 26, node_selector="zone == 'x'"),
    Pool("team", IPv4Network("10.2.0.0/24"), 26, namespace_selector="team == 'x'"),
    Pool("manual", IPv4Network("10.3.0.0/24"), 26, manual=True),
    Pool("off", IPv4Network("10.4.0.0/24"), 26, disabled=True),
    Pool("tunnel", IPv4Network("10.5.0.0/24"), 26, uses=frozenset({Use.TUNNEL})),
    Pool("six", IPv6Network("fd00::/112"), 122),
]


def chosen(
    version: int = 4,
    use: Use = Use.WORKLOAD,
    requested: tuple[str, ...] = (),
    node: dict[str, str] | None = None,
    namespace: dict[str, str] | None = None,
) -> list[str]:
    labels = {} if node is None else node
    pools = select_pools(
        POOLS, version=version, use=use, requested=requested, node_labels=labels, namespace_labels=namespace
    )
    return [pool.name for pool in pools]


def test_automatic_choice_follows_selectors_and_use() -> None:
    assert chosen() == ["a"]
    assert chosen(node={"zone": "x"}) == ["a", "zoned"]
    assert chosen(namespace={"team": "x"}) == ["a", "team"]
    assert chosen(use=Use.TUNNEL) == ["a", "tunnel"]
    assert chosen(version=6) == ["six"]


def test_requested_pools_come_in_the_requested_order_and_once() -> None:
    assert chosen(requested=("manual", "10.1.0.0/24", "zoned", "a")) == ["manual", "zoned", "a"]


@pytest.mark.parametrize("wish", ["off", "10.4.0.0/24", "six", "10.0.0.0/25", "nonsense", ""])
def test_unknown_disabled_and_foreign_wishes_are_refused(wish: str) -> None:
    with pytest.raises(IpamError) as refused:
        chosen(requested=(wish,))
    assert refused.value.reason is Reason.UNKNOWN_POOL


def test_reasons_of_an_empty_choice() -> None:
    with pytest.raises(IpamError) as refused:
        chosen(use=Use.LOAD_BALANCER)
    assert refused.value.reason is Reason.USE_NOT_ALLOWED
    with pytest.raises(IpamError) as refused:
        select_pools(POOLS, version=4, use=Use.WORKLOAD, node_labels=None, namespace_labels=None)
    assert refused.value.reason is Reason.NODE_MISSING
    with pytest.raises(IpamError) as refused:
        select_pools(POOLS[4:5], version=4, use=Use.WORKLOAD, node_labels={}, namespace_labels=None)
    assert refused.value.reason is Reason.NO_POOLS


@pytest.mark.parametrize(
    "pool", [POOLS[0], Pool("six", IPv6Network("::/122"), 124), Pool("one", ip_network("10.9.0.0/26"), 26)]
)
def test_every_block_comes_once_starting_at_the_owners_place(pool: Pool) -> None:
    blocks = list(pool.free_blocks("node1", []))
    expected = set(pool.cidr.subnets(new_prefix=pool.block_size))
    assert len(blocks) == pool.block_count
    assert set(blocks) == expected
    assert blocks[0] == pool.nth_block(first_block(pool, "node1"))


def test_start_is_the_same_each_time_and_spread_over_hosts() -> None:
    pool = Pool("big", IPv6Network("fd00::/48"), 122)
    starts = {first_block(pool, f"node{n}") for n in range(200)}
    assert len(starts) == 200
    assert first_block(pool, "node1") == first_block(pool, "node1")
    assert all(block.version == 6 for block in islice(pool.free_blocks("node1", []), 5))


def test_existing_blocks_of_any_size_are_not_overlapped() -> None:
    pool = POOLS[0]
    taken: list[Network] = [IPv4Network("10.0.0.64/28"), IPv4Network("10.0.0.128/25"), IPv6Network("fd00::/122")]
    assert list(pool.free_blocks("n", taken)) == [IPv4Network("10.0.0.0/26")]


def test_block_and_pool_of_an_address() -> None:
    address = IPv4Address("10.0.0.77")
    pool = pool_of(POOLS, address)
    assert pool is POOLS[0]
    assert pool.block_of(address) == IPv4Network("10.0.0.64/26")
    assert POOLS[-1].block_of(ip_address("fd00::41")) == IPv6Network("fd00::40/122")
    assert pool_of(POOLS, ip_address("192.0.2.1")) is None


def test_reservations_are_merged_and_counted_once() -> None:
    cidrs = ["10.0.0.0/30", "10.0.0.2/31", "10.0.0.4/32", "10.0.1.0/24", "fd00::/126"]
    reserved = Reservations(ip_network(cidr) for cidr in cidrs)
    assert [reserved.covers(ip_address(f"10.0.0.{n}")) for n in (0, 3, 4, 5)] == [True, True, True, False]
    assert reserved.count_in(IPv4Network("10.0.0.0/29")) == 5
    assert reserved.count_in(IPv4Network("10.0.0.0/16")) == 261
    assert reserved.covers_all(IPv4Network("10.0.1.128/26"))
    assert reserved.count_in(IPv6Network("fd00::2/127")) == 2
    assert not reserved.covers(ip_address("::"))
    assert not Reservations()


def test_pool_resource_is_read_with_its_defaults() -> None:
    spec = IPPoolSpec(cidr="10.0.0.0/16", node_selector="all()")
    pool = pool_from_resource(IPPool(metadata=ObjectMeta(name="p", resource_version="7"), spec=spec))
    assert (pool.block_size, pool.mod_revision, pool.manual, pool.disabled) == (26, 7, False, False)
    assert pool.uses == {Use.WORKLOAD, Use.TUNNEL}


@pytest.mark.parametrize("what", ["disabled", "deleted", "not allocatable"])
def test_pool_that_must_not_be_used_counts_as_disabled(what: str) -> None:
    resource = IPPool(metadata=ObjectMeta(name="p"), spec=IPPoolSpec(cidr="fd00::/112", disabled=what == "disabled"))
    if what == "deleted":
        resource.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    if what == "not allocatable":
        resource.status = IPPoolStatus(conditions=[Condition(type="Allocatable", status="False")])
    pool = pool_from_resource(resource)
    assert pool.disabled
    assert pool.block_size == 122


def test_pool_with_an_unreadable_selector_is_no_pool() -> None:
    with pytest.raises(ValueError, match="selector"):
        pool_from_resource(IPPool(spec=IPPoolSpec(cidr="10.0.0.0/16", node_selector="has(")))


def test_reservations_take_bare_addresses_and_leave_out_nonsense() -> None:
    resource = IPReservation(spec=IPReservationSpec(reserved_cidrs=["10.0.0.1", "x", "fd00::/126"]))
    reserved = reservations_from_resources([resource])
    assert reserved.covers(ip_address("10.0.0.1"))
    assert reserved.count_in(IPv6Network("fd00::/64")) == 4
