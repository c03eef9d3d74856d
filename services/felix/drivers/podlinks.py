"""The veth pairs of this node's pods, for the CNI plugin. Everything is raw netlink and takes about a millisecond."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from libs.netlink.netns import NamespaceError
from libs.netlink.podlink import HOST_MAC, PodLinkError, PodVeth, check_veth, setup_veth, teardown_veth
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.routing import Address

__all__ = ["HOST_MAC", "KernelPodLinks", "random_mac"]


def random_mac() -> str:
    """A locally administered unicast MAC (IEEE 802: second least significant bit of the first octet set, least not)."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


class KernelPodLinks:
    def connect(
        self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str, mtu_bytes: int
    ) -> None:
        pod = PodVeth(host, netns, addresses, ifname, mtu_bytes=mtu_bytes, container_mac=mac)
        with _translated(), NetlinkSocket(NETLINK_ROUTE) as netlink:
            setup_veth(netlink, pod)

    def check(self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str) -> list[str]:
        pod = PodVeth(host, netns, addresses, ifname, container_mac=mac or None)
        try:
            with NetlinkSocket(NETLINK_ROUTE) as netlink:
                return check_veth(netlink, pod)
        except (NamespaceError, PodLinkError) as error:
            return [str(error)]

    def remove(self, host: str, netns: str, ifname: str) -> None:
        with _translated(), NetlinkSocket(NETLINK_ROUTE) as netlink:
            teardown_veth(netlink, netns or None, host, ifname)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except NamespaceError as error:
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS: {error.strerror or error}") from error
    except PodLinkError as error:
        raise CniError(Code.IO_FAILURE, str(error)) from error
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"kernel: {error}") from error
