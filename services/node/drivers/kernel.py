"""What uninstalling and taking over ask of the kernel: routes, rules, interfaces and nftables tables, in the calling
thread's network namespace. Blocking; all is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import Self

from libs.netlink.addresses import address_request, list_addresses
from libs.netlink.codec import NetlinkError
from libs.netlink.links import Link, delete_link, list_links, set_link
from libs.netlink.routes import PROTOCOL_BGP, PROTOCOL_FELIX, TABLE_MAIN, Route, delete_routes, list_all_routes, slices
from libs.netlink.rules import MarkRule, list_mark_rules, mark_rule_request
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.nftables.kernel import KernelRuleset
from libs.nftables.model import Family, Table
from libs.nftables.ops import DelTable
from services.node.core.leftovers import TUNL, WIREGUARD_TABLE, IPInterface, tunnel_addresses

XTABLES = ("raw", "mangle", "nat", "filter")


class HostKernel:
    """`with HostKernel() as kernel`. Raises OSError."""

    def __init__(self) -> None:
        self._route = NetlinkSocket(NETLINK_ROUTE)
        self._nft = KernelRuleset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()
        self._nft.close()

    # --- nftables

    def tables(self, wanted: Collection[tuple[str, str]]) -> list[Table]:
        have = self._nft.tables()
        return [table for table in (Table(Family(f), name) for f, name in wanted) if table in have]

    def drop_table(self, table: Table) -> None:
        self._nft.commit(table, [DelTable()])

    def iptables_chains(self, ours: Callable[[str], bool]) -> list[str]:
        """Tables in which iptables-nft has chains of ours, and how many."""
        have = [one for one in self._nft.tables() if one.family in (Family.IP, Family.IP6) and one.name in XTABLES]
        counts = {table: sum(map(ours, self._nft.chains(table))) for table in have}
        return [f"{count} in {table}" for table, count in counts.items() if count]

    # --- routes and rules

    def routes(self) -> list[Route]:
        """Of all tables."""
        return list_all_routes(self._route)

    def our_routes(self) -> list[Route]:
        return [route for route in self.routes() if route.protocol in (PROTOCOL_FELIX, PROTOCOL_BGP)]

    def drop_routes(self, routes: Collection[Route]) -> None:
        """Raises NetlinkError for the first that the kernel keeps."""
        for protocol in sorted({route.protocol for route in routes}):
            for some in slices([route.key for route in routes if route.protocol == protocol]):
                failed = delete_routes(self._route, some, protocol)
                if failed:
                    raise next(iter(failed.values()))

    def wireguard_rules(self, routes: Collection[Route]) -> list[MarkRule]:
        """routes: ours. Those outside of the main table tell which tables WireGuard has (`routeTableRanges`)."""
        tables = {WIREGUARD_TABLE, *(route.table for route in routes if route.table != TABLE_MAIN)}
        found = [rule for version in (4, 6) for rule in list_mark_rules(self._route, tables, version)]
        return [rule for rule in found if rule.negate and rule.mark == rule.mask]

    def drop_rules(self, rules: Collection[MarkRule]) -> None:
        self._route.batch([mark_rule_request(rule, delete=True) for rule in rules])

    # --- interfaces

    def links(self, ours: Callable[[str], bool]) -> list[Link]:
        return [link for link in list_links(self._route) if ours(link.name)]

    def names(self) -> dict[int, str]:
        return {link.index: link.name for link in list_links(self._route)}

    def drop_link(self, link: Link) -> None:
        delete_link(self._route, link.index)

    def tunnel(self) -> tuple[Link, list[IPInterface], list[IPInterface]] | None:
        """tunl0 with the addresses on it that are ours, and those of others. None: there is none, or it is as the
        kernel made it.
        """
        link = next(iter(self.links(TUNL.__eq__)), None)
        if link is None:
            return None
        addresses = [one.interface for one in list_addresses(self._route, link.index)]
        addresses = [one for one in addresses if not one.is_link_local]
        if not link.up and not addresses:
            return None
        ours = tunnel_addresses(addresses, self.routes(), self.names())
        return link, ours, [one for one in addresses if one not in ours]

    def drop_tunnel_addresses(self, link: Link, addresses: Collection[IPInterface]) -> None:
        for error in self._route.batch([address_request(one, link.index, delete=True) for one in addresses]).values():
            raise error

    def drop_tunnel(self, link: Link, addresses: Collection[IPInterface]) -> None:
        """One that the kernel made cannot be removed: it is left down and without addresses."""
        with suppress(NetlinkError):
            delete_link(self._route, link.index)
        if any(one.index == link.index for one in list_links(self._route)):
            self.drop_tunnel_addresses(link, addresses)
            set_link(self._route, link.index, up=False)
