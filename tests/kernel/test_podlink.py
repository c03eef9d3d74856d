"""A pod's veth pair, in two namespaces: the host's and the container's."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

import pytest

from libs.netlink.addresses import list_addresses
from libs.netlink.links import VethEnd, create_veth, get_link, list_links
from libs.netlink.netns import NamespaceError, in_netns
from libs.netlink.podlink import (
    AddressTaken,
    InterfaceTaken,
    PodLinkError,
    PodPlugged,
    PodVeth,
    check_veth,
    setup_veth,
    teardown_veth,
)
from libs.netlink.routes import list_routes
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket, current_netns_id
from libs.netlink.sysctl import SysctlError, write_sysctl
from libs.testkit import netns

pytestmark = pytest.mark.kernel
R = TypeVar("R")
POD4, POD6 = ip_address("10.65.0.2"), ip_address("fd00:65::2")


@dataclass
class Lab:
    host: netns.Namespace
    container: netns.Namespace

    def pod(self, *addresses: IPv4Address | IPv6Address, name: str = "cali12345678901") -> PodVeth:
        return PodVeth(name, str(self.container.path), addresses or (POD4, POD6))

    def setup(self, pod: PodVeth) -> PodPlugged:
        return self._in_host(lambda netlink: setup_veth(netlink, pod))

    def check(self, pod: PodVeth) -> list[str]:
        return self._in_host(lambda netlink: check_veth(netlink, pod))

    def teardown(self, pod: PodVeth) -> bool:
        return self._in_host(lambda netlink: teardown_veth(netlink, pod.netns, pod.host_name))

    def other_link(self, name: str) -> None:
        """One more interface of the host's, up."""
        self._in_host(lambda netlink: create_veth(netlink, VethEnd(name), VethEnd(f"{name}2")))
        self.host.run("ip", "link", "set", name, "up")

    def host_links(self) -> set[str]:
        return {link.name for link in self._in_host(list_links)} - {"lo"}

    def _in_host(self, function: Callable[[NetlinkSocket], R]) -> R:
        def work() -> R:
            with NetlinkSocket(NETLINK_ROUTE) as netlink:
                return function(netlink)

        return self.host.call(work)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("host") as host, netns.namespace("pod") as container:
        yield Lab(host, container)


@pytest.mark.parametrize("addresses", [(POD4,), (POD6,), (POD4, POD6)], ids=["v4", "v6", "dual"])
def test_pod_is_plugged_in_and_checks_well(lab: Lab, addresses: tuple[IPv4Address | IPv6Address, ...]) -> None:
    plugged = lab.setup(lab.pod(*addresses))
    assert plugged.host_mac == "ee:ee:ee:ee:ee:ee"
    assert lab.check(lab.pod(*addresses)) == []


def uplink(lab: Lab) -> None:
    """The host has 192.0.2.1 and 2001:db8::1, and a way to the rest of the world: only then it answers for it."""
    lab.host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    lab.host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
    lab.host.run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
    for name in ("up0", "up1"):
        lab.host.run("ip", "link", "set", name, "up")
    lab.host.run("ip", "route", "add", "default", "via", "192.0.2.254")


def test_pod_and_host_reach_each_other(lab: Lab) -> None:
    uplink(lab)
    lab.setup(lab.pod())
    lab.container.run("ping", "-c1", "-W20", "192.0.2.1")
    lab.container.run("ping", "-c1", "-W20", "2001:db8::1")
    lab.host.run("ping", "-c1", "-W20", str(POD4))
    lab.host.run("ping", "-c1", "-W20", str(POD6))


def test_container_has_the_routes_of_a_calico_pod(lab: Lab) -> None:
    lab.setup(lab.pod())
    assert "default via 169.254.1.1 dev eth0" in lab.container.run("ip", "route")
    assert "169.254.1.1 dev eth0 scope link" in lab.container.run("ip", "route")
    assert "default via fe80::ecee:eeff:feee:eeee dev eth0" in lab.container.run("ip", "-6", "route")
    assert "fe80::ecee:eeff:feee:eeee/64" in lab.host.run("ip", "-6", "addr", "show", "dev", "cali12345678901")


