"""A pretend node in network namespaces, whose pods' traffic the compiled ruleset decides.

    pod a ─ cali-a ┐
    pod b ─ cali-b ┤
    srv   ─ cali-s ┼─ node ─ eth0 ─ out
    rogue ─ cali-x ┘   (no endpoint is ever made for cali-x)

Pods have one IPv4 and one IPv6 address and a default route by a link-local gateway, as Calico's pods have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from libs.netlink.socket import NetlinkSocket
from libs.nftables.kernel import KernelTransport
from libs.nftables.reconcile import Applied, TableReconciler
from libs.policy.output import (
    Action,
    IPSet,
    IPSetType,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from libs.testkit.processes import Probe
from libs.testkit.reach import Flow, Protocol, Verdict, check
from libs.testkit.topology import Namespace, remove
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder

PODS = {"a": 1, "b": 2, "s": 3, "x": 9}
TCP, UDP = (80, 81, 8000, 8005, 8010, 8080, 9000), (53, 8080)
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
ALLOW_ALL = Profile(inbound=(Rule(action=Action.ALLOW),), outbound=(Rule(action=Action.ALLOW),))
IP_TOS, IP_RECVTOS, IPV6_RECVTCLASS, IPV6_TCLASS = 1, 13, 66, 67  # linux/in.h, linux/in6.h
NETLINK_NETFILTER, CT_DELETE = 12, 0x0102  # linux/netfilter/nfnetlink_conntrack.h; with no attributes: flush
Question = tuple[str, str, int, Protocol]  # from, to, port, protocol


FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def address(name: str, version: int) -> str:
    if name == "out":
        return OUT[version]
    if name == "node":
        return NODE[version]
    return f"10.77.0.{PODS[name]}" if version == 4 else f"fd77::{PODS[name]}"


class Lab:
    def __init__(self) -> None:
        tag = f"cr{os.getpid() % 10000}{secrets.token_hex(2)}"
        self.spaces = {name: Namespace(f"{tag}-{name}") for name in (*PODS, "node", "out")}
        self._probes: list[Probe] = []
        self._transport: KernelTransport | None = None
        self.builder = RulesetBuilder()
        self.workloads: dict[WorkloadKey, Workload] = {}
        self.tables: tuple[TableReconciler, TableReconciler]
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        for space in self.spaces.values():
            space.create()
        node = self.spaces["node"]
        node.sysctl({"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1, "ipv6.conf.default.accept_dad": 0})
        self.spaces["out"].sysctl({"ipv6.conf.default.accept_dad": 0})
        for name in PODS:
            self._plug(name)
        out = self.spaces["out"]
        node.ip(
            [
                f"link add eth0 type veth peer name eth0 netns {out.name}",
                f"addr add {NODE[4]}/24 dev eth0",
                f"addr add {NODE[6]}/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {OUT[4]}",  # proxy ARP answers only for what has a route
            ]
        )
        out.ip(
            [
                f"addr add {OUT[4]}/24 dev eth0",
                f"addr add {OUT[6]}/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add 10.77.0.0/24 via {NODE[4]}",
                f"route add fd77::/64 via {NODE[6]}",
            ]
        )
        for name in ("a", "b", "s", "node", "out"):
            self._probes.append(Probe(name, self.spaces[name], TCP, UDP))
        self._transport = KernelTransport(node.path)

    def _plug(self, name: str) -> None:
        node, pod = self.spaces["node"], self.spaces[name]
        node.ip(
            [
                f"link add cali-{name} type veth peer name eth0 netns {pod.name}",
                f"link set cali-{name} addrgenmode none",
                f"addr add fe80::1/64 dev cali-{name} nodad",
                f"link set cali-{name} up",
                f"route add {address(name, 4)}/32 dev cali-{name}",
                f"route add {address(name, 6)}/128 dev cali-{name}",
            ]
        )
        node.sysctl({f"ipv4/conf/cali-{name}/proxy_arp": 1, f"ipv4/neigh/cali-{name}/proxy_delay": 0})
        pod.sysctl({"ipv6.conf.all.accept_dad": 0, "ipv6.conf.default.accept_dad": 0})
        pod.ip(
            [
                f"addr add {address(name, 4)}/32 dev eth0",
                f"addr add {address(name, 6)}/128 dev eth0 nodad",
                "link set eth0 up",
                "route add 169.254.1.1 dev eth0",
                "route add default via 169.254.1.1 dev eth0",
                "route add ::/0 via fe80::1 dev eth0",
            ]
        )

    def stop(self) -> None:
        for probe in self._probes:
            probe.stop()
        if self._transport is not None:
            self._transport.close()
        remove(list(self.spaces.values()))
        self._loop.close()

    def fresh(self, options: RulesetOptions | None = None, *, ipvs: bool = False) -> RulesetBuilder:
        """Start from nothing, as a new process: what the kernel still has from before must go at the next apply().
        ipvs: as on a host where kube-proxy uses it.
        """
        assert self._transport is not None
        with NetlinkSocket(NETLINK_NETFILTER, self.spaces["node"].path) as channel:
            channel.request(CT_DELETE, 0, b"\0\0\0\0", "all connections")  # else an old flow's ping is "established"
        self.builder = RulesetBuilder(options)
        self.builder.set_ipvs(ipvs)
        table4, table6 = (TableReconciler(self._transport, table) for table in RulesetBuilder.tables())
        table4.in_sync = table6.in_sync = True
        self.tables = (table4, table6)
        self.workloads = {}
        self.builder.set_profile("open", ALLOW_ALL)
        return self.builder

    def pod(self, name: str, *tiers: Tier, profiles: tuple[str, ...] = ("open",), **more: object) -> None:
        workload = Workload(
            name=f"cali-{name}",
            profiles=profiles,
            nets4=(f"{address(name, 4)}/32",),
            nets6=(f"{address(name, 6)}/128",),
            tiers=tiers,
            **more,  # type: ignore[arg-type]
        )
        key = WorkloadKey("k8s", f"ns1/{name}", "eth0")
        self.workloads[key] = workload
        self.builder.set_workload(key, workload)

    def pods(self) -> None:
        """a, b and s, open to everybody by their profile."""
        for name in ("a", "b", "s"):
            self.pod(name)

    def apply(self) -> list[Applied]:
        self.builder.apply_to(*(table.desired for table in self.tables))
        return [self._loop.run_until_complete(table.step()) for table in self.tables]

    def flow(self, question: Question, version: int, source: str | None = None) -> Flow:
        sender, target, port, protocol = question
        to = ip_address(address(target, version))
        return Flow(self.spaces[sender].path, to, port, protocol, ip_address(source) if source else None)

    def ask(
        self, questions: Sequence[Question], version: int = 4, wanted: Sequence[Verdict] | None = None
    ) -> list[Verdict]:
        return check([self.flow(question, version) for question in questions], timeout_s=0.6, tries=2, wanted=wanted)

    def expect(self, wanted: Mapping[Question, bool], versions: Sequence[int] = (4, 6)) -> None:
        """Every flow gets through, or meets silence, in both families."""
        for version in versions:
            want = {question: Verdict.ALLOW if allowed else Verdict.DENY for question, allowed in wanted.items()}
            got = dict(zip(want, self.ask(list(want), version, list(want.values())), strict=True))
            assert got == want, f"IPv{version}: {[(q, str(v)) for q, v in got.items() if v != want[q]]}"

    def udp(self, where: str, version: int) -> socket.socket:
        """Bound to the place's address, and to a port of its own: what it sends is a new flow."""
        sock = self.spaces[where].socket(FAMILIES[version], socket.SOCK_DGRAM)
        sock.bind((address(where, version), 0))
        return sock

    def reach(
        self, sender: str, to: str, port: int, *, protocol: Protocol = "tcp", timeout_s: float = 0.6,
        wanted: bool | None = None,
    ) -> bool:  # fmt: skip
        """Whether it gets through to an address that is none of the lab's own; wanted: as of `check`."""
        flow = Flow(self.spaces[sender].path, ip_address(to), port, protocol, None)
        hoped = None if wanted is None else [Verdict.ALLOW if wanted else Verdict.DENY]
        return check([flow], timeout_s=timeout_s, tries=2, wanted=hoped) == [Verdict.ALLOW]

    def conntrack(self) -> str:
        """All entries of the node, in both families."""
        command = ["ip", "netns", "exec", self.spaces["node"].name, "conntrack", "-L", "-f"]
        return "".join(
            subprocess.run([*command, family], capture_output=True, text=True, check=True).stdout
            for family in ("ipv4", "ipv6")
        )

    def nft(self, *arguments: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.spaces["node"].name, "nft", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def counted(self, comment: str, family: str = "ip") -> int:
        """Packets that the rules with this comment have counted."""
        total = 0
        for line in self.nft("list", "table", family, "calico").splitlines():
            if f'comment "{comment}"' in line:
                total += int(line.partition("counter packets ")[2].split()[0])
        return total


def tell_tos(sock: socket.socket, version: int) -> None:
    """From now on the datagrams of a socket come with their TOS or traffic class."""
    level, option = (socket.SOL_IP, IP_RECVTOS) if version == 4 else (socket.IPPROTO_IPV6, IPV6_RECVTCLASS)
    sock.setsockopt(level, option, 1)


def received_tos(sock: socket.socket) -> int:
    """Of the next datagram."""
    _, ancillary, _, _ = sock.recvmsg(64, 64)
    (data,) = [data for _, kind, data in ancillary if kind in (IP_TOS, IPV6_TCLASS)]
    return data[0]


def hosts_of(*names: str) -> IPSet:
    """An IP set of the addresses of pods."""
    members = {f"{address(n, 4)}/32" for n in names} | {f"{address(n, 6)}/128" for n in names}
    return IPSet(IPSetType.NET, frozenset(members))


def tcp(*ports: int, action: Action = Action.ALLOW, **more: object) -> Rule:
    """A rule about these destination ports of TCP."""
    ranges = tuple(PortRange(port, port) for port in ports)
    return Rule(action=action, protocol="tcp", dst_ports=ranges, **more)  # type: ignore[arg-type]


def np(name: str) -> PolicyKey:
    return PolicyKey("NetworkPolicy", name, "ns1")


def gnp(name: str) -> PolicyKey:
    return PolicyKey("GlobalNetworkPolicy", name)


@contextlib.contextmanager
def running_lab():  # type: ignore[no-untyped-def]
    lab = Lab()
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
