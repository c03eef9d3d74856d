"""The network under routers: one Ethernet, a namespace for each router, both address families, all of it removed."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self, TypeVar

from libs.netlink.codec import split_messages
from libs.netlink.monitor import ROUTES
from libs.netlink.routes import RTM_DELROUTE, decode_route
from libs.netlink.socket import NETLINK_ADD_MEMBERSHIP, NETLINK_ROUTE, SOL_NETLINK, NetlinkSocket
from libs.testkit.routers.model import Family, Router
from libs.testkit.routers.peer import Peer
from libs.testkit.topology import Namespace, remove

P = TypeVar("P", bound=Peer)


class Site:
    """A place on the Ethernet: a namespace with eth0. number: the last octet of its addresses."""

    def __init__(self, name: str, number: int, space: Namespace) -> None:
        self.name = name
        self.number = number
        self.space = space
        self.ipv4 = f"10.9.0.{number}"
        self.ipv6 = f"fd09::{number:x}"
        self.link_local = f"fe80::9:{number:x}"

    def address(self, family: Family) -> str:
        return self.ipv6 if family == "ipv6" else self.ipv4


class LostRoutes:
    """Routes that a namespace loses from now on, be it for a millisecond."""

    def __init__(self, space: Namespace) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, space.path)
        for group in ROUTES:
            self._netlink.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._netlink.socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def seen(self) -> list[str]:
        """Their destinations, in order, since the last call."""
        found: list[str] = []
        while True:
            try:
                data = self._netlink.socket.recv(1 << 16)
            except BlockingIOError:
                return found
            found += [str(decode_route(body).dst) for kind, *_, body in split_messages(data) if kind == RTM_DELROUTE]


class Lab:
    """Sites on one bridge. `with Lab() as lab:`; whatever was started in it ends with it, its files too."""

    def __init__(self) -> None:
        self._id = f"{os.getpid():x}-{uuid.uuid4().hex[:6]}"
        self.directory = Path(mkdtemp(prefix="interop-"))
        self._lan = Namespace(f"io-{self._id}-lan")
        self._numbers = itertools.count(1)
        self.sites: dict[str, Site] = {}
        self.peers: list[Peer] = []
        self._same: dict[str, str] = {}
        self._spaces: list[Namespace] = []

    def __enter__(self) -> Self:
        self._make(self._lan)
        # Groups are not learned, so that IPv6 neighbour discovery is never kept from a port.
        self._lan.ip(["link add lan type bridge mcast_snooping 0", "link set lan up"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self, space: Namespace) -> None:
        space.create()
        self._spaces.append(space)

    def site(self, name: str) -> Site:
        """The site of that name, made when it is new."""
        if name in self.sites:
            return self.sites[name]
        site = Site(name, next(self._numbers), Namespace(f"io-{self._id}-{name}"))
        self._make(site.space)
        site.space.sysctl(
            {
                "ipv6.conf.all.accept_dad": 0,
                "ipv6.conf.default.accept_dad": 0,
                "ipv4.ip_forward": 1,
                "ipv6.conf.all.forwarding": 1,
                "ipv4.fib_multipath_hash_policy": 1,
            }
        )
        port = f"p{site.number}"
        self._lan.ip(
            [f"link add {port} type veth peer name eth0 netns {site.space.name}", f"link set {port} master lan up"]
        )
        site.space.ip(
            [
                "link set eth0 addrgenmode none",
                f"addr add {site.ipv4}/24 dev eth0",
                f"addr add {site.ipv6}/64 dev eth0 nodad",
                f"addr add {site.link_local}/64 dev eth0 nodad",
                "link set eth0 up",
            ]
        )
        self.sites[name] = site
        self._same[site.link_local] = site.ipv6
        return site

    def host(self, name: str, router: Site, number: int) -> Site:
        """A pod-like host behind a router: 10.8.`number`.2 by way of 10.8.`number`.1, fd08:`number`::2 by ::1."""
        space = Namespace(f"io-{self._id}-{name}")
        self._make(space)
        space.sysctl({"ipv6.conf.default.accept_dad": 0})
        router.space.ip(
            [
                f"link add h{number} type veth peer name eth0 netns {space.name}",
                f"addr add 10.8.{number}.1/24 dev h{number}",
                f"addr add fd08:{number}::1/64 dev h{number} nodad",
                f"link set h{number} up",
            ]
        )
        space.ip(
            [
                f"addr add 10.8.{number}.2/24 dev eth0",
                f"addr add fd08:{number}::2/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via 10.8.{number}.1",
                f"route add default via fd08:{number}::1",
            ]
        )
        site = Site(name, number, space)
        site.ipv4, site.ipv6 = f"10.8.{number}.2", f"fd08:{number}::2"
        return site

    def pod(self, name: str, router: Site, number: int, address: str, gateway: str) -> Site:
        """As Calico connects one: interface `cali<number>` with the local peering address, a route to the pod alone."""
        space = Namespace(f"io-{self._id}-{name}")
        self._make(space)
        router.space.ip(
            [
                f"link add cali{number} type veth peer name eth0 netns {space.name}",
                f"addr add {gateway}/32 dev cali{number}",
                f"link set cali{number} up",
                f"route add {address}/32 dev cali{number} proto 80",
            ]
        )
        space.ip(
            [
                f"addr add {address}/32 dev eth0",
                "link set eth0 up",
                f"route add {gateway} dev eth0 scope link",
                f"route add default via {gateway} dev eth0",
            ]
        )
        site = Site(name, number, space)
        site.ipv4 = address
        return site

    def add(self, kind: type[P], name: str, router: Router, *, start: bool = True) -> P:
        """A daemon at a site, started. Its addresses are the site's when it names none."""
        site = self.site(name)
        if not router.addresses:
            router = replace(router, addresses=(site.ipv4, site.ipv6))
        peer = kind(name, site.space, router, self.directory / name)
        peer.same_as = self._same
        self.peers.append(peer)
        if start:
            peer.start()
        return peer

    def told(self) -> str:
        """The logs and configurations of all daemons, for a test that failed."""
        parts = []
        for peer in self.peers:
            who = f"--- {peer.daemon} {peer.name}"
            files = [path for kind in ("*.conf", "*.json") for path in sorted(peer.directory.glob(kind))]
            parts += [f"{who}: {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in files]
            parts.append(f"{who}: log\n{peer.log_tail()}")
        return "\n".join(parts)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        remove(self._spaces)
        shutil.rmtree(self.directory, ignore_errors=True)
