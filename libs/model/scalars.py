"""Values that v3 JSON writes as text or number: protocols, ports, AS numbers, DSCP marks, durations.

Each is a subclass of `str` or `int`, so it compares and prints as what it says, and knows its JSON form:

    Protocol   "TCP" or 6                   numeric text becomes a number in JSON
    Port       80, "8000:8100", "http"      a range of one collapses to its number
    ASNumber   64512, "64512", "1.10"       always written as a number
    DSCP       46, "46", "EF"
    Duration   "90s"                        written as Go prints it: "1m30s"

Constructors raise ValueError for what Go's own decoder refuses; what it takes but the validator refuses (a protocol of
an unknown name, port 0) is left to `libs.model.validation`.
"""

from __future__ import annotations

import re
from typing import Any

_UINT8 = re.compile(r"0*([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])")
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
PROTOCOLS_WITH_PORTS = frozenset({"TCP", "UDP", "SCTP", "6", "17", "132"})


class Protocol(str):
    """IP protocol by name or number. Equal to its text: `Protocol(6) == "6"`, `Protocol("TCP") == "TCP"`."""

    __slots__ = ()

    def __new__(cls, value: str | int) -> Protocol:
        if isinstance(value, bool) or (isinstance(value, int) and not 0 <= value <= 255):
            raise ValueError(f"protocol number must be between 0 and 255, not {value}")
        if not isinstance(value, (str, int)):
            raise ValueError(f"expected a protocol name or number, not {value!r}")
        text = str(value)
        if match := _UINT8.fullmatch(text):
            text = match[1]
        return super().__new__(cls, text)

    @property
    def number(self) -> int | None:
        """The protocol's number, None for a name that is no protocol."""
        return int(self) if _is_number(self) else PROTOCOL_NUMBERS.get(self)

    @property
    def has_ports(self) -> bool:
        return self in PROTOCOLS_WITH_PORTS

    def to_json(self) -> str | int:
        return int(self) if _UINT8.fullmatch(self) else str(self)


class Port(str):
    """A port number, an inclusive range `min:max`, or the name of an endpoint's port."""

    __slots__ = ()

    def __new__(cls, value: str | int) -> Port:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"expected a port number, range or name, not {value!r}")
        if isinstance(value, int):
            return super().__new__(cls, _port_number(value))
        if value.isascii() and value.isdecimal():
            return super().__new__(cls, _port_number(int(value)))
        if ":" in value:
            low, _, high = value.partition(":")
            if not (low.isascii() and low.isdecimal() and high.isascii() and high.isdecimal()):
                raise ValueError(f"port range {value!r} must be two numbers, as in '8000:8100'")
            first, last = _port_number(int(low)), _port_number(int(high))
            if int(first) > int(last):
                raise ValueError(f"port range {value!r} must not have its minimum above its maximum")
            return super().__new__(cls, first if first == last else f"{first}:{last}")
        if not _PORT_NAME.fullmatch(value):
            raise ValueError(f"port name {value!r} must be 1 to 128 letters, digits, '_', '.' or '-'")
        return super().__new__(cls, value)

    @property
    def is_name(self) -> bool:
        return not self.isdecimal() and ":" not in self

    @property
    def port_name(self) -> str:
        """The name, "" for a number or range."""
        return str(self) if self.is_name else ""

    @property
    def min(self) -> int:
        """Lowest port; 0 for a name."""
        return 0 if self.is_name else int(self.partition(":")[0])

    @property
    def max(self) -> int:
        return 0 if self.is_name else int(self.rpartition(":")[2])

    def to_json(self) -> str | int:
        return int(self) if self.isdecimal() else str(self)


def _port_number(number: int) -> str:
    if not 0 <= number <= 65535:
        raise ValueError(f"port number must be between 0 and 65535, not {number}")
    return str(number)


