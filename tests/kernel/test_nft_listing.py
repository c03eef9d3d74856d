"""Reading a large set while the kernel still moves its elements to a larger table, which it does after the commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from libs.nftables import kernel
from libs.nftables.kernel import KernelRuleset
from libs.nftables.messages import decode_set
from libs.nftables.model import ACCEPT, DataType, Family, Table, Verdict
from libs.nftables.ops import AddElements, AddVerdicts, DelTable, KernelSet, NewSet, NewTable, SetSpec
from libs.testkit import netns

pytestmark = pytest.mark.kernel
TABLE = Table(Family.IP, "grown")
ELEMENTS = [(10 << 24 | number).to_bytes(4, "big") for number in range(10_000)]
ROUNDS = 60  # of which a listing taken as it comes is short in one of nine here


@pytest.fixture
def ruleset() -> Iterator[KernelRuleset]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("nftl") as ns:
        made = KernelRuleset(ns.path)
        try:
            yield made
        finally:
            made.close()


def count_not_told(body: bytes) -> KernelSet | None:
    """As by a kernel before 6.16."""
    entry = decode_set(body)
    return entry and dataclasses.replace(entry, count=None)


@pytest.mark.parametrize("is_map", [False, True], ids=["set", "map"])
@pytest.mark.parametrize("decode", [decode_set, count_not_told], ids=["as it is", "count not told"])
def test_a_listing_right_after_a_commit_is_whole(
    ruleset: KernelRuleset, monkeypatch: pytest.MonkeyPatch, decode: Callable[[bytes], KernelSet | None], is_map: bool
) -> None:
    monkeypatch.setattr(kernel, "decode_set", decode)
    spec = SetSpec("s", (DataType.IPV4,), is_map=is_map)
    verdicts: list[tuple[bytes, Verdict]] = [(element, ACCEPT) for element in ELEMENTS]
    add = AddVerdicts(spec, verdicts) if is_map else AddElements(spec, ELEMENTS)
    for round_number in range(ROUNDS):
        ruleset.commit(TABLE, [NewTable(), NewSet(spec), add])
        found = ruleset.read(TABLE).sets["s"]
        assert len(found.verdicts if is_map else found.elements) == len(ELEMENTS), f"in round {round_number}"
        ruleset.commit(TABLE, [DelTable()])
