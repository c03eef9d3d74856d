"""Tables: what `kubectl get` prints of each kind (k8s.io/apimachinery, pkg/apis/meta/v1: Table).

Columns are those of Calico's custom resource definitions and its API server where it has any (policies: Tier, Order;
pools: CIDR, VXLAN, IPIP, NAT, Allocatable; node status: all of it); the others' are calicoctl's
(facts/cni-typha-node-bgp-ctl.md section 5.2), the long ones only in wide tables (priority 1). All end with Age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal, TypeAlias

import msgspec

from libs.model import codec
from libs.model.base import Condition, Resource
from libs.model.bgp import BGPPeer, CalicoNodeRoute, CalicoNodeStatus
from libs.model.kinds import Kind
from libs.model.pools import IPPool
from services.apiserver.core.ports import Stored
from services.apiserver.core.status import JsonObject

Include: TypeAlias = Literal["None", "Metadata", "Object"]
Cell: TypeAlias = Callable[[Any], str | int | float | bool | None]

WIDE = 1
UNKNOWN = "<unknown>"


@dataclass(frozen=True, slots=True)
class Column:
    """cell: of a resource of the column's kind; None prints as nothing. Of type date: a time, RFC 3339, shown as
    how long ago it was.
    """

    name: str
    text: str
    cell: Cell
    type: str = "string"
    format: str = ""
    priority: int = 0

    def definition(self) -> JsonObject:
        return {
            "name": self.name, "type": self.type, "format": self.format, "description": self.text,
            "priority": self.priority,
        }  # fmt: skip


def table(
    kind: Kind,
    items: Iterable[Resource],
    *,
    include: Include = "Metadata",
    revision: str = "",
    continue_: str = "",
    remaining: int | None = None,
    now: datetime | None = None,
) -> JsonObject:
    """A `Table` of the items. revision, continue_, remaining: of the list. now: what ages are counted from, with time
    zone; without it the Age column has the time of creation instead.
    """
    metadata: JsonObject = {"resourceVersion": revision}
    if continue_:
        metadata["continue"] = continue_
    if remaining is not None:
        metadata["remainingItemCount"] = remaining
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns(kind)],
        "rows": [row(kind, item, include, now=now) for item in items],
    }


def encoded_rows(kind: Kind, items: Iterable[Stored], include: Include, now: datetime) -> Iterator[bytes]:
    """JSON of the rows, one by one: what of an object is encoded already is not taken apart again."""
    shown = columns(kind)
    for item in items:
        found: JsonObject = {"cells": [_cell(column, item.resource, now) for column in shown]}
        match include:
            case "Object":
                found["object"] = msgspec.Raw(item.json)
            case "Metadata":
                found["object"] = _PARTIAL | {"metadata": item.resource.metadata}
        yield msgspec.json.encode(found)


def row(kind: Kind, resource: Resource, include: Include = "Metadata", *, now: datetime | None = None) -> JsonObject:
    """One `TableRow`; a watch sends tables of one row, whose column definitions clients know from the first."""
    found: JsonObject = {"cells": [_cell(column, resource, now) for column in columns(kind)]}
    match include:
        case "Object":
            found["object"] = codec.to_dict(resource)
        case "Metadata":
            found["object"] = partial(resource)
    return found


def _cell(column: Column, resource: Resource, now: datetime | None) -> str | int | float | bool | None:
    value = column.cell(resource)
    if column.type != "date":
        return value
    since = str(value or "")
    return (age(since, now) if now is not None else since) or UNKNOWN


def partial(resource: Resource) -> JsonObject:
    """The object's metadata alone (`PartialObjectMetadata`)."""
    return _PARTIAL | {"metadata": msgspec.to_builtins(resource.metadata)}


_PARTIAL: JsonObject = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}


def age(since: str, now: datetime) -> str:
    """How long ago a time of RFC 3339 was, as short as Kubernetes says it (k8s.io/apimachinery, pkg/util/duration,
    HumanDuration): two units while they matter, one later. "" when `since` is no time.
    """
    try:
        seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    except (TypeError, ValueError):
        return ""
    if seconds < -1:
        return "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 8 * 24:
        return _two(days, "d", hours % 24, "h")
    if days < 2 * 365:
        return f"{days}d"
    return _two(days // 365, "y", days % 365, "d") if days < 8 * 365 else f"{days // 365}y"


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large}{unit}{small}{smaller}" if small else f"{large}{unit}"


@cache
def columns(kind: Kind) -> tuple[Column, ...]:
    """Name, the kind's own, Age; the wide ones of the kind come behind Age."""
    own = _BY_KIND.get(kind.kind, ())
    normal = tuple(column for column in own if column.priority == 0)
    return (_NAME, *normal, _AGE, *(column for column in own if column.priority))


