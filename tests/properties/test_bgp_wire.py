"""The BGP codec: every decoder takes any bytes, everything survives a round trip, one prefix is one key."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from ipaddress import ip_network
from random import Random
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.bgp.core import wire
from services.bgp.core.paths import Attributes, Change, EndOfRib, Family, Reach, Unreach, network, nlri
from services.bgp.core.wire import as_path, capabilities, encode, errors
from services.bgp.core.wire import nlri as wire_nlri
from services.bgp.core.wire import open as wire_open
from services.bgp.core.wire.capabilities import Capabilities
from services.bgp.core.wire.codes import HEADER_OCTETS, MARKER, MAX_MESSAGE, MessageType, RefreshSubtype
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.errors import BgpError
from services.bgp.core.wire.framing import MessageReader, frame
from services.bgp.core.wire.refresh import RouteRefresh, decode_refresh, encode_refresh
from services.bgp.core.wire.update import UpdateDecoder, decode_update
from tests.properties import bgp_messages as draw_bgp

# --- every decoder of the package, found by its name: a new one is tested without being asked ---


def decoders() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module in pkgutil.iter_modules(wire.__path__):
        loaded = importlib.import_module(f"{wire.__name__}.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if name.startswith("decode_") and function.__module__ == loaded.__name__:
                found[f"{module.name}.{name}"] = function
    return found


DECODERS = decoders()
# By the type of a parameter; one that is missing here fails the test of the decoder that has it.
ARGUMENTS: dict[Any, Callable[[Random], Any]] = {
    Context: lambda random: random.choice(CONTEXTS),
    Family: lambda random: random.choice(list(Family)),
    int: lambda random: random.choice((2, 4)),
    (Capabilities | None): lambda random: None,
}
CONTEXTS = [
    Context(internal, as4, frozenset(families), ids, ids, next_hop, 65535)
    for internal in (False, True)
    for as4 in (False, True)
    for families in ((Family.IPV4,), (Family.IPV6,), tuple(Family))
    for ids in (frozenset[Family](), frozenset(Family))
    for next_hop in (False, True)
]
# A path has no message of its own: who reads the attribute turns this into the right approach of RFC 7606.
OTHER_ERRORS: dict[str, type[Exception]] = {"as_path.decode_as_path": ValueError}


def call(name: str, data: bytes, random: Random) -> Any:
    """Its result, or None when it raised the protocol's error; anything else that is raised comes through."""
    function = DECODERS[name]
    hints = get_type_hints(function)
    hints.pop("return")
    arguments = []
    for parameter, hint in hints.items():
        del parameter
        arguments.append(data if hint is bytes else ARGUMENTS[hint](random))
    refused: BgpError | None = None
    try:
        return function(*arguments)
    except BgpError as error:
        refused = error
    except OTHER_ERRORS.get(name, ()):
        return None
    assert 1 <= refused.notification.code <= 7
    assert len(refused.notification.encode()) <= MAX_MESSAGE
    assert str(refused)
    return None


def samples(random: Random, name: str) -> list[bytes]:
    """Good inputs for it, to be broken: bodies of messages, and what decoders of parts get."""
    return good_inputs().get(name) or all_samples()


@cache
def all_samples() -> list[bytes]:
    return [data for some in good_inputs().values() for data in some]


@cache
def good_inputs() -> dict[str, list[bytes]]:
    """By decoder; drawn once, always the same."""
    bodies: dict[str, list[bytes]] = {}

    def keep(name: str, data: bytes) -> None:
        bodies.setdefault(name, []).append(data)

    @settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        context = data.draw(draw_bgp.contexts())
        change = data.draw(draw_bgp.changes(context))
        for message in encode.encode_change(change, context):
            keep("update.decode_update", message[HEADER_OCTETS:])
        if isinstance(change, Reach):
            keep("attributes.decode_block", encode.encode_attributes(change.attributes, change.family, context))
            keep("as_path.decode_as_path", as_path.encode_as_path(change.attributes.as_path, 4))
            keep("nlri.decode_prefixes", b"".join(change.prefixes))
            keep(
                "nlri.decode_prefixes_with_ids",
                b"".join(wire_nlri.encode_with_ids(change.prefixes, range(len(change.prefixes)))),
            )
        said = data.draw(draw_bgp.opens())
        keep("open.decode_open", wire_open.encode_open(said)[HEADER_OCTETS:])
        keep("capabilities.decode_capabilities", capabilities.encode_capabilities(said.capabilities or Capabilities()))

    collect()
    bodies["refresh.decode_refresh"] = [
        encode_refresh(RouteRefresh(family, subtype))[HEADER_OCTETS:] for family in Family for subtype in RefreshSubtype
    ]
    inner = errors.administrative(errors.Cease.ADMINISTRATIVE_SHUTDOWN, "for 10 min\N{DAGGER}")
    bodies["errors.decode_notification"] = [
        inner.encode()[HEADER_OCTETS:], errors.hard_reset(inner).encode()[HEADER_OCTETS:], b"\x02\x07" + bytes(8),
    ]  # fmt: skip
    return bodies


