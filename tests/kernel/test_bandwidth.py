"""Bandwidth limits of workloads: what the kernel's traffic control holds, and how much gets through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.netlink.links import get_link, link_removal
from libs.netlink.netns import in_netns
from libs.netlink.qdisc import delete_ingress, list_qdiscs
from libs.netlink.socket import NETLINK_ROUTE, SO_SNDBUFFORCE, NetlinkSocket
from libs.policy.output import Qos, Workload, WorkloadKey
from libs.testkit import netns
from services.felix.core.bandwidth import Limit, ifb_name
from services.felix.drivers.bandwidth import BandwidthDriver
from tests.kernel.ruleset_lab import Lab, address

pytestmark = pytest.mark.kernel
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
MEGA = 1_000_000
PAUSE_S = 0.2  # of a busy machine, which bursts and queues make good for
FOREIGN_FILTER = "filter add dev cali-a ingress protocol ip prio 1 u32 match u32 0 0 flowid 1:2"
OTHER = "rate 9mbit burst 9000 limit 90000"


def lacking() -> str:
    """What this kernel refuses of all that a limit needs. By `tc`, so that a mistake of ours is no reason to skip."""
    commands = {
        "ifb": "ip link add bw0 type ifb",
        "tbf": "tc qdisc add dev bw0 root tbf rate 1mbit burst 9000 limit 9000",
        "ingress": "tc qdisc add dev lo ingress",
        "u32 and mirred": "tc filter add dev lo ingress protocol all prio 1 u32 match u32 0 0 "
        "action mirred egress redirect dev bw0",
    }
    with netns.namespace("tc") as space:
        for what, command in commands.items():
            try:
                space.run(*command.split())
            except netns.CommandFailed:
                return what
    return ""


class Node:
    """The pretend node of the lab, without a ruleset: only what `Qos` says stands in the way."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.space = lab.spaces["node"]
        self.workloads: dict[WorkloadKey, Workload] = {}
        self._loop = asyncio.new_event_loop()
        self.driver = BandwidthDriver(("cali-",), netns=self.space.path)
        self.netlink = NetlinkSocket(NETLINK_ROUTE, self.space.path)

    def close(self) -> None:
        self._loop.run_until_complete(self.driver.close())
        self._loop.close()
        self.netlink.close()

    def limit(self, name: str, qos: Qos | None) -> None:
        self.workloads[WorkloadKey("k8s", f"ns1/{name}", "eth0")] = Workload(name=f"cali-{name}", qos=qos)

    def remove(self, name: str) -> None:
        del self.workloads[WorkloadKey("k8s", f"ns1/{name}", "eth0")]

    def apply(self) -> dict[str, str]:
        return self._loop.run_until_complete(self.driver.step(self.workloads))

    def resync(self) -> dict[str, str]:
        self.driver.resync()
        return self.apply()

    def restart(self) -> None:
        """Another process: nothing is known of before."""
        self._loop.run_until_complete(self.driver.close())
        self.driver = BandwidthDriver(("cali-",), netns=self.space.path)

    def tc(self, *arguments: str, check: bool = True) -> str:
        return netns.run(netns.Namespace(self.space.name), ["tc", *arguments], check=check)

    def qdiscs(self) -> list[str]:
        return sorted(line.strip() for line in self.tc("qdisc", "show").splitlines())

    def root(self, device: str) -> dict[str, object]:
        """As `tc -s -j` prints it."""
        found: list[dict[str, object]] = json.loads(self.tc("-s", "-j", "qdisc", "show", "dev", device, "root"))
        return found[0]

    def send(self, kind: int, flags: int, body: bytes) -> None:
        self.netlink.request(kind, flags, body)

    def index(self, device: str) -> int:
        link = get_link(self.netlink, device)
        assert link is not None, device
        return link.index

    def has(self, device: str) -> bool:
        return get_link(self.netlink, device) is not None

    def buckets(self, device: str) -> list[object]:
        index = self.index(device)
        return [one.bucket for one in list_qdiscs(self.netlink) if one.index == index and one.kind == "tbf"]


