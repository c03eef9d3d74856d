"""Reports about the state that `stored_by_calico.txt` holds; the numbers are those of `calicoctl ipam show`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from libs.ipam.affinity import Owner
from libs.ipam.block import Block, allocate, decode_block, with_owner
from libs.ipam.pools import Pool, Reservations
from libs.ipam.usage import NO_POOL, address_info, borrowed, usage
from tests.unit.libs.ipam.test_block import NOW, fresh
from tests.unit.libs.ipam.test_codecs import BLOCKS

POOLS = [
    Pool("pool-v4", IPv4Network("10.65.0.0/16"), 26),
    Pool("pool-v6", IPv6Network("fd00:65::/48"), 122),
    Pool("pool-vxlan", IPv4Network("10.66.0.0/16"), 28),
]
STORED = [decode_block(value) for value in BLOCKS.values()]


def test_table_of_the_sample() -> None:
    rows = [
        row.cells()
        for pool in usage(POOLS, STORED, Reservations([ip_network("10.65.0.0/30")]))
        for row in (pool.row, *pool.blocks)
    ]
    assert rows == [
        ("IP Pool", "10.65.0.0/16", "65536", "2 (0%)", "4 (0%)", "65530 (100%)"),
        ("Block", "10.65.166.128/26", "64", "2 (3%)", "0 (0%)", "62 (97%)"),
        # The real command overflows here (-9.2234e+18); the true size is 2^80.
        ("IP Pool", "fd00:65::/48", "1.2089e+24", "1 (0%)", "0 (0%)", "1.2089e+24 (100%)"),
        ("Block", "fd00:65:0:df9b:fa8:334a:557b:7740/122", "64", "1 (2%)", "0 (0%)", "63 (98%)"),
        ("IP Pool", "10.66.0.0/16", "65536", "1 (0%)", "0 (0%)", "65535 (100%)"),
        ("Block", "10.66.101.80/28", "16", "1 (6%)", "0 (0%)", "15 (94%)"),
    ]


def test_address_both_used_and_reserved_is_taken_from_free_once() -> None:
    block, _ = allocate(fresh("10.65.0.0/29"), 3, "h", {})
    found = usage([Pool("p", IPv4Network("10.65.0.0/28"), 29)], [block], Reservations([ip_network("10.65.0.2/31")]))
    row = found[0].blocks[0]
    assert (row.in_use, row.reserved, row.free) == (3, 2, 4)
    whole = found[0].row
    assert (whole.total, whole.in_use, whole.reserved, whole.free) == (16, 3, 2, 12)


def test_blocks_without_a_pool_are_grouped_last() -> None:
    found = usage(POOLS[2:], STORED, Reservations())
    assert [pool.row.pool for pool in found] == ["pool-vxlan", NO_POOL, NO_POOL]
    assert str(found[1].row.cidr) == "0.0.0.0/0"
    assert found[1].row.total == 64


def test_borrowed_addresses_name_borrower_and_owner() -> None:
    block, _ = allocate(fresh(), 1, "h1", {"node": "node-1", "pod": "own", "namespace": "ns"})
    block, _ = allocate(block, 1, "h2", {"node": "node-2", "pod": "guest", "namespace": "ns"})
    block, _ = allocate(block, 1, "h3", {"node": "node-3", "type": "vxlanTunnelAddress"})
    block, _ = allocate(block, 1, "h4", {})
    found = [(str(b.address), b.node, b.owner, b.kind, b.allocated_to) for b in borrowed([block])]
    assert found == [
        ("192.168.0.241", "node-2", "host:node-1", "pod", "ns/guest"),
        ("192.168.0.242", "node-3", "host:node-1", "vxlanTunnelAddress", "node-3"),
    ]
    assert len(borrowed([with_owner(block, None, NOW)])) == 3
    assert borrowed([with_owner(block, Owner.load_balancer(), NOW)]) == []


def test_address_info() -> None:
    info = address_info(IPv4Address("10.65.166.130"), POOLS, STORED, Reservations())
    assert info.allocation
    assert info.allocation.handle == "net1.podC"
    assert info.allocation.attrs["pod"] == "podC"
    assert info.pool is POOLS[0]
    assert not info.borrowed
    free = address_info(ip_address("10.65.166.129"), POOLS, STORED, Reservations())
    assert free.allocation is None
    nowhere: list[Block] = []
    assert address_info(ip_address("192.0.2.1"), POOLS, nowhere, Reservations()).pool is None
