"""Results of plugins: read in any version of the specification, written in any (section 5 of each). Pure.

Up to 0.2.0 a result is {"ip4": {"ip", "gateway", "routes"}, "ip6": {…}, "dns"}; from 0.3.0 on it has `interfaces`,
`ips` (each with `version` before 1.0.0, and the index of its interface), `routes` and `dns`; 1.1.0 adds the MTU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import Any

import msgspec

from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.versions import VERSIONS, at_least

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


class Interface(msgspec.Struct, frozen=True, omit_defaults=True, rename={"socket_path": "socketPath", "pci": "pciID"}):
    """sandbox: path of the network namespace; empty on the host. From `mtu` on since 1.1.0."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci: str = ""


@dataclass(frozen=True, slots=True)
class Ip:
    """interface: index into the result's interfaces; None where a plugin for addresses alone answers."""

    address: IPv4Interface | IPv6Interface
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """more: what 1.1.0 adds (mtu, advmss, priority, table, scope), by JSON name."""

    dst: Network
    gateway: Address | None = None
    more: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)

    def after(self, before: Result) -> Result:
        """As the result of a later plugin of a chain: what was there before comes first."""
        shift = len(before.interfaces)
        moved = [Ip(ip.address, ip.gateway, None if ip.interface is None else ip.interface + shift) for ip in self.ips]
        return Result(
            interfaces=before.interfaces + self.interfaces,
            ips=(*before.ips, *moved),
            routes=before.routes + self.routes,
            dns=self.dns or before.dns,
        )

    def addresses_of(self, ifname: str, sandbox: str) -> tuple[Address, ...]:
        """Of the container's interface of that name."""
        numbers = {n for n, one in enumerate(self.interfaces) if one.name == ifname and one.sandbox == sandbox}
        return tuple(ip.address.ip for ip in self.ips if ip.interface in numbers)

    def interface(self, ifname: str, sandbox: str) -> Interface | None:
        found = [one for one in self.interfaces if one.name == ifname and one.sandbox == sandbox]
        return found[0] if found else None


# --- reading ---


class _WireRoute(msgspec.Struct):
    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class _WireIp(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _WireOld(msgspec.Struct):
    ip: str
    gateway: str | None = None
    routes: list[_WireRoute] | None = None


class _Wire(msgspec.Struct, rename={"version": "cniVersion"}):
    version: str | None = None
    interfaces: list[Interface] | None = None
    ips: list[_WireIp] | None = None
    routes: list[_WireRoute] | None = None
    ip4: _WireOld | None = None
    ip6: _WireOld | None = None
    dns: Dns | None = None


_MORE = ("mtu", "advmss", "priority", "table", "scope")


def decode_result(raw: dict[str, Any], what: str) -> Result:
    """A result of any version, told by its keys. what: its name for the user. Raises CniError(INVALID_CONFIG)."""
    try:
        wire = msgspec.convert(raw, _Wire)
        if wire.version and wire.version not in VERSIONS:
            raise ValueError(f"cniVersion {wire.version!r} is not one of {', '.join(VERSIONS)}")
        ips = [
            Ip(ip_interface(ip.address), _address(ip.gateway), ip.interface)
            for ip in (
                *(wire.ips or ()),
                *(_WireIp(old.ip, old.gateway) for old in (wire.ip4, wire.ip6) if old is not None),
            )
        ]
        given = [wire.routes, *(old.routes for old in (wire.ip4, wire.ip6) if old is not None)]
        routes = [_route(route) for routes in given for route in routes or ()]
        interfaces = tuple(wire.interfaces or ())
        for ip in ips:
            if ip.interface is not None and not 0 <= ip.interface < len(interfaces):
                raise ValueError(f"{ip.address} is on interface {ip.interface} of {len(interfaces)}")
    except (msgspec.ValidationError, ValueError) as error:
        raise CniError(Code.INVALID_CONFIG, f"{what}: {error}") from error
    return Result(interfaces, tuple(ips), tuple(routes), wire.dns or Dns())


def _address(text: str | None) -> Address | None:
    return ip_address(text) if text else None


def _route(wire: _WireRoute) -> Route:
    more = tuple((name, value) for name in _MORE if (value := getattr(wire, name)) is not None)
    return Route(ip_interface(wire.dst).network, _address(wire.gw), more)


# --- writing ---


def encode_result(result: Result, version: str) -> dict[str, Any]:
    if not at_least(version, "0.3.0"):
        return _encode_old(result, version)
    made: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        made["interfaces"] = [_encode_interface(one, version) for one in result.interfaces]
    made["ips"] = [_encode_ip(ip, version) for ip in result.ips]
    if result.routes:
        made["routes"] = [_encode_route(route, version) for route in result.routes]
    return made | {"dns": _encode_dns(result.dns)}


def _encode_dns(dns: Dns) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(dns)
    return {key: value if isinstance(value, str) else list(value) for key, value in made.items()}


def _encode_interface(interface: Interface, version: str) -> dict[str, Any]:
    keys = {"name", "mac", "sandbox"} | ({"mtu", "socketPath", "pciID"} if at_least(version, "1.1.0") else set())
    made: dict[str, Any] = {k: v for k, v in msgspec.to_builtins(interface).items() if k in keys}
    return made


def _encode_ip(ip: Ip, version: str) -> dict[str, Any]:
    made: dict[str, Any] = {} if at_least(version, "1.0.0") else {"version": str(ip.address.version)}
    made["address"] = str(ip.address)
    if ip.gateway is not None:
        made["gateway"] = str(ip.gateway)
    if ip.interface is not None:
        made["interface"] = ip.interface
    return made


def _encode_route(route: Route, version: str) -> dict[str, Any]:
    made: dict[str, Any] = {"dst": str(route.dst)}
    if route.gateway is not None:
        made["gw"] = str(route.gateway)
    return made | (dict(route.more) if at_least(version, "1.1.0") else {})


def _encode_old(result: Result, version: str) -> dict[str, Any]:
    """One address of each family; there is no room for more."""
    made: dict[str, Any] = {"cniVersion": version}
    for ip in result.ips:
        key = f"ip{ip.address.version}"
        if key in made:
            continue
        made[key] = {"ip": str(ip.address)}
        if ip.gateway is not None:
            made[key]["gateway"] = str(ip.gateway)
        routes = [_encode_route(route, version) for route in result.routes if route.dst.version == ip.address.version]
        if routes:
            made[key]["routes"] = routes
    return made | {"dns": _encode_dns(result.dns)}
