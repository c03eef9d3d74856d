"""The JSON dialect that the stored objects share: compact, map keys sorted, `<`, `>` and `&` escaped, times in RFC
3339.

Values written here must come out byte for byte as the Go clients write them (`encoding/json`), since both work on the
same keys.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Go escapes these inside strings; outside strings they cannot occur in JSON, so replacing bytes in the finished text
# is exact.
_GO_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")
_encoder = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    text = _encoder.encode(value)
    for plain, escaped in _GO_ESCAPES:
        if plain in text:
            text = text.replace(plain, escaped)
    return text


def rfc3339(moment: datetime) -> str:
    """Whole seconds in UTC, rounded down: `2026-11-23T12:47:55Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_not_before(moment: datetime) -> str:
    """Whole seconds in UTC, rounded up, for moments from which something has to last its full time."""
    if moment.microsecond:
        moment = moment + timedelta(microseconds=1_000_000 - moment.microsecond)
    return rfc3339(moment)


def parse_rfc3339(text: str) -> datetime:
    """Any RFC 3339 time, nanoseconds cut to microseconds. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    seconds, fraction, zone = match.groups()
    moment = datetime.fromisoformat(seconds + ("+00:00" if zone == "Z" else zone)).astimezone(UTC)
    return moment + timedelta(microseconds=math.floor(float(fraction) * 1_000_000)) if fraction else moment


def go_time_string(nanoseconds: int) -> str:
    """UTC form of Go's `Time.String`, trailing zeros of the fraction cut, as the `timestamp` attribute has it.

    nanoseconds: since the Unix epoch.
    """
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if fraction:
        text += "." + f"{fraction:09d}".rstrip("0")
    return text + " +0000 UTC"
