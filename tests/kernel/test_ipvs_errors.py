"""ICMP errors about packets to services, where kube-proxy uses IPVS: they come to whom they concern, translated as the
packets are, and open nothing (rows S01, S07).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from libs.policy.output import Action, Host
from libs.testkit.packets import ICMP, ICMPV6, UDP, Packet, datagram, internet_checksum, tag_of
from libs.testkit.patience import patient
from libs.testkit.sniff import Seen, Sniffer, parse_ip
from services.felix.core.options import RulesetOptions
from tests.kernel.ipvs_lab import (
    ALLOW,
    BACKEND,
    BEHIND,
    CLOSED,
    DENY,
    EMPTY,
    NAMES,
    OF_BEHIND,
    SERVICE,
    VIP,
    Services,
    policy,
    udp,
)
from tests.kernel.ruleset_lab import FAMILIES, Lab, address, tcp

pytestmark = [pytest.mark.kernel, pytest.mark.stock_kernel, pytest.mark.xdist_group("kernel-ipvs")]

each_family = pytest.mark.parametrize("version", [4, 6])
DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
HOPS_AND_ERRORS = {  # IP_TTL and IP_RECVERR, IPV6_UNICAST_HOPS and IPV6_RECVERR
    4: ((socket.IPPROTO_IP, 2), (socket.IPPROTO_IP, 11)),
    6: ((socket.IPPROTO_IPV6, 16), (socket.IPPROTO_IPV6, 25)),
}
PROBE = 3  # IP_PMTUDISC_PROBE: never fragment, and ask anew each time
NARROW_BYTES, BIG_BYTES = 1300, 1400  # IPv6 has no link below 1280
UNREACHABLE = {4: (ICMP, 3, 3), 6: (ICMPV6, 1, 4)}  # protocol, type, code: nobody listens on the port
SILENCE_S, ANSWER_S = 0.6, patient(2.0)


@pytest.fixture(scope="module", autouse=True)
def surroundings(each_ipvs: Services) -> Iterator[None]:
    """As many errors as there are reasons, and BEHIND the host outside, over a link that takes less than the others."""
    lab = each_ipvs.lab
    for name in ("node", "out", "s"):
        lab.spaces[name].sysctl({"ipv4.icmp_ratelimit": 0, "ipv6.icmp.ratelimit": 0})
    out, node = lab.spaces["out"], lab.spaces["node"]
    out.sysctl({"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1})
    out.ip(
        [
            f"link add narrow mtu {NARROW_BYTES} type dummy",
            "link set narrow up",
            f"route add {BEHIND[4]}/32 dev narrow",
            f"route add {BEHIND[6]}/128 dev narrow",
        ]
    )
    node.ip([f"route add {BEHIND[6]}/128 via {address('out', 6)}"])
    yield
    node.ip([f"route del {BEHIND[6]}/128"])
    out.ip(["link del narrow"])


@contextlib.contextmanager
def narrow_pod(lab: Lab, *, both_ends: bool = False) -> Iterator[None]:
    """The link to pod s takes less. both_ends: it knows, but says nothing of it when a connection is opened."""
    node, pod = lab.spaces["node"], lab.spaces["s"]
    ways = ("route change default via 169.254.1.1 dev eth0", "route change ::/0 via fe80::1 dev eth0")
    node.ip([f"link set cali-s mtu {NARROW_BYTES}"])
    try:
        if both_ends:
            pod.ip([f"link set eth0 mtu {NARROW_BYTES}", *(f"{way} advmss {BIG_BYTES}" for way in ways)])
        yield
    finally:
        node.ip(["link set cali-s mtu 1500"])
        pod.ip(["link set eth0 mtu 1500", *ways])


@contextlib.contextmanager
def client(lab: Lab, where: str, version: int, port: int) -> Iterator[socket.socket]:
    """A UDP socket that talks to the service and hears of errors."""
    with lab.spaces[where].socket(FAMILIES[version], socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*DISCOVER[version], PROBE)
        sock.connect((VIP[version], port))
        yield sock


def answer(sock: socket.socket, size: int, timeout_s: float) -> int | None:
    """What a datagram of this size meets: 0 for an answer, an error's number, None for silence."""
    for _ in range(2):
        sock.settimeout(timeout_s)
        try:
            sock.send(bytes(size))
            sock.recv(2048)
        except TimeoutError:
            continue
        except OSError as error:
            return error.errno
        return 0
    return None


