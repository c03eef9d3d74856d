"""BGP: a route reflector between a sender and a receiver, and one node in a mesh of 200; ours and four daemons.

Sender and receiver are this program, on a veth to the namespace where the daemon runs; all is iBGP, AS 64512.
Reflector: so many random prefixes of /24 to /32 with 200 attribute sets (own next hops on the wire, three communities,
MED, path of 0 to 2 numbers), 500 or 10 to an UPDATE. The clock starts at the first octet of the first UPDATE, with both
sessions up and idle. `kernel`: all are in the namespace's main table. `receiver`: it has heard of all of them
(different NLRI). `flap`: the sender's connection is reset; until the kernel is empty and the receiver was told so. CPU
is that of all processes of the daemon, user and system; memory their resident sets when the table is in. GoBGP and
ExaBGP install nothing into the kernel. Mesh: a real daemon among 199 neighbours, each with four blocks, until all
blocks are in the kernel and every neighbour has ours; the clock starts when the first neighbour connects.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bgp_load import PER_UPDATE, KernelCount, Talker, Watch, address, prefixes, pump, updates
from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb
from libs.testkit.routers import raw
from libs.testkit.routers.bird import Bird
from libs.testkit.routers.exabgp import Exabgp
from libs.testkit.routers.frr import Frr
from libs.testkit.routers.gobgp import Gobgp
from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.ours import Ours, Settings
from libs.testkit.routers.peer import Peer, RouterMissing
from libs.testkit.topology import Namespace, processes_in, remove

AS = 64512
SENDER, RECEIVER, DAEMON = "10.255.0.2", "10.255.0.3", "10.255.0.1"
MESH, BLOCKS = 199, 4


class Reflector(Exabgp):
    """ExaBGP with the process that passes messages on."""

    def commands(self) -> list[list[str]]:
        super().commands()
        text = (self.directory / "exabgp.conf").read_text()
        script = Path(__file__).with_name("exabgp_reflector.py")
        first, _, rest = text.partition("\n")
        assert first.startswith("process api")
        first = f"process api {{ run {sys.executable} {script} {RECEIVER}; encoder json; }}"
        (self.directory / "exabgp.conf").write_text(f"{first}\n{rest}")
        return super().commands()

    def ready(self) -> bool:
        return "loaded new configuration" in self.log_tail(200)

    def _tell(self) -> None:
        pass


@dataclass(frozen=True)
class Contender:
    name: str
    kind: type[Peer]
    kernel: bool = True


CONTENDERS = (
    Contender("ours", Ours),
    Contender("bird", Bird),
    Contender("frr", Frr),
    Contender("gobgp", Gobgp, kernel=False),
    Contender("ours, no kernel", Ours, kernel=False),
    Contender("bird, no kernel", Bird, kernel=False),
    Contender("exabgp and a reflector", Reflector, kernel=False),
)


@contextmanager
def bench(contender: Contender, router: Router) -> Iterator[tuple[Peer, Namespace, Namespace]]:
    """The daemon, started, in a namespace; and the namespace of its neighbours."""
    mark = f"bb-{os.getpid():x}-{uuid.uuid4().hex[:6]}"
    space, outside = Namespace(f"{mark}-d"), Namespace(f"{mark}-n")
    directory = Path(tempfile.mkdtemp(prefix="bgp-bench-"))
    peer = None
    try:
        space.create()
        outside.create()
        space.ip(
            [
                f"link add eth0 type veth peer name eth0 netns {outside.name}",
                f"addr add {DAEMON}/16 dev eth0", "link set eth0 up",
            ]
        )  # fmt: skip
        own = [SENDER, RECEIVER, *(address(number) for number in range(MESH))]
        outside.ip([*(f"addr add {one}/16 dev eth0" for one in own), "link set eth0 up"])
        outside.sysctl({"ipv4.conf.all.arp_ignore": 0})
        peer = contender.kind(contender.name.split(",")[0], space, replace(router, install=contender.kernel), directory)
        if isinstance(peer, Ours) and not contender.kernel:
            peer.adjust = _no_kernel
        peer.start()
        yield peer, space, outside
    finally:
        if peer is not None:
            peer.close()
        remove([space, outside])
        shutil.rmtree(directory, ignore_errors=True)


def _no_kernel(settings: Settings) -> None:
    """All prefixes lie in a pool whose routes another program owns."""
    settings["program_cluster_routes"] = "Disabled"


def used(space: Namespace) -> tuple[float, float]:
    """CPU seconds so far and resident MB of everything that runs there."""
    pids = processes_in([space])
    return sum(cpu_s(pid) for pid in pids), sum(rss_mb(pid) for pid in pids)


def reflector(contender: Contender, count: int, packing: int, patience_s: float) -> Row:
    clients = tuple(Neighbour(one, AS, passive=True, rr_client=True, hold_time_s=240) for one in (SENDER, RECEIVER))
    router = Router(AS, DAEMON, clients, addresses=(DAEMON,), cluster_id=DAEMON, ecmp=1, lean=True)
    table = updates(prefixes(count), packing)
    with bench(contender, router) as (_, space, outside):
        sender, receiver = (Talker(outside, one, DAEMON, AS) for one in (SENDER, RECEIVER))
        for talker in (sender, receiver):
            talker.connect()
        pump([sender, receiver], lambda now: sender.up and receiver.up, timeout_s=60, what="both sessions up")
        settled = time.monotonic() + 1.5
        pump([sender, receiver], lambda now: now > settled, timeout_s=10, what="idle")
        kernel = KernelCount(space)
        cpu, _ = used(space)
        watch = Watch(time.monotonic())
        sender.outgoing = memoryview(table)

        def loaded(now: float) -> bool:
            if not sender.outgoing:
                watch.see("sent")
            if len(receiver.known) >= count:
                watch.see("receiver")
            if not contender.kernel or kernel.poll(now) >= count:
                watch.see("kernel")
            return "receiver" in watch.at and "kernel" in watch.at

        pump([sender, receiver], loaded, timeout_s=patience_s, what=f"{count} prefixes through {contender.name}")
        quiet = time.monotonic() + 0.5
        pump([sender, receiver], lambda now: now > quiet, timeout_s=10, what="idle")
        cpu_in, memory = used(space)
        heard = receiver.updates
        sender.abort()
        flap = Watch(time.monotonic())

        def emptied(now: float) -> bool:
            if not receiver.known:
                flap.see("receiver")
            if not contender.kernel or kernel.poll(now) <= 0:
                flap.see("kernel")
            return "receiver" in flap.at and "kernel" in flap.at

        pump([receiver], emptied, timeout_s=patience_s, what=f"withdrawals through {contender.name}")
        cpu_out, _ = used(space)
        receiver.abort()
    return {
        "what": f"{contender.name}: {count:,}, {packing} to an UPDATE",
        "kernel_s": round(watch.at["kernel"], 2) if contender.kernel else "-",
        "receiver_s": round(watch.at["receiver"], 2),
        "sent_s": round(watch.at.get("sent", 0.0), 2),
        "cpu_s": round(cpu_in - cpu, 2),
        "rss_mb": round(memory),
        "updates_out": heard,
        "flap_kernel_s": round(flap.at["kernel"], 2) if contender.kernel else "-",
        "flap_receiver_s": round(flap.at["receiver"], 2),
        "flap_cpu_s": round(cpu_out - cpu_in, 2),
    }


def mesh(contender: Contender, neighbours: int, patience_s: float) -> Row:
    members = tuple(Neighbour(address(number), AS, passive=True, hold_time_s=240) for number in range(neighbours))
    own = tuple(Route(f"10.64.{number}.0/26") for number in range(BLOCKS))
    router = Router(AS, DAEMON, members, own, addresses=(DAEMON,), ecmp=1, lean=True)
    wanted = neighbours * BLOCKS
    with bench(contender, router) as (_, space, outside):
        talkers = [Talker(outside, address(number), DAEMON, AS) for number in range(neighbours)]
        kernel = KernelCount(space)
        cpu, _ = used(space)
        watch = Watch(time.monotonic())
        for talker in talkers:
            talker.connect()
        told: set[int] = set()

        def converged(now: float) -> bool:
            for number, talker in enumerate(talkers):
                if talker.up and number not in told:
                    told.add(number)
                    talker.outgoing = memoryview(bytes(talker.outgoing) + _blocks(number))
            if len(told) == neighbours:
                watch.see("sessions")
            if len(told) == neighbours and all(len(talker.known) >= BLOCKS for talker in talkers):
                watch.see("told")
            if not contender.kernel or kernel.poll(now) >= wanted:
                watch.see("kernel")
            return len(watch.at) == 3

        pump(talkers, converged, timeout_s=patience_s, what=f"a mesh of {neighbours + 1} with {contender.name}")
        quiet = time.monotonic() + 0.5
        pump(talkers, lambda now: now > quiet, timeout_s=10, what="idle")
        cpu_in, memory = used(space)
        for talker in talkers:
            talker.abort()
    return {
        "what": f"{contender.name}: mesh of {neighbours + 1}, {BLOCKS} blocks each",
        "sessions_s": round(watch.at["sessions"], 2),
        "kernel_s": round(watch.at["kernel"], 2) if contender.kernel else "-",
        "receiver_s": round(watch.at["told"], 2),
        "cpu_s": round(cpu_in - cpu, 2),
        "rss_mb": round(memory),
    }


def _blocks(number: int) -> bytes:
    """A neighbour's four blocks, as one UPDATE."""
    body = b"".join(raw.prefix(f"10.{100 + number // 100}.{number % 100}.{64 * one}/26") for one in range(BLOCKS))
    attributes = (
        raw.attribute(raw.TRANSITIVE, raw.ORIGIN, b"\0")
        + raw.attribute(raw.TRANSITIVE, raw.AS_PATH, b"")
        + raw.attribute(raw.TRANSITIVE, raw.NEXT_HOP, raw.prefix(f"{address(number)}/32")[1:])
        + raw.attribute(raw.TRANSITIVE, raw.LOCAL_PREF, b"\0\0\0\x64")
    )
    return raw.message(raw.UPDATE, raw.update_body(b"", attributes, body))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, action="append", help="prefixes; again for more than one size")
    arguments.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    arguments.add_argument("--only", action="append", help="just this contender; again for more")
    arguments.add_argument("--patience", type=float, default=300, help="seconds after which one is given up")
    options = arguments.parse_args()
    described = machine()
    counts = options.count or ([5_000] if options.quick else [100_000, 1_000_000])
    neighbours = 20 if options.quick else MESH
    chosen = [one for one in CONTENDERS if not options.only or one.name in options.only]
    rows: list[Row] = []
    for _ in range(options.rounds):
        for contender in chosen:
            for count in counts:
                slow = contender.kind in (Gobgp, Reflector)
                if count <= 100_000 or not slow:
                    rows.append(_tried(contender, lambda: reflector(contender, count, PER_UPDATE, options.patience)))  # noqa: B023
                if count <= 100_000 and contender.kernel:
                    rows.append(_tried(contender, lambda: reflector(contender, count, 10, options.patience)))  # noqa: B023
            if contender.kind is not Reflector and (contender.kernel or contender.kind is Gobgp):
                rows.append(_tried(contender, lambda: mesh(contender, neighbours, options.patience)))  # noqa: B023
    report("BGP: route reflector with 200 attribute sets; a node in a full mesh", rows, options.json, described)


def _tried(contender: Contender, measure: object) -> Row:
    """A contender that fails does not take the others' figures along."""
    try:
        row: Row = measure()  # type: ignore[operator]
    except (RouterMissing, TimeoutError, ConnectionError) as error:
        row = {"what": f"{contender.name}: {type(error).__name__}: {error}"[:200]}
    print({key: value for key, value in row.items() if value != ""}, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
