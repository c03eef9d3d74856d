"""UPDATEs read and written: ours, a plain way, and ExaBGP's decoder when it is installed; one process, CPU time.

100,000 prefixes with 200 sets of attributes, as in `bgp`. The plain way reads the attributes of each UPDATE anew and
makes an `ip_network` of each prefix, which is how one would write it first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Network
from pathlib import Path

from benchmarks.bgp_load import attribute_sets, prefixes
from benchmarks.common import Row, machine, parser, report
from services.bgp.core.paths import Attributes, Family, Nlri, Reach, network, nlri
from services.bgp.core.wire.attributes import decode_block
from services.bgp.core.wire.codes import HEADER_OCTETS, MessageType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.encode import encode_attributes, encode_reach, encode_unreach
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.update import UpdateDecoder

CONTEXT = Context(internal=True)
ROUNDS = 5
READ = 65536  # octets at a time, as from a socket
PACKAGES = Path(__file__).resolve().parents[1] / ".cache/routers/usr/lib/python3/dist-packages"


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of CPU of the quickest round: others share this machine."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def read(stream: bytes) -> int:
    """What a session does with what arrives: messages, then changes; the number of prefixes."""
    reader, decoder, count = MessageReader(), UpdateDecoder(CONTEXT), 0
    for at in range(0, len(stream), READ):
        reader.feed(stream[at : at + READ])
        while (message := reader.next()) is not None:
            for change in decoder.decode(message[1]):
                assert isinstance(change, Reach)
                count += len(change.prefixes)
    return count


def plain(messages: Sequence[bytes]) -> int:
    """IPv4 only; the same checks of attributes, no memory of them."""
    count = 0
    for message in messages:
        body = message[HEADER_OCTETS:]
        end = 4 + int.from_bytes(body[2:4], "big")
        decode_block(body[4:end], CONTEXT)
        found, at = [], end
        while at < len(body):
            octets = 1 + (body[at] + 7) // 8
            found.append(network(Family.IPV4, body[at : at + octets]))
            at += octets
        count += len(found)
    return count


def exabgp(messages: Sequence[bytes]) -> Callable[[], int] | None:
    """Its decoder alone, without its processes; None when it is not here."""
    if not PACKAGES.is_dir():
        return None
    sys.path.append(str(PACKAGES))
    from exabgp.configuration.setup import environment  # type: ignore[import-not-found]

    environment.setup("")
    from exabgp.bgp.message.direction import Direction  # type: ignore[import-not-found]
    from exabgp.bgp.message.open.asn import ASN  # type: ignore[import-not-found]
    from exabgp.bgp.message.open.capability.negotiated import Negotiated  # type: ignore[import-not-found]
    from exabgp.bgp.message.update import Update  # type: ignore[import-not-found]
    from exabgp.protocol.family import AFI, SAFI  # type: ignore[import-not-found]

    negotiated = Negotiated(None)
    negotiated.local_as = negotiated.peer_as = ASN(64512)
    negotiated.asn4 = True
    negotiated.families = [(AFI.ipv4, SAFI.unicast)]
    bodies = [message[HEADER_OCTETS:] for message in messages]
    return lambda: sum(len(Update.unpack_message(body, Direction.IN, negotiated).nlris) for body in bodies)


def measure(count: int) -> list[Row]:
    keys = prefixes(count)
    sets = [decode_block(raw, CONTEXT).attributes for raw in attribute_sets()]
    assert len(set(sets)) == len(sets)
    rows: list[Row] = []

    def row(what: str, seconds: float, messages: int) -> None:
        million = count / seconds / 1e6
        rows.append(
            {"what": what, "messages": messages, "cpu_ms": round(seconds * 1e3, 1), "million_per_s": round(million, 2)}
        )

    def table(family: Family, some: Sequence[Nlri], packing: int, attributes: Sequence[Attributes]) -> list[bytes]:
        blocks = [encode_attributes(one, family, CONTEXT) for one in attributes]
        found: list[bytes] = []
        for index, at in enumerate(range(0, len(some), packing)):
            one = index % len(attributes)
            found += encode_reach(blocks[one], attributes[one], family, some[at : at + packing], CONTEXT)
        return found

    by_packing = {packing: table(Family.IPV4, keys, packing, sets) for packing in (500, 10)}
    pods = [bytes((32,)) + ((10 << 24) + index).to_bytes(4, "big") for index in range(count)]
    base = int(IPv6Network("fd00::/64").network_address)
    blocks6 = [nlri(IPv6Network((base + (index << 6), 122))) for index in range(count)]
    sets6 = [Attributes(next_hop=b"\xfd" + bytes(14) + bytes((index,)), local_pref=100) for index in range(1, 200)]
    streams = {
        "read, 500 an UPDATE": by_packing[500],
        "read, 10 an UPDATE": by_packing[10],
        "read, /32 only, 500 an UPDATE": table(Family.IPV4, pods, 500, sets),
        "read, IPv6 /122, 200 an UPDATE": table(Family.IPV6, blocks6, 200, sets6),
    }
    for what, messages in streams.items():
        stream = b"".join(messages)
        assert read(stream) == count
        row(what, best(lambda stream=stream: read(stream)), len(messages))  # type: ignore[misc]
    row("plain: read, 500 an UPDATE", best(lambda: plain(by_packing[500]), 2), len(by_packing[500]))
    row("plain: read, 10 an UPDATE", best(lambda: plain(by_packing[10]), 2), len(by_packing[10]))
    row("write, 500 an UPDATE", best(lambda: table(Family.IPV4, keys, 500, sets)), len(by_packing[500]))
    row("write, 10 an UPDATE", best(lambda: table(Family.IPV4, keys, 10, sets)), len(by_packing[10]))
    withdrawals = encode_unreach(Family.IPV4, keys, CONTEXT)
    row("write withdrawals, as many as fit", best(lambda: encode_unreach(Family.IPV4, keys, CONTEXT)), len(withdrawals))
    for packing in (500, 10):
        theirs = exabgp(by_packing[packing])
        if theirs is not None:
            assert theirs() == count
            row(f"ExaBGP 4.2: read, {packing} an UPDATE", best(theirs, 1), len(by_packing[packing]))
    assert all(message[18] == MessageType.UPDATE for message in withdrawals)
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    described = machine()
    report("BGP codec", measure(5_000 if options.quick else 100_000), options.json, described)


if __name__ == "__main__":
    main()
