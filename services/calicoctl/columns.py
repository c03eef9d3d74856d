"""What `get` shows of each kind: the headings of the normal and the wide table, and how a cell is made of a resource.

Resources come as their v3 JSON. Headings, their order and the text of the cells are Calico's, down to `<nil>` for an
order that is not set and `1e+06` for a million, because scripts cut these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from services.calicoctl.documents import Json

Resource: TypeAlias = dict[str, Json]
Cell: TypeAlias = Callable[[Resource, str], str]
"""(resource, cluster's AS number) -> text."""

JOINED_LIMIT = 80
DEFAULT_AS_NUMBER = "64512"


@dataclass(frozen=True, slots=True)
class Columns:
    normal: tuple[str, ...]
    wide: tuple[str, ...]
    cells: dict[str, Cell]


def lookup(value: Json, path: str) -> Json:
    """Value at a dotted path; None where a step is missing."""
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def text(value: Json) -> str:
    """A JSON value as Go's templates print it."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return go_float(value)
        case str():
            return value
        case list():
            return "[" + " ".join(text(item) for item in value) + "]"
        case dict():
            return "map[" + " ".join(f"{key}:{text(value[key])}" for key in sorted(value)) + "]"


def go_float(number: float) -> str:
    """Go's %v: shortest digits, exponent form from 1e6 on (Python switches at 1e16) and below 1e-4."""
    if number == 0:
        return "0"
    if 1e-4 <= abs(number) < 1e6:
        shown = repr(float(number))
        return shown.removesuffix(".0")
    mantissa, _, exponent = f"{number:e}".partition("e")
    for digits in range(17):
        candidate = f"{number:.{digits}e}"
        if float(candidate) == number:
            mantissa, _, exponent = candidate.partition("e")
            break
    return f"{mantissa}e{exponent[0]}{int(exponent[1:]):02d}"


def join(value: Json, limit: int = 0) -> str:
    """Comma-separated; a mapping as sorted k=v. Cut to `limit` characters with `...` when longer (0: never)."""
    if value is None:
        return ""
    if isinstance(value, dict):
        parts = sorted(f"{key}={text(item)}" for key, item in value.items())
    elif isinstance(value, list):
        parts = [text(item) for item in value]
    else:
        parts = [text(value)]
    joined = ",".join(parts)
    return joined[: limit - 3] + "..." if limit and len(joined) > limit else joined


def _field(path: str, absent: str = "") -> Cell:
    def cell(resource: Resource, _as_number: str) -> str:
        value = lookup(resource, path)
        return absent if value is None or value == "" else text(value)

    return cell


def _order(resource: Resource, _as_number: str) -> str:
    value = lookup(resource, "spec.order")
    return text(float(value)) if isinstance(value, (int, float)) else "<nil>"


def _joined(path: str, limit: int = 0) -> Cell:
    def cell(resource: Resource, _as_number: str) -> str:
        return join(lookup(resource, path), limit)

    return cell


def _count(path: str) -> Cell:
    def cell(resource: Resource, _as_number: str) -> str:
        value = lookup(resource, path)
        return str(len(value)) if isinstance(value, list) else "0"

    return cell


def _peer_node(resource: Resource, as_number: str) -> str:
    return _field("spec.node")(resource, as_number) or _field("spec.nodeSelector")(resource, as_number) or "(global)"


def _node_asn(resource: Resource, as_number: str) -> str:
    """The node's own AS number, the cluster's in brackets when it follows that, nothing without BGP."""
    if lookup(resource, "spec.bgp") is None:
        return ""
    own = lookup(resource, "spec.bgp.asNumber")
    return f"({as_number})" if own is None else text(own)


def _workload(resource: Resource, as_number: str) -> str:
    return _field("spec.workload")(resource, as_number) or _field("spec.pod")(resource, as_number)


def _nats(resource: Resource, _as_number: str) -> str:
    nats = lookup(resource, "spec.ipNATs")
    if not isinstance(nats, list):
        return ""
    return ",".join(
        f"{{{text(nat.get('internalIP') or '')} {text(nat.get('externalIP') or '')}}}"
        for nat in nats
        if isinstance(nat, dict)
    )


def _pod_selector(resource: Resource, _as_number: str) -> str:
    """`k=v,k in (a,b),!k`, the way kubectl writes a label selector."""
    selector = lookup(resource, "spec.podSelector")
    if not isinstance(selector, dict):
        return ""
    labels = selector.get("matchLabels")
    parts = [f"{key}={text(labels[key])}" for key in sorted(labels)] if isinstance(labels, dict) else []
    expressions = selector.get("matchExpressions")
    for expression in expressions if isinstance(expressions, list) else []:
        if not isinstance(expression, dict):
            continue
        key, values = text(expression.get("key") or ""), join(expression.get("values"))
        operator = expression.get("operator")
        shown = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        parts.append(shown.get(str(operator), f"{key} {operator} ({values})"))
    return ",".join(parts)


NAME = _field("metadata.name")
NAMESPACE = _field("metadata.namespace")


def _table(normal: str, wide: str, **cells: Cell) -> Columns:
    return Columns(tuple(normal.split()), tuple((wide or normal).split()), {"NAME": NAME, **cells})


def _policy(*, namespaced: bool) -> Columns:
    cells = {"TIER": _field("spec.tier"), "ORDER": _order, "SELECTOR": _field("spec.selector")}
    extra: dict[str, Cell] = {"NAMESPACE": NAMESPACE} if namespaced else {}
    return _table("NAME TIER", "NAME TIER ORDER SELECTOR", **extra, **cells)


BY_KIND: dict[str, Columns] = {
    "BGPConfiguration": _table(
        "NAME LOGSEVERITY MESHENABLED ASNUMBER",
        "",
        LOGSEVERITY=_field("spec.logSeverityScreen"),
        MESHENABLED=_field("spec.nodeToNodeMeshEnabled", "-"),
        ASNUMBER=_field("spec.asNumber", "-"),
    ),
    "BGPFilter": _table(
        "NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6",
        "",
        NUMEXPORTV4=_count("spec.exportV4"),
        NUMIMPORTV4=_count("spec.importV4"),
        NUMEXPORTV6=_count("spec.exportV6"),
        NUMIMPORTV6=_count("spec.importV6"),
    ),
    "BGPPeer": _table(
        "NAME PEERIP NODE ASN", "", PEERIP=_field("spec.peerIP"), NODE=_peer_node, ASN=_field("spec.asNumber", "0")
    ),
    "BlockAffinity": _table(
        "NAME NODE CIDR",
        "NAME NODE CIDR STATE TYPE",
        NODE=_field("spec.node"),
        CIDR=_field("spec.cidr"),
        STATE=_field("spec.state"),
        TYPE=_field("spec.type", "host"),
    ),
    "CalicoNodeStatus": _table(
        "NAME NODE", "NAME NODE CLASSES", NODE=_field("spec.node"), CLASSES=_joined("spec.classes")
    ),
    "ClusterInformation": _table(
        "NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY",
        "",
        CLUSTERGUID=_field("spec.clusterGUID"),
        CLUSTERTYPE=_field("spec.clusterType"),
        CALICOVERSION=_field("spec.calicoVersion"),
        DATASTOREREADY=_field("spec.datastoreReady", "<nil>"),
    ),
    "FelixConfiguration": _table("NAME", ""),
    "GlobalNetworkPolicy": _policy(namespaced=False),
    "GlobalNetworkSet": _table("NAME", "NAME NETS", NETS=_joined("spec.nets", JOINED_LIMIT)),
    "HostEndpoint": _table(
        "NAME NODE",
        "NAME NODE INTERFACE IPS PROFILES",
        NODE=_field("spec.node"),
        INTERFACE=_field("spec.interfaceName"),
        IPS=_joined("spec.expectedIPs"),
        PROFILES=_joined("spec.profiles"),
    ),
    "IPAMConfiguration": _table(
        "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS",
        "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST",
        STRICTAFFINITY=_field("spec.strictAffinity", "false"),
        AUTOALLOCATEBLOCKS=_field("spec.autoAllocateBlocks", "false"),
        MAXBLOCKSPERHOST=_field("spec.maxBlocksPerHost", "0"),
    ),
    "IPPool": _table(
        "NAME CIDR SELECTOR",
        "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE",
        CIDR=_field("spec.cidr"),
        NAT=_field("spec.natOutgoing", "false"),
        IPIPMODE=_field("spec.ipipMode", "Never"),
        VXLANMODE=_field("spec.vxlanMode", "Never"),
        DISABLED=_field("spec.disabled", "false"),
        DISABLEBGPEXPORT=_field("spec.disableBGPExport", "false"),
        SELECTOR=_field("spec.nodeSelector"),
        ASSIGNMENTMODE=_field("spec.assignmentMode", "Automatic"),
    ),
    "IPReservation": _table("NAME", "NAME CIDRS", CIDRS=_joined("spec.reservedCIDRs", JOINED_LIMIT)),
    "KubeControllersConfiguration": _table("NAME", ""),
    "LiveMigration": _table("NAME", "", NAMESPACE=NAMESPACE),
    "NetworkPolicy": _policy(namespaced=True),
    "NetworkSet": _table("NAME", "NAME NETS", NAMESPACE=NAMESPACE, NETS=_joined("spec.nets", JOINED_LIMIT)),
    "Node": _table(
        "NAME",
        "NAME ASN IPV4 IPV6",
        ASN=_node_asn,
        IPV4=_field("spec.bgp.ipv4Address"),
        IPV6=_field("spec.bgp.ipv6Address"),
    ),
    "Profile": _table("NAME", "NAME LABELS", LABELS=_joined("spec.labelsToApply")),
    "StagedGlobalNetworkPolicy": _policy(namespaced=False),
    "StagedKubernetesNetworkPolicy": _table("NAME", "NAME PODSELECTOR", NAMESPACE=NAMESPACE, PODSELECTOR=_pod_selector),
    "StagedNetworkPolicy": _policy(namespaced=True),
    "Tier": _table("NAME ORDER", "", ORDER=_order),
    "WorkloadEndpoint": _table(
        "WORKLOAD NODE NETWORKS INTERFACE",
        "NAME WORKLOAD NODE NETWORKS INTERFACE PROFILES NATS",
        NAMESPACE=NAMESPACE,
        NODE=_field("spec.node"),
        ORCHESTRATOR=_field("spec.orchestrator"),
        WORKLOAD=_workload,
        NETWORKS=_joined("spec.ipNetworks"),
        INTERFACE=_field("spec.interfaceName"),
        PROFILES=_joined("spec.profiles"),
        NATS=_nats,
    ),
}


class UnknownHeading(Exception):
    """custom-columns named a column that the kind does not have."""


def rows(
    kind: str,
    resources: list[Resource],
    headings: tuple[str, ...] | None,
    *,
    wide: bool,
    namespace: bool,
    as_number: str,
) -> list[list[str]]:
    """Table with its heading row. headings: asked for by name, else the kind's normal or wide ones."""
    columns = BY_KIND[kind]
    chosen = headings or (columns.wide if wide else columns.normal)
    if namespace and "NAMESPACE" in columns.cells and not headings:
        chosen = ("NAMESPACE", *chosen)
    for heading in chosen:
        if heading not in columns.cells:
            raise UnknownHeading(f"Unknown heading {heading}, valid values are: {', '.join(sorted(columns.cells))}")
    return [
        list(chosen),
        *([columns.cells[heading](resource, as_number) for heading in chosen] for resource in resources),
    ]
