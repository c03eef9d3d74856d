"""Messages between typha, felix and people. JSON of these structs is the whole protocol (docs/design/distribution.md).

Every published message carries the envelope `epoch, rev, seq, prev`:
  epoch  names the publisher's instance, its start and etcd's cluster id; seqs of different epochs do not compare
  rev    highest etcd revision fully included
  seq    counts on that subject; `prev` is the seq before, so a reader sees a gap at once
Contents travel on shared streams (a policy's rules, a set's members); what makes a node use them is a `Commit` on the
node's own subject that names the seqs it needs. A node that has all of them applies the commit as one change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from libs.bus.subjects import Role
from libs.policy.bgp_output import BgpEntry, LocalEntry, ServiceRoutes
from libs.policy.output import Block, Host, IPSetType, NodeInfo, Policy, Pool, Profile, Workload


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """instance: random per process start; started_ns: wall clock at start; cluster: etcd's cluster id."""

    instance: str
    started_ns: int
    cluster: int


class Envelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    epoch: Epoch
    rev: int
    seq: int
    prev: int


NULL = msgspec.Raw(b"null")
"""Stands for None where a value is raw: msgspec cannot decode `Raw | None`."""


class BlockRow(msgspec.Struct, frozen=True, array_like=True):
    """A block without its CIDR, which is the key. Every node gets all blocks: what is written twice here costs most."""

    node: str
    borrowed: dict[str, str] = {}


def block_rows(blocks: Mapping[str, Block | None]) -> dict[str, BlockRow | None]:
    return {cidr: None if block is None else BlockRow(block.node, block.borrowed) for cidr, block in blocks.items()}


def blocks_of(rows: Mapping[str, BlockRow | None]) -> dict[str, Block | None]:
    return {
        cidr: None if row is None else Block(cidr=cidr, node=row.node, borrowed=row.borrowed)
        for cidr, row in rows.items()
    }


# --- contents of streams ---------------------------------------------------------------------------------------------


class PolicyContent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="policy"):
    policy: Policy


class ProfileContent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="profile"):
    profile: Profile


class SetContent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="ipset"):
    """Whole membership, in a snapshot or for a newly active set."""

    type: IPSetType
    members: list[str]


class TableContent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="table"):
    """A keyed table that all nodes share: blocks by CIDR, nodes by name, pools by CIDR, configuration resources by
    key; and those of speakers (`libs/policy/bgp_output.py`).
    """

    blocks: dict[str, BlockRow] = {}
    nodes: dict[str, NodeInfo] = {}
    pools: dict[str, Pool] = {}
    config: dict[str, msgspec.Raw] = {}
    bgp: dict[str, BgpEntry] = {}
    services: dict[str, ServiceRoutes] = {}
    local: dict[str, LocalEntry] = {}


Content = PolicyContent | ProfileContent | SetContent | TableContent


class StreamState(msgspec.Struct, frozen=True, array_like=True):
    """What a stream amounts to after its message `seq`. `content`: encoded Content."""

    seq: int
    content: msgspec.Raw


# --- published by typha ----------------------------------------------------------------------------------------------


class PolicyMsg(Envelope, tag_field="kind", tag="policy"):
    """On `policy.<id>`: the rules as they are now. Exactly one of the two is set."""

    policy: Policy | None = None
    profile: Profile | None = None


class SetMsg(Envelope, tag_field="kind", tag="ipset"):
    """On `ipset.<id>`: members that came and went."""

    added: list[str] = []
    removed: list[str] = []


class TableMsg(Envelope, tag_field="kind", tag="table"):
    """On `route.<scope>`, `config.<scope>` and `local.<node>`: changed entries, None (of `config`: NULL) for a removed
    one.
    """

    blocks: dict[str, BlockRow | None] = {}
    nodes: dict[str, NodeInfo | None] = {}
    pools: dict[str, Pool | None] = {}
    config: dict[str, msgspec.Raw] = {}
    bgp: dict[str, BgpEntry | None] = {}
    services: dict[str, ServiceRoutes | None] = {}
    local: dict[str, LocalEntry | None] = {}


class Commit(Envelope, tag_field="kind", tag="commit"):
    """On `node.<node>` (of a speaker: `bgp.<node>`): everything up to `rev` that concerns the node, as one change.

    needs: stream -> seq that must have arrived. add/remove: streams that the node starts or stops to follow; an added
    one is inlined when small, else the reader fetches it. workloads, hosts: changed endpoints, None for a removed one.
    """

    needs: dict[str, int] = {}
    add: dict[str, StreamState | None] = {}
    remove: list[str] = []
    workloads: dict[str, Workload | None] = {}
    hosts: dict[str, Host | None] = {}


