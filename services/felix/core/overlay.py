"""Overlays of this node: which tunnel devices it wants, and which other nodes' ends they must know.

Pure: pools, nodes and settings in, values out. A device is wanted while some pool needs it, or the configuration says
so; it can be made once this node has a tunnel address and an address that carries the packets. `vxlan.calico` and
`vxlan-v6.calico` know every other end by a permanent neighbour (tunnel address → MAC) and a forwarding entry (MAC →
node), since they learn nothing by themselves; `tunl0` needs no such thing (facts/felix.md sections 2.7 and 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

import msgspec

from libs.policy import nets
from libs.policy.output import NodeInfo, Pool
from libs.policy.routes import Vtep, vteps_for

Address: TypeAlias = IPv4Address | IPv6Address

VXLAN, VXLAN6, TUNL = "vxlan.calico", "vxlan-v6.calico", "tunl0"
DEVICES = (VXLAN, VXLAN6, TUNL)


class ClusterRoutes(StrEnum):
    """ProgramClusterRoutes: which routes to other nodes are Felix's. Those through VXLAN always are."""

    DISABLED = "Disabled"
    IPIP_ONLY = "EnabledIPIPOnly"
    NO_ENCAP_ONLY = "EnabledNoEncapOnly"
    ENABLED = "Enabled"

    @property
    def ipip(self) -> bool:
        return self in (ClusterRoutes.IPIP_ONLY, ClusterRoutes.ENABLED)

    @property
    def no_encap(self) -> bool:
        return self in (ClusterRoutes.NO_ENCAP_ONLY, ClusterRoutes.ENABLED)


@dataclass(frozen=True, slots=True)
class OverlaySettings:
    """Names of the FelixConfiguration fields in the comments. MTU 0: the host's less what the overlay adds."""

    vxlan: bool | None = None  # VXLANEnabled; None: as pools need it
    ipip: bool | None = None  # IPIPEnabled
    vni: int = 4096  # VXLANVNI
    port: int = 4789  # VXLANPort
    vxlan_mtu_bytes: int = 0  # VXLANMTU
    vxlan6_mtu_bytes: int = 0  # VXLANMTUV6
    ipip_mtu_bytes: int = 0  # IPIPMTU
    checksum_broken: bool | None = None  # FeatureDetectOverride ChecksumOffloadBroken; None: the kernel's version says
    ipv6: bool = True  # Ipv6Support

    def enabled(self, pools: Iterable[Pool]) -> frozenset[str]:
        """Names of the devices that are wanted."""
        found = set()
        for pool in pools:
            version = 6 if ":" in pool.cidr else 4
            if pool.vxlan_mode != "Never" and self.vxlan is not False:
                found.add(VXLAN if version == 4 else VXLAN6)
            if pool.ipip_mode != "Never" and self.ipip is not False and version == 4:
                found.add(TUNL)
        if self.vxlan:
            found.add(VXLAN)
        if self.ipip:
            found.add(TUNL)
        if not self.ipv6:
            found.discard(VXLAN6)
        return frozenset(found)

    def mtu_bytes(self, device: str) -> int:
        return {VXLAN: self.vxlan_mtu_bytes, VXLAN6: self.vxlan6_mtu_bytes, TUNL: self.ipip_mtu_bytes}[device]


@dataclass(frozen=True, slots=True)
class Device:
    """address: the tunnel's own. carrier: the node's address that packets are sent from, None for IP in IP, which takes
    whatever the route says. mac: empty for IP in IP. mtu_bytes 0: see OverlaySettings.
    """

    name: str
    address: Address
    carrier: Address | None = None
    mac: str = ""
    vni: int = 0
    port: int = 0
    mtu_bytes: int = 0


class RemoteEnd(msgspec.Struct, frozen=True, cache_hash=True):
    """Another node's end of a VXLAN overlay. host: where its packets go."""

    device: str
    address: Address
    mac: str
    host: Address


@dataclass(frozen=True, slots=True)
class WantedOverlays:
    """enabled: names of all wanted devices; missing: of those that cannot be made yet, the reason."""

    enabled: frozenset[str] = frozenset()
    devices: Mapping[str, Device] = field(default_factory=dict)
    ends: frozenset[RemoteEnd] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)