def met(lab: Lab, where: str, version: int, port: int, *, size: int = 1, timeout_s: float = ANSWER_S) -> int | None:
    with client(lab, where, version, port) as sock:
        return answer(sock, size, timeout_s)


def forwarding_closed(lab: Lab) -> Host:
    """Lets in what is for pods, and nothing out that is new."""
    return Host(name="eth0", forward_tiers=policy(lab, "forward", (ALLOW,), (DENY,)))


@each_family
def test_a_backend_that_does_not_listen_is_heard_whatever_it_may_send(services: Services, version: int) -> None:
    lab = services.lab
    lab.pod("s", *policy(lab, "asked", (udp(CLOSED),), (DENY,)))
    lab.pod("a", *policy(lab, "asks", (DENY,), (udp(CLOSED),)))
    lab.builder.set_host("h", forwarding_closed(lab))
    lab.apply()
    got = {where: met(lab, where, version, CLOSED) for where in ("a", "out", "node")}
    assert got == dict.fromkeys(got, errno.ECONNREFUSED)


@each_family
def test_who_may_not_ask_hears_no_error(services: Services, version: int) -> None:
    lab = services.lab
    closed = udp(CLOSED, action=Action.DENY)
    lab.pod("s", *policy(lab, "asked", (closed, ALLOW)))
    lab.apply()
    for where in ("a", "out"):
        assert met(lab, where, version, CLOSED, timeout_s=SILENCE_S) is None, where
        assert met(lab, where, version, NAMES) == 0, where
    lab.pod("s")
    lab.pod("a", *policy(lab, "asks", (), (closed, ALLOW)))
    lab.builder.set_host("h", Host(name="eth0", forward_tiers=policy(lab, "forward", (closed, ALLOW), (ALLOW,))))
    lab.apply()
    for where in ("a", "out"):
        assert met(lab, where, version, CLOSED, timeout_s=SILENCE_S) is None, where
        assert met(lab, where, version, NAMES) == 0, where
    assert met(lab, "b", version, CLOSED) == errno.ECONNREFUSED


@each_family
def test_who_sends_too_much_for_the_pods_link_is_told(services: Services, version: int) -> None:
    """IPVS itself tells, in the host's name; the kernel makes what it says a part of the flow that it is about."""
    lab = services.lab
    lab.pod("s", *policy(lab, "asked", (udp(NAMES),), (DENY,)))
    lab.pod("a", *policy(lab, "asks", (DENY,), (udp(NAMES),)))
    for host in (None, forwarding_closed(lab), Host(name="*", forward_tiers=policy(lab, "all", (ALLOW,), (ALLOW,)))):
        lab.builder.set_host("h", host)
        lab.apply()
        with narrow_pod(lab):
            for where in ("a", "out", "node"):
                assert met(lab, where, version, NAMES, size=BIG_BYTES) == errno.EMSGSIZE, (where, host)
                assert met(lab, where, version, NAMES) == 0, (where, host)


@each_family
def test_who_sends_too_much_for_a_link_behind_another_router_is_told(services: Services, version: int) -> None:
    lab = services.lab
    lab.pod("a", *policy(lab, "asks", (DENY,), (udp(BACKEND),)))
    lab.pod("b", *policy(lab, "asks-service", (ALLOW,), (udp(OF_BEHIND),)))
    closed = policy(lab, "forward", (DENY,), (udp(BACKEND),))
    lab.builder.set_host("h", Host(name="eth0", forward_tiers=closed))
    lab.apply()
    assert met(lab, "a", version, OF_BEHIND, size=BIG_BYTES) == errno.EMSGSIZE
    assert met(lab, "b", version, OF_BEHIND, size=BIG_BYTES, timeout_s=SILENCE_S) is None


@each_family
def test_who_asks_a_service_without_pods_or_from_too_far_is_told(services: Services, version: int) -> None:
    lab = services.lab
    lab.pod("a", *policy(lab, "asks", (DENY,), (ALLOW,)))
    lab.builder.set_host("h", forwarding_closed(lab))
    lab.apply()
    for where in ("a", "out"):
        assert met(lab, where, version, EMPTY) == errno.ECONNREFUSED, where
        with client(lab, where, version, NAMES) as sock:
            for option in HOPS_AND_ERRORS[version]:
                sock.setsockopt(*option, 1)
            assert answer(sock, 1, ANSWER_S) == errno.EHOSTUNREACH, where