def test_addresses_are_usable_at_once(lab: Lab) -> None:
    lab.setup(lab.pod())
    assert "tentative" not in lab.container.run("ip", "-6", "addr", "show", "to", f"{POD6}/128")


def test_second_setup_replaces_the_first(lab: Lab) -> None:
    lab.setup(lab.pod())
    lab.setup(lab.pod())
    assert lab.check(lab.pod()) == []
    assert lab.host_links() == {"cali12345678901"}


def test_given_mac_mtu_and_queues_are_used(lab: Lab) -> None:
    pod = replace(lab.pod(), container_mac="02:00:00:00:00:07", mtu_bytes=1410, queues=2)
    assert lab.setup(pod).container_mac == "02:00:00:00:00:07"
    assert lab.check(pod) == []
    shown = lab.container.run("ip", "-d", "link", "show", "eth0")
    assert "mtu 1410" in shown
    assert "numtxqueues 2" in shown


@pytest.mark.parametrize("allowed", [False, True])
def test_forwarding_in_the_container_follows_the_configuration(lab: Lab, allowed: bool) -> None:
    lab.container.run("sysctl", "-qw", f"net.ipv4.ip_forward={int(not allowed)}")
    pod = replace(lab.pod(), allow_ip_forwarding=allowed)
    lab.setup(pod)
    assert lab.check(pod) == []
    assert lab.container.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == str(int(allowed))


def test_disabled_ipv6_in_the_container_is_enabled(lab: Lab) -> None:
    lab.container.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    lab.setup(lab.pod())
    assert lab.check(lab.pod()) == []


def test_teardown_removes_everything_and_can_be_repeated(lab: Lab) -> None:
    pod = lab.pod()
    lab.setup(pod)
    assert lab.teardown(pod)
    assert not lab.teardown(pod)
    assert lab.host_links() == set()
    assert str(POD4) not in lab.host.run("ip", "route")


def test_teardown_without_the_namespace(lab: Lab) -> None:
    pod = lab.pod()
    lab.setup(pod)
    assert lab.teardown(replace(pod, netns="/run/netns/never-was"))
    assert lab.host_links() == set()


def test_bad_namespace_path_is_named_and_nothing_is_made(lab: Lab) -> None:
    with pytest.raises(NamespaceError, match="never-was"):
        lab.setup(replace(lab.pod(), netns="/run/netns/never-was"))
    with pytest.raises(NamespaceError, match="network namespace"):
        lab.setup(replace(lab.pod(), netns="/etc/hostname"))
    assert lab.host_links() == set()


def test_taken_container_interface_is_named_and_stays(lab: Lab) -> None:
    lab.setup(lab.pod())
    with pytest.raises(InterfaceTaken, match="eth0 exists"):
        lab.setup(lab.pod(ip_address("10.65.0.3"), name="caliother"))
    assert lab.host_links() == {"cali12345678901"}
    assert lab.check(lab.pod()) == []


def test_host_interface_that_is_no_veth_is_not_deleted(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "cali12345678901", "type", "bridge")
    with pytest.raises(InterfaceTaken, match="bridge"):
        lab.setup(lab.pod())
    assert lab.host_links() == {"cali12345678901"}


@pytest.mark.parametrize("address", [POD4, POD6])
def test_address_routed_elsewhere_is_an_error_that_names_the_interface(
    lab: Lab, address: IPv4Address | IPv6Address
) -> None:
    lab.other_link("caliold")
    lab.host.run("ip", "route", "add", str(address), "dev", "caliold")
    with pytest.raises(AddressTaken, match="caliold"):
        lab.setup(lab.pod())
    assert lab.host_links() == {"caliold", "caliold2"}


