from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest

from libs.ipam.affinity import Owner
from libs.ipam.block import (
    Block,
    ReleaseOption,
    allocate,
    allocate_exact,
    collect,
    decode_block,
    encode_block,
    new_block,
    problems,
    release,
    set_owner_attributes,
    written,
)
from libs.ipam.errors import AddressInUse, StaleRelease
from libs.ipam.handles import WINDOWS_RESERVED

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLE = "192.168.0.240/29"


def fresh(cidr: str = SAMPLE, sequence: int = 1000) -> Block:
    return new_block(IPv4Network(cidr), Owner.host("node-1"), NOW, sequence)


def pod(block: Block, handle: str, count: int = 1) -> Block:
    return written(allocate(block, count, handle, {"pod": handle})[0])


def test_new_block_is_all_free_in_order() -> None:
    block = fresh()
    assert block.unallocated == tuple(range(8))
    assert block.empty
    assert problems(block) == []
    assert encode_block(block) == (
        b'{"cidr":"192.168.0.240/29","affinity":"host:node-1","affinity_claim_time":"2026-01-01T00:00:00Z",'
        b'"allocations":[null,null,null,null,null,null,null,null],"unallocated":[0,1,2,3,4,5,6,7],"attributes":[],'
        b'"sequenceNumber":1000,"sequenceNumberForAllocation":{},"deleted":false}'
    )


def test_each_write_raises_the_sequence_and_the_ordinal_remembers_the_one_before() -> None:
    block = pod(pod(fresh(), "web-0"), "web-1")
    assert (block.sequence, dict(block.sequence_for)) == (1002, {0: 1000, 1: 1001})
    after = written(release(block, [ReleaseOption(IPv4Address("192.168.0.240"))], NOW, 0).block)
    assert after.allocations[:2] == (None, 0)
    assert after.unallocated == (2, 3, 4, 5, 6, 7, 0)
    assert [attribute.handle for attribute in after.attributes] == ["web-1"]
    assert (after.sequence, dict(after.sequence_for)) == (1003, {1: 1001})


@pytest.mark.parametrize("cidr", ["10.0.0.0/30", "fd00::/126"])
def test_addresses_are_taken_from_the_head_without_exclusions(cidr: str) -> None:
    network = IPv4Network(cidr) if "." in cidr else IPv6Network(cidr)
    block, got = allocate(new_block(network, Owner.host("a"), NOW, 1), 9, "h", {})
    assert got == list(network)
    assert block.unallocated == ()
    assert allocate(block, 1, "h2", {}) == (block, [])


def test_same_owner_shares_one_attribute() -> None:
    block, _ = allocate(fresh(), 3, "h", {"a": "b"})
    block, _ = allocate(block, 1, "h", {"a": "b"})
    block, _ = allocate(block, 1, "h", {"a": "c"})
    assert block.allocations[:5] == (0, 0, 0, 0, 1)


def test_reserved_addresses_keep_their_place_in_the_queue() -> None:
    reserved = {IPv4Address("192.168.0.240"), IPv4Address("192.168.0.242")}
    block, got = allocate(fresh(), 2, "h", {}, reserved.__contains__)
    assert got == [IPv4Address("192.168.0.241"), IPv4Address("192.168.0.243")]
    assert block.unallocated == (0, 2, 4, 5, 6, 7)
    assert block.free_count(reserved.__contains__) == 4


def test_ordinal_wrongly_listed_as_free_is_never_given_again() -> None:
    block = pod(fresh(), "h1")
    broken = replace(block, unallocated=(0, 1, 1, 2))
    assert len(problems(broken)) == 3
    assert allocate(broken, 3, "h2", {})[1] == [IPv4Address("192.168.0.241"), IPv4Address("192.168.0.242")]


def test_explicit_address_in_use_names_its_holder() -> None:
    address = IPv4Address("192.168.0.243")
    block = allocate_exact(fresh(), address, "h1", {})
    with pytest.raises(AddressInUse, match="h1") as refused:
        allocate_exact(block, address, "h2", {})
    assert refused.value.handle == "h1"
    assert 3 not in block.unallocated


