from __future__ import annotations

import pytest

from libs.model.scalars import DSCP, ASNumber, Duration, Port, Protocol, format_duration, parse_duration


@pytest.mark.parametrize(
    ("value", "text", "json", "number"),
    [
        ("TCP", "TCP", "TCP", 6),
        (6, "6", 6, 6),
        ("6", "6", 6, 6),
        ("006", "6", 6, 6),
        ("ICMPv6", "ICMPv6", "ICMPv6", 58),
        ("tcp", "tcp", "tcp", None),
        ("256", "256", "256", 256),
    ],
)
def test_protocol_is_name_or_number(value: str | int, text: str, json: str | int, number: int | None) -> None:
    protocol = Protocol(value)
    assert (protocol, protocol.to_json(), protocol.number) == (text, json, number)


@pytest.mark.parametrize("value", [256, -1, True])
def test_protocol_number_outside_a_byte_is_refused(value: int) -> None:
    with pytest.raises(ValueError):
        Protocol(value)


@pytest.mark.parametrize("value", ["TCP", "UDP", "SCTP", 6, "17", 132])
def test_protocols_with_ports(value: str | int) -> None:
    assert Protocol(value).has_ports


@pytest.mark.parametrize("value", ["ICMP", "UDPLite", 1, 136, "tcp"])
def test_protocols_without_ports(value: str | int) -> None:
    assert not Protocol(value).has_ports


@pytest.mark.parametrize(
    ("value", "json", "bounds"),
    [
        (80, 80, (80, 80)),
        ("80", 80, (80, 80)),
        ("8000:8100", "8000:8100", (8000, 8100)),
        ("80:80", 80, (80, 80)),
        ("0:65535", "0:65535", (0, 65535)),
        ("1:2", "1:2", (1, 2)),
        ("http-alt.x_1", "http-alt.x_1", (0, 0)),
    ],
)
def test_port_is_number_range_or_name(value: str | int, json: str | int, bounds: tuple[int, int]) -> None:
    port = Port(value)
    assert (port.to_json(), (port.min, port.max)) == (json, bounds)
    assert port.is_name == (bounds == (0, 0))


@pytest.mark.parametrize("value", ["81:80", "1:65536", 65536, -1, "a:b", "1:", ":1", "1:2:3", "", "ä", "x" * 129, True])
def test_what_is_no_port_is_refused(value: str | int) -> None:
    with pytest.raises(ValueError):
        Port(value)


@pytest.mark.parametrize(
    ("value", "number"), [(64512, 64512), ("64512", 64512), ("1.10", 65546), ("65535.65535", 2**32 - 1), (0, 0)]
)
def test_as_number_is_plain_or_dotted(value: str | int, number: int) -> None:
    assert ASNumber(value) == number
    assert type(ASNumber(value).to_json()) is int


@pytest.mark.parametrize("value", [2**32, -1, "65536.0", "0.65536", "x", "", "1.2.3", ".1", "1.", True])
def test_what_is_no_as_number_is_refused(value: str | int) -> None:
    with pytest.raises(ValueError):
        ASNumber(value)


@pytest.mark.parametrize(
    ("value", "json", "number"),
    [(46, 46, 46), ("46", 46, 46), ("EF", "EF", 46), ("AF41", "AF41", 34), ("CS7", "CS7", 56), ("DF", "DF", 0)],
)
def test_dscp_is_number_or_name(value: str | int, json: str | int, number: int) -> None:
    assert (DSCP(value).to_json(), DSCP(value).number) == (json, number)


@pytest.mark.parametrize("value", [64, "64", "AF44", "nothing"])
def test_dscp_outside_its_range_has_no_number(value: str | int) -> None:
    assert DSCP(value).number is None


@pytest.mark.parametrize(
    ("text", "printed", "seconds"),
    [
        ("90s", "1m30s", 90),
        ("0", "0s", 0),
        ("0s", "0s", 0),
        ("1h", "1h0m0s", 3600),
        ("1h15m30.5s", "1h15m30.5s", 4530.5),
        ("50ms", "50ms", 0.05),
        ("1500ms", "1.5s", 1.5),
        ("1.5us", "1.5µs", 0.0000015),
        ("-2m", "-2m0s", -120),
        (".5s", "500ms", 0.5),
        ("24h0m1s", "24h0m1s", 86401),
    ],
)
def test_duration_prints_as_go_prints_it(text: str, printed: str, seconds: float) -> None:
    assert Duration(text) == printed
    assert Duration(text).seconds == pytest.approx(seconds)
    assert Duration(printed) == printed


@pytest.mark.parametrize("text", ["", "5", "1d", "s", "1s2", "- 1s", "1.s.", ".s", "9999999h", "+"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_duration_of_seconds() -> None:
    assert Duration.of_seconds(0.1) == "100ms"
    assert format_duration(1) == "1ns"
