"""What is known of a pod beyond its name, and what it asks for by annotation (facts/cni-typha-node-bgp-ctl.md section
1.5, facts/ipam.md section 9). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from services.felix.core.cni.config import Port
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import Address, Network

PREFIX = "cni.projectcalico.org/"
IP_ADDRS, IP_ADDRS_NO_IPAM = PREFIX + "ipAddrs", PREFIX + "ipAddrsNoIpam"
IPV4_POOLS, IPV6_POOLS, IP_FAMILIES = PREFIX + "ipv4pools", PREFIX + "ipv6pools", PREFIX + "ipFamilies"
FLOATING_IPS, SOURCE_PREFIXES, HW_ADDR = PREFIX + "floatingIPs", PREFIX + "allowedSourcePrefixes", PREFIX + "hwAddr"
NETWORK = PREFIX + "network"  # on a WorkloadEndpoint: name of the CNI network that it belongs to
_OF_NAMESPACES = (IPV4_POOLS, IPV6_POOLS, IP_FAMILIES)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever is asked, this is the answer; empty where the pod has none."""

    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    ports: tuple[Port, ...] = ()
    service_account: str = ""
    generate_name: str = ""
    namespace_annotations: Mapping[str, str] = {}

    def annotation(self, name: str) -> str:
        """The pod's own; for pools and families the namespace's where the pod has none."""
        text = self.annotations.get(name, "")
        return text or (self.namespace_annotations.get(name, "") if name in _OF_NAMESPACES else "")


def facts_of(request: Request) -> PodFacts:
    """What the runtime told along with the request: `args.cni`, CNI_ARGS and the annotations that containerd and CRI-O
    pass on.
    """
    args = request.config.args.cni
    return PodFacts(
        labels=args.label_map(),
        annotations={**request.config.runtime.pod_annotations, **args.annotations},
        ports=args.ports,
        service_account=args.service_account or request.args.get("K8S_POD_SERVICE_ACCOUNT", ""),
        generate_name=args.generate_name,
        namespace_annotations=args.namespace_annotations,
    )


def words(facts: PodFacts, name: str) -> tuple[str, ...]:
    """An annotation that is a JSON list of strings; () when it is not there. Raises CniError."""
    text = facts.annotation(name)
    if not text:
        return ()
    try:
        return tuple(msgspec.json.decode(text.encode(), type=list[str]))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = f"annotation {name} = {text!r} is no JSON list of strings: {error}"
        raise CniError(Code.INVALID_CONFIG, problem) from error


def addresses(items: tuple[str, ...], what: str, *, one_each: bool = True) -> tuple[Address, ...]:
    """Addresses, also with a prefix length, which does not matter. one_each: at most one of a family."""
    try:
        found = tuple(ip_interface(item).ip for item in items)
    except ValueError as error:
        raise CniError(Code.INVALID_CONFIG, f"{what}: {error}") from error
    versions = [address.version for address in found]
    if one_each and len(set(versions)) != len(versions):
        raise CniError(Code.INVALID_CONFIG, f"{what}: more than one address of a family: {', '.join(items)}")
    return found


def listed_addresses(facts: PodFacts, name: str, *, one_each: bool = True) -> tuple[Address, ...]:
    """Of an annotation that is a JSON list of plain addresses. Raises CniError, also when the list is empty."""
    items = words(facts, name)
    if facts.annotation(name) and not items:
        raise CniError(Code.INVALID_CONFIG, f"annotation {name} is an empty list")
    for item in items:
        try:
            ip_address(item)
        except ValueError as error:
            raise CniError(Code.INVALID_CONFIG, f"annotation {name}: {error}") from error
    return addresses(items, f"annotation {name}", one_each=one_each)


def source_prefixes(facts: PodFacts) -> tuple[Network, ...]:
    """Networks whose addresses the pod may send from. Raises CniError."""
    try:
        return tuple(ip_network(item) for item in words(facts, SOURCE_PREFIXES))
    except ValueError as error:
        raise CniError(Code.INVALID_CONFIG, f"annotation {SOURCE_PREFIXES}: {error}") from error


def wanted_mac(request: Request, facts: PodFacts) -> str | None:
    """Lower case. The annotation comes first, then capability `mac`, `args.cni.mac`, MAC of CNI_ARGS.

    Raises CniError.
    """
    sources = (
        (f"annotation {HW_ADDR}", facts.annotation(HW_ADDR)),
        ("runtimeConfig.mac", request.config.runtime.mac),
        ("args.cni.mac", request.config.args.cni.mac),
        ("CNI_ARGS: MAC", request.args.get("MAC", "")),
    )
    for what, text in sources:
        if not text:
            continue
        mac = text.lower().replace("-", ":")
        if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise CniError(Code.INVALID_CONFIG, f"{what}: {text!r} is no MAC address of one interface")
        return mac
    return None