def test_address_outside_the_block_is_an_error() -> None:
    for address in ("192.168.0.239", "192.168.0.248", "fd00::1"):
        with pytest.raises(ValueError, match="not in block"):
            allocate_exact(fresh(), ip_address(address), "h", {})


@pytest.mark.parametrize(
    "option",
    [
        ReleaseOption(IPv4Address("192.168.0.240"), handle="h2"),
        ReleaseOption(IPv4Address("192.168.0.240"), sequence=999),
        ReleaseOption(IPv4Address("192.168.0.240"), "h1", 1001),
    ],
)
def test_release_of_another_allocation_changes_nothing(option: ReleaseOption) -> None:
    block = pod(pod(fresh(), "h1"), "h2")
    with pytest.raises(StaleRelease):
        release(block, [ReleaseOption(IPv4Address("192.168.0.241")), option], NOW, 0)


def test_release_tells_free_addresses_and_survives_doubles() -> None:
    block = pod(fresh(), "h1")
    options = [ReleaseOption(IPv4Address("192.168.0.240"))] * 2 + [ReleaseOption(IPv4Address("192.168.0.247"))]
    done = release(block, options, NOW, 0)
    assert done.freed == [(IPv4Address("192.168.0.240"), "h1")]
    assert done.unallocated == [IPv4Address("192.168.0.247")]
    assert sorted(done.block.unallocated) == list(range(8))


def test_released_address_cools_down_before_it_is_free() -> None:
    block = pod(fresh(), "h1", 2)
    half = NOW + timedelta(milliseconds=500)
    block = written(release(block, [ReleaseOption(IPv4Address("192.168.0.241"))], half, 60).block)
    assert block.attributes[1].released_at == "2026-01-01T00:00:01Z"  # rounded up: a rest is never short
    assert block.sequence_for[1] == 1001
    assert not block.empty
    assert problems(block) == []
    assert decode_block(encode_block(block)) == block
    again = release(block, [ReleaseOption(IPv4Address("192.168.0.241"))], NOW, 60)
    assert again.unallocated == [IPv4Address("192.168.0.241")]
    with pytest.raises(AddressInUse, match="cooling"):
        allocate_exact(block, IPv4Address("192.168.0.241"), "h2", {})
    assert collect(block, NOW + timedelta(seconds=61), 60) is block
    free = collect(block, NOW + timedelta(seconds=62), 60)
    assert free.unallocated[-1] == 1
    assert problems(free) == []


def test_longest_rested_is_freed_first() -> None:
    block = pod(fresh(), "h", 3)
    for second, last in enumerate((242, 240, 241)):
        option = ReleaseOption(ip_address(f"192.168.0.{last}"))
        block = release(block, [option], NOW + timedelta(seconds=second), 30).block
    assert collect(block, NOW + timedelta(seconds=99), 30).unallocated == (3, 4, 5, 6, 7, 2, 0, 1)


def test_addresses_reserved_for_windows_do_not_keep_a_block() -> None:
    assert pod(fresh(), WINDOWS_RESERVED).empty
    assert not pod(fresh(), "h").empty


def test_owner_attributes_change_without_handle_and_sequence() -> None:
    block = pod(fresh(), "vm", 1)
    address = IPv4Address("192.168.0.240")
    moved = set_owner_attributes(block, address, {"node": "a"}, {"node": "b"})
    found = moved.allocation(address)
    assert found
    assert (found.handle, found.sequence, found.attrs, found.alternate) == ("vm", 1000, {"node": "a"}, {"node": "b"})
    assert problems(moved) == []
    with pytest.raises(ValueError, match="not assigned"):
        set_owner_attributes(block, IPv4Address("192.168.0.241"), {}, {})


def test_allocations_are_listed_in_order_with_what_is_known() -> None:
    block = pod(pod(fresh(), "h1"), "h2")
    assert [(str(a.address), a.handle, a.sequence) for a in block.allocated()] == [
        ("192.168.0.240", "h1", 1000),
        ("192.168.0.241", "h2", 1001),
    ]
    assert block.held_by("h2") == [IPv4Address("192.168.0.241")]
    six = new_block(IPv6Network("fd00::/126"), Owner.host("a"), NOW, 1)
    assert six.allocation(IPv6Address("fd00::1")) is None
