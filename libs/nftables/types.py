"""Key and value types of nftables: text ↔ the bytes the kernel compares.

Every part of a key is one DataType with a fixed length. A part parses to an inclusive range (low, high) of packed
bytes; a plain value has low == high. In a concatenation each part is padded with zeros to whole 32-bit registers
(linux/netfilter/nf_tables.h). Multi-byte numbers are big-endian except marks and conntrack state, which live in
registers in the machine's order.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from libs.nftables.model import IFNAME_MAX, DataType, Field

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58,
    "ipv6-icmp": 58, "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items() if name != "icmpv6"}  # the names `nft list` prints
CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
NFPROTOS = {"ipv4": 2, "ipv6": 10}
ARP_OPERATIONS = {"request": 1, "reply": 2}
IFNAME_LEN = IFNAME_MAX + 1
_NAMES: dict[DataType, dict[str, int]] = {
    DataType.PROTO: PROTOCOLS,
    DataType.CT_STATE: CT_STATES,
    DataType.NFPROTO: NFPROTOS,
    DataType.ARP_OP: ARP_OPERATIONS,
}


class ElementError(ValueError):
    """A text that is no value of the type asked for."""


@dataclass(frozen=True, slots=True)
class TypeInfo:
    number: int  # nft's own type number, stored in the kernel for `nft list` only (nftables datatype.h, enum datatypes)
    length: int  # bytes
    little: bool = False  # in the machine's byte order, which is little-endian everywhere we run


_HOST_ORDER = sys.byteorder == "little"
TYPES = {
    DataType.IPV4: TypeInfo(7, 4),
    DataType.IPV6: TypeInfo(8, 16),
    DataType.PROTO: TypeInfo(12, 1),
    DataType.PORT: TypeInfo(13, 2),
    DataType.IFNAME: TypeInfo(41, IFNAME_LEN),
    DataType.MARK: TypeInfo(19, 4, _HOST_ORDER),
    DataType.CT_STATE: TypeInfo(26, 4, _HOST_ORDER),
    DataType.ICMP_TYPE: TypeInfo(14, 1),
    DataType.ICMP_CODE: TypeInfo(32, 1),
    DataType.ICMPV6_TYPE: TypeInfo(29, 1),
    DataType.ICMPV6_CODE: TypeInfo(33, 1),
    DataType.NFPROTO: TypeInfo(2, 1),
    DataType.CT_STATUS: TypeInfo(28, 4, _HOST_ORDER),
    DataType.ARP_OP: TypeInfo(11, 2),
}
TYPE_BY_NUMBER = {info.number: data_type for data_type, info in TYPES.items()}

FIELD_TYPES = {
    Field.IIFNAME: DataType.IFNAME,
    Field.OIFNAME: DataType.IFNAME,
    Field.IP_SADDR: DataType.IPV4,
    Field.IP_DADDR: DataType.IPV4,
    Field.IP6_SADDR: DataType.IPV6,
    Field.IP6_DADDR: DataType.IPV6,
    Field.L4PROTO: DataType.PROTO,
    Field.SPORT: DataType.PORT,
    Field.DPORT: DataType.PORT,
    Field.ICMP_TYPE: DataType.ICMP_TYPE,
    Field.ICMP_CODE: DataType.ICMP_CODE,
    Field.ICMPV6_TYPE: DataType.ICMPV6_TYPE,
    Field.ICMPV6_CODE: DataType.ICMPV6_CODE,
    Field.NFPROTO: DataType.NFPROTO,
    Field.MARK: DataType.MARK,
    Field.CT_STATE: DataType.CT_STATE,
    Field.CT_STATUS: DataType.CT_STATUS,
    Field.CT_MARK: DataType.MARK,
    Field.ARP_OPERATION: DataType.ARP_OP,
    Field.ARP_SADDR_IP: DataType.IPV4,
    Field.ARP_DADDR_IP: DataType.IPV4,
}


def padded(length: int) -> int:
    return (length + 3) & ~3


def key_type_number(key: tuple[DataType, ...]) -> int:
    """Concatenated type numbers, six bits each, as NFTA_SET_KEY_TYPE holds them."""
    number = 0
    for part in key:
        number = number << 6 | TYPES[part].number
    return number


def key_from_number(number: int) -> tuple[DataType, ...] | None:
    """The reverse; None when a type is not one of ours."""
    parts: list[DataType] = []
    while number:
        part = TYPE_BY_NUMBER.get(number & 0x3F)
        if part is None:
            return None
        parts.insert(0, part)
        number >>= 6
    return tuple(parts) or None


def key_length(key: tuple[DataType, ...]) -> int:
    """Bytes of a packed key: one part is as long as its type, several are padded each."""
    if len(key) == 1:
        return TYPES[key[0]].length
    return sum(padded(TYPES[part].length) for part in key)


def pack_int(data_type: DataType, value: int) -> bytes:
    info = TYPES[data_type]
    try:
        return value.to_bytes(info.length, "little" if info.little else "big")
    except OverflowError:
        raise ElementError(f"{value} does not fit {data_type} ({info.length} bytes)") from None


def pack_ifname(name: str) -> bytes:
    raw = name.encode()
    if not 0 < len(raw) <= IFNAME_MAX:
        raise ElementError(f"interface name {name!r} must have 1 to {IFNAME_MAX} bytes")
    return raw.ljust(IFNAME_LEN, b"\0")


def pack_address(data_type: DataType, text: str) -> bytes:
    family = socket.AF_INET if data_type is DataType.IPV4 else socket.AF_INET6
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise ElementError(f"{text!r} is not an {data_type}") from None


def parse_number(data_type: DataType, text: str) -> int:
    names = _NAMES.get(data_type, {})
    if text in names:
        return names[text]
    try:
        return int(text, 0)
    except ValueError:
        raise ElementError(f"{text!r} is not a value of {data_type}") from None


def parse_part(data_type: DataType, text: str | int) -> tuple[bytes, bytes]:
    """(low, high), both inclusive and packed, of a value, a prefix or a range. Raises ElementError."""
    if isinstance(text, int):
        packed = pack_int(data_type, text)
        return packed, packed
    if data_type is DataType.IFNAME:
        packed = pack_ifname(text)
        return packed, packed
    if data_type in (DataType.IPV4, DataType.IPV6):
        address, slash, length = text.partition("/")
        if slash:
            return _prefix_range(data_type, address, length, text)
        first, dash, last = text.partition("-")
        low = pack_address(data_type, first)
        high = pack_address(data_type, last) if dash else low
    else:
        first, dash, last = text.partition("-")
        if dash and first and not (data_type is DataType.PROTO and text in PROTOCOLS):
            low, high = (pack_int(data_type, parse_number(data_type, end)) for end in (first, last))
        else:
            low = high = pack_int(data_type, parse_number(data_type, text))
    if _value(data_type, low) > _value(data_type, high):
        raise ElementError(f"range {text!r} ends before it starts")
    return low, high


def _value(data_type: DataType, packed: bytes) -> int:
    return int.from_bytes(packed, "little" if TYPES[data_type].little else "big")


def _prefix_range(data_type: DataType, address: str, length: str, text: str) -> tuple[bytes, bytes]:
    packed = pack_address(data_type, address)
    bits = len(packed) * 8
    if not length.isdigit() or int(length) > bits:
        raise ElementError(f"{text!r}: prefix length must be 0 to {bits}")
    host = (1 << (bits - int(length))) - 1
    low = int.from_bytes(packed, "big")
    if low & host:
        raise ElementError(f"{text!r} has bits set beyond its prefix length")
    return packed, (low | host).to_bytes(len(packed), "big")


def pack_element(key: tuple[DataType, ...], text: str) -> tuple[bytes, bytes]:
    """(low, high) of a whole element, inclusive. For a concatenation each part is a range of its own (pipapo sets)."""
    if len(key) == 1:
        return parse_part(key[0], text)
    parts = text.split(" . ")
    if len(parts) != len(key):
        raise ElementError(f"{text!r} has {len(parts)} parts, the key {' . '.join(key)} has {len(key)}")
    low, high = b"", b""
    for data_type, part in zip(key, parts, strict=True):
        first, last = _parse_cached(data_type, part)
        size = padded(len(first))
        low += first.ljust(size, b"\0")
        high += last.ljust(size, b"\0")
    return low, high


_parse_cached = lru_cache(maxsize=4096)(parse_part)  # protocols, ports and names repeat across a set


def pack_elements(key: tuple[DataType, ...], texts: Iterable[str], *, interval: bool) -> set[bytes]:
    """Elements as the reconciler knows them: `key`, or `low + high` (twice as long) when the set has intervals.

    Raises ElementError for a bad text, and for a prefix or range in a set without intervals.
    """
    if not interval and key == (DataType.IPV4,):
        return _pack_hosts(texts)
    packed = set()
    for text in texts:
        low, high = pack_element(key, text)
        if interval:
            packed.add(low + high)
        elif low != high:
            raise ElementError(f"{text!r} is more than one value, and the set has no intervals")
        else:
            packed.add(low)
    return packed


def _pack_hosts(texts: Iterable[str]) -> set[bytes]:
    """The most common set, done the short way: inet_pton and nothing else when there is no slash."""
    pton, family, packed = socket.inet_pton, socket.AF_INET, set()
    for text in texts:
        try:
            packed.add(pton(family, text.removesuffix("/32")))
        except OSError:
            low, high = parse_part(DataType.IPV4, text)
            if low != high:
                raise ElementError(f"{text!r} is more than one value, and the set has no intervals") from None
            packed.add(low)
    return packed


def unpack_part(data_type: DataType, low: bytes, high: bytes) -> str:
    """Text of a range of packed values, the shortest form: value, prefix, range."""
    if data_type is DataType.IFNAME:
        return low.rstrip(b"\0").decode(errors="replace")
    if data_type in (DataType.IPV4, DataType.IPV6):
        return _address_text(low, high)
    first, last = _value(data_type, low), _value(data_type, high)
    if first != last:
        return f"{first}-{last}"
    if data_type is DataType.PROTO:
        return PROTOCOL_NAMES.get(first, str(first))
    if data_type is DataType.CT_STATE:
        return next((name for name, bit in CT_STATES.items() if bit == first), str(first))
    return f"0x{first:08x}" if data_type is DataType.MARK else str(first)


def _address_text(low: bytes, high: bytes) -> str:
    address = IPv4Address if len(low) == 4 else IPv6Address
    if low == high:
        return str(address(low))
    first, last = int.from_bytes(low, "big"), int.from_bytes(high, "big")
    host = first ^ last
    if host & (host + 1) == 0 and first & host == 0:
        return f"{address(low)}/{len(low) * 8 - host.bit_length()}"
    return f"{address(low)}-{address(high)}"


def unpack_element(key: tuple[DataType, ...], element: bytes) -> str:
    """Text of an element in the reconciler's form (see pack_elements)."""
    size = key_length(key)
    low, high = element[:size], element[size:] or element[:size]
    if len(key) == 1:
        return unpack_part(key[0], low, high)
    texts, at = [], 0
    for data_type in key:
        length = TYPES[data_type].length
        texts.append(unpack_part(data_type, low[at : at + length], high[at : at + length]))
        at += padded(length)
    return " . ".join(texts)