def fuzz(name: str, rounds: int, random: Random) -> Counter[str]:
    """{"decoded", "refused"}: how many inputs of this decoder came to what; checks what was decoded."""
    came: Counter[str] = Counter()
    seeds = samples(random, name)
    for _ in range(rounds):
        data = draw_bgp.mutated(random.choice(seeds), random, all_samples())
        try:
            found = call(name, data, random)
        except Exception as error:
            raise AssertionError(f"{name}({data.hex()})") from error
        came["refused" if found is None else "decoded"] += 1
        check_decoded(found)
    return came


def check_decoded(found: Any) -> None:
    if isinstance(found, errors.Notification):
        assert str(found).isprintable()
        assert len(found.communication.encode()) <= 255 * 3
    if isinstance(found, list):
        for change in found:
            if isinstance(change, (Reach, Unreach)):
                assert change.prefixes
                for key in change.prefixes:
                    assert nlri(network(change.family, key)) == key  # complete, no host bits
                assert change.path_ids is None or len(change.path_ids) == len(change.prefixes)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_any_bytes_decode_or_give_the_protocols_error(name: str) -> None:
    came = fuzz(name, 400, Random(1))
    assert came["decoded"], "not one input was understood: nothing was tested"
    assert call(name, b"", Random(1)) is not call  # nor does nothing at all make it fail


@pytest.mark.hunt
def test_a_million_inputs_decode_or_give_the_protocols_error() -> None:
    """BGP_FUZZ_INPUTS and BGP_FUZZ_SEED choose others; what it counted is printed (`pytest -s`)."""
    total, seed = int(os.environ.get("BGP_FUZZ_INPUTS", "1000000")), int(os.environ.get("BGP_FUZZ_SEED", "4271"))
    # An UPDATE has the most to get wrong: half of all.
    share = {name: 0.5 if name.endswith("decode_update") else 0.5 / (len(DECODERS) - 1) for name in DECODERS}
    for name in sorted(DECODERS):
        came = fuzz(name, round(total * share[name]) + 1, Random(f"{seed} {name}"))
        print(f"{name}: {came['decoded']} decoded, {came['refused']} refused")


@given(st.lists(st.binary(max_size=60), max_size=20), st.integers(0, 2**32))
def test_any_stream_gives_messages_or_the_protocols_error(pieces: list[bytes], seed: int) -> None:
    """RFC 4271 section 6.1, behind a good marker and behind any bytes."""
    random = Random(seed)
    reader = MessageReader(random.choice((4096, 65535)))
    code = 1
    try:
        for piece in pieces:
            header = MARKER + bytes((0, random.choice((19, 23, 29, 60)), random.randrange(8)))
            reader.feed(random.choice((header + piece, piece)))
            while (message := reader.next()) is not None:
                assert len(message[1]) <= reader.limit - HEADER_OCTETS
    except BgpError as error:
        code = error.notification.code
    assert code == 1


