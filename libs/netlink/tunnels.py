"""Tunnel devices: VXLAN (linux/if_link.h, IFLA_VXLAN_*) and IP in IP (linux/if_tunnel.h, IFLA_IPTUN_*).

A device is a value: what it should be, and what the kernel says it is. What cannot be changed while the device lives
(`TunnelDevice.kind`) takes a new device; the rest is changed in place. Calls are synchronous; see socket.py.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import TypeAlias

from libs.netlink.addresses import address_request, list_addresses
from libs.netlink.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkError,
    ObjectExists,
    ObjectNotFound,
    attr,
    attrs,
    cstring,
    nest,
    text,
    to_u32,
    u8,
    u32,
)
from libs.netlink.ethtool import set_tx_checksum, tx_checksum
from libs.netlink.links import RTM_GETLINK, RTM_NEWLINK, decode_link, delete_link, link_change, parse_mac
from libs.netlink.socket import NetlinkSocket

Interface: TypeAlias = IPv4Interface | IPv6Interface

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS, _NAME, _MTU, _LINKINFO = 1, 3, 4, 18
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_GROUP, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING = 1, 2, 3, 4, 7
_VXLAN_PORT, _VXLAN_GROUP6, _VXLAN_LOCAL6 = 15, 16, 17
_IPTUN_LOCAL, _IPTUN_REMOTE = 2, 3
_NO_ADDRESS = bytes(4)
WORDS = {"vxlan": "VXLAN", "ipip": "IP-in-IP"}


class Unsupported(NetlinkError):
    """The kernel has no such kind of device."""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """parent: index of the interface that carries the packets. local: its address, their source."""

    vni: int
    port: int
    local: IPv4Address | IPv6Address | None
    parent: int
    learning: bool = False
    group: IPv4Address | IPv6Address | None = None  # where unknown MACs are sought; none of ours has one


@dataclass(frozen=True, slots=True)
class Ipip:
    """Takes and sends packets of all addresses, unless one is set."""

    local: IPv4Address | None = None
    remote: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Other:
    """Some other device that has the name."""

    kind: str


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """addresses: without the link-local ones, which are the kernel's business. mac: empty where there is none."""

    name: str
    kind: Vxlan | Ipip | Other
    mtu_bytes: int
    addresses: frozenset[Interface] = frozenset()
    mac: str = ""
    up: bool = True
    tx_checksum: bool = True


def decode_kind(link_info: bytes) -> Vxlan | Ipip | Other:
    """The attribute IFLA_LINKINFO."""
    info = attrs(link_info)
    kind, data = cstring(info.get(_INFO_KIND, b"")), attrs(info.get(_INFO_DATA, b""))
    if kind == "vxlan":
        local, group = data.get(_VXLAN_LOCAL6, data.get(_VXLAN_LOCAL)), data.get(_VXLAN_GROUP6, data.get(_VXLAN_GROUP))
        return Vxlan(
            vni=to_u32(data.get(_VXLAN_ID, bytes(4))),
            port=int.from_bytes(data.get(_VXLAN_PORT, b""), "big"),
            local=ip_address(local) if local else None,
            parent=to_u32(data.get(_VXLAN_LINK, bytes(4))),
            learning=data.get(_VXLAN_LEARNING, b"\0") != b"\0",
            group=ip_address(group) if group else None,
        )
    if kind == "ipip":
        local, remote = data.get(_IPTUN_LOCAL, _NO_ADDRESS), data.get(_IPTUN_REMOTE, _NO_ADDRESS)
        return Ipip(
            IPv4Address(local) if local != _NO_ADDRESS else None,
            IPv4Address(remote) if remote != _NO_ADDRESS else None,
        )
    return Other(kind)