@pytest.fixture(scope="module")
def able() -> None:
    if what := lacking():
        pytest.skip(f"this kernel has no traffic control for bandwidth limits: {what}")


@pytest.fixture
def node(able: None, built: Lab) -> Iterator[Node]:
    made = Node(built)
    before = made.qdiscs()
    try:
        yield made
        made.workloads = {}
        assert made.resync() == {}
        assert made.qdiscs() == before
    finally:
        made.close()


def open_socket(where: Path, version: int, kind: int) -> socket.socket:
    with in_netns(where):
        return socket.socket(FAMILIES[version], kind)


def transfer(node: Node, sender: str, receiver: str, version: int, size: int) -> float:
    """Seconds from the first byte sent until `size` bytes have been received, over TCP."""
    spaces = node.lab.spaces
    server = open_socket(spaces[receiver].path, version, socket.SOCK_STREAM)
    client = open_socket(spaces[sender].path, version, socket.SOCK_STREAM)
    with server, client:
        server.bind((address(receiver, version), 0))
        server.listen(1)
        client.settimeout(30)
        client.connect(server.getsockname())
        connection, _ = server.accept()
        connection.settimeout(30)
        with connection:
            pump = threading.Thread(target=lambda: client.sendall(bytes(size)))
            started = time.monotonic()
            pump.start()
            got = 0
            while got < size:
                data = connection.recv(1 << 16)
                assert data, "the connection ended early"
                got += len(data)
            took = time.monotonic() - started
            pump.join()
    return took


def echo(node: Node, pod: str, version: int) -> bool:
    """Whether one UDP packet gets from the pod to the outside and back."""
    spaces = node.lab.spaces
    with (
        open_socket(spaces["out"].path, version, socket.SOCK_DGRAM) as outside,
        open_socket(spaces[pod].path, version, socket.SOCK_DGRAM) as inside,
    ):
        outside.bind((address("out", version), 0))
        inside.bind((address(pod, version), 0))
        for sock in (outside, inside):
            sock.settimeout(3)
        inside.sendto(b"there", outside.getsockname())
        data, peer = outside.recvfrom(64)
        outside.sendto(data, peer)
        return inside.recv(64) == b"there"


# --- how much gets through --------------------------------------------------------------------------------------------


WAYS = [("out", "a"), ("a", "out")]


def only(inbound: bool, rate: int, burst: int) -> Qos:
    """A limit of one direction."""
    if inbound:
        return Qos(ingress_bandwidth=rate, ingress_burst=burst)
    return Qos(egress_bandwidth=rate, egress_burst=burst)


def packet_bytes(version: int, payload: int) -> int:
    """A UDP packet as a bucket counts it."""
    return payload + 8 + (20 if version == 4 else 40) + 14


