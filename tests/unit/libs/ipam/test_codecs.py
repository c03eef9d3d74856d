"""Stored values, to the byte: `stored_by_calico.txt` holds keys and values that a real calico-ipam wrote."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest

from libs.ipam import keys, wire
from libs.ipam.affinity import AffinityState, Owner, decode_affinity, encode_affinity
from libs.ipam.block import Attribute, decode_block, encode_block, problems
from libs.ipam.config import IpamConfig, decode_config, encode_config
from libs.ipam.errors import BlockCorrupt, IpamError, Reason
from libs.ipam.handles import Handle, clean_handle, decode_handle, encode_handle
from libs.ipam.vm import vm_handle

LINES = Path(__file__).with_name("stored_by_calico.txt").read_text().splitlines()
STORED = dict(zip(LINES[::2], (line.encode() for line in LINES[1::2]), strict=True))
BLOCKS = {key: value for key, value in STORED.items() if "/assignment/" in key}
HANDLES = {key: value for key, value in STORED.items() if "/handle/" in key}
AFFINITIES = {key: value for key, value in STORED.items() if "/host/" in key}


def test_sample_holds_all_three_kinds() -> None:
    assert (len(BLOCKS), len(HANDLES), len(AFFINITIES)) == (3, 3, 3)


@pytest.mark.parametrize("key", BLOCKS)
def test_block_of_calico_reads_and_writes_back_to_the_byte(key: str) -> None:
    block = decode_block(BLOCKS[key])
    assert encode_block(block) == BLOCKS[key]
    assert keys.block(block.cidr) == key
    assert problems(block) == []


@pytest.mark.parametrize("key", HANDLES)
def test_handle_of_calico_reads_and_writes_back_to_the_byte(key: str) -> None:
    handle = decode_handle(HANDLES[key])
    assert encode_handle(handle) == HANDLES[key]
    assert keys.handle(key.rsplit("/", 1)[1]) == key


@pytest.mark.parametrize("key", AFFINITIES)
def test_affinity_of_calico_reads_and_writes_back_to_the_byte(key: str) -> None:
    parsed = keys.parse_affinity(key)
    assert parsed is not None
    assert keys.affinity(*parsed) == key
    assert encode_affinity(decode_affinity(AFFINITIES[key])) == AFFINITIES[key]


def test_handles_of_calico_count_what_the_blocks_hold() -> None:
    for key, value in HANDLES.items():
        identity = key.rsplit("/", 1)[1]
        held = {block.cidr: len(block.held_by(identity)) for block in map(decode_block, BLOCKS.values())}
        assert decode_handle(value).blocks == {cidr: count for cidr, count in held.items() if count}


def test_cooling_and_ownerless_block_keeps_its_fields_and_order() -> None:
    text = (
        b'{"cidr":"10.0.0.0/31","affinity":null,"allocations":[0,1],"unallocated":[],"attributes":['
        b'{"releasedAt":"2026-11-23T12:47:55Z"},{"handle_id":"h","secondary":{"a":"\\u003c\\u0026"},'
        b'"alternateOwnerAttrs":{"b":"c"}}],"sequenceNumber":7,"sequenceNumberForAllocation":{"0":5,"1":6},"deleted":false}'
    )
    block = decode_block(text)
    assert encode_block(block) == text
    assert block.owner is None
    assert block.attributes[1] == Attribute("h", {"a": "<&"}, {"b": "c"})
    assert not block.empty


def test_map_keys_are_sorted_as_text_as_go_does() -> None:
    block = decode_block(BLOCKS["/calico/ipam/v2/assignment/ipv4/block/10.65.166.128-26"])
    more = type(block)(block.cidr, None, "", (0,) * 64, (), block.attributes[:1], 9, dict.fromkeys(range(64), 1))
    text = encode_block(more).decode()
    assert text.index('"10":1') < text.index('"2":1')


def test_unknown_and_legacy_fields_are_read() -> None:
    text = (
        b'{"cidr":"10.0.0.0/32","affinity":null,"hostAffinity":"old","allocations":[null],"unallocated":[0],'
        b'"new":{"x":1}}'
    )
    block = decode_block(text)
    assert block.owner == Owner.host("old")
    assert b'"affinity":"host:old"' in encode_block(block)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b'{"cidr":"10.0.0.0/33"}',
        b'{"cidr":"10.0.0.0/31","allocations":[null],"unallocated":[0]}',
        b'{"cidr":"10.0.0.0/32","allocations":[0],"unallocated":[],"attributes":[]}',
        b'{"cidr":"10.0.0.0/32","allocations":[-1],"unallocated":[],"attributes":[{}]}',
        b'{"cidr":"10.0.0.0/32","allocations":[null],"unallocated":[1]}',
        b'{"cidr":"10.0.0.0/32","allocations":[null],"unallocated":[-1]}',
        b'{"cidr":"10.0.0.0/32","affinity":"moon:x","allocations":[null],"unallocated":[0]}',
        b'{"cidr":"10.0.0.0/32","allocations":[0],"attributes":[{"releasedAt":"yesterday"}]}',
    ],
)
def test_block_that_nobody_could_work_on_is_refused(text: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        decode_block(text)


@pytest.mark.parametrize("text", [b"", b"x", b'{"block":{"nonsense":1}}', b'{"block":[1]}'])
def test_unreadable_handle_is_refused(text: bytes) -> None:
    with pytest.raises(IpamError) as refused:
        decode_handle(text)
    assert refused.value.reason is Reason.HANDLE_CORRUPT


def test_handle_counts_by_block_and_never_below_zero() -> None:
    four, six = IPv4Network("10.0.0.0/26"), IPv6Network("fd00::/122")
    handle = Handle().add(four, 2).add(six, 1)
    assert encode_handle(handle) == b'{"block":{"10.0.0.0/26":2,"fd00::/122":1},"deleted":false}'
    assert handle.total == 3
    assert handle.remove(four, 5).blocks == {six: 1}
    assert handle.remove(four, 1).blocks == {four: 1, six: 1}
    assert clean_handle("net.id\rrest") == "net.id"


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (b"", AffinityState.CONFIRMED),
        (b"{}", AffinityState.CONFIRMED),
        (b'{"state":"","deleted":false}', AffinityState.CONFIRMED),
        (b'{"state":"pending"}', AffinityState.PENDING),
        (b'{"state":"pendingDeletion"}', AffinityState.PENDING_DELETION),
        (b'{"state":"of the art"}', AffinityState.PENDING),
        (b"nonsense", AffinityState.PENDING),
    ],
)
def test_affinity_states_of_old_and_strange_values(value: bytes, state: AffinityState) -> None:
    assert decode_affinity(value) is state


@pytest.mark.parametrize(
    ("text", "owner"),
    [("host:a", Owner("host", "a")), ("a", Owner("host", "a")), ("virtual:load-balancer", Owner.load_balancer())],
)
def test_owner_is_read_from_the_affinity_field(text: str, owner: Owner) -> None:
    assert Owner.parse(text) == owner


def test_absent_settings_are_not_the_same_as_empty_ones() -> None:
    assert decode_config(None) == IpamConfig(auto_allocate_blocks=True)
    assert decode_config(b"{}").auto_allocate_blocks is False


def test_settings_leave_out_what_is_zero() -> None:
    assert (
        encode_config(IpamConfig(strict_affinity=True, max_blocks_per_host=4, cooldown_s=30))
        == b'{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,'
        b'"kubeVirtVMAddressPersistence":"Enabled","ipCooldownSeconds":30}'
    )
    for config in (IpamConfig(), IpamConfig(True, False, 0, False, 7)):
        assert decode_config(encode_config(config)) == config


@pytest.mark.parametrize("bad", [b"[]", b'{"maxBlocksPerHost":"x"}', b"{"])
def test_unreadable_settings_are_refused(bad: bytes) -> None:
    with pytest.raises(IpamError):
        decode_config(bad)


def test_the_smaller_block_limit_that_is_set_holds() -> None:
    limits = [IpamConfig(True, True, n).block_limit(m) for n, m in ((0, 0), (3, 0), (0, 5), (3, 5), (9, 5))]
    assert limits == [20, 3, 5, 3, 5]


@pytest.mark.parametrize("key", ["/calico/ipam/v2/host/a", "/calico/ipam/v2/host/a/ipv6/block/10.0.0.0-26", "/x", ""])
def test_other_keys_are_no_affinities(key: str) -> None:
    assert keys.parse_affinity(key) is None


def test_block_keys_of_both_families() -> None:
    assert keys.block(ip_network("10.0.0.0/26")) == "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"
    assert keys.block(ip_network("fd00:0:0:1::/122")) == "/calico/ipam/v2/assignment/ipv6/block/fd00:0:0:1::-122"
    assert keys.cidr_of(keys.block(ip_network("fd00:0:0:1::/122"))) == ip_network("fd00:0:0:1::/122")


def test_times() -> None:
    moment = datetime(2026, 11, 23, 12, 47, 55, 772121, tzinfo=UTC)
    assert wire.rfc3339(moment) == "2026-11-23T12:47:55Z"
    assert wire.rfc3339_not_before(moment) == "2026-11-23T12:47:56Z"
    assert wire.parse_rfc3339("2026-11-23T12:47:55.772121350Z") == moment
    assert wire.parse_rfc3339("2026-11-23T13:47:55.772121+01:00") == moment
    assert wire.go_time_string(1795438075772121350) == "2026-11-23 12:47:55.77212135 +0000 UTC"
    assert wire.go_time_string(1795438075000000000) == "2026-11-23 12:47:55 +0000 UTC"


def test_handle_of_a_virtual_machine_has_at_most_128_characters() -> None:
    assert vm_handle("k8s-pod-network", "default", "vm1") == "k8s-pod-network.vmi.default.vm1"
    fits, long = vm_handle("net", "ns", "v" * 117), vm_handle("net", "ns", "v" * 118)
    assert fits == "net.vmi.ns." + "v" * 117
    assert long.startswith("net.vmi._")
    assert len(long) == len("net.vmi._") + 43  # SHA-256 in base64 without padding
    assert vm_handle("net", "ns", "w" * 118) != long
    assert len(vm_handle("n" * 120, "ns", "vm" * 9)) == 128
