"""How a pod gets its addresses: what it asks for, and what it was given. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from services.felix.core.cni import pod
from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import Address, Dns, Network

POD_CIDR, POD_CIDR6 = "usepodcidr", "usepodcidripv6"  # of host-local's `subnet`, in any case


@dataclass(frozen=True, slots=True)
class Wanted:
    """From Calico's IPAM. `fixed` and `unmanaged` take the place of numbers and pools; `unmanaged` go past it."""

    num4: int = 0
    num6: int = 0
    pools4: tuple[str, ...] = ()
    pools6: tuple[str, ...] = ()
    fixed: tuple[Address, ...] = ()
    unmanaged: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """interfaces: with the prefix of the block or subnet that they came from. routes: of the pod, in place of its
    default routes; None: those.
    """

    interfaces: tuple[IPv4Interface | IPv6Interface, ...]
    routes: tuple[Network, ...] | None = None
    dns: Dns = field(default_factory=Dns)

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(one.ip for one in self.interfaces)


def wanted(request: Request, facts: PodFacts) -> Wanted:
    """Raises CniError for what contradicts itself or cannot be read."""
    ipam = request.config.ipam
    fixed, unmanaged = pod.listed_addresses(facts, pod.IP_ADDRS), pod.listed_addresses(facts, pod.IP_ADDRS_NO_IPAM)
    if fixed and unmanaged:
        raise CniError(Code.INVALID_CONFIG, f"annotations {pod.IP_ADDRS} and {pod.IP_ADDRS_NO_IPAM} exclude each other")
    for name, found in ((pod.IP_ADDRS, fixed), (pod.IP_ADDRS_NO_IPAM, unmanaged)):
        if found and ipam.type != CALICO_IPAM:
            text = f"annotation {name} works with {CALICO_IPAM} only, and ipam.type is {ipam.type}"
            raise CniError(Code.INVALID_CONFIG, text)
    if unmanaged and not request.config.feature_control.ip_addrs_no_ipam:
        text = f"annotation {pod.IP_ADDRS_NO_IPAM}: not allowed here (feature_control.ip_addrs_no_ipam is false)"
        raise CniError(Code.INVALID_CONFIG, text)
    if ipam.type != CALICO_IPAM:
        return Wanted()
    pools4 = pod.words(facts, pod.IPV4_POOLS) or ipam.ipv4_pools
    pools6 = pod.words(facts, pod.IPV6_POOLS) or ipam.ipv6_pools
    if ipam.subnet and (pools4 or pools6):
        text = f"ipam.subnet = {ipam.subnet!r} and pools exclude each other; name pools only"
        raise CniError(Code.INVALID_CONFIG, f"network configuration: {text}")
    if request.config.runtime.ip_ranges:
        text = f"runtimeConfig.ipRanges = {request.config.runtime.ip_ranges!r} cannot be used by {CALICO_IPAM}"
        raise CniError(Code.UNSUPPORTED_FIELD, text)
    num4, num6 = _families(request, facts)
    return Wanted(num4, num6, pools4, pools6, fixed or _asked(request), unmanaged)


def _families(request: Request, facts: PodFacts) -> tuple[int, int]:
    families = pod.words(facts, pod.IP_FAMILIES)
    for family in families:
        if family not in ("IPv4", "IPv6"):
            text = f"annotation {pod.IP_FAMILIES}: {family!r} is neither IPv4 nor IPv6"
            raise CniError(Code.INVALID_CONFIG, text)
    if families:
        return int("IPv4" in families), int("IPv6" in families)
    ipam = request.config.ipam
    num4, num6 = _true(ipam.assign_ipv4, "assign_ipv4"), _true(ipam.assign_ipv6, "assign_ipv6")
    if not num4 and not num6:
        raise CniError(Code.INVALID_CONFIG, "network configuration: assign_ipv4 and assign_ipv6 are both false")
    return int(num4), int(num6)


def _asked(request: Request) -> tuple[Address, ...]:
    """Addresses that the runtime asks for: capability `ips`, `args.cni.ips`, IP of CNI_ARGS."""
    for what, items in (
        ("runtimeConfig.ips", request.config.runtime.ips),
        ("args.cni.ips", request.config.args.cni.ips),
        ("CNI_ARGS: IP", tuple(filter(None, request.args.get("IP", "").split(",")))),
    ):
        if items:
            return pod.addresses(items, what)
    return ()


def _true(value: str | bool, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise CniError(Code.INVALID_CONFIG, f"network configuration: ipam.{name} is {value!r}, not true or false")


def with_pod_cidrs(config: dict[str, Any], cidr: Callable[[int], str]) -> dict[str, Any]:
    """A configuration for host-local with the node's pod CIDRs in place of usePodCidr and usePodCidrIPv6, which may
    stand for any `subnet` of `ipam` and of its `ranges`.

    cidr: of an IP version; may raise CniError, and is only asked for what is needed. Raises CniError.
    """
    ipam = config.get("ipam")
    assert isinstance(ipam, dict)  # the type of plugin came from there
    made = _with_pod_cidr(ipam, cidr, "ipam")
    ranges = made.get("ranges")
    if ranges is not None:
        if not isinstance(ranges, list) or not all(isinstance(one, list) for one in ranges):
            raise CniError(Code.INVALID_CONFIG, "network configuration: ipam.ranges is no list of lists")
        made["ranges"] = [[_with_pod_cidr(one, cidr, "ipam.ranges") for one in group] for group in ranges]
    return {**config, "ipam": made}


def needs_pod_cidrs(config: dict[str, Any]) -> bool:
    asked: list[int] = []

    def note(version: int) -> str:
        asked.append(version)
        return ""

    with_pod_cidrs(config, note)
    return bool(asked)


def _with_pod_cidr(ipam: Any, cidr: Callable[[int], str], where: str) -> dict[str, Any]:
    if not isinstance(ipam, dict):
        raise CniError(Code.INVALID_CONFIG, f"network configuration: {where}: {ipam!r} is no object")
    subnet = ipam.get("subnet")
    version = {POD_CIDR: 4, POD_CIDR6: 6}.get(subnet.lower()) if isinstance(subnet, str) else None
    return dict(ipam) if version is None else {**ipam, "subnet": cidr(version)}