class Mark(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="mark"):
    """Where commits go, outside the sequence: the stream stands at `seq`, and everything up to `rev` is in it.

    Finds lost tails, and proves a revision to a node that it did not change. A span of the trace may hang on it.
    follow: the instance that the reader shall follow from now on, if that one has what the reader holds.
    """

    epoch: Epoch
    rev: int
    seq: int
    follow: str = ""


NodeMessage = Commit | Mark
StreamMessage = PolicyMsg | SetMsg | TableMsg


class Beat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Each second from every typha. etcd_age_s: seconds since etcd last answered a quorum read; head: its revision
    then. protocol, version: of the speaker (libs/bus/compat.py). leaving: it ends, and hands its readers over.
    """

    epoch: Epoch
    rev: int
    etcd_age_s: float
    head: int
    protocol: int = 1
    version: str = ""
    leaving: bool = False


class EventMsg(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One resource change, for people at the tap."""

    rev: int
    action: str  # put | delete
    key: str
    value: msgspec.Raw = NULL
    error: str = ""  # why the value is treated as absent


# --- requests --------------------------------------------------------------------------------------------------------


class SnapshotRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of: `hello` (who are you), `streams` (their contents), `chunk` of an answer in progress, or all of what the
    node needs.

    streams: stream -> seq the reader already has (-1: nothing); only newer ones come back. protocol, version: of the
    reader (libs/bus/compat.py).
    """

    node: str
    role: Role = Role.FELIX
    hello: bool = False
    streams: dict[str, int] = {}
    id: str = ""
    chunk: int = 0
    protocol: int = 1
    version: str = ""


class SnapshotReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer to every SnapshotRequest. `data`: chunk `chunk` of `chunks` of the zlib-compressed JSON of `Snapshot`.

    refused: asking again soon will not help: `error` tells what has to be upgraded. protocol, version: of typha.
    """

    epoch: Epoch
    rev: int
    etcd_age_s: float
    head: int
    id: str = ""
    chunk: int = 0
    chunks: int = 0
    data: bytes = b""
    error: str = ""
    refused: bool = False
    protocol: int = 1
    version: str = ""


class Snapshot(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one node needs at `rev`, taken at once: its node stream stands at `seq`.

    full: all of it (endpoints and every stream); otherwise only the streams asked for.
    """

    rev: int
    seq: int
    full: bool
    workloads: dict[str, Workload] = {}
    hosts: dict[str, Host] = {}
    streams: dict[str, StreamState] = {}
    gone: list[str] = []  # asked for by name, but not active on this node any more


class MarkRequest(msgspec.Struct, kw_only=True):
    """To all typhas: send these nodes a Mark as soon as you have reached `rev`. Empty nodes: all that you serve."""

    rev: int
    nodes: list[str] = []


class ConcernsRequest(msgspec.Struct, kw_only=True):
    """Which nodes does revision `rev` concern? Answered once that typha has processed it."""

    rev: int
    timeout_s: float = 10.0


class ConcernsReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """nodes: whose felix it concerns. speakers: those with a living speaker that it concerns. unknown: the revision is
    older than what is remembered; then they are all of them. silent: those of `nodes` that have not reported lately.
    """

    rev: int
    nodes: list[str] = []
    speakers: list[str] = []
    silent: list[str] = []
    unknown: bool = False
    error: str = ""


# --- published by felix ----------------------------------------------------------------------------------------------


class Applied(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a node's kernel (of a speaker: its sessions) holds: every change up to `rev` that concerns it, but for
    `failures` (object -> reason).

    seq: place in the node stream of `epoch`. On change, and each ten seconds so that a new typha learns of the node.
    warnings: parts of the configuration that have no effect on it, as text.
    """

    node: str
    epoch: Epoch | None
    rev: int
    seq: int
    failures: dict[str, str] = {}
    warnings: tuple[str, ...] = ()


class EndpointStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    node: str
    endpoint: str
    status: str  # up | down | error
    rev: int
    detail: str = ""


_encoder = msgspec.json.Encoder()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Cached decoder for a message type or union."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.json.Decoder(kind)
    return found


def decode_content(raw: msgspec.Raw) -> Content:
    content: Content = decoder(Content).decode(raw)
    return content
