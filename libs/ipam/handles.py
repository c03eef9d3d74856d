"""Handles: the index from an owner of addresses (`k8s-pod-network.<containerID>`) to the blocks they lie in.

    /calico/ipam/v2/handle/<id>   {"block":{"10.0.0.0/26":2,"fd00::/122":1},"deleted":false}

The count must never be lower than the block's own entries with this handle: what a handle does not name, a release by
handle would not find. Too high a count is a harmless leftover of a crash in a client that writes handle and block
separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

import msgspec

from libs.ipam import wire
from libs.ipam.errors import IpamError, Reason
from libs.ipam.wire import Network

WINDOWS_RESERVED = (
    "windows-reserved-ipam-handle"  # marks ordinals a Windows host keeps for itself; not a user's address
)


class _Wire(msgspec.Struct):
    block: dict[str, int] | None = None
    deleted: bool = False


_decoder = msgspec.json.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Handle:
    """`blocks`: addresses held, by block; only positive counts."""

    blocks: Mapping[Network, int] = field(default_factory=dict)
    deleted: bool = False

    def add(self, cidr: Network, count: int) -> Handle:
        return Handle({**self.blocks, cidr: self.blocks.get(cidr, 0) + count}, self.deleted)

    def remove(self, cidr: Network, count: int) -> Handle:
        """Never below zero: the block decides what is assigned, so a count that was too low is not worth failing a
        release.
        """
        left = self.blocks.get(cidr, 0) - count
        rest = {c: n for c, n in self.blocks.items() if c != cidr}
        return Handle({**rest, cidr: left} if left > 0 else rest, self.deleted)

    @property
    def total(self) -> int:
        return sum(self.blocks.values())


def clean_handle(handle: str) -> str:
    """Everything from a carriage return on is not part of the identity."""
    return handle.split("\r", 1)[0]


def decode_handle(data: bytes) -> Handle:
    """Raises IpamError(HANDLE_CORRUPT)."""
    try:
        raw = _decoder.decode(data)
        return Handle({ip_network(c): n for c, n in (raw.block or {}).items() if n > 0}, raw.deleted)
    except ValueError as error:  # msgspec's own errors are ValueErrors too
        raise IpamError(Reason.HANDLE_CORRUPT, f"handle: {error}") from error


def encode_handle(handle: Handle) -> bytes:
    return wire.encode(_Wire(dict(sorted((str(c), n) for c, n in handle.blocks.items())), handle.deleted))
