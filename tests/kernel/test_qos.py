"""Limits and marks of workloads, met by real packets, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

import pytest

from libs.netlink.netns import in_netns
from libs.policy.output import Host, NodeInfo, Pool, Qos
from tests.kernel.ruleset_lab import FAMILIES, NODE, OUT, Lab, address, received_tos, tell_tos

pytestmark = pytest.mark.kernel


@pytest.fixture(params=[False, True], ids=["plain", "ipvs"])
def lab(built: Lab, request: pytest.FixtureRequest) -> Lab:
    """ipvs: with the ruleset of a host where kube-proxy uses IPVS; what no service concerns is limited the same way."""
    built.fresh(ipvs=request.param)
    built.pods()
    return built


def received(sock: socket.socket) -> int:
    """Packets that wait in the socket now."""
    sock.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(64):
            count += 1
    return count


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inbound", [True, False], ids=["ingress", "egress"])
def test_packet_rate_holds_for_new_and_established_packets(lab, version, inbound):
    rate, burst = 200, 20
    qos = (
        Qos(ingress_packet_rate=rate, ingress_packet_burst=burst)
        if inbound
        else Qos(egress_packet_rate=rate, egress_packet_burst=burst)
    )
    lab.pod("s" if inbound else "a", qos=qos)
    lab.apply()
    sender, receiver = lab.udp("a", version), lab.udp("s", version)
    with sender, receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        to = receiver.getsockname()
        started = time.monotonic()
        sent: list[float] = []
        while (now := time.monotonic()) - started < 1.5 or len(sent) <= 4 * rate:
            if len(sent) < (now - started) * 2000:
                sender.sendto(b"x", to)
                sent.append(now)
        got = received(receiver)
    allowed = through(sent, rate, burst)
    assert 0.9 * allowed <= got <= 1.1 * allowed, (len(sent), got, allowed)


def through(sent: Sequence[float], rate: float, burst: float) -> int:
    """How many of the packets sent at these times (s) a limit lets through: one that had to wait for a processor has
    lost what it could have sent meanwhile, beyond the burst.
    """
    passed, left, before = 0, burst, sent[0]
    for now in sent:
        left = min(burst, left + (now - before) * rate)
        before = now
        if left >= 1:
            left -= 1
            passed += 1
    return passed


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inbound", [True, False], ids=["ingress", "egress"])
def test_connection_beyond_the_limit_is_reset_and_the_others_go_on(lab, version, inbound):
    lab.pod("s" if inbound else "a", qos=Qos(ingress_max_connections=2) if inbound else Qos(egress_max_connections=2))
    lab.apply()

    def connect(sender: str = "a") -> socket.socket:
        with in_netns(lab.spaces[sender].path):
            sock = socket.socket(FAMILIES[version], socket.SOCK_STREAM)
        sock.settimeout(20)
        try:
            sock.connect((address("s", version), 80))
        except OSError:
            sock.close()
            raise
        return sock

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connect())
        stack.enter_context(connect())
        with pytest.raises(ConnectionRefusedError):
            connect()
        stack.enter_context(connect("node"))  # the host itself is never limited
        assert first.getpeername()[1] == 80
    lab.pod("s")
    lab.pod("a")
    lab.apply()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect())


def tos(lab: Lab, source: str, where: str, version: int) -> int:
    """Of a packet that arrives."""
    with in_netns(lab.spaces[where].path):
        server = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
    with server, lab.udp(source, version) as sender:
        tell_tos(server, version)
        server.bind((OUT[version] if where == "out" else address(where, version), 0))
        server.settimeout(20)
        sender.sendto(b"x", server.getsockname())
        return received_tos(server)


@pytest.mark.parametrize("version", [4, 6])
def test_dscp_of_a_host_endpoint_marks_what_the_host_itself_sends_out(lab, version):
    for cidr in ("10.77.0.0/24", "fd77::/64"):
        lab.builder.set_pool(cidr, Pool(cidr=cidr))

    def seen() -> tuple[int, int, int]:
        return tos(lab, "node", "out", version), tos(lab, "node", "s", version), tos(lab, "a", "out", version)

    expected = Host(expected4=(NODE[4],), expected6=(NODE[6],), profiles=("open",), dscp=46)
    addresses = {"eth0": frozenset((NODE[4], NODE[6])), "lo": frozenset(("127.0.0.1",))}
    by_name = Host(name="eth0", profiles=("open",), dscp=10)
    everywhere = Host(name="*", profiles=("open",), dscp=12)
    for host, value in ((expected, 46), (by_name, 10), (everywhere, 12), (Host(name="eth0", profiles=("open",)), 0)):
        lab.builder.set_host("h", host)
        assert lab.builder.expects_addresses is (value != 0)
        lab.builder.set_host_addresses(addresses)
        lab.apply()
        assert seen() == (value << 2, 0, 0)
    # An interface with an endpoint of its own leaves `*`, and its mark with it.
    lab.builder.set_host("all", everywhere)
    lab.builder.set_host_addresses(addresses)
    lab.apply()
    assert seen() == (0, 0, 0)
    lab.builder.set_host("h", None)
    lab.apply()
    assert seen() == (12 << 2, 0, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_dscp_marks_what_leaves_the_cluster_only(lab, version):
    lab.builder.set_pool("10.77.0.0/24", Pool(cidr="10.77.0.0/24"))
    lab.builder.set_pool("fd77::/64", Pool(cidr="fd77::/64"))
    lab.pod("a", qos=Qos(dscp=46))
    lab.apply()

    def tos_at(where: str) -> int:
        return tos(lab, "a", where, version)

    assert tos_at("out") == 46 << 2
    assert tos_at("s") == 0
    lab.builder.set_node("peer", NodeInfo(ipv4=f"{OUT[4]}/24", ipv6=f"{OUT[6]}/64"))
    lab.apply()
    assert tos_at("out") == 0, "nodes are inside the cluster"
    lab.builder.set_node("peer", None)
    lab.apply()
    assert tos_at("out") == 46 << 2


def test_hooks_of_limits_exist_only_while_a_workload_needs_them_and_a_restart_rewrites_nothing(lab):
    lab.apply()
    empty = {family: lab.nft("-s", "list", "table", family, "calico") for family in ("ip", "ip6")}
    full = Qos(ingress_packet_rate=10, egress_packet_rate=20, egress_max_connections=5, dscp=10)
    lab.pod("a", qos=full)
    lab.apply()
    with_limits = {family: lab.nft("-s", "list", "table", family, "calico") for family in ("ip", "ip6")}
    assert all("hook-qos-input" in text and "hook-dscp" in text for text in with_limits.values())
    lab.fresh(ipvs=lab.builder.ipvs)
    lab.pods()
    lab.pod("a", qos=full)
    assert [(done.changed_rules, done.changed_elements) for done in lab.apply()] == [(0, 0), (0, 0)]
    lab.pod("a")
    lab.apply()
    assert {family: lab.nft("-s", "list", "table", family, "calico") for family in ("ip", "ip6")} == empty