@pytest.mark.parametrize("protocol", ["bird", "81"])
@pytest.mark.parametrize("address", [POD4, POD6])
def test_address_that_bgp_still_places_elsewhere_comes_here(
    lab: Lab, address: IPv4Address | IPv6Address, protocol: str
) -> None:
    """Another node had it, and its withdrawal is on the way, or waits for a graceful restart."""
    lab.other_link("uplink")
    metric = ("metric", "1024")  # of a route to a pod that another node told
    lab.host.run("ip", "route", "add", str(address), "dev", "uplink", "proto", protocol, *metric)
    lab.setup(replace(lab.pod(), route_metrics=(1024, 1024)))
    shown = lab.host.run("ip", f"-{address.version}", "route", "show", str(address))
    assert "uplink" not in shown
    assert "cali" in shown


def test_check_tells_what_is_wrong(lab: Lab) -> None:
    pod = lab.pod()
    lab.setup(pod)
    lab.host.run("ip", "route", "del", str(POD4))
    lab.container.run("ip", "addr", "del", f"{POD6}/128", "dev", "eth0")
    lab.container.run("ip", "route", "del", "default")
    assert lab.check(pod) == [
        f"the host has no route to {POD4} by way of cali12345678901",
        f"container interface eth0 lacks address {POD6}",
        "the container lacks its route to 0.0.0.0/0",
    ]
    lab.host.run("ip", "link", "del", "cali12345678901")
    assert lab.check(pod) == ["host interface cali12345678901 is missing", "container interface eth0 is missing"]


def test_failure_in_the_middle_leaves_nothing_behind(lab: Lab) -> None:
    with pytest.raises(PodLinkError, match="cannot create cali"):
        lab.setup(replace(lab.pod(), mtu_bytes=10))
    assert lab.host_links() == set()


def test_no_file_descriptor_and_no_namespace_is_kept(lab: Lab) -> None:
    def many() -> tuple[int, int, int]:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            gc.collect()  # what other tests left to it
            home, before = current_netns_id(), len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                setup_veth(netlink, lab.pod())
                teardown_veth(netlink, lab.container.path, "cali12345678901")
            assert current_netns_id() == home
            gc.collect()
            return before, len(os.listdir("/proc/self/fd")), home

    before, after, _ = lab.host.call(many)
    assert after <= before  # less where something of other tests closed meanwhile


def test_thread_comes_back_when_the_block_raises(lab: Lab) -> None:
    home = current_netns_id()
    inside: list[int] = []

    def fail() -> None:
        with in_netns(lab.container.path):
            inside.append(current_netns_id())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert current_netns_id() == home
    assert inside != [home]


def test_missing_sysctl_is_named() -> None:
    with pytest.raises(SysctlError, match="net/ipv4/conf/nothere/forwarding"):
        write_sysctl("net/ipv4/conf/nothere/forwarding", 1)


def test_listing_of_links_addresses_and_routes_agrees_with_ip(lab: Lab) -> None:
    plugged = lab.setup(lab.pod())

    def inside() -> None:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, "eth0")
            assert link is not None
            assert (link.index, link.kind, link.up, link.mac) == (
                plugged.container_index,
                "veth",
                True,
                plugged.container_mac,
            )
            assert {a.interface.ip for a in list_addresses(netlink, link.index)} >= {POD4, POD6}
            assert {str(route.dst) for route in list_routes(netlink)} >= {"0.0.0.0/0", "169.254.1.1/32", "::/0"}

    lab.container.call(inside)


# --- further interfaces, other devices, other routes ---


