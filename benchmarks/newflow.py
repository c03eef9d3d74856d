"""What a packet pays for policy: the first of a flow, a later one, a whole short connection; by number of policies.

One thread pinned to one core, client pod to server pod on one node. Over veth the whole path, from the client's socket
through the node's hooks into the server's queue, runs inside the send call: time per call is path cost, without
scheduling. The smallest of many short bursts counts; every burst counts what arrived. Rows of one run compare:
no rules at all, conntrack alone, our ruleset without policies, with policies that do not concern the server, with those
that do: as plain lists (what the same compiler writes without skip blocks) and as it is. The server's last policy is
the one that allows the client; all others ask for twenty addresses each. `mixed`: every fourth policy is one of Deny
with a port range, Log, Pass from a source that is not the client, several ports, a negated set, networks; every
fiftieth asks for no source.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address

from benchmarks.common import Row, machine, parser, percentile, report
from libs.nftables.kernel import KernelTransport
from libs.nftables.reconcile import TableReconciler
from libs.policy.output import (
    Action,
    IPSet,
    IPSetType,
    Policy,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from libs.testkit.netns import Namespace, call_in, namespace
from libs.testkit.packets import internet_checksum
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder

PORT = 8080
CLIENT, SERVER = "caliclient", "caliserver"
ADDRESS = {
    4: {CLIENT: "10.65.0.1", SERVER: "10.65.0.2", "gateway": "169.254.1.1"},
    6: {CLIENT: "fd65::1", SERVER: "fd65::2", "gateway": "fe80::1"},
}
BURST = 200
PATIENCE_S = 1.5  # for one figure; then the smallest so far counts, of at least FEWEST
FEWEST = 8
_PAYLOAD = b"x" * 32


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint))


_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg


class Batch:
    """Datagrams that one sendmmsg(2) sends: no Python between them."""

    def __init__(self, packets: Sequence[bytes], to: tuple[str, int], version: int) -> None:
        self._buffers = [ctypes.create_string_buffer(packet, len(packet)) for packet in packets]
        host = ip_address(to[0]).packed
        raw = (
            struct.pack("=HH4s8x", socket.AF_INET, socket.htons(to[1]), host)
            if version == 4
            else struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(to[1]), 0, host, 0)
        )
        self._address = ctypes.create_string_buffer(raw, len(raw))
        self._vectors = (_Iovec * len(packets))()
        self._messages = (_Mmsghdr * len(packets))()
        for at, buffer in enumerate(self._buffers):
            self._vectors[at] = _Iovec(ctypes.addressof(buffer), len(buffer))
            header = self._messages[at].hdr
            header.name, header.namelen = ctypes.addressof(self._address), len(raw)
            header.iov, header.iovlen = ctypes.pointer(self._vectors[at]), 1

    def send(self, fd: int) -> float:
        """Microseconds per packet. Raises OSError when not all were taken."""
        count = len(self._buffers)
        started = time.perf_counter_ns()
        done = _sendmmsg(fd, self._messages, count, 0)
        spent = time.perf_counter_ns() - started
        if done != count:
            raise OSError(ctypes.get_errno(), f"sendmmsg took {done} of {count}")
        return spent / count / 1e3


def datagram(version: int, sport: int) -> bytes:
    """A UDP packet of the client with its IP header (IPv4: the kernel fills in the checksum). No UDP checksum."""
    src, dst = (ip_address(ADDRESS[version][name]).packed for name in (CLIENT, SERVER))
    length = 8 + len(_PAYLOAD)
    udp = struct.pack("!HHHH", sport, PORT, length, 0) + _PAYLOAD
    if version == 4:
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 17, 0, src, dst) + udp
    return struct.pack("!IHBB16s16s", 6 << 28, length, 17, 64, src, dst) + _checksummed(udp, src, dst)


def _checksummed(udp: bytes, src: bytes, dst: bytes) -> bytes:
    total = internet_checksum(src + dst + struct.pack("!IxxxB", len(udp), 17) + udp)
    return udp[:6] + struct.pack("!H", total or 0xFFFF) + udp[8:]


def _mac(space: Namespace, link: str) -> str:
    return str(json.loads(space.run("ip", "-j", "link", "show", link))[0]["address"])


class Node:
    """Two pods on a node; the sockets that measure stay in the pods' namespaces whatever the rules."""

    def __init__(self, stack: ExitStack) -> None:
        self.space = stack.enter_context(namespace("bench"))
        self.pods = {name: stack.enter_context(namespace("bench")) for name in (CLIENT, SERVER)}
        for name, pod in self.pods.items():
            self._attach(name, pod)
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            self.space.run("sysctl", "-qw", setting)
        self.received = {version: stack.enter_context(self._receiver(version)) for version in (4, 6)}
        self.raw = {version: stack.enter_context(self._raw(version)) for version in (4, 6)}
        self._loop = asyncio.new_event_loop()
        stack.callback(self._loop.close)
        self._stack = stack
        new = {version: [datagram(version, 10_000 + at) for at in range(BURST)] for version in (4, 6)}
        self._batches = {version: Batch(new[version], (ADDRESS[version][SERVER], 0), version) for version in (4, 6)}
        self._one = {
            version: Batch([datagram(version, 9_999)] * BURST, (ADDRESS[version][SERVER], 0), version)
            for version in (4, 6)
        }

    def _attach(self, name: str, pod: Namespace) -> None:
        self.space.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        self.space.run("ip", "link", "set", name, "up")
        pod.run("ip", "link", "set", "eth0", "up")
        mac, pod_mac = _mac(self.space, name), _mac(pod, "eth0")
        for version, length in ((4, 32), (6, 128)):
            own, gateway = ADDRESS[version][name], ADDRESS[version]["gateway"]
            family = f"-{version}"
            dad = ["nodad"] if version == 6 else []
            pod.run("ip", family, "addr", "add", f"{own}/{length}", "dev", "eth0", *dad)
            pod.run("ip", family, "neigh", "replace", gateway, "lladdr", mac, "dev", "eth0", "nud", "permanent")
            pod.run("ip", family, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
            self.space.run("ip", family, "route", "add", f"{own}/{length}", "dev", name)
            self.space.run("ip", family, "neigh", "replace", own, "lladdr", pod_mac, "dev", name, "nud", "permanent")

    def _receiver(self, version: int) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: a burst fits
            made.bind((ADDRESS[version][SERVER], PORT))
            made.setblocking(False)
            return made

        return call_in(self.pods[SERVER], make)

    def _raw(self, version: int) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = call_in(self.pods[CLIENT], lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
        if version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        made.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE
        return made

    def nft(self, text: str) -> None:
        self.space.run("nft", "-f", "-", text=text)

    @contextmanager
    def ruleset(self, fill: Callable[[RulesetBuilder], None], *, skip_blocks: bool = True) -> Iterator[None]:
        """The compiler's tables in the kernel, while inside."""
        with closing(KernelTransport(self.space.path)) as transport:
            builder = RulesetBuilder(RulesetOptions(skip_blocks=skip_blocks))
            tables = [TableReconciler(transport, table) for table in RulesetBuilder.tables()]
            for table in tables:
                table.in_sync = True
            fill(builder)
            builder.apply_to(tables[0].desired, tables[1].desired)
            for table in tables:
                self._loop.run_until_complete(table.step())
            try:
                yield
            finally:
                self.nft("flush ruleset")

    def forget_flows(self) -> None:
        subprocess.run(["nsenter", f"--net={self.space.path}", "conntrack", "-F"], check=True, capture_output=True)

    def drain(self, version: int) -> int:
        count = 0
        while True:
            try:
                self.received[version].recv(64)
            except BlockingIOError:
                return count
            count += 1

    def new_flows(self, version: int, bursts: int, arrives: bool) -> float:
        """Microseconds for the first packet of a flow, at best."""
        best, until = float("inf"), time.monotonic() + PATIENCE_S
        for at in range(bursts):
            if at >= FEWEST and time.monotonic() > until:
                break
            self.forget_flows()
            spent = self._batches[version].send(self.raw[version].fileno())
            got = self.drain(version)
            if got != (BURST if arrives else 0):
                raise RuntimeError(f"{got} of {BURST} arrived, IPv{version}")
            best = min(best, spent)
        return best

    def established(self, version: int, bursts: int) -> float:
        """Microseconds for a packet of a flow that was answered, at best."""
        address = ADDRESS[version]
        first = Batch([datagram(version, 9_999)], (address[SERVER], 0), version)
        first.send(self.raw[version].fileno())
        self.received[version].sendto(b"answer", (address[CLIENT], 9_999))
        self.drain(version)
        best = float("inf")
        for _ in range(bursts):
            best = min(best, self._one[version].send(self.raw[version].fileno()))
            if (got := self.drain(version)) != BURST:
                raise RuntimeError(f"{got} of {BURST} arrived, established, IPv{version}")
        return best

    def connections(self, version: int, count: int) -> tuple[float, float]:
        """Connect, request, answer, reset: median microseconds of all of it, and of request and answer alone."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6

        def listen() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.bind((ADDRESS[version][SERVER], PORT))
            made.listen(64)
            return made

        def run() -> tuple[float, float]:
            whole, asked = [], []
            until = time.monotonic() + PATIENCE_S
            for at in range(count):
                if at >= FEWEST and time.monotonic() > until:
                    break
                started = time.perf_counter_ns()
                with socket.socket(family, socket.SOCK_STREAM) as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.connect((ADDRESS[version][SERVER], PORT))
                    server, _ = listener.accept()
                    with server:
                        connected = time.perf_counter_ns()
                        client.sendall(b"r" * 100)
                        server.recv(100)
                        server.sendall(b"a" * 100)
                        client.recv(100)
                        asked.append((time.perf_counter_ns() - connected) / 1e3)
                        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                whole.append((time.perf_counter_ns() - started) / 1e3)
            return percentile(whole, 0.5), percentile(asked, 0.5)

        with closing(call_in(self.pods[SERVER], listen)) as listener:
            self.forget_flows()
            return call_in(self.pods[CLIENT], run)


def source(number: int) -> tuple[str, frozenset[str]]:
    """Twenty addresses of each family that are nobody's here."""
    members = set()
    for at in range(20):
        index = number * 20 + at
        members.add(f"10.{128 + (index >> 16)}.{index >> 8 & 255}.{index & 255}/32")
        members.add(f"fd80::{index >> 16:x}:{index & 65535:x}/128")
    return f"s:set{number}", frozenset(members)


def policy(number: int, set_id: str, mixed: bool) -> Policy:
    """Allow from the set: TCP to two ports, UDP to one; in a mixture every fourth is something else."""
    tcp = Rule(action=Action.ALLOW, protocol="tcp", src_sets=(set_id,), dst_ports=(PortRange(8080, 8080),))
    udp = Rule(action=Action.ALLOW, protocol="udp", src_sets=(set_id,), dst_ports=(PortRange(8080, 8080),))
    more = Rule(action=Action.ALLOW, protocol="tcp", src_sets=(set_id,), dst_ports=(PortRange(9000, 9000),))
    rules: tuple[Rule, ...] = (tcp, more, udp)
    if mixed and number % 50 == 49:
        rules = (Rule(action=Action.DENY, protocol="tcp", dst_ports=(PortRange(9999, 9999),)),)
    elif mixed and number % 4 == 3:
        rules = (
            (Rule(action=Action.DENY, protocol="udp", src_sets=(set_id,), dst_ports=(PortRange(8000, 9000),)),),
            (Rule(action=Action.LOG, src_sets=(set_id,)), udp),
            (Rule(action=Action.PASS, src_sets=(set_id,)),),
            (Rule(action=Action.ALLOW, protocol="udp", src_sets=(set_id,),
                  dst_ports=tuple(PortRange(port, port) for port in (53, 80, 443, 8080))),),
            (Rule(action=Action.ALLOW, src_sets=(set_id,), not_src_sets=("s:client",)),),
            (Rule(action=Action.DENY, src_nets=(f"172.16.{number >> 2 & 255}.0/24", f"fd99:{number:x}::/32")),),
        )[number // 4 % 6]  # fmt: skip
    return Policy(tier="default", namespace="ns1", inbound=rules)


def fill(
    builder: RulesetBuilder, count: int, *, mixed: bool = False, concerning: bool = True, allow: bool = True
) -> None:
    """`count` policies on the server, or on a third pod; the last one allows the client, when `allow`."""
    open_ = Rule(action=Action.ALLOW)
    builder.set_profile("open", Profile(inbound=(open_,), outbound=(open_,)))
    client = frozenset(f"{ADDRESS[v][CLIENT]}/{32 if v == 4 else 128}" for v in (4, 6))
    if mixed:
        builder.set_ipset("s:client", IPSet(IPSetType.NET, client))
    keys = []
    for number in range(count):
        set_id, members = source(number)
        last = number == count - 1
        if last and allow:
            members |= client
        key = PolicyKey("NetworkPolicy", f"p{number}", "ns1")
        builder.set_ipset(set_id, IPSet(IPSetType.NET, members))
        builder.set_policy(key, policy(number, set_id, mixed and not last))
        keys.append(key)
    tiers = (Tier(name="default", ingress=tuple(keys)),) if keys else ()
    for number, (name, own) in enumerate(((CLIENT, ()), (SERVER, tiers if concerning else ()), ("calithird", tiers))):
        builder.set_workload(
            WorkloadKey("k8s", f"ns1/{name}", "eth0"),
            Workload(
                name=name,
                profiles=("open",),
                nets4=(f"{ADDRESS[4].get(name, f'10.65.0.{number + 1}')}/32",),
                nets6=(f"{ADDRESS[6].get(name, f'fd65::{number + 1}')}/128",),
                tiers=own,
            ),
        )


CONNTRACK = """table {0} count {{
  chain c {{ type filter hook forward priority 0; policy accept;
    ct state established,related accept
  }}
}}
"""


class Measure:
    def __init__(self, node: Node, bursts: int, connections: int) -> None:
        self.node, self.bursts, self.connections = node, bursts, connections

    def row(self, what: str, policies: int | str, *, arrives: bool = True) -> Row:
        row: Row = {"what": what, "policies": policies}
        for version in (4, 6):
            row[f"new{version}_us"] = round(self.node.new_flows(version, self.bursts, arrives), 2)
            if arrives:
                row[f"est{version}_us"] = round(self.node.established(version, self.bursts), 2)
        if arrives:
            whole, asked = self.node.connections(4, self.connections)
            row |= {"tcp_us": round(whole, 1), "conn_per_s": round(1e6 / whole), "request_us": round(asked, 1)}
        return row


def better(one: Row, other: Row) -> Row:
    """The smaller times of two rounds."""
    out = dict(one)
    for key, value in one.items():
        again = other[key]
        if isinstance(value, float | int) and isinstance(again, float | int):
            out[key] = max(value, again) if key == "conn_per_s" else min(value, again)
    return out


def measure(counts: Sequence[int], flat_up_to: int, bursts: int, connections: int, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        node = Node(stack)
        rows: list[Row] = []
        for round_ in range(rounds):
            found = [*_round(node, Measure(node, bursts, connections), counts, flat_up_to)]
            rows = found if not round_ else [better(a, b) for a, b in zip(rows, found, strict=True)]
        return rows


def _round(node: Node, measured: Measure, counts: Sequence[int], flat_up_to: int) -> Iterator[Row]:
    yield measured.row("no rules", "")
    node.nft(CONNTRACK.format("ip") + CONNTRACK.format("ip6"))
    yield measured.row("conntrack and one rule", "")
    node.nft("flush ruleset")
    with node.ruleset(lambda builder: fill(builder, 0)):
        yield measured.row("ours, no policy", 0)
    for count in counts:
        with node.ruleset(lambda builder, n=count: fill(builder, n, concerning=False)):  # type: ignore[misc]
            yield measured.row("of other pods", count)
        if count <= flat_up_to:
            with node.ruleset(lambda builder, n=count: fill(builder, n), skip_blocks=False):  # type: ignore[misc]
                yield measured.row("plain list", count)
        with node.ruleset(lambda builder, n=count: fill(builder, n)):  # type: ignore[misc]
            yield measured.row("skip blocks", count)
        with node.ruleset(lambda builder, n=count: fill(builder, n, mixed=True)):  # type: ignore[misc]
            yield measured.row("skip blocks, mixed", count)
        with node.ruleset(lambda builder, n=count: fill(builder, n, allow=False)):  # type: ignore[misc]
            yield measured.row("skip blocks, none allows", count, arrives=False)


def main() -> None:
    options = parser(__doc__).parse_args()
    described = machine()
    shape = ((10, 100), 100, 5, 50, 1) if options.quick else ((10, 100, 1000, 5000), 5000, 60, 1000, 2)
    report("The first packet of a flow, and a later one", measure(*shape), options.json, described)


if __name__ == "__main__":
    main()