class ASNumber(int):
    """An autonomous system number, 32 bits. Text may be decimal or dotted: "1.10" is 65546."""

    def __new__(cls, value: str | int) -> ASNumber:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"expected an AS number, not {value!r}")
        if isinstance(value, str):
            high, dot, low = value.rpartition(".")
            if not re.fullmatch(r"[0-9]+", low) or (dot and not re.fullmatch(r"[0-9]+", high)):
                raise ValueError(f"AS number {value!r} must be a number or two numbers with a dot between")
            if dot and (int(high) > 0xFFFF or int(low) > 0xFFFF):
                raise ValueError(f"each half of AS number {value!r} must be at most 65535")
            value = int(high or 0) * 65536 + int(low)
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError(f"AS number must be between 0 and 4294967295, not {value}")
        return super().__new__(cls, value)

    def to_json(self) -> int:
        return int(self)


DSCP_NAMES = {
    "DF": 0,
    "EF": 46,
    **{f"CS{n}": 8 * n for n in range(8)},
    **{f"AF{group}{drop}": 8 * group + 2 * drop for group in range(1, 5) for drop in range(1, 4)},
}


class DSCP(str):
    """A differentiated services code point, by number or by the names of RFC 2474, 2597 and 3246."""

    __slots__ = ()

    def __new__(cls, value: str | int) -> DSCP:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"expected a DSCP number or name, not {value!r}")
        text = str(value)
        if match := _UINT8.fullmatch(text):
            text = match[1]
        elif isinstance(value, int):
            raise ValueError(f"DSCP number must be between 0 and 63, not {value}")
        return super().__new__(cls, text)

    @property
    def number(self) -> int | None:
        """0 to 63; None when the name or number is no code point."""
        if _is_number(self):
            return int(self) if int(self) <= 63 else None
        return DSCP_NAMES.get(self.upper())

    def to_json(self) -> str | int:
        return int(self) if _is_number(self) else str(self)


def _is_number(text: str) -> bool:
    """ASCII digits, few enough to be worth a look."""
    return text.isascii() and text.isdecimal() and len(text) <= 10


_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_NS = 2**63 - 1


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration ("1h15m30.5s", "-1.5h", "0"). Raises ValueError."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        match = _TERM.match(rest, at)
        if match is None or not (match[1] or match[2]):
            break
        unit = _UNITS_NS[match[3]]
        total += int(match[1] or 0) * unit
        if match[2]:
            total += int(match[2]) * unit // 10 ** len(match[2])
        at = match.end()
    if not rest or at < len(rest):
        raise ValueError(f"duration {text!r} must be numbers with units, as in '90s', '1m30s' or '100ms'")
    if total > _MAX_NS:
        raise ValueError(f"duration {text!r} is too long")
    return -total if text[0] == "-" else total


def format_duration(nanoseconds: int) -> str:
    """As Go's `Duration.String` prints it: "1h0m0s", "1m30s", "1.5s", "50ms", "0s"."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    if rest < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("\u00b5s", 1_000), ("ns", 1)):
            if rest >= size:
                return f"{sign}{_decimal(rest, size)}{unit}"
    minutes, below = divmod(rest, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(below, 1_000_000_000)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(amount: int, size: int) -> str:
    whole, fraction = divmod(amount, size)
    digits = f"{fraction:0{len(str(size)) - 1}d}".rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)


class Duration(str):
    """A Go duration, kept as Go prints it: `Duration("90s") == "1m30s"`."""

    __slots__ = ()

    def __new__(cls, value: str) -> Duration:
        if not isinstance(value, str):
            raise ValueError(f"expected a duration such as '30s', not {value!r}")
        return super().__new__(cls, format_duration(parse_duration(value)))

    @classmethod
    def of_seconds(cls, seconds: float) -> Duration:
        return cls(format_duration(round(seconds * 1_000_000_000)))

    @property
    def nanoseconds(self) -> int:
        return parse_duration(self)

    @property
    def seconds(self) -> float:
        return parse_duration(self) / 1_000_000_000

    def to_json(self) -> str:
        return str(self)


SCALARS: tuple[type, ...] = (Protocol, Port, ASNumber, DSCP, Duration)


def encode_scalar(value: object) -> str | int:
    """The JSON form; msgspec's `enc_hook`."""
    if isinstance(value, (Protocol, Port, ASNumber, DSCP, Duration)):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode_scalar(wanted: type, value: Any) -> object:
    """The scalar of a JSON value; msgspec's `dec_hook`. Raises ValueError."""
    if wanted in SCALARS:
        return wanted(value)
    raise TypeError(f"{wanted.__name__} has no JSON form")
