"""What autodetection looks at on this host: interfaces with their addresses, and where the kernel would send from."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.netlink.addresses import IFA_F_DADFAILED, IFA_F_TENTATIVE, list_addresses
from libs.netlink.links import list_links
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.node.core.autodetect import AddressIn, HostInterface

ANY_PORT = 9  # of a datagram socket that is connected and never sends
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def host_interfaces() -> list[HostInterface]:
    """In the order of their indices; without addresses that failed duplicate detection or have not passed it yet.

    Raises OSError.
    """
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        links, addresses = list_links(netlink), list_addresses(netlink)
    by_index: dict[int, list[AddressIn]] = {}
    for address in addresses:
        if not address.flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE):
            by_index.setdefault(address.index, []).append(address.interface)
    return [
        HostInterface(link.name, tuple(by_index.get(link.index, ())), link.up)
        for link in sorted(links, key=lambda link: link.index)
    ]


async def source_address(destination: str, version: int) -> IPv4Address | IPv6Address | None:
    """The address that packets to that host (address or name) would come from. None when it has no address of the
    family, or no route leads there. Nothing is sent.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(destination, ANY_PORT, family=FAMILIES[version], type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter: of a name that no resolver can be asked for
        return None
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return ip_address(probe.getsockname()[0].partition("%")[0])
        except OSError:
            continue
    return None
