"""The address that workloads peer with: `localWorkloadPeeringIPV4` and `…IPV6`, on the interface of every workload that
has such a peering, and on no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path

from libs.netlink.addresses import Address, address_request, list_addresses
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.bgp.core.paths import IPAddress
from services.bgp.core.settings import PeerKind, SpeakerSettings

log = logging.getLogger(__name__)

Place = tuple[int, IPAddress]
"""(index of the interface, address)"""


class Gateways:
    """The addresses of workloads' interfaces are the speaker's alone; link-local ones are the kernel's."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._used = False  # once there was a peering, or an address of one: else interfaces are left alone

    def step(self, settings: SpeakerSettings, workloads: Mapping[int, str]) -> dict[str, str]:
        """workloads: interfaces of this node's workloads that exist, by index. What could not be, by interface."""
        wanted = _wanted(settings, workloads)
        if not wanted and not self._used:
            return {}
        self._used = True
        present = {_place(one): one for one in list_addresses(self._netlink) if one.index in workloads and _ours(one)}
        todo = [(place, False) for place in wanted if place not in present]
        todo += [(place, True) for place in present if place not in wanted]
        requests = [
            address_request(ip_interface((address.packed, address.max_prefixlen)), index, delete=gone)
            for (index, address), gone in todo
        ]
        failed = self._netlink.batch(requests)
        failures: dict[str, str] = {}
        for number, error in failed.items():
            (index, address), gone = todo[number]
            if not gone:
                failures[f"{address} on {workloads[index]}"] = str(error)
        return failures

    def close(self) -> None:
        self._netlink.close()


def _wanted(settings: SpeakerSettings, workloads: Mapping[int, str]) -> set[Place]:
    peers = {(peer.interface, peer.address.version) for peer in settings.peers if peer.kind is PeerKind.LOCAL_WORKLOAD}
    return {
        (index, address)
        for index, name in workloads.items()
        for address in settings.local_peering
        if (name, address.version) in peers
    }


def _place(address: Address) -> Place:
    return address.index, address.interface.ip


def _ours(address: Address) -> bool:
    """IPv4's 169.254.0.0/16 is where such addresses are mostly taken from; IPv6's link-local ones the kernel makes."""
    interface = address.interface
    whole = interface.network.prefixlen == interface.max_prefixlen
    return whole and not (interface.version == 6 and interface.ip.is_link_local)