@pytest.mark.parametrize("segments", [1, 64], ids=["single", "joined"])
@each_family
def test_a_connection_finds_the_size_that_its_way_takes(services: Services, version: int, segments: int) -> None:
    """segments: that the client's interface takes at once; IPVS looks at the size of single packets alone."""
    lab = services.lab
    lab.pod("s", *policy(lab, "asked", (tcp(BACKEND),), (DENY,)))
    lab.builder.set_host("h", forwarding_closed(lab))
    lab.apply()
    for where in ("a", "out"):
        space = lab.spaces[where]
        space.ip([f"link set eth0 gso_max_segs {segments}"])
        forget = ["ip", "-n", space.name, f"-{version}", "route", "flush", "cache"]  # sizes that an earlier test met
        subprocess.run(forget, check=True)
        with narrow_pod(lab, both_ends=True), space.socket(FAMILIES[version], socket.SOCK_STREAM) as sock:
            sock.settimeout(patient(5))
            sock.connect((VIP[version], SERVICE))
            sock.sendall(bytes(8000))
            got = 0
            while got < 8000:
                got += len(sock.recv(65536))


@each_family
def test_an_error_from_the_client_reaches_the_pod_it_talks_to_and_no_other_does(
    services: Services, version: int
) -> None:
    lab = services.lab
    lab.pod("s", *policy(lab, "asked", (udp(NAMES),), (DENY,)))
    lab.pod("a", *policy(lab, "asks", (DENY,), (udp(NAMES),)))
    lab.apply()
    with Sniffer(lab.spaces["s"], "eth0") as wire:
        for where in ("a", "out"):
            with client(lab, where, version, NAMES) as sock:
                assert answer(sock, 1, ANSWER_S) == 0
                port = sock.getsockname()[1]
                complain(lab, where, version, port)
                wanted = (address("s", version), NAMES, address(where, version), port)
                _until_heard(lab, wire, version, wanted)
        for options in (RulesetOptions(), RulesetOptions(check_invalid=False)):
            services.fresh(options)
            lab.pod("s", *policy(lab, "asked", (udp(NAMES, action=Action.DENY), udp(CLOSED))))
            lab.pod("b", *policy(lab, "asks", (), (udp(NAMES),)))
            lab.apply()
            wire.packets()
            for where in ("a", "b", "out"):
                with client(lab, where, version, NAMES) as sock:
                    assert answer(sock, 1, SILENCE_S) is None, "a flow that policy denies, which IPVS knows of"
                    complain(lab, where, version, sock.getsockname()[1])
            last = lab.reach("node", address("s", version), BACKEND, timeout_s=ANSWER_S, wanted=True)
            assert last, "comes after the errors"
            assert complaints(wire.packets(), version) == []


def complain(lab: Lab, where: str, version: int, port: int) -> None:
    """To the service: that this place does not listen on the port to which it answered."""
    protocol, kind, code = UNREACHABLE[version]
    packet = Packet(ip_address(VIP[version]), ip_address(address(where, version)), UDP, NAMES, port)
    body = struct.pack("!BBHI", kind, code, 0, 0) + datagram(packet, tag_of(port))
    if version == 4:  # the other's checksum is the kernel's affair
        body = body[:2] + struct.pack("!H", internet_checksum(body)) + body[4:]
    with lab.spaces[where].socket(FAMILIES[version], socket.SOCK_RAW, protocol) as sock:
        sock.sendto(body, (VIP[version], 0))


def complaints(seen: list[Seen], version: int) -> list[tuple[str, int, str, int]]:
    """Source and target, with ports, of packets to which nobody listened."""
    protocol, kind, code = UNREACHABLE[version]
    found = [parse_ip(one.payload[8:]) for one in seen if (one.protocol, *one.payload[:2]) == (protocol, kind, code)]
    return [(str(one.source), one.source_port, str(one.target), one.target_port) for one in found if one]


def _until_heard(lab: Lab, wire: Sniffer, version: int, wanted: tuple[str, int, str, int]) -> None:
    deadline = time.monotonic() + ANSWER_S
    heard: list[tuple[str, int, str, int]] = []
    while wanted not in heard:
        assert time.monotonic() < deadline, (wanted, heard, lab.conntrack())
        lab.reach("node", address("s", version), BACKEND)
        heard += complaints(wire.packets(), version)
