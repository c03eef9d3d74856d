"""Octets of BIRD 2.0.12, FRR 8.4.4, GoBGP 3.10 and ExaBGP 4.2.21, recorded by `python -m tests.interop.capture`.

What they announced is known from their configuration, so it is they who say whether we read it rightly.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from services.bgp.core.paths import Change, EndOfRib, Family, Origin, Reach, SegmentType, nlri
from services.bgp.core.wire.codes import HEADER_OCTETS, MessageType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.encode import encode_change
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.open import Open, decode_open, encode_open
from services.bgp.core.wire.update import UpdateDecoder
from tests.interop.capture import ROUTES, THEIR_AS

FILE = Path(__file__).resolve().parents[3] / "golden/bgp/captured.json"
CAPTURED: dict[str, list[str]] = json.loads(FILE.read_text())


def messages(who: str) -> list[tuple[MessageType, bytes]]:
    reader, found = MessageReader(), []
    reader.feed(bytes.fromhex("".join(CAPTURED[who])))
    while (message := reader.next()) is not None:
        found.append(message)
    assert reader.buffered == 0
    return found


def context(who: str) -> Context:
    return Context(internal=False, as4="four" in who)


def changes(who: str) -> list[Change]:
    decoder = UpdateDecoder(context(who))
    found = [change for kind, body in messages(who) if kind is MessageType.UPDATE for change in decoder.decode(body)]
    assert (decoder.discarded, decoder.withdrawn, decoder.ignored) == (0, 0, 0)
    return found


def opened(who: str) -> Open:
    kind, body = messages(who)[0]
    assert kind is MessageType.OPEN
    return decode_open(body)


@pytest.mark.parametrize("who", CAPTURED)
def test_opens(who: str) -> None:
    said = opened(who)
    assert (said.asn, said.hold_time_s, said.router_id) == (THEIR_AS, 90, int(ip_address("10.9.0.2")))
    assert said.capabilities is not None
    assert said.capabilities.families == ((1, 1), (2, 1))
    assert said.capabilities.as4 == THEIR_AS
    assert said.capabilities.route_refresh
    assert said.capabilities.graceful_restart is not None
    assert said.capabilities.graceful_restart.time_s == 120
    assert {code for code, _ in said.capabilities.unknown} <= {128}, "FRR's and Cisco's older route refresh"
    assert decode_open(encode_open(said)[HEADER_OCTETS:]) == said


@pytest.mark.parametrize("who", CAPTURED)
def test_routes(who: str) -> None:
    """As configured, with numbers of two octets too: AS_TRANS and AS4_PATH give the same path."""
    found = {key: change for change in changes(who) if isinstance(change, Reach) for key in change.prefixes}
    assert len(found) == len(ROUTES)
    for route in ROUTES:
        change = found[nlri(ip_network(route.prefix))]
        attributes = change.attributes
        assert attributes.origin is {"igp": Origin.IGP, "egp": Origin.EGP}[route.origin]
        # ExaBGP takes a path that it is given as the whole one.
        path = route.as_path if "exabgp" in who and route.as_path else (THEIR_AS, *route.as_path)
        assert attributes.as_path == ((SegmentType.SEQUENCE, path),)
        assert {(one >> 16, one & 0xFFFF) for one in attributes.communities} == route.communities
        assert set(attributes.large) == route.large
        assert attributes.med == route.med or (route.med is None and attributes.med == 0)  # FRR writes 0
        own = "fd09::2" if change.family is Family.IPV6 else "10.9.0.2"
        assert attributes.next_hop == ip_address(own).packed
        assert attributes.link_local in (b"", ip_address("fe80::9:2").packed)


@pytest.mark.parametrize("who", [who for who in CAPTURED if who.startswith(("bird", "exabgp"))])
def test_end_of_rib(who: str) -> None:
    """FRR and GoBGP send none to a neighbour without graceful restart."""
    assert [change.family for change in changes(who) if isinstance(change, EndOfRib)] == list(Family)


@pytest.mark.parametrize("who", CAPTURED)
def test_what_they_said_is_said_again_the_same(who: str) -> None:
    decoder = UpdateDecoder(context(who))
    for change in changes(who):
        [message] = encode_change(change, context(who))
        assert decoder.decode(message[HEADER_OCTETS:]) == [change]
