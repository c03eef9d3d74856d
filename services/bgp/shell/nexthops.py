"""Next hops as the kernel's own routes lead to them: asked when first seen, asked again when something changed there.

A next hop that is reached by a route of ours does not count: it would hang on itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from libs.netlink.links import list_links
from libs.netlink.routes import PROTOCOL_BGP, UNICAST, NextHop, Route, lookup
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.bgp.core.rib.fib import Hop
from services.bgp.core.rib.path import NextHopState

UNREACHABLE = NextHopState(reachable=False)
TUNNEL = "tunl0"


class NextHops:
    """Lookups are one short request each, made where they are needed, on the event loop's thread."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self.names: dict[int, str] = {}
        self.by_gateway: frozenset[bytes] = frozenset()  # peers to whom a route of ours leads because settings say so
        self._tunnel: int | None = None
        self._known: dict[bytes, tuple[NextHopState, NextHop | None]] = {}
        self.links_changed()

    def links_changed(self) -> None:
        self.names = {link.index: link.name for link in list_links(self._netlink)}
        self._tunnel = next((index for index, name in self.names.items() if name == TUNNEL), None)

    def resolve(self, address: bytes) -> NextHopState:
        """Asks the kernel; what it says stays known until the next `look_again`."""
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._ask(address)
        return found[0]

    def look_again(self, addresses: Iterable[bytes]) -> tuple[dict[bytes, NextHopState], set[bytes]]:
        """Asks for all of these; (states that changed, those to which packets go another way now). Others are
        forgotten."""
        before, self._known = self._known, {}
        states, moved = {}, set()
        for address in addresses:
            self._known[address] = now = self._ask(address)
            old = before.get(address)
            if old is None or old[0] != now[0]:
                states[address] = now[0]
            if old is None or old[1] != now[1]:
                moved.add(address)
        return states, moved

    def kernel_hop(self, hop: Hop) -> NextHop | None:
        """For a route; None while there is no way there."""
        if hop.tunnel:
            return None if self._tunnel is None else NextHop(self._tunnel, _address(hop.address), onlink=True)
        self.resolve(hop.address)
        return self._known[hop.address][1]

    def _ask(self, packed: bytes) -> tuple[NextHopState, NextHop | None]:
        if not packed:
            return UNREACHABLE, None
        address = _address(packed)
        route = lookup(self._netlink, address)
        if route is None or not _leads(route, ours=packed in self.by_gateway):
            return UNREACHABLE, None
        way = route.hops[0]
        state = NextHopState(True, route.metric, self.names.get(way.oif, ""))
        return state, NextHop(way.oif, way.gateway or address, onlink=way.onlink)

    def close(self) -> None:
        self._netlink.close()


def _leads(route: Route, *, ours: bool) -> bool:
    return route.type == UNICAST and bool(route.hops) and (ours or route.protocol != PROTOCOL_BGP)


_address = lru_cache(maxsize=4096)(ip_address)
