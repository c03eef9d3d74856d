"""The third judge: the kernel, with the ruleset that felix compiles, and real packets.

    pod a ─ calia ┐
    …             ┼─ node ─ eth0 ─ out       everything that is not on this node
    pod d ─ calid ┘  here └ eth1 ─ end       where the last packet of a burst comes from and goes to

A pod is the far end of its veth and nothing more: it has no address and answers nothing, so nothing is on the wire but
what a case sends. The node has every neighbour by hand. A packet was let through when its tag is seen at the place it
was sent to.

Waiting: a burst is sent from one CPU, whose queue of received packets is first come, first served, also for a packet
that is forwarded and so goes through it twice. When the last packet of a burst, which no policy concerns, comes out at
`end`, all before it have come out or are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import TypeVar

from libs.netlink.socket import NetlinkSocket
from libs.nftables.kernel import KernelTransport
from libs.nftables.model import Ruleset
from libs.nftables.reconcile import Applied, TableReconciler
from libs.nftables.state import TableState
from libs.policy.changes import NodeView
from libs.testkit import packets
from libs.testkit.packets import Packet
from libs.testkit.topology import Namespace, remove
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder
from tests.judges.draw import NODE_ADDRESS, PODS, own
from tests.judges.shots import HERE, OUT, PROTOCOLS, Shot
from tests.kernel.ruleset_lab import CT_DELETE, NETLINK_NETFILTER

K = TypeVar("K")
V = TypeVar("V")

END = "end"
BURST = 250  # below net.core.netdev_max_backlog, should the CPU's queue ever be served late
DEADLINE_S = 20.0
LAST = Packet(ip_address("192.0.3.2"), ip_address("192.0.3.3"), packets.UDP, 9, 9)
OPTIONS = RulesetOptions(allow_source_spoofing=True, endpoint_to_host="Accept")  # so that policy alone decides
ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE = 0x0003, 263, 23, 33  # linux/if_packet.h, socket.h
RECEIVE_BYTES = 8 << 20


class LostBurst(RuntimeError):
    """The last packet of a burst did not arrive: the lab is broken, and nothing is known about the packets before."""


class KernelJudge:
    def __init__(self, pods: Mapping[str, Mapping[int, str]]) -> None:
        """pods: their addresses, by IP version; a pod's interface is `cali` and its name."""
        self._pods = pods
        self._places = (*pods, OUT, END)
        tag = f"jd{os.getpid() % 10000}{secrets.token_hex(2)}"
        self._spaces = {name: Namespace(f"{tag}-{name}") for name in ("node", *self._places)}
        self._wires: dict[str, socket.socket] = {}
        self._deliveries: list[socket.socket] = []  # of the node itself
        self._outlets: dict[int, socket.socket] = {}  # of the node itself, by IP version
        self._transport: KernelTransport | None = None
        self._loop = asyncio.new_event_loop()
        self._numbers = iter(range(1 << 32))
        self._tables: tuple[TableReconciler, TableReconciler] | None = None
        self._tracks = False

    @property
    def node(self) -> Namespace:
        return self._spaces["node"]

    def start(self) -> None:
        for space in self._spaces.values():
            space.create()
        node = self._spaces["node"]
        node.sysctl(
            {
                "ipv4.ip_forward": 1,
                "ipv4.conf.all.rp_filter": 0,
                "ipv4.conf.default.rp_filter": 0,
                "ipv4.conf.all.send_redirects": 0,
                "ipv4.conf.default.send_redirects": 0,
                "ipv6.conf.all.forwarding": 1,
                "ipv6.conf.default.accept_dad": 0,
            }
        )
        for number, place in enumerate(self._places, 1):
            self._spaces[place].sysctl({"ipv6.conf.all.disable_ipv6": 1, "ipv6.conf.default.disable_ipv6": 1})
            self._plug(place, number)
        node.ip([f"addr add {NODE_ADDRESS[4]}/32 dev eth0", f"addr add {NODE_ADDRESS[6]}/128 dev eth0 nodad"])
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol in (*PROTOCOLS, packets.ICMPV6):
                delivery = node.socket(family, socket.SOCK_RAW, protocol)
                delivery.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
                self._deliveries.append(delivery)
            outlet = node.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._outlets[4 if family == socket.AF_INET else 6] = outlet
        self._transport = KernelTransport(node.path)

    def _plug(self, place: str, number: int) -> None:
        node, far = self._spaces["node"], self._spaces[place]
        link = {OUT: "eth0", END: "eth1"}.get(place, f"cali{place}")
        near_mac, far_mac = mac(number, 1).hex(":"), mac(number, 2).hex(":")
        node.ip(
            [
                f"link add {link} address {near_mac} type veth peer name eth0 address {far_mac} netns {far.name}",
                f"link set {link} addrgenmode none",
                f"link set {link} up",
            ]
        )
        far.ip(["link set eth0 arp off", "link set eth0 up"])
        for version in (4, 6):
            to, gateway = self._routes(place, version)
            bits = 32 if version == 4 else 128
            commands = [
                f"route add {gateway}/{bits} dev {link}",
                f"neigh replace {gateway} lladdr {far_mac} dev {link} nud permanent",
            ]
            if to:
                commands.append(f"route add {to} via {gateway} dev {link} onlink")
            node.ip(commands)
        wire = far.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._wires[place] = wire
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        wire.bind(("eth0", ETH_P_ALL))

    def stop(self) -> None:
        try:
            for one in (*self._wires.values(), *self._deliveries, *self._outlets.values()):
                one.close()
            if self._transport is not None:
                self._transport.close()
            self._loop.close()
        finally:
            remove(list(self._spaces.values()))

    # --- the ruleset ---

    def load(self, view: NodeView) -> RulesetBuilder:
        """What a process that has just started makes of the kernel, whatever is there from before."""
        assert self._transport is not None
        table4, table6 = (TableReconciler(self._transport, table) for table in RulesetBuilder.tables())
        table4.in_sync = table6.in_sync = True
        self._tables = (table4, table6)
        builder = RulesetBuilder(OPTIONS)
        feed(builder, None, view)
        self.apply(builder)
        if not self._tracks:
            # Linux 6.18 sums UDPLite with UDP's number in the pseudo-header, and so takes every right one for invalid.
            # Only now, as the tracker need not be there before the first rule asks for it.
            self.verify_checksums(False)
            self._tracks = True
        return builder

    def apply(self, builder: RulesetBuilder) -> None:
        """Brings the kernel to the builder's state. Raises RuntimeError when the compiler refuses anything."""
        assert self._tables is not None
        builder.apply_to(*(table.desired for table in self._tables))
        for table in self._tables:
            self._loop.run_until_complete(table.step())
        if builder.refused:
            raise RuntimeError(f"the compiler refused: {builder.refused}")

    def desired(self) -> tuple[Ruleset, Ruleset]:
        """What the two tables should hold, as told so far."""
        assert self._tables is not None
        return self._tables[0].desired.ruleset(), self._tables[1].desired.ruleset()

    def check_kernel(self) -> None:
        """Raises AssertionError when the kernel holds anything else than it should."""
        assert self._tables is not None
        for table in self._tables:
            table.resync()
            assert self._loop.run_until_complete(table.step()) == Applied(), "the kernel held something else"

    def verify_checksums(self, on: bool) -> None:
        """Whether the connection tracker takes packets with a wrong checksum for invalid. Only once it is there."""
        self._spaces["node"].sysctl({"netfilter.nf_conntrack_checksum": int(on)})

    # --- packets ---

    def judge(self, shots: Sequence[Shot], on_burst: Callable[[], None] = lambda: None) -> list[bool]:
        """Whether each packet gets to its receiver, all of them as first packets of new flows.

        on_burst: called when some are about to be sent.
        Raises LostBurst; AssertionError for a packet that comes out elsewhere.
        """
        self._forget_flows()
        verdicts: list[bool] = []
        with one_cpu():
            for start in range(0, len(shots), BURST):
                on_burst()
                verdicts += self._burst(shots[start : start + BURST])
        return verdicts

    def _burst(self, shots: Sequence[Shot]) -> list[bool]:
        numbers = [next(self._numbers) for _ in shots]
        for number, shot in zip(numbers, shots, strict=True):
            self._send(shot.packet, shot.sender, number)
        self._await_last()
        seen = {place: set(self._received(self._wires[place])) for place in (*self._pods, OUT)}
        seen[HERE] = {number for delivery in self._deliveries for number in self._received(delivery)}
        for number, shot in zip(numbers, shots, strict=True):
            astray = [place for place, tags in seen.items() if number in tags and place != shot.receiver]
            # The node answers what it is sent, with the tag in the answer.
            assert not astray or shot.receiver == HERE, f"{shot} came out at {astray}"
        return [number in seen[shot.receiver] for number, shot in zip(numbers, shots, strict=True)]

    def _send(self, packet: Packet, place: str, number: int) -> None:
        tag = packets.tag_of(number)
        if place == HERE:
            with contextlib.suppress(PermissionError):  # what a packet that is dropped at once looks like
                self._outlets[packet.version].sendto(packets.datagram(packet, tag), (str(packet.dst), 0))
            return
        end = self._places.index(place) + 1
        self._wires[place].send(packets.frame(packet, tag, mac(end, 1), mac(end, 2)))

    def _await_last(self) -> None:
        last = next(self._numbers)
        self._send(LAST, END, last)
        while select.select([self._wires[END]], [], [], DEADLINE_S)[0]:
            if last in self._received(self._wires[END]):
                return
        raise LostBurst

    @staticmethod
    def _received(wire: socket.socket) -> Iterator[int]:
        with contextlib.suppress(BlockingIOError):
            while True:
                number = packets.read_tag(wire.recv(2048))
                if number is not None:
                    yield number

    def _routes(self, place: str, version: int) -> tuple[str, str]:
        """What the node routes towards a place besides its gateway, and the gateway: a pod is its own."""
        if place in self._pods:
            return "", self._pods[place][version]
        if place == OUT:
            return ("0.0.0.0/0", "192.0.2.2") if version == 4 else ("::/0", "2001:db8::2")
        return "", "192.0.3.3" if version == 4 else "2001:db8:ffff::3"

    def _forget_flows(self) -> None:
        with NetlinkSocket(NETLINK_NETFILTER, self._spaces["node"].path) as channel:
            channel.request(CT_DELETE, 0, b"\0\0\0\0", "all connections")