def flood(node: Node, way: tuple[str, str], version: int, rate: int, seconds: float) -> tuple[int, int, float, float]:
    """UDP at `rate` bit/s, in packets of 1000 bytes: (sent, received, seconds without pauses that are longer than burst
    and queue make good for, seconds in all).
    """
    sender, receiver = (node.lab.spaces[name].path for name in way)
    with (
        open_socket(receiver, version, socket.SOCK_DGRAM) as target,
        open_socket(sender, version, socket.SOCK_DGRAM) as source,
    ):
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        target.bind((address(way[1], version), 0))
        target.setblocking(False)
        source.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)  # or the bucket stops it
        sent = got = 0
        started = time.monotonic()
        before = stood = 0.0
        while True:
            took = time.monotonic() - started
            stood += max(0.0, took - before - PAUSE_S)
            before = took
            if took - stood >= seconds:
                break
            if sent * packet_bytes(version, 1000) * 8 < rate * took:
                source.sendto(bytes(1000), target.getsockname())
                sent += 1
            with contextlib.suppress(BlockingIOError):
                target.recv(2000)
                got += 1
        with contextlib.suppress(BlockingIOError):
            while True:  # what came while the machine stood still
                target.recv(2000)
                got += 1
        return sent, got, took - stood, time.monotonic() - started


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inbound", [True, False], ids=["ingress", "egress"])
def test_one_direction_gets_its_rate_and_the_other_all_it_wants(node: Node, inbound: bool, version: int) -> None:
    """The burst and the queue, each of PAUSE_S, make good for pauses of a busy machine."""
    rate = 8 * MEGA
    burst = int(rate * PAUSE_S)
    node.limit("a", only(inbound, rate, burst))
    assert echo(node, "a", version), "neighbours must be known"
    assert node.apply() == {}
    limited, free = WAYS if inbound else WAYS[::-1]
    sent, got, moving, took = flood(node, limited, version, 3 * rate, 1.5)
    packet = 8 * packet_bytes(version, 1000)
    allowed, certain = (burst + rate * took) / packet, (burst + rate * moving) / packet
    assert sent > 1.5 * certain, "the sender must be faster than the limit"
    assert 0.9 * certain <= got <= allowed + 1, (sent, got, allowed, moving)
    sent, got, _, _ = flood(node, free, version, 3 * rate, 0.5)
    assert got >= 0.95 * sent > rate * 0.5 / 8 / packet_bytes(version, 1000), (sent, got)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", WAYS, ids=["ingress", "egress"])
def test_a_connection_takes_the_time_that_its_bytes_need(node: Node, way: tuple[str, str], version: int) -> None:
    """Its packets are larger than what a bucket passes at once, and are cut by it."""
    rate, burst, size = 16 * MEGA, 400_000, MEGA
    node.limit("a", only(way == WAYS[0], rate, burst))
    assert node.apply() == {}
    payload = 1500 - 20 - (20 if version == 4 else 40) - 12  # of a packet with TCP time stamps
    least = (8 * size * 1514 / payload - burst) / rate
    assert transfer(node, *way, version, size) >= 0.98 * least


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inbound", [True, False], ids=["ingress", "egress"])
def test_a_burst_passes_at_once_and_no_more(node: Node, inbound: bool, version: int) -> None:
    """At 8 kbit/s the tokens do not come back during the test: what has arrived is the burst."""
    rate, burst = 8_000, 400_000
    node.limit(
        "a",
        Qos(ingress_bandwidth=rate, ingress_burst=burst) if inbound else Qos(egress_bandwidth=rate, egress_burst=burst),
    )
    sender, receiver = ("out", "a") if inbound else ("a", "out")
    spaces = node.lab.spaces
    assert echo(node, "a", version), "neighbours must be known before the limit"
    assert node.apply() == {}
    started = time.monotonic()
    with (
        open_socket(spaces[receiver].path, version, socket.SOCK_DGRAM) as target,
        open_socket(spaces[sender].path, version, socket.SOCK_DGRAM) as source,
    ):
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        target.bind((address(receiver, version), 0))
        for _ in range(300):
            source.sendto(bytes(1000), target.getsockname())
        target.setblocking(False)
        got, deadline = 0, time.monotonic() + 20
        packet = packet_bytes(version, 1000)
        least = burst // 8 // packet
        while time.monotonic() < deadline and got <= least + 20:
            with contextlib.suppress(BlockingIOError):
                target.recv(2000)
                got += 1
                continue
            if got >= least:
                break
    most = (burst / 8 + rate / 8 * (time.monotonic() - started)) / packet
    assert least - 1 <= got <= most + 1, (least, got, most)


def test_peak_rate_slows_a_burst(node: Node) -> None:
    node.limit("a", Qos(ingress_bandwidth=1 * MEGA, ingress_burst=80 * MEGA, ingress_peakrate=16 * MEGA))
    assert node.apply() == {}
    size = 2 * MEGA  # a fifth of the burst
    took = transfer(node, "out", "a", 4, size)
    assert 0.95 * 8 * size / (16 * MEGA) <= took
    assert took < 8 * size / MEGA, "at the rate itself it would take so long"


