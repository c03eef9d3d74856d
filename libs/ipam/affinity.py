"""Block affinities: which host (or virtual owner, for load balancers) a block belongs to, and how far its claim has
come.

    /calico/ipam/v2/host/<node>/ipv4/block/10.0.0.0-26            {"state":"confirmed","deleted":false}
    /calico/ipam/v2/virtual/load-balancer/ipv4/block/10.0.0.0-26  the same

The block's own `affinity` field decides who owns it; the affinity object is the owner's list of its blocks. A claim
writes the object first (pending), then the block, and confirms last; giving up goes the other way round. So an object
that is not confirmed promises nothing, and a confirmed one whose block names somebody else is stale and may be
removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from libs.ipam import wire


class AffinityState(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    PENDING_DELETION = "pendingDeletion"


class AffinityEvent(StrEnum):
    CLAIM = "claim"  # the owner starts, or starts again, to claim
    OWN_BLOCK = "own-block"  # the block is there and names the owner
    FOREIGN_BLOCK = "foreign-block"  # the block names somebody else or nobody
    RELEASE = "release"
    BLOCK_GONE = "block-gone"  # block deleted, or its affinity cleared


# An absent pair is an error of the caller. None: the object is (to be) absent.
TRANSITIONS: dict[tuple[AffinityState | None, AffinityEvent], AffinityState | None] = {
    (None, AffinityEvent.CLAIM): AffinityState.PENDING,
    (AffinityState.PENDING, AffinityEvent.CLAIM): AffinityState.PENDING,
    (AffinityState.PENDING, AffinityEvent.OWN_BLOCK): AffinityState.CONFIRMED,
    (AffinityState.PENDING, AffinityEvent.FOREIGN_BLOCK): None,
    (AffinityState.PENDING, AffinityEvent.RELEASE): AffinityState.PENDING_DELETION,
    (AffinityState.CONFIRMED, AffinityEvent.CLAIM): AffinityState.CONFIRMED,
    (AffinityState.CONFIRMED, AffinityEvent.OWN_BLOCK): AffinityState.CONFIRMED,
    (AffinityState.CONFIRMED, AffinityEvent.FOREIGN_BLOCK): None,
    (AffinityState.CONFIRMED, AffinityEvent.RELEASE): AffinityState.PENDING_DELETION,
    (AffinityState.PENDING_DELETION, AffinityEvent.CLAIM): AffinityState.PENDING,
    (AffinityState.PENDING_DELETION, AffinityEvent.RELEASE): AffinityState.PENDING_DELETION,
    (AffinityState.PENDING_DELETION, AffinityEvent.BLOCK_GONE): None,
}


class _Wire(msgspec.Struct):
    state: str = ""
    deleted: bool = False


_decoder = msgspec.json.Decoder(_Wire)


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Who a block belongs to. `str(owner)` is the block's affinity field: `host:node1`, `virtual:load-balancer`."""

    kind: Literal["host", "virtual"]
    name: str

    @classmethod
    def host(cls, node: str) -> Owner:
        return cls("host", node)

    @classmethod
    def load_balancer(cls) -> Owner:
        return cls("virtual", "load-balancer")

    @classmethod
    def parse(cls, text: str) -> Owner:
        """A missing type is a host. Raises ValueError for an empty name or a type that does not exist."""
        kind, colon, name = text.partition(":")
        if not colon:
            kind, name = "host", text
        if not name or kind not in ("host", "virtual"):
            raise ValueError(f"not a block affinity: {text!r}")
        return cls("virtual" if kind == "virtual" else "host", name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def decode_affinity(data: bytes) -> AffinityState:
    """Empty values and empty states are old data and mean confirmed; what cannot be read promises nothing: pending."""
    if not data.strip():
        return AffinityState.CONFIRMED
    try:
        raw = _decoder.decode(data)
        return AffinityState(raw.state) if raw.state else AffinityState.CONFIRMED
    except ValueError:
        return AffinityState.PENDING


def encode_affinity(state: AffinityState) -> bytes:
    return wire.encode(_Wire(state.value))
