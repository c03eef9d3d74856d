"""Blocks of any state come back from their stored form as they were, byte for byte."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from libs.ipam.affinity import Owner
from libs.ipam.block import (
    Block,
    ReleaseOption,
    allocate,
    collect,
    decode_block,
    encode_block,
    new_block,
    problems,
    release,
    set_owner_attributes,
    with_owner,
    written,
)
from libs.ipam.wire import Network

START = datetime(2026, 1, 1, tzinfo=UTC)
CIDRS: list[Network] = [IPv4Network("10.0.0.0/29"), IPv6Network("fd00::/125"), IPv4Network("10.0.0.8/32")]
OWNERS = [Owner.host("node-1"), Owner.host("a.b"), Owner.load_balancer(), None]
texts = st.text(max_size=8)
attributes = st.dictionaries(texts, texts, max_size=3)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("assign"), st.integers(0, 3), st.one_of(st.none(), texts), attributes),
        st.tuples(st.just("release"), st.integers(0, 7), st.sampled_from([0, 60])),
        st.tuples(st.just("owner"), st.sampled_from(OWNERS)),
        st.tuples(st.just("attributes"), st.integers(0, 7), attributes, attributes),
        st.tuples(st.just("collect"), st.integers(0, 120), st.sampled_from([0, 60])),
    ),
    max_size=12,
)


def after(block: Block, step: tuple[Any, ...], now: datetime) -> Block:
    address = block.address(step[1] % block.size) if isinstance(step[1], int) else None
    match step:
        case ("assign", count, handle, attrs):
            return written(allocate(block, count, handle, attrs)[0])
        case ("release", _, cooldown) if address is not None:
            return written(release(block, [ReleaseOption(address)], now, cooldown).block)
        case ("owner", owner):
            return written(with_owner(block, owner, now))
        case ("attributes", _, owner, alternate) if address is not None:
            present = block.allocation(address)
            if present is None or present.released_at is not None:
                return written(block)
            return written(set_owner_attributes(block, address, owner, alternate))
        case ("collect", seconds, cooldown):
            return written(collect(block, now + timedelta(seconds=seconds), cooldown))
    raise AssertionError(step)


@given(st.sampled_from(CIDRS), st.integers(1, 2**63), steps)
def test_every_state_survives_its_stored_form(cidr: Network, sequence: int, steps: list[tuple[Any, ...]]) -> None:
    block = new_block(cidr, Owner.host("node-1"), START, sequence)
    for number, step in enumerate(steps):
        block = after(block, step, START + timedelta(seconds=number))
        stored = encode_block(block)
        assert decode_block(stored) == block
        assert encode_block(decode_block(stored)) == stored
        assert problems(block) == []
        # Go's form: map keys sorted as text, `<`, `>`, `&` escaped, affinity always there.
        found = json.loads(stored)
        assert "affinity" in found
        assert list(found["sequenceNumberForAllocation"]) == sorted(found["sequenceNumberForAllocation"])
        assert not any(character in stored for character in b"<>&")
        assert found["sequenceNumber"] == sequence + number + 1


@given(
    st.dictionaries(
        st.sampled_from(["hostAffinity", "futureField", "extra"]), st.sampled_from(["node-9", 5, None, {}])
    ),
    st.booleans(),
)
def test_unknown_and_legacy_fields_are_read_and_the_rest_is_kept(more: dict[str, object], owned: bool) -> None:
    """An unknown field is dropped, as Go's readers do; the legacy host is the owner where there is no affinity."""
    block = allocate(new_block(CIDRS[0], Owner.host("node-1"), START, 7), 2, "h", {"node": "n"})[0]
    if not isinstance(more.get("hostAffinity", ""), str | None):
        del more["hostAffinity"]
    document = json.loads(encode_block(block)) | more
    if not owned:
        document["affinity"] = None
    read = decode_block(json.dumps(document).encode())
    legacy = more.get("hostAffinity")
    expected = Owner.host("node-1") if owned else Owner.host(str(legacy)) if legacy else None
    assert read.owner == expected
    assert (read.allocations, read.unallocated, read.attributes) == (
        block.allocations, block.unallocated, block.attributes,
    )  # fmt: skip
    again = json.loads(encode_block(read))
    assert not set(again) & {"futureField", "extra", "hostAffinity"}
