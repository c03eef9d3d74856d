"""Framing, OPEN with capabilities, NOTIFICATION, ROUTE-REFRESH: octets by hand, errors by section."""

from __future__ import annotations

import pytest

from services.bgp.core.paths import Family
from services.bgp.core.wire.capabilities import Capabilities, GracefulRestart, LongLived, decode_capabilities
from services.bgp.core.wire.codes import MARKER, MessageType, RefreshSubtype
from services.bgp.core.wire.errors import (
    BgpError,
    Cease,
    Notification,
    administrative,
    decode_notification,
    hard_reset,
)
from services.bgp.core.wire.framing import KEEPALIVE, MessageReader, frame
from services.bgp.core.wire.open import Open, decode_open, encode_open
from services.bgp.core.wire.refresh import RouteRefresh, decode_refresh


def code_of(raised: pytest.ExceptionInfo[BgpError]) -> tuple[int, int, bytes]:
    told = raised.value.notification
    return told.code, told.subcode, told.data


# --- RFC 4271 section 6.1 ---


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("ff" * 15 + "fe" + "0013 04", (1, 1, b"")),
        ("ff" * 16 + "0012 04", (1, 2, b"\0\x12")),
        ("ff" * 16 + "0014 04 00", (1, 2, b"\0\x14")),  # a KEEPALIVE has no body
        ("ff" * 16 + "001c 01" + "00" * 9, (1, 2, b"\0\x1c")),
        ("ff" * 16 + "0016 02" + "00" * 3, (1, 2, b"\0\x16")),
        ("ff" * 16 + "0014 03 06", (1, 2, b"\0\x14")),
        ("ff" * 16 + "1001 02", (1, 2, b"\x10\x01")),
        ("ff" * 16 + "ffff 02", (1, 2, b"\xff\xff")),
        ("ff" * 16 + "0013 00", (1, 3, b"\0")),
        ("ff" * 16 + "0013 06", (1, 3, b"\x06")),
    ],
)
def test_header_errors(header: str, expected: tuple[int, int, bytes]) -> None:
    """Seen as soon as the header is there: nobody waits for 65,535 octets that are not allowed."""
    reader = MessageReader()
    reader.feed(bytes.fromhex(header.replace(" ", ""))[:19])
    with pytest.raises(BgpError) as raised:
        reader.next()
    assert code_of(raised) == expected


def test_long_messages_are_for_who_negotiated_them() -> None:
    """RFC 8654 section 4: never an OPEN or a KEEPALIVE."""
    reader = MessageReader(limit=65535)
    body = bytes(60000)
    reader.feed(frame(MessageType.UPDATE, body) + KEEPALIVE)
    assert reader.next() == (MessageType.UPDATE, body)
    assert reader.next() == (MessageType.KEEPALIVE, b"")
    reader.feed(MARKER + b"\x10\x01\x01")
    with pytest.raises(BgpError) as raised:
        reader.next()
    assert code_of(raised) == (1, 2, b"\x10\x01")


def test_a_message_is_there_with_its_last_octet() -> None:
    message = frame(MessageType.UPDATE, bytes(30))
    for at in range(1, len(message)):
        reader = MessageReader()
        reader.feed(message[:at])
        assert reader.next() is None
        assert reader.buffered == at
        reader.feed(message[at:])
        assert reader.next() == (MessageType.UPDATE, bytes(30))
        assert reader.next() is None


def test_messages_before_a_broken_one_are_given_out() -> None:
    reader = MessageReader()
    reader.feed(KEEPALIVE + KEEPALIVE + bytes(19))
    assert [reader.next(), reader.next()] == [(MessageType.KEEPALIVE, b"")] * 2
    with pytest.raises(BgpError):
        reader.next()


# --- RFC 4271 section 6.2 ---

OPEN_BODY = "04 fde8 005a 01020304 00"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("03 fde8 005a 01020304 00", (2, 1, b"\0\4")),
        ("04 0000 005a 01020304 00", (2, 2, b"")),
        ("04 fde8 005a 00000000 00", (2, 3, b"")),
        ("04 fde8 0001 01020304 00", (2, 6, b"")),
        ("04 fde8 0002 01020304 00", (2, 6, b"")),
        ("04 fde8 005a 01020304 03 01 01 ff", (2, 4, b"\1\1\xff")),  # RFC 1771's authentication
        ("04 fde8 005a 01020304 01 02", (2, 0, b"")),
        ("04 fde8 005a 01020304 04 0204 0200", (2, 0, b"")),  # parameter runs over
        ("04 fde8 005a 01020304 04 0202 0201", (2, 0, b"")),  # capability runs over
        ("04 fde8 005a 01020304 00 00", (2, 0, b"")),
        ("04 fde8 005a 01020304 05", (2, 0, b"")),
        ("04 fde8 005a 01020304 ff ff 00", (2, 0, b"")),  # RFC 9072's length is not complete
        ("04 fde8 005a 01020304 08 0206 4104 00000000", (2, 2, b"")),  # RFC 7607: AS 0 in four octets
    ],
)
def test_open_errors(body: str, expected: tuple[int, int, bytes]) -> None:
    with pytest.raises(BgpError) as raised:
        decode_open(bytes.fromhex(body.replace(" ", "")))
    assert code_of(raised) == expected


def test_open_without_parameters() -> None:
    said = decode_open(bytes.fromhex(OPEN_BODY.replace(" ", "")))
    assert said == Open(65000, 90, 0x01020304, None)
    assert encode_open(said)[19:] == bytes.fromhex(OPEN_BODY.replace(" ", ""))


