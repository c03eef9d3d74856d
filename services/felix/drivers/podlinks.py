"""The devices of this node's pods, for the CNI plugin. Everything is raw netlink and takes about a millisecond."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from libs.netlink.links import get_link
from libs.netlink.netns import NamespaceError
from libs.netlink.podlink import PodLinkError, PodVeth, check_veth, setup_veth, teardown_veth
from libs.netlink.remover import LinkRemover
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.felix.core.cni.errors import CniError, Code


def random_mac() -> str:
    """A locally administered unicast MAC (IEEE 802: second least significant bit of the first octet set, least not)."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


class KernelPodLinks:
    def __init__(self) -> None:
        self._remover = LinkRemover()

    async def close(self) -> None:
        await self._remover.close()

    def connect(self, pod: PodVeth) -> None:
        with _translated(), NetlinkSocket(NETLINK_ROUTE) as netlink:
            setup_veth(netlink, pod)

    def check(self, pod: PodVeth) -> list[str]:
        try:
            with NetlinkSocket(NETLINK_ROUTE) as netlink:
                return check_veth(netlink, pod)
        except (OSError, PodLinkError) as error:
            return [str(error)]

    def mtu_bytes(self, host: str) -> int:
        with _translated(), NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, host)
        return link.mtu_bytes if link is not None else 0

    async def remove(self, host: str, netns: str, ifname: str) -> None:
        def rest() -> None:  # what has another name on the host, and rules
            with NetlinkSocket(NETLINK_ROUTE) as netlink:
                teardown_veth(netlink, netns or None, host, ifname)

        with _translated():
            await self._remover.remove(host)
            await in_thread(rest)


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


async def in_thread(work: Callable[[], None]) -> None:
    """Run what blocks. When cancelled, end only once it has: nobody else may touch the interface before."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
