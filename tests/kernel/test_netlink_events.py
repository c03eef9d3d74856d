"""What the kernel tells about changes, neighbours, and connections that are to be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from libs.netlink.addresses import Address
from libs.netlink.conntrack import delete_connections
from libs.netlink.links import Link
from libs.netlink.monitor import ADDRESSES, LINKS, ROUTES, RULES, Changed, Event, events
from libs.netlink.neighbours import Neighbour, delete_neighbours, list_neighbours, replace_neighbours
from libs.netlink.routes import Route, device_route, put_request
from libs.netlink.rules import RuleInto
from libs.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from libs.nftables.kernel import ForeignChanges, KernelTransport
from libs.nftables.model import Base, Chain, DataType, Family, Hook, Set, Table
from libs.nftables.reconcile import TableReconciler
from libs.testkit import netns

pytestmark = pytest.mark.kernel
DEADLINE_S = 10


@pytest.fixture
def ns() -> Iterator[netns.Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("ev") as made:
        made.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        yield made


def _index(ns: netns.Namespace, name: str) -> int:
    return int(ns.run("ip", "-o", "link", "show", name).split(":", 1)[0])


async def test_link_address_and_route_changes_are_reported(ns: netns.Namespace) -> None:
    seen: list[Event] = []
    v0 = _index(ns, "v0")

    def has(kind: type, text: str, gone: bool) -> bool:
        return any(
            isinstance(e, Changed) and isinstance(e.object, kind) and e.gone is gone and text in str(e.object)
            for e in seen
        )

    async with events((*LINKS, *ADDRESSES, *ROUTES), ns.path) as stream:
        ns.run("ip", "link", "set", "v0", "up")
        ns.run("ip", "addr", "add", "10.0.0.1/24", "dev", "v0")
        with NetlinkSocket(NETLINK_ROUTE, ns.path) as netlink:
            netlink.request(*put_request(device_route(ip_network("10.9.0.0/24"), v0)))
        ns.run("ip", "link", "del", "v0")
        async with asyncio.timeout(DEADLINE_S):
            async for event in stream:
                seen.append(event)
                if has(Link, "'v0'", True):
                    break
    assert has(Link, "up=True", False)
    assert has(Address, "10.0.0.1/24", False)
    assert has(Address, "10.0.0.1/24", True)
    assert has(Route, "10.9.0.0/24", False)


@pytest.mark.parametrize("family", ["-4", "-6"])
async def test_rules_are_reported_with_the_table_that_they_lead_to(ns: netns.Namespace, family: str) -> None:
    seen: list[Event] = []
    async with events(RULES, ns.path) as stream:
        for command in (("add", "lookup", "1000"), ("add", "prohibit"), ("del", "lookup", "1000")):
            ns.run("ip", family, "rule", command[0], "fwmark", "0x4", *command[1:], "priority", "77")
        async with asyncio.timeout(DEADLINE_S):
            async for event in stream:
                seen.append(event)
                if len(seen) == 3:
                    break
    assert seen == [
        Changed(RuleInto(1000), gone=False), Changed(RuleInto(0), gone=False), Changed(RuleInto(1000), gone=True),
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("proxy", [False, True])
def test_permanent_and_proxy_neighbours_come_and_go(ns: netns.Namespace, address: str, proxy: bool) -> None:
    ns.run("ip", "link", "set", "v0", "up")
    with NetlinkSocket(NETLINK_ROUTE, ns.path) as netlink:
        v0 = _index(ns, "v0")
        mac = "" if proxy else "02:00:00:00:00:01"
        entry = Neighbour(ip_address(address), v0, mac, permanent=not proxy, proxy=proxy)
        assert replace_neighbours(netlink, [entry, entry]) == {}
        found = [e for e in list_neighbours(netlink, v0, proxy=proxy) if e.address == entry.address]
        assert [(e.mac, e.proxy) for e in found] == [(mac, proxy)]
        assert delete_neighbours(netlink, [entry, entry]) == {}
        assert entry.address not in {e.address for e in list_neighbours(netlink, v0, proxy=proxy)}


def test_connections_of_one_address_are_forgotten_and_no_others(ns: netns.Namespace) -> None:
    def entry(source: str, destination: str, reply_source: str | None = None) -> None:
        ns.run(
            "conntrack", "-I", "-p", "udp", "-s", source, "-d", destination, "--sport", "1000", "--dport", "53",
            "-r", reply_source or destination, "-q", source, "--reply-port-src", "53", "--reply-port-dst", "1000",
            "-t", "100",
        )  # fmt: skip

    entry("10.0.0.1", "192.0.2.1")  # opened by the pod
    entry("192.0.2.2", "10.0.0.1")  # opened to the pod
    entry("192.0.2.3", "203.0.113.1", "10.0.0.1")  # opened to a service, sent to the pod
    entry("10.0.0.2", "192.0.2.1")
    entry("fd00::1", "2001:db8::1")
    with NetlinkSocket(NETLINK_NETFILTER, ns.path) as netlink:
        assert delete_connections(netlink, ip_address("10.0.0.1")) == 3
        assert delete_connections(netlink, ip_address("10.0.0.1")) == 0
        left = ns.run("conntrack", "-L") + ns.run("conntrack", "-L", "-f", "ipv6")
        assert "10.0.0.1" not in left
        assert "10.0.0.2" in left
        assert delete_connections(netlink, ip_address("fd00::1")) == 1


async def test_foreign_edits_are_reported_and_our_own_are_not(ns: netns.Namespace) -> None:
    table = Table(Family.IP, "cal")
    seen: asyncio.Queue[Table | None] = asyncio.Queue()
    transport = KernelTransport(ns.path)
    changes = ForeignChanges(seen.put_nowait, transport.sync.port, ns.path)
    changes.start()
    try:
        reconciler = TableReconciler(transport, table)
        reconciler.in_sync = True
        reconciler.desired.set_chain(Chain("in", (), Base(Hook.INPUT)))
        reconciler.desired.put_set(Set("s", (DataType.IPV4,), frozenset({"10.0.0.1"})))
        await reconciler.step()
        ns.run("nft", "add", "table", "ip6", "other")
        async with asyncio.timeout(DEADLINE_S):
            assert await seen.get() == Table(Family.IP6, "other")  # nothing of ours came before it
        ns.run("nft", "add", "element", "ip", "cal", "s", "{ 10.0.0.2 }")
        async with asyncio.timeout(DEADLINE_S):
            assert await seen.get() == table
        reconciler.resync()
        assert (await reconciler.step()).changed_elements == 1
    finally:
        changes.stop()
        transport.close()
