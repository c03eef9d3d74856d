"""TCP as BGP wants it: GTSM in both directions of connecting, passwords that count or keep the door shut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from libs.netlink.netns import in_netns
from libs.testkit import netns
from services.bgp.core.paths import IPAddress
from services.bgp.shell import transport
from services.bgp.shell.listener import Listener

pytestmark = pytest.mark.kernel
PAIRS = [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")]


@pytest.fixture
def spaces() -> Iterator[tuple[netns.Namespace, netns.Namespace]]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("bgpa") as here, netns.namespace("bgpb") as there:
        here.run("ip", "link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", there.name)
        for space, name, number in ((here, "va", 1), (there, "vb", 2)):
            space.run("ip", "link", "set", name, "up")
            space.run("ip", "address", "add", f"10.9.0.{number}/24", "dev", name)
            space.run("ip", "address", "add", f"fd00:9::{number}/64", "dev", name, "nodad")
        yield here, there


async def attempt(space: netns.Namespace, peer: IPAddress, port: int, *, wanted: bool = True, **how: object) -> bool:
    """Does a connection come about? Where none is wanted, two seconds are waited."""
    settings = {"source": None, "password": None, "ttl_security": None, **how}
    with in_netns(space.path):
        channel = transport.outgoing(peer, **settings)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(30 if wanted else 2):
            await transport.connect(channel, peer, port)
    except (OSError, TimeoutError):
        return False
    channel.close()
    return True


class Door:
    """A listener in one namespace that lets everybody in."""

    def __init__(self, space: netns.Namespace) -> None:
        self.space = space
        self.came: list[IPAddress] = []
        self.listener = Listener(self._accept)

    def _accept(self, channel: socket.socket, where: IPAddress) -> None:
        self.came.append(where)
        channel.close()

    def open(self, address: str, passwords: dict[str, bytes] | None = None) -> None:
        keys = {ip_address(peer): password for peer, password in (passwords or {}).items()}
        with in_netns(self.space.path):
            self.listener.configure((ip_address(address),), 1179, keys)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
async def test_answer_to_a_syn_passes_gtsm(
    spaces: tuple[netns.Namespace, netns.Namespace], ours: str, theirs: str
) -> None:
    here, there = spaces
    door = Door(here)
    door.open(ours)
    try:
        assert await attempt(there, ip_address(ours), 1179, ttl_security=1)
    finally:
        door.listener.close()


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
async def test_password_is_checked_by_the_kernel(
    spaces: tuple[netns.Namespace, netns.Namespace], ours: str, theirs: str
) -> None:
    here, there = spaces
    door, peer = Door(here), ip_address(theirs)
    door.open(ours, {theirs: b"right"})
    try:
        assert door.listener.failures == {}
        assert door.listener.signs(peer, b"right")
        assert not door.listener.signs(peer, b"other")
        assert await attempt(there, ip_address(ours), 1179, password=b"right")
        assert not await attempt(there, ip_address(ours), 1179, wanted=False, password=b"wrong")
        assert not await attempt(there, ip_address(ours), 1179, wanted=False)
        door.open(ours, {theirs: b"changed"})
        assert await attempt(there, ip_address(ours), 1179, password=b"changed")
        door.open(ours)
        assert await attempt(there, ip_address(ours), 1179)
    finally:
        door.listener.close()


def test_password_that_the_kernel_does_not_take_is_not_counted_as_set(
    spaces: tuple[netns.Namespace, netns.Namespace],
) -> None:
    async def run() -> None:
        door = Door(spaces[0])
        door.open("10.9.0.1", {"10.9.0.2": b"x" * 100})
        try:
            assert "1 to 80 octets" in door.listener.failures["10.9.0.2"]
            assert not door.listener.signs(IPv4Address("10.9.0.2"), b"x" * 100)
            assert door.listener.signs(IPv6Address("fd00::1"), b"any")  # no socket that it could reach
        finally:
            door.listener.close()

    asyncio.run(run())


async def test_address_in_use_is_reported_and_taken_when_it_is_free(
    spaces: tuple[netns.Namespace, netns.Namespace],
) -> None:
    here, there = spaces
    with in_netns(here.path):
        other = transport.listening(ip_address("10.9.0.1"), 1179)
    door = Door(here)
    door.open("10.9.0.1")
    try:
        assert "cannot listen" in door.listener.failures["10.9.0.1 port 1179"]
        other.close()
        door.open("10.9.0.1")
        assert door.listener.failures == {}
        assert await attempt(there, ip_address("10.9.0.1"), 1179)
    finally:
        door.listener.close()
