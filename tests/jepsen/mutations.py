"""Mistakes put into a client process at its start, to see the verdict find them. Only tests name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libs.ipam import assign, claims, draft, engine, release
from libs.ipam.block import Block, ReleaseOption
from libs.ipam.claims import Step
from libs.store.api import Compare, Op, TxnResult
from libs.store.connection import Connection
from libs.store.etcd import EtcdStore


@dataclass(frozen=True, slots=True)
class Mutation:
    where: str  # claim, assign, release, store
    what: str
    apply: Callable[[], None]


def _assign_without_block_revision() -> None:
    original = draft.Draft.transaction

    def transaction(self: draft.Draft) -> tuple[list[Compare], list[Op]]:
        compares, ops = original(self)
        if self.guards:
            compares = [compare for compare in compares if "/assignment/" not in compare.key]
        return compares, ops

    draft.Draft.transaction = transaction  # type: ignore[method-assign]


def _assign_without_handle() -> None:
    def record(self: Any, round_: Any, pool: Any, cidr: Any, addresses: list[Any], sequence: int) -> None:
        self._planned += [assign.Placement(address, cidr, sequence) for address in addresses]
        round_.draft.guard(round_.inputs.guards(pool))

    assign._Assigning.record = record  # type: ignore[method-assign]


def _sequence_stands_still() -> None:
    draft.written = lambda block: block  # type: ignore[attr-defined]


def _lost_assignment_is_refused() -> None:
    assign._Assigning.lost = assign._Assigning.refused  # type: ignore[method-assign]


def _lost_assignment_is_done() -> None:
    assign._Assigning.lost = assign._Assigning.succeeded  # type: ignore[method-assign]


def _create_without_absence() -> None:
    original = claims.Claims._claim_txn

    async def claim_txn(self: Any, step: Step, *arguments: Any) -> tuple[list[Compare], list[Op]]:
        compares, ops = await original(self, step, *arguments)
        if step is Step.CREATE:
            compares = [compare for compare in compares if "/assignment/" not in compare.key]
        return compares, ops

    claims.Claims._claim_txn = claim_txn  # type: ignore[method-assign]


def _confirm_what_is_not_owned() -> None:
    original = claims.claim_step

    def claim_step(state: Any, block: Block | None, owner: Any, *, may_take: bool) -> Step:
        step = original(state, block, owner, may_take=may_take)
        if step is Step.LOST:
            return Step.CONFIRM if state is claims.AffinityState.PENDING else Step.ANNOUNCE
        return step

    claims.claim_step = claim_step


def _used_block_is_taken_over() -> None:
    original = claims.reclaimable

    def reclaimable(block: Block, owner: Any, now: Any) -> bool:
        idle = replace(block, allocations=(None,) * block.size)
        return original(idle, owner, now)

    claims.reclaimable = engine.reclaimable = reclaimable  # type: ignore[attr-defined]


def _used_block_is_deleted() -> None:
    original = claims.Claims.release

    async def give_up(self: Any, owner: Any, cidr: Any, *, cooldown_s: int, must_be_empty: bool) -> None:
        present = claims.collect
        claims.collect = lambda block, now, cooldown_s: replace(block, allocations=(None,) * block.size)  # type: ignore[attr-defined]
        try:
            await original(self, owner, cidr, cooldown_s=cooldown_s, must_be_empty=must_be_empty)
        finally:
            claims.collect = present  # type: ignore[attr-defined]

    claims.Claims.release = give_up  # type: ignore[method-assign]


def _release_ignores_sequence() -> None:
    original = release.release

    def patched(block: Block, options: Any, now: Any, cooldown_s: int) -> Any:
        return original(block, [ReleaseOption(option.address) for option in options], now, cooldown_s)

    release.release = patched  # type: ignore[attr-defined]


def _lost_release_is_done() -> None:
    release._Releasing.lost = release._Releasing.succeeded  # type: ignore[method-assign]


def _release_counts_handle_down_first() -> None:
    original = EtcdStore.txn

    async def txn(self: EtcdStore, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        keys = {op.key for op in ops}
        handles = {key for key in keys if "/handle/" in key}
        if handles and handles != keys and not any("/config" in compare.key for compare in compares):
            first = [compare for compare in compares if compare.key in handles]
            await original(self, first, [op for op in ops if op.key in handles])
            compares = [compare for compare in compares if compare.key not in handles]
            ops = [op for op in ops if op.key not in handles]
        return await original(self, compares, ops)

    EtcdStore.txn = txn  # type: ignore[method-assign]


def _writes_are_repeated() -> None:
    Connection.write = Connection.read  # type: ignore[method-assign]


MUTATIONS = {
    "assign-without-block-revision": Mutation(
        "assign", "the block's revision is not compared", _assign_without_block_revision
    ),
    "assign-without-handle": Mutation("assign", "the handle is not counted up", _assign_without_handle),
    "lost-assignment-is-refused": Mutation("assign", "no answer is taken for a refusal", _lost_assignment_is_refused),
    "lost-assignment-is-done": Mutation("assign", "no answer is taken for success", _lost_assignment_is_done),
    "sequence-stands-still": Mutation("assign", "a block's sequence number is not raised", _sequence_stands_still),
    "create-without-absence": Mutation("claim", "a block is created without looking", _create_without_absence),
    "confirm-what-is-not-owned": Mutation(
        "claim", "the affinity to another's block is confirmed", _confirm_what_is_not_owned
    ),
    "used-block-is-taken-over": Mutation(
        "claim", "another host's block is taken while in use", _used_block_is_taken_over
    ),
    "used-block-is-deleted": Mutation("claim", "giving up deletes a block in use", _used_block_is_deleted),
    "release-ignores-sequence": Mutation(
        "release", "handle and sequence number are not looked at", _release_ignores_sequence
    ),
    "release-counts-handle-down-first": Mutation(
        "release", "the handle is counted down before the block changes", _release_counts_handle_down_first
    ),
    "lost-release-is-done": Mutation("release", "no answer is taken for success", _lost_release_is_done),
    "writes-are-repeated": Mutation("store", "a write without an answer is sent again", _writes_are_repeated),
}
