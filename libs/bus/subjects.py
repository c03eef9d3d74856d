"""Names of every NATS subject, in one place. Tokens are encoded by `libs.bus.tokens` (design:
docs/design/distribution.md).

`calico.typha.<instance>.…` has one writer, that instance; `calico.felix.<node>.…` one writer, that node. A *stream* is
the part after `calico.typha.<instance>.`: it names one sequence of messages and is what commits refer to
(`policy.np/ns1/web`, say).
"""

from __future__ import annotations

from enum import StrEnum

from libs.bus.tokens import decode_token, encode_token

TYPHA_SNAPSHOT = "calico.typha.snapshot"
TYPHA_CONCERNS = "calico.typha.rpc.concerns"
TYPHA_MARK = "calico.typha.rpc.mark"
TYPHA_QUEUE = "typha"
ALL_APPLIED = "calico.felix.*.applied"
ALL_BEATS = "calico.typha.*.beat"

ROUTE_STREAMS = ("route.blocks", "route.nodes", "route.pools")
CONFIG_STREAM = "config.felix"
BGP_STREAM = "config.bgp"
SERVICE_STREAM = "route.services"
SHARED_BY_ALL = (*ROUTE_STREAMS, CONFIG_STREAM)
"""Streams that every felix follows from its first snapshot on."""


class Role(StrEnum):
    """Which service of a node follows typha. A node's readers are told apart by it in everything: their commits have
    subjects of their own, and none keeps another one alive.
    """

    FELIX = "felix"
    BGP = "bgp"


SHARED: dict[Role, tuple[str, ...]] = {
    Role.FELIX: SHARED_BY_ALL,
    Role.BGP: ("route.nodes", "route.pools", BGP_STREAM, SERVICE_STREAM),
}
"""Streams that every reader of a role follows."""
_COMMITS = {Role.FELIX: "node", Role.BGP: "bgp"}
COMMIT_FAMILIES = frozenset(_COMMITS.values())


def policy_stream(policy_id: str) -> str:
    """policy_id: `np/ns1/web`, `gnp/name`, or `pro/name` for a profile."""
    return f"policy.{policy_id}"


def ipset_stream(set_id: str) -> str:
    return f"ipset.{set_id}"


def local_stream(node: str) -> str:
    """What concerns the speaker of that node alone."""
    return f"local.{node}"


def standing_streams(role: Role, node: str) -> tuple[str, ...]:
    """Those that a reader follows from its first snapshot on, to its end."""
    return (*SHARED[role], local_stream(node)) if role is Role.BGP else SHARED[role]


def of_stream(instance: str, stream: str) -> str:
    """Subject on which `instance` publishes `stream`."""
    family, _, rest = stream.partition(".")
    return f"calico.typha.{encode_token(instance)}.{family}.{encode_token(rest)}"


def stream_of(subject: str) -> str:
    """Inverse of `of_stream`; the instance is dropped."""
    family, _, rest = subject.split(".", 3)[3].partition(".")
    return f"{family}.{decode_token(rest)}"


def node_stream(instance: str, node: str, role: Role = Role.FELIX) -> str:
    """Subject of a reader's commits."""
    return f"calico.typha.{encode_token(instance)}.{_COMMITS[role]}.{encode_token(node)}"


def beat(instance: str) -> str:
    return f"calico.typha.{encode_token(instance)}.beat"


def event(instance: str, kind: str, namespace: str, name: str) -> str:
    parts = ".".join(encode_token(part) for part in (kind, namespace, name))
    return f"calico.typha.{encode_token(instance)}.event.{parts}"


def any_snapshot(node: str) -> str:
    """Request subject that whichever typha is free answers (queue group TYPHA_QUEUE)."""
    return f"{TYPHA_SNAPSHOT}.{encode_token(node)}"


def own_snapshot(instance: str, node: str) -> str:
    return f"calico.typha.{encode_token(instance)}.snapshot.{encode_token(node)}"


def own_snapshots(instance: str) -> str:
    """Wildcard over `own_snapshot` of all nodes."""
    return f"calico.typha.{encode_token(instance)}.snapshot.*"


def applied(node: str, role: Role = Role.FELIX) -> str:
    return f"calico.{role}.{encode_token(node)}.applied"


def all_applied(role: Role) -> str:
    """Wildcard over `applied` of all nodes."""
    return f"calico.{role}.*.applied"


def endpoint_status(node: str, endpoint: str) -> str:
    return f"calico.felix.{encode_token(node)}.status.{encode_token(endpoint)}"


def bgp_peer(node: str, peer: str) -> str:
    """Sessions of a node that come and go (libs/bus/bgp.py, Peer)."""
    return f"calico.bgp.{encode_token(node)}.peer.{encode_token(peer)}"


def bgp_route(node: str) -> str:
    """Learned routes that come and go (libs/bus/bgp.py, RoutesChanged)."""
    return f"calico.bgp.{encode_token(node)}.route"


def audit(instance: str) -> str:
    """Audit events of one replica of apiserver: JSON of audit.k8s.io/v1."""
    return f"calico.apiserver.{encode_token(instance)}.audit"


APISERVER_BEATS = "calico.apiserver.*.beat"


def apiserver_beat(instance: str) -> str:
    return f"calico.apiserver.{encode_token(instance)}.beat"


def rpc(service: str, node: str, verb: str) -> str:
    return f"calico.{service}.{encode_token(node)}.rpc.{verb}"
