"""Network interfaces (linux/if_link.h): list, get, make veth pairs, change, delete.

Calls are synchronous; see socket.py. An interface is addressed by index, because names can be taken over.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from libs.netlink.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
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
from libs.netlink.socket import NetlinkSocket

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
RTEXT_FILTER_SKIP_STATS = 8

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, device type, index, flags, mask of flags to change
_ADDRESS, _NAME, _MTU, _LINK, _MASTER, _LINKINFO, _NETNS_FD = 1, 3, 4, 5, 10, 18, 28
_GROUP, _EXT_MASK, _TX_QUEUES, _RX_QUEUES, _ALT_NAME = 27, 29, 31, 32, 53
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_NETKIT_PEER_INFO, _NETKIT_POLICY, _NETKIT_PEER_POLICY, _NETKIT_MODE = 1, 3, 4, 5
_NETKIT_PASS, _NETKIT_L2 = 0, 0
_AF_SPEC, _ADDR_GEN_MODE, _GEN_MODE_NONE = 26, 8, 1


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    kind: str  # veth, vxlan, bridge …; empty for physical devices
    mac: str
    mtu_bytes: int
    up: bool  # wanted up by the administrator
    lower_up: bool  # there is a carrier. IFLA_OPERSTATE follows it up to a second later
    master: int  # index of the bridge or bond above, 0 if none
    lower: int  # index of the device below or, for a veth, of its peer, which may be in another namespace; 0 if none

    @property
    def carries(self) -> bool:
        """Whether packets can go through it."""
        return self.up and self.lower_up


def parse_mac(text_mac: str) -> bytes:
    """Six bytes of aa:bb:cc:dd:ee:ff. Raises ValueError."""
    raw = bytes.fromhex(text_mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{text_mac!r} is no MAC address")
    return raw


def format_mac(raw: bytes) -> str:
    return raw.hex(":")


def decode_link(body: bytes) -> Link:
    """Body of RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attrs(body, _IFINFO.size)
    info = attrs(found.get(_LINKINFO, b""))
    return Link(
        index=index,
        name=cstring(found.get(_NAME, b"")),
        kind=cstring(info.get(_INFO_KIND, b"")),
        mac=format_mac(found.get(_ADDRESS, b"")),
        mtu_bytes=to_u32(found.get(_MTU, bytes(4))),
        up=bool(flags & IFF_UP),
        lower_up=bool(flags & IFF_LOWER_UP),
        master=to_u32(found.get(_MASTER, bytes(4))),
        lower=to_u32(found.get(_LINK, bytes(4))),
    )