def test_as_number_of_four_octets() -> None:
    """RFC 6793 section 4.1: AS_TRANS where it does not fit, the capability counts."""
    message = encode_open(Open(4200000000, 90, 1, Capabilities(as4=4200000000)))
    assert message[20:22] == b"\x5b\xa0"
    assert decode_open(message[19:]).asn == 4200000000


def test_capabilities_in_several_parameters_and_in_the_long_form() -> None:
    """RFC 5492 section 4 and RFC 9072: both are understood, whoever sends which."""
    expected = Capabilities(families=((1, 1), (2, 1)), route_refresh=True)
    for parameters in (
        "14 0206 0104 00010001 0202 0200 0206 0104 00020001",
        "10 020e 0104 00010001 0200 0104 00020001",
        "ff ff 0017 02 0006 0104 00010001 02 0002 0200 02 0006 0104 00020001",
        "08 ff 0017 02 0006 0104 00010001 02 0002 0200 02 0006 0104 00020001",
    ):
        body = bytes.fromhex(("04 fde8 005a 01020304" + parameters).replace(" ", ""))
        assert decode_open(body).capabilities == expected, parameters


def test_each_capability() -> None:
    raw = (
        "0104 00010001 0200 0506 000100010002 0600 4006 c078 00010180 4104 0000fde8 4504 00010103 4600"
        "4707 00010180 000e10 4907 02 7231 03 636f6d"
    )
    assert decode_capabilities(bytes.fromhex(raw.replace(" ", ""))) == Capabilities(
        families=((1, 1),),
        route_refresh=True,
        enhanced_refresh=True,
        extended_message=True,
        extended_next_hop=(((1, 1), 2),),
        as4=65000,
        add_path=(((1, 1), 3),),
        graceful_restart=GracefulRestart(120, True, True, (((1, 1), True),)),
        long_lived=(LongLived((1, 1), 3600, True),),
        hostname="r1",
        domain="com",
    )


@pytest.mark.parametrize(
    "raw", ["0103000100", "4101ff", "400178", "4503000101", "47050001010000", "49020201", "0601ff"]
)
def test_a_capability_of_impossible_length_is_kept_as_unknown(raw: str) -> None:
    data = bytes.fromhex(raw)
    said = decode_capabilities(data)
    assert said == Capabilities(unknown=((data[0], data[2:]),))


def test_modes_of_add_path_that_do_not_exist_are_ignored() -> None:
    """RFC 7911 section 4."""
    assert decode_capabilities(bytes.fromhex("45080001010400020101")).add_path == (((2, 1), 1),)


# --- NOTIFICATION ---


def test_shutdown_communication() -> None:
    """RFC 9003: length, UTF-8; what is not well formed is no text; control characters do not reach a terminal."""
    message = administrative(Cease.ADMINISTRATIVE_SHUTDOWN, "maintenance, back at 10")
    assert message.data == b"\x17maintenance, back at 10"
    assert str(message) == "cease: administrative shutdown (6/2), 'maintenance, back at 10'"
    assert Notification(6, 2, b"\x05abc").communication == ""
    assert Notification(6, 4, b"\x05a\x1b[2J").communication == "a\N{REPLACEMENT CHARACTER}[2J"
    assert Notification(6, 3, b"\x01a").communication == ""
    assert administrative(Cease.ADMINISTRATIVE_RESET, "\N{EURO SIGN}" * 100).data[0] == 255
    assert administrative(Cease.ADMINISTRATIVE_RESET).data == b""


def test_hard_reset_carries_its_reason() -> None:
    """RFC 8538 section 3.1."""
    message = hard_reset(administrative(Cease.ADMINISTRATIVE_SHUTDOWN, "bye"))
    assert message.encode()[19:] == bytes.fromhex("0609060203") + b"bye"
    assert decode_notification(message.encode()[19:]) == message
    assert message.communication == "bye"
    assert str(message) == "cease: hard reset (6/9), cease: administrative shutdown (6/2), 'bye'"
    assert str(Notification(6, 9)) == "cease: hard reset (6/9)"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Notification(4), "hold timer expired (4/0)"),
        (Notification(2, 2, b"\xfd\xe8"), "OPEN message error: bad peer as (2/2), data fde8"),
        (Notification(2, 5), "OPEN message error: subcode 5 (2/5)"),
        (Notification(77, 3), "error code 77: subcode 3 (77/3)"),
        (Notification(8), "send hold timer expired (8/0)"),
    ],
)
def test_notifications_say_what_they_mean(message: Notification, text: str) -> None:
    assert str(message) == text


def test_a_notification_that_quotes_much_fits_into_a_message() -> None:
    assert len(Notification(3, 1, bytes(9000)).encode()) == 4096


# --- ROUTE-REFRESH ---


def test_refresh() -> None:
    """RFC 2918; RFC 7313 section 5 for marks of a wrong length; what we do not know is ignored."""
    assert decode_refresh(bytes.fromhex("00010001")) == RouteRefresh(Family.IPV4)
    assert decode_refresh(bytes.fromhex("00020101")) == RouteRefresh(Family.IPV6, RefreshSubtype.BEGIN)
    for ignored in ("00010080", "40040001", "00010301", "0001ff01", "00010001 01800000"):
        assert decode_refresh(bytes.fromhex(ignored)) is None
    with pytest.raises(BgpError) as raised:
        decode_refresh(bytes.fromhex("0001010100"))
    assert code_of(raised) == (7, 1, frame(MessageType.ROUTE_REFRESH, bytes.fromhex("0001010100")))
