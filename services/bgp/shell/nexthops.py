"""Next hops as the kernel's own routes lead to them: asked when first seen, asked again when something changed there.

Routes of ours do not count: a next hop that is reached by one would hang on itself, and a route that covers its own
next hop would come and go for ever. Where the kernel would take one, the best of the others' routes decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from libs.netlink.links import list_links
from libs.netlink.routes import PROTOCOL_BGP, UNICAST, NextHop, Route, list_routes, lookup
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from services.bgp.core.paths import IPAddress
from services.bgp.core.rib.fib import Hop
from services.bgp.core.rib.path import NextHopState

UNREACHABLE = NextHopState(reachable=False)
TUNNEL = "tunl0"

log = logging.getLogger(__name__)


class NextHops:
    """Lookups are one short request each, made where they are needed, on the event loop's thread."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self.names: dict[int, str] = {}
        self.by_gateway: frozenset[bytes] = frozenset()  # peers to whom a route of ours leads because settings say so
        self.tunnel_moved = False  # it came, went, or is another one now: for the owner, who sets it back
        self._tunnel: int | None = None
        self._known: dict[bytes, tuple[NextHopState, NextHop | None]] = {}
        self._others: list[Route] = []  # all routes but ours, as listed when one was needed
        self._others_listed = False  # since the last `look_again`
        self.links_changed()
        self.tunnel_moved = False

    def link_changed(self, index: int, name: str) -> None:
        """As the kernel tells it. name: empty when the link is gone."""
        if name:
            self.names[index] = name
        else:
            self.names.pop(index, None)
        if name == TUNNEL or index == self._tunnel:
            self._find_tunnel()

    def links_changed(self) -> None:
        """Events may have been missed: list them all."""
        self.names = {link.index: link.name for link in list_links(self._netlink)}
        self._find_tunnel()

    def _find_tunnel(self) -> None:
        before = self._tunnel
        self._tunnel = next((index for index, name in self.names.items() if name == TUNNEL), None)
        self.tunnel_moved |= self._tunnel != before

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
        self._others_listed = False
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
        if route is not None and route.protocol == PROTOCOL_BGP and packed not in self.by_gateway:
            route = self._without_ours(address)
        if route is None or route.type != UNICAST or not route.hops:
            return UNREACHABLE, None
        way = route.hops[0]
        state = NextHopState(True, route.metric, self.names.get(way.oif, ""))
        return state, NextHop(way.oif, way.gateway or address, onlink=way.onlink)

    def _without_ours(self, address: IPAddress) -> Route | None:
        """The route that would be taken if there were none of protocol 81: the longest, of these the first by
        metric."""
        if not self._others_listed:
            try:
                self._others = list_routes(self._netlink, without=(PROTOCOL_BGP,))
            except OSError as error:  # it changes all the time: what was listed before is nearly right
                log.warning("routes not listed", extra={"error": str(error)})
            self._others_listed = True
        covering = [one for one in self._others if one.dst.version == address.version and address in one.dst]
        return max(covering, key=lambda one: (one.dst.prefixlen, -one.metric), default=None)

    def close(self) -> None:
        self._netlink.close()


_address = lru_cache(maxsize=4096)(ip_address)