def list_links(netlink: NetlinkSocket) -> list[Link]:
    body = _IFINFO.pack(0, 0, 0, 0, 0) + u32(_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return [decode_link(reply) for kind, reply in netlink.dump(RTM_GETLINK, body, "links") if kind == RTM_NEWLINK]


def get_link(netlink: NetlinkSocket, which: int | str) -> Link | None:
    """By index or name; None when there is none."""
    index, name = (which, b"") if isinstance(which, int) else (0, text(_NAME, which))
    body = _IFINFO.pack(0, 0, index, 0, 0) + name + u32(_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    try:
        (_, reply), *_ = netlink.request(RTM_GETLINK, 0, body, f"link {which}")
    except ObjectNotFound:
        return None
    return decode_link(reply)


def link_change(
    index: int,
    *,
    up: bool | None = None,
    mac: str | None = None,
    mtu_bytes: int | None = None,
    name: str | None = None,
    netns_fd: int | None = None,
    group: int | None = None,
) -> tuple[int, int, bytes]:
    """A request for NetlinkSocket.batch; what is None stays as it is."""
    body = _IFINFO.pack(0, 0, index, IFF_UP if up else 0, IFF_UP if up is not None else 0)
    if mac is not None:
        body += attr(_ADDRESS, parse_mac(mac))
    if mtu_bytes is not None:
        body += u32(_MTU, mtu_bytes)
    if name is not None:
        body += text(_NAME, name)
    if netns_fd is not None:
        body += u32(_NETNS_FD, netns_fd)
    if group is not None:
        body += u32(_GROUP, group)
    return RTM_NEWLINK, 0, body


def set_link(
    netlink: NetlinkSocket,
    index: int,
    *,
    up: bool | None = None,
    mac: str | None = None,
    mtu_bytes: int | None = None,
    name: str | None = None,
    netns_fd: int | None = None,
) -> None:
    kind, flags, body = link_change(index, up=up, mac=mac, mtu_bytes=mtu_bytes, name=name, netns_fd=netns_fd)
    netlink.request(kind, flags, body, f"link {index}")


@dataclass(frozen=True, slots=True)
class VethEnd:
    """Of a veth or netkit pair. mac None: the kernel chooses. netns_fd None: where the socket is."""

    name: str
    mac: str | None = None
    mtu_bytes: int | None = None
    queues: int = 1
    netns_fd: int | None = None

    def attributes(self) -> bytes:
        body = text(_NAME, self.name) + u32(_TX_QUEUES, self.queues) + u32(_RX_QUEUES, self.queues)
        if self.mac is not None:
            body += attr(_ADDRESS, parse_mac(self.mac))
        if self.mtu_bytes is not None:
            body += u32(_MTU, self.mtu_bytes)
        if self.netns_fd is not None:
            body += u32(_NETNS_FD, self.netns_fd)
        return body


def create_veth(netlink: NetlinkSocket, end: VethEnd, peer: VethEnd) -> None:
    """Both ends are made in their places at once, and down: a peer cannot be made up before its other end exists
    (ENOTCONN).

    A MAC given here counts as set by hand, so udev leaves it alone. Raises ObjectExists when either name is taken.
    """
    header = _IFINFO.pack(0, 0, 0, 0, 0)
    info = nest(_LINKINFO, text(_INFO_KIND, "veth"), nest(_INFO_DATA, attr(_VETH_PEER, header + peer.attributes())))
    body = header + end.attributes() + info
    netlink.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"veth {end.name} and {peer.name}")


def create_netkit(netlink: NetlinkSocket, end: VethEnd, peer: VethEnd) -> None:
    """A pair of netkit devices, which are veth without the walk through the softirq (linux/if_link.h, IFLA_NETKIT_*;
    since Linux 6.7). In L2 mode, since pods find their gateway by ARP.

    Raises NetlinkError with EOPNOTSUPP on a kernel that has none, ObjectExists when either name is taken.
    """
    header = _IFINFO.pack(0, 0, 0, 0, 0)
    data = nest(
        _INFO_DATA,
        attr(_NETKIT_PEER_INFO, header + peer.attributes()),
        u32(_NETKIT_POLICY, _NETKIT_PASS),
        u32(_NETKIT_PEER_POLICY, _NETKIT_PASS),
        u32(_NETKIT_MODE, _NETKIT_L2),
    )
    body = header + end.attributes() + nest(_LINKINFO, text(_INFO_KIND, "netkit"), data)
    netlink.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"netkit {end.name} and {peer.name}")


def new_ifb(name: str, mtu_bytes: int) -> tuple[int, int, bytes]:
    """A request for an ifb that is down. Made alone, because the kernel takes no address mode for a device that is not
    there yet.
    """
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_NAME, name) + u32(_MTU, mtu_bytes)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + nest(_LINKINFO, text(_INFO_KIND, "ifb"))


def create_wireguard(netlink: NetlinkSocket, name: str) -> None:
    """A device that is down and has no key. Raises NetlinkError with EOPNOTSUPP on a kernel that has none,
    ObjectExists when the name is taken.
    """
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_NAME, name) + nest(_LINKINFO, text(_INFO_KIND, "wireguard"))
    netlink.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"link {name}")


def no_link_local(index: int) -> tuple[int, int, bytes]:
    """A request: the device makes itself no IPv6 address. To be sent before it comes up: one message with both comes
    too late.
    """
    mode = nest(_AF_SPEC, nest(socket.AF_INET6, u8(_ADDR_GEN_MODE, _GEN_MODE_NONE)))
    return RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + mode


def link_removal(index: int) -> tuple[int, int, bytes]:
    """A request for NetlinkSocket.batch."""
    return RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0)


def delete_link(netlink: NetlinkSocket, which: int | str) -> bool:
    """False when it was gone already."""
    index, name = (which, b"") if isinstance(which, int) else (0, text(_NAME, which))
    try:
        netlink.request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + name, f"link {which}")
    except ObjectNotFound:
        return False
    return True


def delete_group(netlink: NetlinkSocket, group: int) -> None:
    """All links of a group at once. None is fine."""
    with contextlib.suppress(ObjectNotFound):
        netlink.request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + u32(_GROUP, group), f"links of group {group}")
