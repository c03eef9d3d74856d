"""What a felix answers about its node when it is asked to explain it, `calico.felix.<node>.rpc.<verb>`.

    trace        what the node makes of packets: by its own calculation at the revision that its kernel holds, and by
                 the ruleset as it is read back from the kernel
    routes       every route of the node's tables, with owner and reason
    connections  tracked connections of its workloads, with what would decide about them today
    state        version, revision, failures

An answer whose `error` is not empty holds nothing else of use. Addresses and prefixes are texts in canonical form.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from libs.bus import subjects
from libs.policy.path import Step
from libs.policy.trace import Packet

ROUTES_LIMIT = 2000
CONNECTIONS_LIMIT = 1000
PACKETS_LIMIT = 200


class Verb(StrEnum):
    TRACE = "trace"
    ROUTES = "routes"
    CONNECTIONS = "connections"
    STATE = "state"


def subject(node: str, verb: Verb) -> str:
    return subjects.rpc("felix", node, verb)


# --- trace ------------------------------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an end of the packet is, as the asked node sees it: one of its workloads (`k8s/ns1/web/eth0`), the node
    itself (`here`), or neither: the outside."""

    workload: str = ""
    here: bool = False


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """before: the packet as it reaches the node, where the node translates its destination into that of `packet`."""

    packet: Packet
    before: Packet | None = None
    sender: Place = Place()
    receiver: Place = Place()


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most PACKETS_LIMIT questions. kernel: read the ruleset back and ask it as well. staged: as `walk` takes it."""

    questions: tuple[Question, ...]
    kernel: bool = True
    staged: bool = False


class KernelRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rule of the kernel's that the packet meets. packets, octets: what it has counted so far, of all that met it."""

    chain: str
    comment: str
    packets: int | None = None
    octets: int | None = None


class KernelVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """accepted: None when it cannot be told, for `unknown`. rules: those that fired, in order. deciders: for each step
    of the answer the place in `rules` of the rule that decided it there, or None where none with its name fired.
    """

    accepted: bool | None
    unknown: str = ""
    rules: tuple[KernelRule, ...] = ()
    deciders: tuple[int | None, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """error: why this question has no answer (`endpoint is not on this node`). incoming, outgoing: interfaces, as the
    node's routes say."""

    steps: tuple[Step, ...] = ()
    allowed: bool = True
    kernel: KernelVerdict | None = None
    incoming: str = ""
    outgoing: str = ""
    error: str = ""


class TraceReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """answers: one for each question. rev: that the answers are of. failures: what the node could not program."""

    node: str
    rev: int = 0
    answers: tuple[Answer, ...] = ()
    failures: dict[str, str] = {}
    error: str = ""


# --- routes -----------------------------------------------------------------------------------------------------------


class RoutesRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """families: 4, 6. local: with the kernel's own table of local addresses."""

    families: tuple[int, ...] = (4, 6)
    local: bool = False
    limit: int = ROUTES_LIMIT


class NodeRoute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """type: unicast, blackhole, … gateways and interfaces: one entry for each next hop ("" without a gateway).
    owner: felix, bgp, kernel, … or the protocol's number. reason: why it is there, "" where nobody here knows.
    """

    destination: str
    table: str
    type: str
    gateways: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    metric: int = 0
    owner: str
    reason: str = ""


class RoutesReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """total: how many there are; `routes` holds the first of them, by table, family and prefix."""

    node: str
    total: int = 0
    routes: tuple[NodeRoute, ...] = ()
    error: str = ""


# --- connections ------------------------------------------------------------------------------------------------------


class ConnectionsRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """workload: only those of `ns1/web`. address, port, protocol: of either end, as the first packet had them."""

    workload: str = ""
    address: str = ""
    port: int = 0
    protocol: str = ""
    limit: int = CONNECTIONS_LIMIT


class Connection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tracked connection, as its first packet was sent; translated_*: where it went, and whence, when that is
    another address. steps: what today's policy makes of such a first packet. state: of TCP (linux/netfilter/
    nf_conntrack_tcp.h), in lower case. source, destination: workloads of this node (`ns1/web`).
    """

    protocol: str
    src: str
    dst: str
    src_port: int = 0
    dst_port: int = 0
    state: str = ""
    replied: bool = False
    expires_s: int = 0
    translated_src: str = ""
    translated_dst: str = ""
    translated_dst_port: int = 0
    source: str = ""
    destination: str = ""
    steps: tuple[Step, ...] = ()


class ConnectionsReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """tracked: all of the node's. total: those that were asked for, of which `connections` holds the first."""

    node: str
    rev: int = 0
    tracked: int = 0
    total: int = 0
    connections: tuple[Connection, ...] = ()
    error: str = ""


# --- state ------------------------------------------------------------------------------------------------------------


class StateRequest(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Setting(msgspec.Struct, frozen=True, array_like=True):
    """value: as it was written. source: `default` or another FelixConfiguration's name, `configuration file`,
    `environment`.
    """

    value: str
    source: str


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """rev: what the kernel holds. phase: of following typha, in words. typha: the instance followed. settings: those
    that are set and used, by their names in FelixConfiguration; what is not there is at its default.
    """

    node: str
    version: str = ""
    started: str = ""
    rev: int = 0
    phase: str = ""
    typha: str = ""
    failures: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    workloads: int = 0
    policies: int = 0
    settings: dict[str, Setting] = {}
    error: str = ""
