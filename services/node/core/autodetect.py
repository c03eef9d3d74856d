"""Which address of a host is the node's: the methods of IP_AUTODETECTION_METHOD and IP6_AUTODETECTION_METHOD. Pure.

In: what the kernel and, for two of the methods, others tell (`Surroundings`). Out: an address with the prefix length of
its network, or None. Methods and the interfaces that are left out: cni-typha-node-bgp-ctl.md section 3.3 of the facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)

Address = IPv4Address | IPv6Address
AddressIn = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

EXCLUDED = re.compile(
    r"(docker|cbr|dummy|podman|virbr|lxcbr|veth|br-|cali|tunl|flannel|kube-ipvs|cni).*"
    r"|lo|vxlan\.calico|vxlan-v6\.calico|wireguard\.cali|wg-v6\.cali|nodelocaldns"
)
"""Whole names of interfaces that belong to containers, bridges of theirs and overlays."""


class MethodError(ValueError):
    """The text names no method, or its parameter is no good."""


class Kind(StrEnum):
    FIRST_FOUND = "first-found"
    KUBERNETES = "kubernetes-internal-ip"
    INTERFACE = "interface"
    SKIP_INTERFACE = "skip-interface"
    CAN_REACH = "can-reach"
    CIDR = "cidr"


@dataclass(frozen=True, slots=True)
class Method:
    """patterns: of interfaces' names, searched for anywhere in the name. destination: address or name."""

    kind: Kind
    patterns: tuple[re.Pattern[str], ...] = ()
    networks: tuple[Network, ...] = ()
    destination: str = ""


@dataclass(frozen=True, slots=True)
class HostInterface:
    """addresses: in the kernel's order. up: wanted up by the administrator."""

    name: str
    addresses: tuple[AddressIn, ...]
    up: bool = True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """interfaces: in the order of their indices. source: the address that the kernel would send from to the destination
    of `can-reach`. internal: the InternalIP addresses of the Kubernetes node.
    """

    interfaces: Sequence[HostInterface]
    source: Address | None = None
    internal: Sequence[Address] = field(default=())


def parse_method(text: str) -> Method:
    """Raises MethodError with a sentence that says what would do."""
    name, has_parameter, parameter = text.strip().partition("=")
    plain = {"": Kind.FIRST_FOUND, Kind.FIRST_FOUND: Kind.FIRST_FOUND, Kind.KUBERNETES: Kind.KUBERNETES}
    if not has_parameter and name in plain:
        return Method(plain[name])
    if name not in (Kind.INTERFACE, Kind.SKIP_INTERFACE, Kind.CAN_REACH, Kind.CIDR) or not has_parameter:
        raise MethodError(
            f"{text!r} is no autodetection method: first-found, kubernetes-internal-ip, interface=REGEX,…, "
            "skip-interface=REGEX,…, can-reach=DESTINATION or cidr=CIDR,…"
        )
    items = [item.strip() for item in parameter.split(",") if item.strip()]
    if not items:
        raise MethodError(f"{text!r}: nothing stands after the equals sign")
    if name == Kind.CAN_REACH:
        return Method(Kind.CAN_REACH, destination=_host(parameter.strip(), text))
    if name == Kind.CIDR:
        return Method(Kind.CIDR, networks=tuple(_network(item, text) for item in items))
    return Method(Kind(name), patterns=tuple(_pattern(item, text) for item in items))


def _host(name: str, text: str) -> str:
    try:
        name.encode("idna")
    except UnicodeError as error:
        raise MethodError(f"{text!r}: {name!r} is neither an address nor the name of a host: {error}") from None
    return name


def _network(item: str, text: str) -> Network:
    try:
        return ip_network(item, strict=False)
    except ValueError as error:
        raise MethodError(f"{text!r}: {item!r} is no CIDR: {error}") from None


def _pattern(item: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(item)
    except re.error as error:
        raise MethodError(f"{text!r}: {item!r} is no regular expression: {error}") from None


def detect(method: Method, version: int, around: Surroundings) -> AddressIn | None:
    """The node's address of that family (4 or 6); None when the method finds none."""
    usable = list(_usable(around.interfaces, version))
    if method.kind is Kind.INTERFACE:
        return next((a for name, a in usable if _matches(name, method.patterns)), None)
    if method.kind is Kind.CIDR:
        return next((a for _, a in usable if any(a.ip in network for network in method.networks)), None)
    if method.kind is Kind.CAN_REACH:
        return _held(around.source, version, around.interfaces)
    if method.kind is Kind.KUBERNETES:
        return next((found for ip in around.internal if (found := _held(ip, version, around.interfaces))), None)
    return next(
        (a for name, a in usable if not EXCLUDED.fullmatch(name) and not _matches(name, method.patterns)), None
    )  # fmt: skip


def _matches(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    return any(pattern.search(name) for pattern in patterns)


def _usable(interfaces: Iterable[HostInterface], version: int) -> Iterator[tuple[str, AddressIn]]:
    """Other hosts can send to these: no loopback, link-local or multicast address."""
    for interface in interfaces:
        for address in interface.addresses if interface.up else ():
            if address.version == version and reachable(address):
                yield interface.name, address


def reachable(address: AddressIn) -> bool:
    """Other hosts can send to it, as far as its kind tells."""
    ip = address.ip  # of an interface `is_unspecified` is never true
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def _held(ip: Address | None, version: int, interfaces: Iterable[HostInterface]) -> AddressIn | None:
    """That address with the prefix length that an interface has it with."""
    if ip is None or ip.version != version:
        return None
    return next((a for interface in interfaces for a in interface.addresses if a.ip == ip), None)
