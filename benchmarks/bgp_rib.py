"""BGP's tables alone, no sockets and no kernel: UPDATEs in as bytes, messages for peers and routes for the kernel out.

    python -m benchmarks.bgp_rib [--quick] [--json FILE]

100,000 random prefixes of /24 to /32 with 200 attribute sets (next hop, three communities, MED, path of 0 to 2
numbers), 500 to an UPDATE, UPDATEs in no order. All sessions are those of a route reflector with its clients; pools,
eight own blocks and the decision are on. Every shape runs in a fresh process. CPU seconds: `file` decodes and files,
`tell` decides, judges and packs, `kernel` makes routes; MB is the growth of resident memory from before the first
UPDATE until the peers have everything; `all` is file and tell, a prefix, in microseconds.

Naive, in the same run: each prefix an address object, each path its own object with the attributes made for it alone,
pools tried one by one, one UPDATE for each prefix. On a part of the prefixes, extrapolated and labelled so; what its
peer reads is compared with what ours reads. `loop` is how long this machine takes for a million stores into a dict, at
that moment.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import sys
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_address, ip_network

from benchmarks.common import Row, machine, parser, report, rss_mb
from services.bgp.core.paths import Attributes, EndOfRib, Family, Nlri, Reach, SegmentType, network
from services.bgp.core.rib.path import NextHopState
from services.bgp.core.rib.peers import Session
from services.bgp.core.rib.rib import Rib
from services.bgp.core.settings import Filter, FilterRule, PeerKind, PeerSettings, PoolExport, SpeakerSettings
from services.bgp.core.wire.codes import MessageType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.encode import encode_attributes, encode_reach
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.update import UpdateDecoder

AS, CLUSTER = 64512, 7
CONTEXT = Context(internal=True, families=frozenset({Family.IPV4}))
NAIVE_PART = 2_000  # prefixes
POOLS = tuple(ip_network(text) for text in ("0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/1"))


@dataclass(frozen=True)
class Shape:
    name: str
    prefixes: int = 100_000
    per_update: int = 500
    senders: int = 1
    receivers: int = 1
    rules: int = 0


SHAPES = (
    Shape("one tells, one is told"),
    Shape("10 to an UPDATE", per_update=10),
    Shape("import and export filters of 20 rules", rules=20),
    Shape("two tell the same, both paths used", senders=2),
    Shape("one tells, 200 are told", receivers=200),
)


def prefixes(count: int, seed: int = 1) -> list[Nlri]:
    random.seed(seed)
    found: set[Nlri] = set()
    while len(found) < count:
        length = random.randint(24, 32)
        number = random.getrandbits(32) >> (32 - length) << (32 - length)
        found.add(bytes((length,)) + number.to_bytes(4, "big")[: (length + 7) // 8])
    return sorted(found)


def attribute_sets() -> list[Attributes]:
    paths = ((), (65001,), (65001, 65002))
    return [
        Attributes(
            next_hop=bytes((10, 255, 0, 10 + n)),
            local_pref=100,
            med=n,
            communities=(65000 << 16 | n, 65000 << 16 | 1, 65000 << 16 | 2),
            as_path=((SegmentType.SEQUENCE, paths[n % 3]),) if n % 3 else (),
        )
        for n in range(200)
    ]


def bodies(shape: Shape) -> list[bytes]:
    """UPDATEs without their headers."""
    every, found = prefixes(shape.prefixes), []
    for n, attributes in enumerate(attribute_sets()):
        mine, block = every[n::200], encode_attributes(attributes, Family.IPV4, CONTEXT)
        for at in range(0, len(mine), shape.per_update):
            found += encode_reach(block, attributes, Family.IPV4, mine[at : at + shape.per_update], CONTEXT)
    random.shuffle(found)
    return [message[19:] for message in found]


def peer(number: int, filters: tuple[str, ...]) -> PeerSettings:
    address = ip_address(f"10.254.{number // 250}.{number % 250}")
    return PeerSettings(f"Node_{number}", PeerKind.NODE, address, AS, AS, rr_client_cluster=CLUSTER, filters=filters)


def settings(shape: Shape) -> SpeakerSettings:
    names = ("f",) if shape.rules else ()
    rules = tuple(
        FilterRule("Reject", ip_network(f"{8 * n}.0.0.0/8"), "In", 31, 32)
        if n % 2
        else FilterRule("Reject", communities=((65009, n),))
        for n in range(shape.rules)
    )
    return SpeakerSettings(
        node="node1",
        router_id=99,
        local_as=AS,
        cluster_id=CLUSTER,
        peers=tuple(peer(n, names) for n in range(shape.senders + shape.receivers)),
        filters={"f": Filter({Family.IPV4: rules}, {Family.IPV4: rules})},
        pools=tuple(PoolExport(pool) for pool in POOLS),
        own_blocks=tuple(ip_network(f"10.0.{n}.0/26") for n in range(8)),
    )


def session(number: int) -> Session:
    return Session(CONTEXT, AS, number + 1, {Family.IPV4: ip_address("10.255.0.1").packed})


def loop_s() -> float:
    started, store = time.process_time(), {}
    for n in range(1_000_000):
        store[n & 1023] = n
    return time.process_time() - started


def measure(shape: Shape) -> Row:
    received = bodies(shape)
    speaker = settings(shape)
    rib = Rib(speaker, lambda _: NextHopState(reachable=True))
    for number, one in enumerate(speaker.peers):
        rib.peer_up(one, session(number), 0.0)
        rib.take_messages(one.name, 1 << 20)
    senders, receivers = speaker.peers[: shape.senders], speaker.peers[shape.senders :]
    decoders = {one.name: UpdateDecoder(CONTEXT) for one in senders}
    loop = loop_s()
    gc.collect()
    before, started = rss_mb(), time.process_time()
    for name, decoder in decoders.items():
        for body in received:
            rib.receive(name, decoder.decode(body))
    filed = time.process_time()
    sent = {len(drain(rib, one.name)) for one in receivers}
    told, memory = time.process_time(), rss_mb() - before
    routes = 0
    while changes := rib.take_fib(2_000):
        routes += len(changes)
    routed = time.process_time()
    for one in senders:
        rib.peer_down(one.name, 1.0)
    gone = [drain(rib, one.name) for one in receivers]
    down = time.process_time() - routed
    assert len(sent) == 1  # every receiver got as much
    assert routes == shape.prefixes or shape.rules
    assert all(gone)
    return {
        "what": shape.name,
        "file_s": round(filed - started, 3),
        "tell_s": round(told - filed, 3),
        "kernel_s": round(routed - told, 3),
        "all_down_s": round(down, 3),
        "more_mb": round(memory, 1),
        "all_us": round((told - started) / shape.prefixes * 1e6, 2),
        "loop_s": round(loop, 3),
        "sent": sent.pop(),
    }


def drain(rib: Rib, name: str) -> bytes:
    parts = []
    while rib.has_messages(name):
        parts.append(rib.take_messages(name, 65_536))
    return b"".join(parts)


def read(data: bytes) -> dict[Nlri, Attributes]:
    reader, decoder = MessageReader(), UpdateDecoder(CONTEXT)
    found: dict[Nlri, Attributes] = {}
    reader.feed(data)
    while (message := reader.next()) is not None:
        assert message[0] is MessageType.UPDATE
        for change in decoder.decode(message[1]):
            if isinstance(change, Reach):
                found.update(dict.fromkeys(change.prefixes, change.attributes))
            else:
                assert isinstance(change, EndOfRib)
    return found


def naive(received: list[bytes], blocks: tuple[IPv4Network, ...]) -> bytes:
    """The same reflector, each prefix for itself."""
    table: dict[IPv4Network, list[Attributes]] = {}
    for body in received:
        for change in UpdateDecoder(CONTEXT).decode(body):
            assert isinstance(change, Reach)
            for key in change.prefixes:
                prefix = network(Family.IPV4, key)
                assert isinstance(prefix, IPv4Network)
                table.setdefault(prefix, []).append(replace(change.attributes))
    sent = []
    for prefix, paths in table.items():
        best = min(paths, key=lambda a: (-(a.local_pref or 100), a.path_length, a.origin, a.med or 0))
        inside = any(prefix.subnet_of(block) for block in blocks)
        if (inside and prefix not in blocks) or not any(prefix.subnet_of(pool) for pool in POOLS):  # type: ignore[arg-type]
            continue
        told = replace(best, originator_id=1, cluster_list=(CLUSTER, *best.cluster_list))
        octets = (prefix.prefixlen + 7) // 8
        key = bytes((prefix.prefixlen,)) + prefix.network_address.packed[:octets]
        sent += encode_reach(encode_attributes(told, Family.IPV4, CONTEXT), told, Family.IPV4, [key], CONTEXT)
    return b"".join(sent)


def measure_naive(shape: Shape) -> Row:
    received = bodies(replace(shape, prefixes=NAIVE_PART))
    blocks = tuple(ip_network(f"10.0.{n}.0/26") for n in range(8))
    loop, started = loop_s(), time.process_time()
    sent = naive(received, tuple(block for block in blocks if isinstance(block, IPv4Network)))
    used = time.process_time() - started
    speaker = settings(shape)
    rib = Rib(speaker, lambda _: NextHopState(reachable=True))
    for number, one in enumerate(speaker.peers):
        rib.peer_up(one, session(number), 0.0)
    decoder = UpdateDecoder(CONTEXT)
    for body in received:
        rib.receive("Node_0", decoder.decode(body))
    assert read(drain(rib, "Node_1")) == read(sent)
    return {
        "what": f"naive: {NAIVE_PART:,} prefixes, extrapolated",
        "all_us": round(used / NAIVE_PART * 1e6, 2),
        "loop_s": round(loop, 3),
        "sent": len(sent) * shape.prefixes // NAIVE_PART,
    }


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    shapes = [replace(shape, prefixes=5_000) for shape in SHAPES] if options.quick else list(SHAPES)
    rows: list[Row] = []
    for shape in shapes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (shape,)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows.append(pool.apply(measure_naive, (shapes[0],)))
    report(f"BGP tables, {shapes[0].prefixes:,} prefixes, CPU seconds", rows, options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