# --- cells ------------------------------------------------------------------------------------------------------------


def _of(name: str, absent: str | bool | int | None = "") -> Cell:
    """A field of the spec by its Python name."""

    def cell(resource: Any) -> str | int | float | bool | None:
        value: str | int | float | bool | None = getattr(resource.spec, name)
        if value is None or value == "":
            return absent
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return cell


def _joined(name: str) -> Cell:
    def cell(resource: Any) -> str:
        value: Sequence[str] | dict[str, str] = getattr(resource.spec, name)
        if isinstance(value, dict):
            return ",".join(f"{key}={value[key]}" for key in sorted(value))
        return ",".join(str(item) for item in value)

    return cell


def _count(name: str) -> Cell:
    return lambda resource: len(getattr(resource.spec, name))


def condition(conditions: Sequence[Condition], name: str) -> str:
    """Its status: True, False, Unknown; "" when it was never observed."""
    return next((one.status for one in conditions if one.type == name), "")


def _allocatable(pool: IPPool) -> str:
    return condition(pool.status.conditions, "Allocatable") if pool.status is not None else ""


def _peer_node(peer: BGPPeer) -> str:
    return peer.spec.node or peer.spec.node_selector or "(global)"


def _classes(status: CalicoNodeStatus) -> str:
    return f"[{','.join(status.spec.classes)}]"


def _period(status: CalicoNodeStatus) -> str:
    return f"{status.spec.update_period_seconds or 0}s"


def _last_updated(status: CalicoNodeStatus) -> str:
    return status.status.last_updated if status.status is not None else ""


def _agent(status: CalicoNodeStatus) -> str:
    agent = status.status.agent if status.status is not None else None
    if agent is None:
        return ""
    daemons = (("v4", agent.bird_v4), ("v6", agent.bird_v6))
    return " ".join(f"{name}({daemon.state})" for name, daemon in daemons if daemon is not None)


def _peers(status: CalicoNodeStatus) -> str:
    """All, established and other sessions of each IP version."""
    bgp = status.status.bgp if status.status is not None else None
    if bgp is None:
        return ""
    families = (
        ("v4", bgp.peers_v4, bgp.number_established_v4, bgp.number_not_established_v4),
        ("v6", bgp.peers_v6, bgp.number_established_v6, bgp.number_not_established_v6),
    )
    return " ".join(f"{name}({len(peers)}/{up}/{down})" for name, peers, up, down in families if peers)


def _routes(status: CalicoNodeStatus) -> str:
    """How many routes came from BGP, of each IP version."""
    routes = status.status.routes if status.status is not None else None
    if routes is None:
        return ""
    families = (("v4", routes.routes_v4), ("v6", routes.routes_v6))
    return " ".join(f"{name}({sum(map(_by_bgp, found))})" for name, found in families if found)


def _by_bgp(route: CalicoNodeRoute) -> bool:
    return route.learned_from is not None and route.learned_from.source_type in ("BGPPeer", "NodeMesh")


# --- columns ----------------------------------------------------------------------------------------------------------

_NAME = Column("Name", "Name of the object.", lambda one: one.metadata.name, format="name")
_AGE = Column("Age", "How long ago the object was created.", lambda one: one.metadata.creation_timestamp, type="date")
_SELECTOR = Column("Selector", "Endpoints that the policy applies to.", _of("selector"), priority=WIDE)
_POLICY = (
    Column("Tier", "Tier of the policy.", _of("tier")),
    Column("Order", "Place within the tier.", _of("order", None), type="number"),
    _SELECTOR,
    Column("Types", "Directions that the policy applies to.", _joined("types"), priority=WIDE),
)
_STAGED = (
    *_POLICY[:2],
    Column("Action", "What the policy stages.", _of("staged_action"), priority=WIDE),
    *_POLICY[2:],
)
_NETS = (
    Column("Count", "How many networks the set has.", _count("nets"), type="integer"),
    Column("Nets", "The networks.", _joined("nets"), priority=WIDE),
)