def test_a_further_interface_answers_by_itself_and_leaves_the_first_one_alone(lab: Lab) -> None:
    first = lab.pod()
    lab.setup(first)
    other4, other6 = ip_address("10.66.0.9"), ip_address("fd00:66::9")
    second = replace(
        lab.pod(other4, other6, name="cali00000000002"),
        container_name="net1",
        own_table=True,
        routes=tuple(ip_network(text) for text in ("10.99.0.0/16", "fd00:99::/48", "0.0.0.0/0", "::/0")),
    )
    lab.setup(second)
    uplink(lab)
    for pod in (first, second):
        assert lab.check(pod) == []
        for address in pod.addresses:
            source = "192.0.2.1" if address.version == 4 else "2001:db8::1"
            lab.host.run("ping", "-c1", "-W20", "-I", source, str(address))
    assert "10.99.0.0/16 via 169.254.1.1 dev net1 onlink" in lab.container.run("ip", "route")
    assert "default via 169.254.1.1 dev eth0" in lab.container.run("ip", "route")
    lab.container.run("ip", "rule", "del", "from", str(other4))
    assert lab.check(second) == [f"the container lacks its rule for {other4}/32"]
    lab._in_host(lambda netlink: teardown_veth(netlink, second.netns, second.host_name, "net1"))
    assert "10.66.0.9" not in lab.container.run("ip", "rule")
    assert "fd00:66::9" not in lab.container.run("ip", "-6", "rule")
    assert lab.check(first) == []


def test_own_routes_stand_in_place_of_default_ones(lab: Lab) -> None:
    nets = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    pod = replace(lab.pod(), routes=nets)
    lab.setup(pod)
    assert lab.check(pod) == []
    assert lab.check(lab.pod()) == [f"the container lacks its route to {net}" for net in ("0.0.0.0/0", "::/0")]
    assert "10.0.0.0/8 via 169.254.1.1 dev eth0" in lab.container.run("ip", "route")
    only4 = replace(lab.pod(POD4, name="cali00000000003"), routes=nets)
    lab.teardown(pod)
    lab.setup(only4)
    assert lab.check(only4) == []


def test_netkit_where_there_is_none_is_a_veth_pair(lab: Lab) -> None:
    """And netkit where there is."""
    pod = replace(lab.pod(), device="netkit")
    lab.setup(pod)
    kind = next(link.kind for link in lab._in_host(list_links) if link.name == pod.host_name)
    assert kind in ("veth", "netkit")
    assert lab.check(pod) == []
    lab.setup(pod)  # takes the place of the former, whatever its kind
    assert lab.teardown(pod)
    assert lab.host_links() == set()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("link set {host} address 02:00:00:00:00:07", "host interface {host} has MAC 02:00:00:00:00:07"),
        ("link set {host} mtu 1300", "host interface {host} has MTU 1300, not 1500"),
        ("addr del fe80::ecee:eeff:feee:eeee/64 dev {host}", "lacks address fe80::ecee:eeff:feee:eeee"),
    ],
)
def test_check_looks_at_the_host_end_too(lab: Lab, command: str, problem: str) -> None:
    pod = lab.pod()
    lab.setup(pod)
    lab.host.run("ip", *command.format(host=pod.host_name).split())
    found = lab.check(pod)
    assert len(found) == 1
    assert problem.format(host=pod.host_name) in found[0]


@pytest.mark.parametrize(
    ("whose", "sysctl", "value"),
    [
        ("host", "net/ipv4/conf/cali12345678901/proxy_arp", 0),
        ("host", "net/ipv6/conf/cali12345678901/forwarding", 0),
        ("container", "net/ipv4/ip_forward", 1),
    ],
)
def test_check_looks_at_settings(lab: Lab, whose: str, sysctl: str, value: int) -> None:
    lab.setup(lab.pod())
    space = lab.host if whose == "host" else lab.container
    space.call(lambda: write_sysctl(sysctl, value))
    assert lab.check(lab.pod()) == [f"{whose} setting {sysctl.replace('/', '.')} is {value}, not {1 - value}"]


def test_equal_mtus_are_enough_when_none_is_said(lab: Lab) -> None:
    lab.setup(replace(lab.pod(), mtu_bytes=1400))
    assert lab.check(replace(lab.pod(), mtu_bytes=0)) == []
    lab.container.run("ip", "link", "set", "eth0", "mtu", "1390")
    found = lab.check(replace(lab.pod(), mtu_bytes=0))
    assert found == ["container interface eth0 has MTU 1390, not 1400"]