def create_request(device: TunnelDevice) -> tuple[int, int, bytes]:
    """For NetlinkSocket.request; the device is down then, and has no addresses yet."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_NAME, device.name) + u32(_MTU, device.mtu_bytes)
    if device.mac:
        body += attr(_ADDRESS, parse_mac(device.mac))
    match device.kind:
        case Vxlan(vni, port, local, parent, learning):
            data = u32(_VXLAN_ID, vni) + u32(_VXLAN_LINK, parent)
            if local is not None:
                data += attr(_VXLAN_LOCAL if local.version == 4 else _VXLAN_LOCAL6, local.packed)
            data += u8(_VXLAN_LEARNING, int(learning)) + attr(_VXLAN_PORT, struct.pack("!H", port))
            body += nest(_LINKINFO, text(_INFO_KIND, "vxlan"), nest(_INFO_DATA, data))
        case Ipip():
            body += nest(_LINKINFO, text(_INFO_KIND, "ipip"))
        case Other(kind):
            raise ValueError(f"{device.name}: {kind or 'a physical device'} is no tunnel")
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body


def get_tunnel(netlink: NetlinkSocket, control: socket.socket, name: str) -> tuple[int, TunnelDevice] | None:
    """(index, what it is); None when there is none. control: a socket of the same namespace, for ethtool's ioctl."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_NAME, name)
    try:
        (_, reply), *_ = netlink.request(RTM_GETLINK, 0, body, f"link {name}")
        link = decode_link(reply)
        addresses = [one.interface for one in list_addresses(netlink, link.index)]
        checksum = tx_checksum(control, name)
    except ObjectNotFound:
        return None
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    kind = decode_kind(attrs(reply, _IFINFO.size).get(_LINKINFO, b""))
    return link.index, TunnelDevice(
        name=name,
        kind=kind,
        mtu_bytes=link.mtu_bytes,
        addresses=frozenset(one for one in addresses if not one.ip.is_link_local),
        mac="" if isinstance(kind, Ipip) else link.mac,
        up=link.up,
        tx_checksum=checksum,
    )


def put_tunnel(netlink: NetlinkSocket, control: socket.socket, device: TunnelDevice) -> int:
    """Make it so, with as little as can be; its index. Raises NetlinkError, OSError; Unsupported in plain words."""
    found = get_tunnel(netlink, control, device.name)
    if found is not None and found[1].kind != device.kind:
        delete_link(netlink, found[0])
        found = get_tunnel(netlink, control, device.name)  # the tunl0 of the module cannot be removed
    if found is None:
        refused: NetlinkError | None = None
        try:
            _create(netlink, device)
        except ObjectExists as exists:  # ipip, loaded by the request, gives each namespace a tunl0 before ours is made
            refused = exists
        found = get_tunnel(netlink, control, device.name)
        if found is None and refused is not None and isinstance(device.kind, Ipip):
            raise ObjectExists(errno.EEXIST, device.name, "a device of another name takes all IP-in-IP packets")
        if found is None:
            raise refused or NetlinkError(errno.ENODEV, f"{device.name} went while it was made")
    index, have = found
    if have.kind != device.kind:
        raise NetlinkError(errno.EBUSY, f"{device.name} is there with other settings and cannot be removed")
    if have == device:
        return index
    wrong = have.addresses - device.addresses
    missing = device.addresses - have.addresses
    requests = [address_request(one, index, delete=True) for one in wrong]
    if have.mtu_bytes != device.mtu_bytes:
        requests.append(link_change(index, mtu_bytes=device.mtu_bytes))
    if device.mac and have.mac != device.mac:
        requests.append(link_change(index, mac=device.mac))
    requests += [address_request(one, index) for one in missing]
    if have.up != device.up:
        requests.append(link_change(index, up=device.up))
    for error in netlink.batch(requests).values():
        raise error
    if have.tx_checksum != device.tx_checksum:
        try:
            set_tx_checksum(control, device.name, on=device.tx_checksum)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not device.tx_checksum:
                raise  # one that has no offload computes them by itself, which is never wrong
    return index


def drop_tunnel(netlink: NetlinkSocket, control: socket.socket, name: str) -> None:
    """None is fine. The tunl0 that the module makes by itself cannot go: it is left down and without addresses."""
    found = get_tunnel(netlink, control, name)
    if found is None:
        return
    index, device = found
    if isinstance(device.kind, Ipip):
        put_tunnel(netlink, control, replace(device, addresses=frozenset(), up=False))
    delete_link(netlink, index)


def _create(netlink: NetlinkSocket, device: TunnelDevice) -> None:
    kind, flags, body = create_request(device)
    try:
        netlink.request(kind, flags, body, f"link {device.name}")
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        word = "vxlan" if isinstance(device.kind, Vxlan) else "ipip"
        raise Unsupported(
            errno.EOPNOTSUPP, device.name, f"this kernel has no {WORDS[word]} tunnels (module {word} is not available)"
        ) from None