_BY_KIND: dict[str, tuple[Column, ...]] = {
    "BGPConfiguration": (
        Column("LogSeverity", "Least severity that is logged.", _of("log_severity_screen")),
        Column("MeshEnabled", "Whether all nodes peer.", _of("node_to_node_mesh_enabled", None), type="boolean"),
        Column("ASNumber", "AS number of the nodes.", _of("as_number", None), type="integer"),
    ),
    "BGPFilter": (
        Column("ExportV4", "Rules for IPv4 routes that are told.", _count("export_v4"), type="integer"),
        Column("ImportV4", "Rules for IPv4 routes that are heard.", _count("import_v4"), type="integer"),
        Column("ExportV6", "Rules for IPv6 routes that are told.", _count("export_v6"), type="integer"),
        Column("ImportV6", "Rules for IPv6 routes that are heard.", _count("import_v6"), type="integer"),
    ),
    "BGPPeer": (
        Column("PeerIP", "Address of the peer.", _of("peer_ip")),
        Column("Node", "Nodes that have the peer.", _peer_node),
        Column("ASN", "AS number of the peer.", _of("as_number", None), type="integer"),
        Column("PeerSelector", "Nodes that are the peers.", _of("peer_selector"), priority=WIDE),
    ),
    "BlockAffinity": (
        Column("Node", "Owner of the block.", _of("node")),
        Column("CIDR", "The block.", _of("cidr")),
        Column("State", "How far the claim is.", _of("state")),
        Column("Type", "What the owner is.", _of("type", "host"), priority=WIDE),
    ),
    "CalicoNodeStatus": (
        Column("Node", "The node.", _of("node")),
        Column("Classes", "What the node reports.", _classes),
        Column("Update Interval", "How often the node reports.", _period),
        Column("Last Updated", "When the node last reported.", _last_updated, type="date"),
        Column("Agent State", "State of the BGP daemons.", _agent, priority=WIDE),
        Column("BGP Peers", "Sessions: all/established/other.", _peers, priority=WIDE),
        Column("BGP Routes", "Routes learned by BGP.", _routes, priority=WIDE),
    ),
    "ClusterInformation": (
        Column("ClusterGUID", "Identity of the cluster.", _of("cluster_guid")),
        Column("ClusterType", "What the cluster is made of.", _of("cluster_type")),
        Column("CalicoVersion", "Version that the cluster runs.", _of("calico_version")),
        Column("DatastoreReady", "False while data is migrated.", _of("datastore_ready", None), type="boolean"),
    ),
    "FelixConfiguration": (
        Column("NodeSelector", "Nodes that it is for.", _of("node_selector"), priority=WIDE),
    ),
    "GlobalNetworkPolicy": _POLICY,
    "GlobalNetworkSet": _NETS,
    "HostEndpoint": (
        Column("Node", "The host.", _of("node")),
        Column("Interface", "The interface.", _of("interface_name")),
        Column("IPs", "Addresses of the interface.", _joined("expected_ips"), priority=WIDE),
        Column("Profiles", "Profiles of the endpoint.", _joined("profiles"), priority=WIDE),
    ),
    "IPAMConfiguration": (
        Column("StrictAffinity", "No borrowing.", _of("strict_affinity"), type="boolean"),
        Column("AutoAllocateBlocks", "New blocks when needed.", _of("auto_allocate_blocks"), type="boolean"),
        Column("MaxBlocksPerHost", "Most blocks of a node.", _of("max_blocks_per_host"), type="integer", priority=WIDE),
    ),
    "IPPool": (
        Column("CIDR", "The range.", _of("cidr")),
        Column("VXLAN", "Where VXLAN is used.", _of("vxlan_mode", "Never")),
        Column("IPIP", "Where IP in IP is used.", _of("ipip_mode", "Never")),
        Column("NAT", "Whether outgoing traffic is masqueraded.", _of("nat_outgoing"), type="boolean"),
        Column("Allocatable", "Whether addresses are assigned.", _allocatable),
        Column("Disabled", "Whether the pool is switched off.", _of("disabled"), type="boolean", priority=WIDE),
        Column("BlockSize", "Prefix length of blocks.", _of("block_size"), type="integer", priority=WIDE),
        Column("NodeSelector", "Nodes that may use it.", _of("node_selector"), priority=WIDE),
        Column("AssignmentMode", "Who gets addresses.", _of("assignment_mode", "Automatic"), priority=WIDE),
        Column("AllowedUses", "What addresses are for.", _joined("allowed_uses"), priority=WIDE),
    ),
    "IPReservation": (
        Column("Count", "How many networks are reserved.", _count("reserved_cidrs"), type="integer"),
        Column("CIDRs", "The networks.", _joined("reserved_cidrs"), priority=WIDE),
    ),
    "NetworkPolicy": _POLICY,
    "NetworkSet": _NETS,
    "Profile": (Column("Labels", "Labels that endpoints inherit.", _joined("labels_to_apply"), priority=WIDE),),
    "StagedGlobalNetworkPolicy": _STAGED,
    "StagedKubernetesNetworkPolicy": (
        Column("Action", "What the policy stages.", _of("staged_action")),
        Column("Types", "Directions that the policy applies to.", _joined("policy_types"), priority=WIDE),
    ),
    "StagedNetworkPolicy": _STAGED,
    "Tier": (
        Column("Order", "Place among the tiers.", _of("order", None), type="number"),
        Column("DefaultAction", "What ends the tier.", _of("default_action", "Deny")),
    ),
}  # fmt: skip
