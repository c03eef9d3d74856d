"""What a node's BGP speaker tells about itself when asked, `calico.bgp.<node>.rpc.state`: a `StateRequest` is answered
with a `State`. Read by `calicoctl node status` and by the reporter of CalicoNodeStatus (services/node).

Addresses and prefixes are texts in their canonical form. Times are RFC 3339 in UTC with whole seconds, empty: never.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from libs.bus import subjects

VERB = "state"
ROUTES_LIMIT = 2000
"""Routes of one answer, when not said otherwise: some 300 kB, which fits in a message and in a value of etcd."""


def state_subject(node: str) -> str:
    return subjects.rpc("bgp", node, VERB)


class PeerKind(StrEnum):
    """The value begins the peer's name."""

    MESH = "Mesh"
    GLOBAL = "Global"
    NODE = "Node"
    LOCAL_WORKLOAD = "Local_Workload"


class PeerState(StrEnum):
    """RFC 4271 section 8.2.2; Close: the session is taken down, or kept down (no password)."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ACTIVE = "Active"
    OPEN_SENT = "OpenSent"
    OPEN_CONFIRM = "OpenConfirm"
    ESTABLISHED = "Established"
    CLOSE = "Close"


class Origin(StrEnum):
    """Where a route comes from, in the words of CalicoNodeStatus; peers of any explicit kind are BGPPeer."""

    KERNEL = "Kernel"
    STATIC = "Static"
    DIRECT = "Direct"
    NODE_MESH = "NodeMesh"
    BGP_PEER = "BGPPeer"


class Negotiated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What both sides agreed on, of a session that is established. families: `ipv4`, `ipv6`. restart_time_s: that the
    peer announced (RFC 4724); None: no graceful restart.
    """

    router_id: str
    hold_time_s: int = 0
    keepalive_time_s: int = 0
    families: tuple[str, ...] = ()
    four_octet_as: bool = False
    route_refresh: bool = False
    restart_time_s: int | None = None
    long_lived: bool = False
    add_path: tuple[str, ...] = ()  # families in which more than one path of a prefix is taken in
    extended_message: bool = False


class Peer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session as configured, and how it goes. since: the state's. detail: why it is not established, in words that
    help. received, accepted, advertised: prefixes, after the peer's UPDATEs, our import policy and our export policy.
    """

    name: str
    kind: PeerKind
    address: str
    port: int = 179
    remote_as: int = 0
    local_as: int = 0
    state: PeerState = PeerState.IDLE
    since: str = ""
    last_error: str = ""
    last_error_at: str = ""
    detail: str = ""
    received: int = 0
    accepted: int = 0
    advertised: int = 0
    negotiated: Negotiated | None = None
    interface: str = ""  # of a local workload


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """fib: it is in the kernel. gateway: empty for a blackhole and for what is directly connected. peer: address of
    who told it.
    """

    destination: str
    origin: Origin
    gateway: str = ""
    interface: str = ""
    peer: str = ""
    fib: bool = False


class RoutesChanged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On `calico.bgp.<node>.route`: learned routes that the kernel got (prefix -> gateways) or lost. A large change is
    only counted: `put` and `dropped` are empty then.
    """

    node: str
    count: int
    put: dict[str, list[str]] = {}
    dropped: list[str] = []


class StateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """routes: with routes, at most `limit` of them of each family, in the order of their prefixes."""

    routes: bool = False
    limit: int = ROUTES_LIMIT


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """ready: the sessions run with the settings of now. detail: why not. problems: what of the settings could not be
    used, by resource. routes: only when asked for; route_count: how many there are, by family (`ipv4`, `ipv6`).
    """

    node: str
    ready: bool
    detail: str = ""
    version: str = ""
    router_id: str = ""
    local_as: int = 0
    started: str = ""
    reconfigured: str = ""
    peers: tuple[Peer, ...] = ()
    problems: dict[str, str] = {}
    route_count: dict[str, int] = {}
    routes: tuple[Route, ...] = ()
