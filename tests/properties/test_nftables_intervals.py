"""Intervals for the kernel, judged by ipaddress."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from libs.nftables.intervals import ConcatUnion, Union, merge
from libs.nftables.model import DataType
from libs.nftables.types import pack_element, pack_elements, unpack_element

NETS4 = st.builds(
    lambda value, length: ip_network((0x0A000000 | value >> (32 - length) << (32 - length) & 0xFF, length)),
    st.integers(0, 255),
    st.integers(24, 32),
)
NETS6 = st.builds(
    lambda value, length: IPv6Network((value >> (128 - length) << (128 - length), length)),
    st.one_of(st.integers(0, 15), st.integers(2**128 - 16, 2**128 - 1), st.integers(0, 2**128 - 1)),
    st.sampled_from([0, 1, 8, 64, 120, 124, 125, 126, 127, 128]),
)
RANGES = st.tuples(st.integers(0, 24), st.integers(0, 6)).map(
    lambda r: bytes((10, 0, 0, r[0])) + bytes((10, 0, 0, r[0] + r[1]))
)
EDITS = st.lists(st.tuples(st.booleans(), RANGES), max_size=30)


def packed(net: IPv4Network | IPv6Network) -> bytes:
    return net.network_address.packed + net.broadcast_address.packed


def values(intervals: list[bytes]) -> list[int]:
    """Every value covered, once per interval that covers it."""
    found: list[int] = []
    for interval in intervals:
        half = len(interval) // 2
        found += range(int.from_bytes(interval[:half], "big"), int.from_bytes(interval[half:], "big") + 1)
    return sorted(found)


@given(st.lists(NETS4, max_size=12))
def test_merged_networks_cover_the_same_addresses_once(nets: list[IPv4Network]) -> None:
    wanted = sorted({int(address) for net in nets for address in net})
    assert values(merge(packed(net) for net in nets)) == wanted


@given(st.lists(NETS6, max_size=12))
def test_merged_ipv6_networks_agree_with_ipaddress(nets: list[IPv6Network]) -> None:
    def total(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        joined: list[tuple[int, int]] = []
        for low, high in sorted(pairs):
            if joined and low <= joined[-1][1] + 1:
                joined[-1] = joined[-1][0], max(high, joined[-1][1])
            else:
                joined.append((low, high))
        return joined

    ours = [(int.from_bytes(i[:16], "big"), int.from_bytes(i[16:], "big")) for i in merge(packed(net) for net in nets)]
    assert all(before[1] < after[0] for before, after in pairwise(ours))
    theirs = [(int(net[0]), int(net[-1])) for net in collapse_addresses(nets)]
    assert total(ours) == total(theirs)


@given(EDITS)
def test_edits_one_by_one_end_in_the_merge_of_all(edits: list[tuple[bool, bytes]]) -> None:
    union, members, kernel = Union(), set[bytes](), set[bytes]()
    for add, member in edits:
        added, removed = union.add(member) if add else union.remove(member)
        (members.add if add else members.discard)(member)
        assert removed <= kernel
        assert not added & (kernel - removed)
        kernel = (kernel - removed) | added
        assert sorted(kernel) == union.intervals == merge(members)
        assert union.members == sorted(members)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), NETS4, st.sampled_from(["tcp", "udp"])), max_size=20))
def test_concatenated_edits_merge_within_equal_other_parts(edits: list[tuple[bool, str, IPv4Network, str]]) -> None:
    key = (DataType.IFNAME, DataType.IPV4, DataType.PROTO)
    union = ConcatUnion([(0, 16), (16, 4), (20, 1)], 1)
    members: set[tuple[str, IPv4Network, str]] = set()
    kernel: set[bytes] = set()
    for add, name, net, proto in edits:
        low, high = pack_element(key, f"{name} . {net} . {proto}")
        added, removed = union.add(low + high) if add else union.remove(low + high)
        (members.add if add else members.discard)((name, net, proto))
        assert removed <= kernel
        kernel = (kernel - removed) | added
    assert kernel == set(union.intervals)
    wanted = sorted({(name, int(address), proto) for name, net, proto in members for address in net})
    covered = []
    for element in kernel:
        name, inner, proto = unpack_element(key, element).split(" . ")
        low, high = pack_element((DataType.IPV4,), inner)
        covered += [
            (name, value, proto) for value in range(int.from_bytes(low, "big"), int.from_bytes(high, "big") + 1)
        ]
    assert sorted(covered) == wanted


@given(st.lists(NETS4 | NETS6, min_size=1, max_size=5))
def test_text_of_packed_networks_is_their_own(nets: list[IPv4Network | IPv6Network]) -> None:
    for net in nets:
        key = (DataType.IPV4 if net.version == 4 else DataType.IPV6,)
        (element,) = pack_elements(key, [str(net)], interval=True)
        text = unpack_element(key, element)
        assert text == (str(net[0]) if net.num_addresses == 1 else str(net))
        assert pack_elements(key, [text], interval=True) == {element}