# --- what the kernel holds --------------------------------------------------------------------------------------------


BOTH = Qos(ingress_bandwidth=50 * MEGA, egress_bandwidth=20 * MEGA, egress_burst=4 * MEGA)


def test_a_restart_writes_nothing_and_loses_no_counter(node: Node) -> None:
    node.limit("a", BOTH)
    assert node.apply() == {}
    transfer(node, "a", "out", 4, MEGA)
    before = {device: node.root(device) for device in ("cali-a", ifb_name("cali-a"))}
    assert all(int(str(one["bytes"])) > 0 for one in before.values())
    indexes = node.index(ifb_name("cali-a")), node.tc("filter", "show", "dev", "cali-a", "ingress")
    node.restart()
    assert node.apply() == {}
    assert node.driver.writes == 0
    for device, old in before.items():
        new = node.root(device)
        assert (new["handle"], new["options"]) == (old["handle"], old["options"])
        assert int(str(new["bytes"])) >= int(str(old["bytes"]))
    assert (node.index(ifb_name("cali-a")), node.tc("filter", "show", "dev", "cali-a", "ingress")) == indexes
    assert node.resync() == {}
    assert node.driver.writes == 0


def test_a_new_rate_is_applied_in_place(node: Node) -> None:
    node.limit("a", BOTH)
    assert node.apply() == {}
    assert echo(node, "a", 4)
    before = {device: int(str(node.root(device)["bytes"])) for device in ("cali-a", ifb_name("cali-a"))}
    writes = node.driver.writes
    changed = Qos(ingress_bandwidth=8 * MEGA, egress_bandwidth=4 * MEGA, egress_peakrate=5 * MEGA)
    node.limit("a", changed)
    assert node.apply() == {}
    assert node.driver.writes - writes == 2
    for device, rate in (("cali-a", 8 * MEGA), (ifb_name("cali-a"), 4 * MEGA)):
        assert [one.rate for one in node.buckets(device)] == [rate // 8]  # type: ignore[attr-defined]
        assert int(str(node.root(device)["bytes"])) >= before[device] > 0
    node.limit("a", BOTH)
    assert node.apply() == {}, "a peak rate goes again"
    assert [one.peak_rate for one in node.buckets(ifb_name("cali-a"))] == [0]  # type: ignore[attr-defined]


def test_limits_go_with_the_annotation_and_with_the_pod(node: Node) -> None:
    before = node.qdiscs()
    node.limit("a", BOTH)
    node.limit("b", BOTH)
    assert node.apply() == {}
    node.limit("a", Qos(ingress_bandwidth=50 * MEGA))
    node.remove("b")
    assert node.apply() == {}
    assert not node.has(ifb_name("cali-a"))
    assert not node.has(ifb_name("cali-b"))
    assert len(node.buckets("cali-a")) == 1
    node.limit("a", Qos(dscp=3))
    assert node.apply() == {}
    assert node.qdiscs() == before
    assert all(echo(node, "a", version) for version in (4, 6))


def test_what_a_dead_process_left_goes_after_the_start(node: Node) -> None:
    before = node.qdiscs()
    node.limit("a", BOTH)
    assert node.apply() == {}
    node.restart()
    node.workloads = {}
    assert node.apply() == {}
    assert node.qdiscs() == before
    assert not node.has(ifb_name("cali-a"))


def test_an_interface_that_comes_later_or_comes_again_is_limited(node: Node) -> None:
    node.limit("z", BOTH)
    assert node.apply() == {}, "waiting is no failure"
    assert not node.has(ifb_name("cali-z"))
    try:
        node.space.ip(["link add cali-z type veth peer name zz"])
        assert node.apply() == {}
        assert len(node.buckets("cali-z")) == len(node.buckets(ifb_name("cali-z"))) == 1
        node.space.ip(["link del cali-z"])
        node.driver.interfaces_changed()
        assert node.apply() == {}
        assert not node.has(ifb_name("cali-z"))
        node.space.ip(["link add cali-z mtu 9000 type veth peer name zz"])
        node.driver.interfaces_changed()
        assert node.apply() == {}
        assert len(node.buckets("cali-z")) == len(node.buckets(ifb_name("cali-z"))) == 1
        found = get_link(node.netlink, ifb_name("cali-z"))
        assert found is not None
        assert found.mtu_bytes == 9000
    finally:
        node.space.ip(["link del cali-z"])


@pytest.mark.parametrize("harm", ["bucket", "rate", "ifb", "ifb bucket", "ifb down", "ingress", "filter"])
def test_what_somebody_broke_is_repaired_by_a_resync(node: Node, harm: str) -> None:
    node.limit("a", BOTH)
    assert node.apply() == {}
    ifb = ifb_name("cali-a")
    whole = [line for line in node.qdiscs() if "tbf" in line or "ingress" in line]
    match harm:
        case "bucket":
            node.tc("qdisc", "del", "dev", "cali-a", "root")
        case "rate":
            node.tc(
                *[
                    "qdisc",
                    "replace",
                    "dev",
                    "cali-a",
                    "root",
                    "handle",
                    "1:",
                    "tbf",
                    "rate",
                    "9mbit",
                    "burst",
                    "9000",
                    "limit",
                    "90000",
                ]
            )
        case "ifb":
            node.send(*link_removal(node.index(ifb)))
        case "ifb bucket":
            node.tc("qdisc", "del", "dev", ifb, "root")
        case "ifb down":
            node.space.ip([f"link set {ifb} down"])
        case "ingress":
            node.send(*delete_ingress(node.index("cali-a")))
        case "filter":
            node.tc(*["filter", "del", "dev", "cali-a", "ingress", "prio", "1"])
    assert node.apply() == {}
    writes = node.driver.writes
    assert node.resync() == {}
    assert node.driver.writes > writes
    assert [line for line in node.qdiscs() if "tbf" in line or "ingress" in line] == whole
    sent = int(str(node.root(ifb)["bytes"]))
    assert all(echo(node, "a", version) for version in (4, 6))
    assert int(str(node.root(ifb)["bytes"])) > sent
    writes = node.driver.writes
    assert node.resync() == {}
    assert node.driver.writes == writes


def test_what_others_made_stays_and_is_named_when_it_is_in_the_way(node: Node) -> None:
    made = [
        "qdisc add dev cali-b root handle 7: pfifo limit 10",
        "qdisc add dev cali-s clsact",
        "qdisc add dev eth0 root handle 1: tbf rate 1gbit burst 100000 limit 100000",
        "qdisc add dev cali-x root handle 8: tbf rate 1gbit burst 100000 limit 100000",
        "qdisc add dev cali-x ingress",
        "filter add dev cali-x ingress protocol ip prio 9 u32 match u32 0 0 action mirred egress redirect dev bwtheirs",
    ]
    node.space.ip(["link add bwtheirs type ifb", "link set bwtheirs up"])
    try:
        for command in made:
            node.tc(*command.split())
        foreign = node.qdiscs(), node.tc("filter", "show", "dev", "cali-x", "ingress")
        for name in ("a", "b", "s", "x"):
            node.limit(name, Qos(egress_bandwidth=20 * MEGA))
        node.limit("b", BOTH)
        failed = node.apply()
        assert failed.keys() == {"bandwidth cali-b", "bandwidth cali-s"}
        assert "pfifo 7:" in failed["bandwidth cali-b"]
        assert "clsact" in failed["bandwidth cali-s"]
        assert set(foreign[0]) <= set(node.qdiscs())
        assert foreign[1].splitlines()[-3] in node.tc("filter", "show", "dev", "cali-x", "ingress")
        assert len(node.buckets(ifb_name("cali-a"))) == len(node.buckets(ifb_name("cali-x"))) == 1
        assert len(node.buckets(ifb_name("cali-b"))) == 1, "the other direction is limited"
        assert not node.has(ifb_name("cali-s"))
        node.tc("qdisc", "del", "dev", "cali-b", "root")
        assert node.apply().keys() == {"bandwidth cali-s"}, "a failure is tried again without being told"
        assert len(node.buckets("cali-b")) == 1
        node.workloads = {}
        assert node.apply() == {}
        left = node.qdiscs(), node.tc("filter", "show", "dev", "cali-x", "ingress")
        free = next(line for line in foreign[0] if "noqueue" in line and "cali-a" in line).replace("cali-a", "cali-b")
        assert left == (sorted([line for line in foreign[0] if "pfifo 7:" not in line] + [free]), foreign[1])
        assert node.has("bwtheirs")
    finally:
        for what in ("cali-s clsact", "cali-x ingress", "cali-b root", "cali-x root", "eth0 root"):
            node.tc("qdisc", "del", "dev", *what.split(), check=False)
        node.space.ip(["link del bwtheirs"])


def test_a_refusal_of_the_kernel_is_reported_and_leaves_the_others(node: Node) -> None:
    node.tc(*["qdisc", "add", "dev", "cali-a", "ingress"])
    try:
        node.tc(*FOREIGN_FILTER.split())
        for name in ("a", "b"):
            node.limit(name, BOTH)
        failed = node.apply()
        assert failed.keys() == {"bandwidth cali-a"}
        assert "redirect on cali-a" in failed["bandwidth cali-a"]
        assert len(node.buckets("cali-a")) == len(node.buckets("cali-b")) == len(node.buckets(ifb_name("cali-b"))) == 1
        assert "mirred" in node.tc("filter", "show", "dev", "cali-b", "ingress")
        assert all(echo(node, name, 4) for name in ("a", "b"))
        node.tc(*["filter", "del", "dev", "cali-a", "ingress", "prio", "1"])
        assert node.apply() == {}
        assert "mirred" in node.tc("filter", "show", "dev", "cali-a", "ingress")
    finally:
        node.tc(*["qdisc", "del", "dev", "cali-a", "ingress"], check=False)


LIMITS = [
    Limit(1_000),  # the default burst takes 49 days: only the low bits of that time come back
    Limit(10_000_000),
    Limit(10_000_000, 34_359_738_360),
    Limit(8_000, 1_000),  # a burst below one packet
    Limit(34_359_738_352, 1_000_000),  # the last rate of 32 bits
    Limit(34_359_738_368, 1_000_000),  # the first above
    Limit(100_000_000_000, 34_359_738_360, 400_000_000_000, 100_000_000),
    Limit(1_000_000, 1_000_000, 1_010_000, 1_000),
    Limit(10**15, 34_359_738_360, 1_010_000_000_000_000, 100_000_000),
    Limit(1_000_000, 0, 999_999),  # no peak
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_limits_come_back_from_the_kernel_as_they_were_given(node: Node, limit: Limit) -> None:
    node.limit(
        "a",
        Qos(
            ingress_bandwidth=limit.rate,
            ingress_burst=limit.burst,
            ingress_peakrate=limit.peak,
            ingress_minburst=limit.minburst,
            egress_bandwidth=limit.rate,
        ),
    )
    assert node.apply() == {}
    (found,) = node.buckets("cali-a")
    bucket = limit.bucket(1500)
    assert (found.rate, found.limit) == (limit.rate // 8, bucket.limit)  # type: ignore[attr-defined]
    assert found.peak_rate == bucket.peak_rate  # type: ignore[attr-defined]
    assert found.is_of(bucket)  # type: ignore[attr-defined]
    node.restart()
    assert node.apply() == {}
    assert node.driver.writes == 0