def _end(device: str, vtep: Vtep) -> RemoteEnd | None:
    address, mac, host = (
        (vtep.ipv4, vtep.mac, vtep.parent_device_ipv4)
        if device == VXLAN
        else (vtep.ipv6, vtep.mac6, vtep.parent_device_ipv6)
    )
    if not address:
        return None
    return RemoteEnd(device, ip_address(nets.address(address)), mac.lower(), ip_address(nets.address(host)))


class Overlays:
    """Keeps what is wanted in step with what it is told; `wanted` is worked out when asked for."""

    def __init__(self, node: str) -> None:
        self.vteps: dict[str, Vtep] = {}
        self.settings = OverlaySettings()
        self._node = node
        self._tunl = ""  # this node's own IP-in-IP tunnel address
        self._ends: dict[str, dict[str, RemoteEnd]] = {VXLAN: {}, VXLAN6: {}}  # device -> node, this one too -> its end
        self._pools: dict[str, Pool] = {}
        self._wanted: WantedOverlays | None = None

    def configure(self, settings: OverlaySettings) -> bool:
        """True when something is different."""
        changed = settings != self.settings
        self.settings = settings
        self._touch(changed)
        return changed

    def put_pool(self, key: str, pool: Pool | None) -> None:
        changed = self._pools.get(key) != pool
        if pool is None:
            self._pools.pop(key, None)
        else:
            self._pools[key] = pool
        self._touch(changed)

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        vtep = vteps_for({name: info}).get(name) if info is not None else None
        changed = self.vteps.get(name) != vtep
        if name == self._node:
            tunl = nets.address(info.ipip_ipv4) if info is not None else ""
            changed, self._tunl = changed or tunl != self._tunl, tunl
        if not changed:
            return
        self.vteps.pop(name, None)
        for device, ends in self._ends.items():
            ends.pop(name, None)
            end = _end(device, vtep) if vtep is not None else None
            if end is not None:
                ends[name] = end
        if vtep is not None:
            self.vteps[name] = vtep
        self._touch(changed)

    @property
    def enabled(self) -> frozenset[str]:
        return self.wanted.enabled

    @property
    def wanted(self) -> WantedOverlays:
        if self._wanted is None:
            self._wanted = self._work_out()
        return self._wanted

    def _touch(self, changed: bool) -> None:
        if changed:
            self._wanted = None

    def _work_out(self) -> WantedOverlays:
        enabled = self.settings.enabled(self._pools.values())
        devices: dict[str, Device] = {}
        missing: dict[str, str] = {}
        ends: set[RemoteEnd] = set()
        for name in sorted(enabled):
            device = self._device(name)
            if device is None:
                what = "IPv6" if name == VXLAN6 else "IPv4"
                kind = "IP-in-IP" if name == TUNL else "VXLAN"
                missing[name] = f"node {self._node} has no {what} {kind} tunnel address, or no {what} address, yet"
                continue
            devices[name] = device
            if name != TUNL:
                ends |= self._others(name)
        return WantedOverlays(enabled, devices, frozenset(ends), missing)

    def _device(self, name: str) -> Device | None:
        settings, mtu_bytes = self.settings, self.settings.mtu_bytes(name)
        if name == TUNL:
            return Device(name, ip_address(self._tunl), mtu_bytes=mtu_bytes) if self._tunl else None
        end = self._ends[name].get(self._node)
        if end is None:
            return None
        return Device(name, end.address, end.host, end.mac, settings.vni, settings.port, mtu_bytes)

    def _others(self, device: str) -> set[RemoteEnd]:
        """One for each MAC and each address: of several nodes that claim one, the lowest name has it."""
        ends = self._ends[device]
        macs: set[str] = set()
        addresses: set[Address] = set()
        found: set[RemoteEnd] = set()
        for node in sorted(ends):
            end = ends[node]
            if node == self._node or end.mac in macs or end.address in addresses:
                continue
            macs.add(end.mac)
            addresses.add(end.address)
            found.add(end)
        return found
