"""Where things live in etcd, both ways.

    resources     /calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>
    blocks        /calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26
    affinities    /calico/ipam/v2/<host|virtual>/<owner>/ipv4/block/10.0.0.0-26
    handles       /calico/ipam/v2/handle/<id>
    settings      /calico/ipam/v2/config
    Felix status  /calico/felix/v2/<region>/host/<host>/… and /calico/felix/v1/host/<host>/endpoint/<ep>

Names go in raw; readers decode `%2f` and then `%25`. A key of another form belongs to somebody else and is None here.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from libs.model import kinds

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

PREFIX = "/calico/"
RESOURCES = PREFIX + "resources/v3/projectcalico.org/"
IPAM = PREFIX + "ipam/v2/"
IPAM_CONFIG = IPAM + "config"
NO_REGION = "no-region"


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """namespace: "" for kinds of the whole cluster."""

    kind: str
    name: str
    namespace: str = ""

    @property
    def path(self) -> str:
        return resource_key(self.kind, self.name, self.namespace)


@dataclass(frozen=True, slots=True)
class BlockKey:
    cidr: Network

    kind = "IPAMBlock"
    namespace = ""

    @property
    def name(self) -> str:
        return str(self.cidr)

    @property
    def path(self) -> str:
        return f"{IPAM}assignment/ipv{self.cidr.version}/block/{cidr_segment(self.cidr)}"


@dataclass(frozen=True, slots=True)
class AffinityKey:
    """owner_type: "host" for a node, "virtual" for a service of the cluster."""

    owner_type: str
    owner: str
    cidr: Network

    kind = "BlockAffinity"
    namespace = ""

    @property
    def name(self) -> str:
        return f"{self.owner}/{self.cidr}"

    @property
    def path(self) -> str:
        return f"{IPAM}{self.owner_type}/{self.owner}/ipv{self.cidr.version}/block/{cidr_segment(self.cidr)}"


@dataclass(frozen=True, slots=True)
class HandleKey:
    handle_id: str

    kind = "IPAMHandle"
    namespace = ""

    @property
    def name(self) -> str:
        return self.handle_id

    @property
    def path(self) -> str:
        return f"{IPAM}handle/{self.handle_id.partition(chr(13))[0]}"


@dataclass(frozen=True, slots=True)
class IPAMConfigKey:
    kind = "IPAMConfig"
    name = "default"
    namespace = ""

    @property
    def path(self) -> str:
        return IPAM_CONFIG


Key: TypeAlias = ResourceKey | BlockKey | AffinityKey | HandleKey | IPAMConfigKey


def resource_key(kind: str, name: str, namespace: str = "") -> str:
    """Raises UnknownKind, and ValueError when a namespace is missing or too much."""
    entry = kinds.kind(kind)
    if entry.namespaced != bool(namespace):
        raise ValueError(f"{kind} {name!r} {'needs a' if entry.namespaced else 'has no'} namespace")
    return f"{resource_prefix(kind, namespace)}{name}"


def resource_prefix(kind: str, namespace: str = "") -> str:
    """Of every key of the kind, in one namespace if given. Raises UnknownKind."""
    base = f"{RESOURCES}{kinds.kind(kind).plural}/"
    return f"{base}{namespace}/" if namespace else base


def parse_key(key: str) -> Key | None:
    """What a key names; None for keys of other forms and of unknown kinds."""
    if key.startswith(RESOURCES):
        return _parse_resource(key[len(RESOURCES) :].split("/"))
    if key.startswith(IPAM):
        return _parse_ipam(key[len(IPAM) :].split("/"))
    return None


def describe(key: Key) -> tuple[str, str, str]:
    """(kind, namespace, name)."""
    return key.kind, key.namespace, key.name


def _parse_resource(parts: list[str]) -> ResourceKey | None:
    entry = kinds.BY_PLURAL.get(parts[0].lower())
    if entry is None or len(parts) != (3 if entry.namespaced else 2) or not all(parts):
        return None
    names = [unescape(part) for part in parts[1:]]
    return ResourceKey(entry.kind, names[-1], names[0] if entry.namespaced else "")


def _parse_ipam(parts: list[str]) -> BlockKey | AffinityKey | HandleKey | IPAMConfigKey | None:
    match parts:
        case ["config"]:
            return IPAMConfigKey()
        case ["handle", handle] if handle:
            return HandleKey(handle)
        case ["assignment", version, "block", cidr]:
            network = _parse_cidr(cidr, version)
            return BlockKey(network) if network is not None else None
        case [("host" | "virtual") as owner_type, owner, version, "block", cidr] if owner:
            network = _parse_cidr(cidr, version)
            return AffinityKey(owner_type, owner, network) if network is not None else None
    return None


def cidr_segment(cidr: Network) -> str:
    """`10.0.0.0/26` -> `10.0.0.0-26`."""
    return str(cidr).replace("/", "-")


def _parse_cidr(segment: str, version: str) -> Network | None:
    address, _, length = segment.rpartition("-")
    try:
        network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        return None
    return network if version == f"ipv{network.version}" else None


def escape(name: str) -> str:
    """For the status keys: `ns/pod` -> `ns%2fpod`."""
    return name.replace("%", "%25").replace("/", "%2f")


def unescape(name: str) -> str:
    return name.replace("%2f", "/").replace("%25", "%")


# --- Felix status -----------------------------------------------------------------------------------------------------


def region_segment(region: str = "") -> str:
    """region: Felix's OpenStack region, "" for none."""
    return f"region-{region}" if region else NO_REGION


def felix_status_key(host: str, region: str = "") -> str:
    """Leased: it goes when the Felix stops reporting."""
    return f"{PREFIX}felix/v2/{region_segment(region)}/host/{host}/status"


def felix_last_status_key(host: str, region: str = "") -> str:
    """The same value without a lease."""
    return f"{PREFIX}felix/v2/{region_segment(region)}/host/{host}/last_reported_status"


def workload_status_key(host: str, orchestrator: str, workload: str, endpoint: str, region: str = "") -> str:
    """workload: as in the v1 data model, `<namespace>/<pod>` for a pod."""
    return (
        f"{PREFIX}felix/v2/{region_segment(region)}/host/{host}/workload/"
        f"{escape(orchestrator)}/{escape(workload)}/endpoint/{escape(endpoint)}"
    )


def host_endpoint_status_key(host: str, endpoint: str) -> str:
    return f"{PREFIX}felix/v1/host/{host}/endpoint/{escape(endpoint)}"


@dataclass(frozen=True, slots=True)
class StatusKey:
    """A status that a Felix reports. A host endpoint's has no workload and orchestrator, Felix's own no endpoint.

    last_reported: the copy of Felix's own status that has no lease.
    """

    host: str
    region: str = ""
    orchestrator: str = ""
    workload: str = ""
    endpoint: str = ""
    last_reported: bool = False


def parse_status_key(key: str) -> StatusKey | None:
    match key.removeprefix(PREFIX).split("/") if key.startswith(PREFIX) else []:
        case ["felix", "v1", "host", host, "endpoint", endpoint]:
            return StatusKey(host, endpoint=unescape(endpoint))
        case ["felix", "v2", region, "host", host, *rest] if region == NO_REGION or region.startswith("region-"):
            name = "" if region == NO_REGION else region.removeprefix("region-")
            match rest:
                case [("status" | "last_reported_status") as which]:
                    return StatusKey(host, name, last_reported=which != "status")
                case ["workload", orchestrator, workload, "endpoint", endpoint]:
                    return StatusKey(host, name, unescape(orchestrator), unescape(workload), unescape(endpoint))
    return None