def mac(number: int, side: int) -> bytes:
    """Of a veth's near (1) or far (2) end; locally administered."""
    return bytes((0x02, 0xCA, 0x11, 0xC0, number, side))


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Keeps this thread on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def feed(builder: RulesetBuilder, old: NodeView | None, new: NodeView) -> None:
    """Tells the builder what is different between two views of its node."""
    before = old or NodeView(workloads={}, hosts={}, policies={}, profiles={}, ipsets={})
    for set_id in {**before.ipsets, **new.ipsets}:
        had, has = before.ipsets.get(set_id), new.ipsets.get(set_id)
        if had is not None and has is not None and had.type is has.type:
            builder.change_ipset(set_id, has.members - had.members, had.members - has.members)
        elif had != has:
            builder.set_ipset(set_id, has)
    _tell(builder.set_policy, before.policies, new.policies)
    _tell(builder.set_profile, before.profiles, new.profiles)
    _tell(builder.set_workload, before.workloads, new.workloads)
    _tell(builder.set_host, before.hosts, new.hosts)


def _tell(setter: Callable[[K, V | None], None], had: Mapping[K, V], has: Mapping[K, V]) -> None:
    for key in {**had, **has}:
        if had.get(key) != has.get(key):
            setter(key, has.get(key))


def compiled(view: NodeView) -> tuple[TableState, TableState]:
    """The two tables that a fresh start makes of a view, without a kernel."""
    table4, table6 = (TableState(table) for table in RulesetBuilder.tables())
    builder = RulesetBuilder(OPTIONS)
    feed(builder, None, view)
    builder.apply_to(table4, table6)
    return table4, table6


@contextlib.contextmanager
def running_judge(pods: Mapping[str, Mapping[int, str]] | None = None) -> Iterator[KernelJudge]:
    """pods: their addresses by IP version; else those that clusters are drawn with."""
    judge = KernelJudge(pods or {pod: {4: own(pod, 4), 6: own(pod, 6)} for pod in PODS})
    try:
        judge.start()
        yield judge
    finally:
        judge.stop()