@given(st.data())
def test_messages_come_out_as_they_went_in_however_they_are_cut(data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(min_size=4, max_size=300), min_size=1, max_size=8))
    stream = b"".join(frame(MessageType.UPDATE, body) for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader, found = MessageReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        while (message := reader.next()) is not None:
            found.append(message[1])
    assert found == bodies
    assert reader.buffered == 0


def decode_all(messages: list[bytes], context: Context) -> list[Change]:
    decoder, reader = UpdateDecoder(context), MessageReader(context.max_message)
    reader.feed(b"".join(messages))
    found: list[Change] = []
    while (message := reader.next()) is not None:
        found += decoder.decode(message[1])
    return found


def joined(found: list[Change]) -> Change:
    """Changes of one family and one set of attributes as one."""
    first = found[0]
    if isinstance(first, EndOfRib):
        assert len(found) == 1
        return first
    assert all(isinstance(one, type(first)) for one in found)
    prefixes = [key for one in found for key in one.prefixes]  # type: ignore[union-attr]
    ids = None if first.path_ids is None else [number for one in found for number in one.path_ids or ()]  # type: ignore[union-attr]
    if isinstance(first, Reach):
        assert all(isinstance(one, Reach) and one.attributes is first.attributes for one in found), "not interned"
    return replace(first, prefixes=prefixes, path_ids=ids)


@given(st.data())
def test_changes_survive_a_round_trip(data: st.DataObject) -> None:
    """Both families, both widths of AS numbers, path identifiers, next hops of RFC 8950, long messages."""
    context = data.draw(draw_bgp.contexts())
    change = data.draw(draw_bgp.changes(context))
    messages = encode.encode_change(change, context)
    assert all(len(message) <= context.max_message for message in messages)
    assert joined(decode_all(messages, context)) == change


@given(st.data())
def test_packing_uses_the_fewest_messages(data: st.DataObject) -> None:
    """Around each number of prefixes that just fits."""
    family = data.draw(draw_bgp.FAMILIES)
    long = data.draw(st.booleans())
    context = Context(internal=True, max_message=65535 if long else 4096)
    length = data.draw(st.integers(9, 32))
    key = nlri(network(family, bytes((length,)) + bytes((length + 7) // 8)))
    room = context.max_message - 23 - (7 if family is Family.IPV6 else 0)
    attributes = data.draw(st.none() | draw_bgp.attributes(family, context))
    if attributes is not None:
        room = context.max_message - 23 - len(encode.encode_attributes(attributes, family, context))
        if family is Family.IPV6:
            room -= 4 + 5 + len(attributes.next_hop + attributes.link_local)
    each = max(1, room // len(key))
    full = data.draw(st.integers(0, 1 if long else 4))
    keys = [key] * max(1, full * each + data.draw(st.sampled_from([-1, 0, 1, each // 2])))
    change: Change = Unreach(family, keys) if attributes is None else Reach(family, attributes, keys)
    messages = encode.encode_change(change, context)
    assert all(len(message) <= context.max_message for message in messages)
    if room < 21:
        assert isinstance(decode_all(messages, context)[0], Unreach)
    else:
        assert len(messages) == -(-len(keys) // each)


@given(st.binary(max_size=80), draw_bgp.FAMILIES)
def test_prefixes_are_what_the_plain_reading_gives(data: bytes, family: Family) -> None:
    """Against `ipaddress`, host bits masked."""
    expected, at, right = [], 0, True
    while at < len(data) and right:
        bits = data[at]
        octets = data[at + 1 : at + 1 + (bits + 7) // 8]
        right = bits <= family.octets * 8 and len(octets) == (bits + 7) // 8
        if right:
            expected.append(nlri(ip_network((octets.ljust(family.octets, b"\0"), bits), strict=False)))
        at += 1 + len(octets)
    if right:
        assert wire_nlri.decode_prefixes(data, family) == expected
    else:
        with pytest.raises(BgpError):
            wire_nlri.decode_prefixes(data, family)


@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30))
def test_prefixes_of_one_length_are_masked_too(bits: int, addresses: list[int]) -> None:
    """The quick way for UPDATEs whose prefixes are all of one length."""
    octets = (bits + 7) // 8
    data = b"".join(bytes((bits,)) + address.to_bytes(4, "big")[:octets] for address in addresses)
    padded = [address.to_bytes(4, "big")[:octets].ljust(4, b"\0") for address in addresses]
    expected = [nlri(ip_network((address, bits), strict=False)) for address in padded]
    assert wire_nlri.decode_prefixes(data, Family.IPV4) == expected


@given(draw_bgp.opens())
def test_opens_survive_a_round_trip(said: wire_open.Open) -> None:
    """Also in the long form of RFC 9072, which capabilities of more than 253 octets need."""
    assert wire_open.decode_open(wire_open.encode_open(said)[HEADER_OCTETS:]) == said


@given(draw_bgp.FAMILIES, st.sampled_from(RefreshSubtype))
def test_refreshes_survive_a_round_trip(family: Family, subtype: RefreshSubtype) -> None:
    message = RouteRefresh(family, subtype)
    assert decode_refresh(encode_refresh(message)[HEADER_OCTETS:]) == message


@given(st.text(max_size=300))
def test_shutdown_communication_survives_unless_it_is_cut(text: str) -> None:
    """RFC 9003: at most 255 octets, whole characters, nothing that a terminal would obey."""
    message = errors.administrative(errors.Cease.ADMINISTRATIVE_SHUTDOWN, text)
    assert len(message.data) <= 256
    found = errors.decode_notification(errors.hard_reset(message).encode()[HEADER_OCTETS:]).communication
    assert found.isprintable()
    if text.isprintable() and len(text.encode("utf-8", "replace")) <= 255:
        assert found == text
    assert errors.decode_notification(message.encode()[HEADER_OCTETS:]).communication == found


@given(st.data())
def test_what_was_decoded_can_be_passed_on(data: st.DataObject) -> None:
    """Broken UPDATEs that were understood all the same: what came of them is stable under encoding and decoding."""
    context = data.draw(draw_bgp.contexts())
    seed = Random(data.draw(st.integers(0, 2**32)))
    raw = draw_bgp.mutated(data.draw(st.sampled_from(good_inputs()["update.decode_update"])), seed, all_samples())
    try:
        found = decode_update(raw, context)
    except BgpError:
        return
    for change in found:
        if isinstance(change, Reach):
            once = decode_all(encode.encode_change(change, context), context)
            if all(isinstance(one, Reach) for one in once):
                again = decode_all(encode.encode_change(joined(once), context), context)
                assert joined(again) == joined(once)
                assert isinstance(joined(once), Reach)


def test_equal_attributes_are_one_object() -> None:
    context = Context(internal=True)
    attributes = Attributes(next_hop=b"\x0a\0\0\1", local_pref=100)
    block = encode.encode_attributes(attributes, Family.IPV4, context)
    keys = [b"\x20\x0a\x00\x00" + bytes((index,)) for index in range(2)]
    messages = [encode.encode_reach(block, attributes, Family.IPV4, [key], context)[0] for key in keys]
    first, second = decode_all(messages, context)
    assert isinstance(first, Reach)
    assert isinstance(second, Reach)
    assert first.attributes is second.attributes
