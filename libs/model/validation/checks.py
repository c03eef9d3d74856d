"""Checks of single values, used by all kinds. Each takes the place and the value and refuses what does not fit."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from libs.model import selector as selectors
from libs.model.problems import At
from libs.model.scalars import DSCP, PROTOCOL_NUMBERS, Duration, Port, Protocol

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_SELECTOR_CHARS = 1024
MAX_NAME_CHARS = 253
MAX_ANNOTATION_BYTES = 256 * 1024
MAX_ROUTE_PRIORITY = 2147483646

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
_SUBDOMAIN = re.compile(SUBDOMAIN)
_QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}|[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}")
_DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))*")
# What Python's regular expressions know and RE2, which will run them, does not; looked for outside classes and escapes.
_NOT_RE2 = re.compile(r"\\[1-9]|\(\?(=|!|<=|<!|\(|>|#)|[*+?}]\+")
_CLASS_OR_ESCAPE = re.compile(r"\\[^1-9]|\[\^?\]?(?:\\.|[^\]\\])*\]")


# --- addresses --------------------------------------------------------------------------------------------------------


def parse_ip(text: str) -> Address | None:
    """None for anything but a plain address: no zone, no leading zeros."""
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def parse_cidr(text: str) -> tuple[Address, Network] | None:
    """The address as written and its network. None without a prefix length in digits."""
    address_text, slash, length = text.partition("/")
    address = parse_ip(address_text)
    if address is None or not slash or not (length.isascii() and length.isdecimal()):
        return None
    try:
        return address, ipaddress.ip_network(f"{address}/{int(length)}", strict=False)
    except ValueError:
        return None


def parse_cidr_or_ip(text: str) -> tuple[Address, Network] | None:
    """A bare address counts as the network of just itself."""
    if "/" in text:
        return parse_cidr(text)
    address = parse_ip(text)
    return None if address is None else (address, ipaddress.ip_network(address))


def is_within(part: Network, whole: Network) -> bool:
    if isinstance(part, ipaddress.IPv4Network) and isinstance(whole, ipaddress.IPv4Network):
        return part.subnet_of(whole)
    if isinstance(part, ipaddress.IPv6Network) and isinstance(whole, ipaddress.IPv6Network):
        return part.subnet_of(whole)
    return False


def ip(at: At, text: str, version: int | None = None) -> Address | None:
    address = parse_ip(text)
    if address is None or version not in (None, address.version):
        at.refuse(f"must be an {f'IPv{version}' if version else 'IP'} address", text)
        return None
    return address


def masked_cidr(at: At, text: str, version: int | None = None) -> Network | None:
    """A network with a prefix length and no bits beyond it."""
    parsed = parse_cidr(text)
    if parsed is None or version not in (None, parsed[1].version):
        hint = " with a prefix length" if parsed is None and parse_ip(text) is not None else ""
        at.refuse(f"must be an {f'IPv{version}' if version else 'IPv4 or IPv6'} CIDR{hint}", text)
        return None
    return _masked(at, *parsed, text)


def masked_net(at: At, text: str, version: int | None = None) -> Network | None:
    """Like `masked_cidr`, or a bare address."""
    parsed = parse_cidr_or_ip(text)
    if parsed is None or version not in (None, parsed[1].version):
        at.refuse(f"must be an {f'IPv{version}' if version else 'IPv4 or IPv6'} CIDR or address", text)
        return None
    return _masked(at, *parsed, text)


def any_net(at: At, text: str, version: int | None = None) -> Network | None:
    """A CIDR, with or without host bits, or a bare address."""
    parsed = parse_cidr_or_ip(text)
    if parsed is None or version not in (None, parsed[1].version):
        at.refuse(f"must be an {f'IPv{version}' if version else 'IPv4 or IPv6'} CIDR or address", text)
        return None
    return parsed[1]


def _masked(at: At, address: Address, network: Network, text: str) -> Network | None:
    if address == network.network_address:
        return network
    at.refuse(f"must have no address bits beyond its prefix length: {network}", text)
    return None


def mac(at: At, text: str) -> None:
    if not _MAC.fullmatch(text):
        at.refuse("must be a MAC address", text)


# --- names and labels -------------------------------------------------------------------------------------------------


def dns_name(at: At, text: str) -> None:
    """DNS-1123 subdomain."""
    if len(text) > MAX_NAME_CHARS or not _SUBDOMAIN.fullmatch(text):
        at.refuse(
            f"must be lower case letters, digits, '-' or '.', begin and end with a letter or digit, at most "
            f"{MAX_NAME_CHARS} characters",
            text,
        )


def _qualified_name_fault(text: str) -> str:
    """Why it is no Kubernetes qualified name, "" when it is one."""
    prefix, slash, name = text.rpartition("/")
    if slash and (not prefix or len(prefix) > MAX_NAME_CHARS or not _SUBDOMAIN.fullmatch(prefix)):
        return "the part before '/' must be a lower case DNS name"
    if len(name) > 63 or not _QUALIFIED_NAME.fullmatch(name):
        return "must be at most 63 letters, digits, '-', '_' or '.', begin and end with a letter or digit"
    return ""


def label_map(at: At, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        if fault := _qualified_name_fault(key):
            at.item(key).refuse(f"not a label's key: {fault}", key)
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            at.item(key).refuse(
                "must be empty, or at most 63 letters, digits, '-', '_' or '.', begin and end with a letter or digit",
                value,
            )


def annotation_map(at: At, values: Mapping[str, str]) -> None:
    for key in values:
        if fault := _qualified_name_fault(key.lower()):
            at.item(key).refuse(f"not an annotation's key: {fault}", key)
    size = sum(len(key.encode()) + len(value.encode()) for key, value in values.items())
    if size > MAX_ANNOTATION_BYTES:
        at.refuse(f"must be at most {MAX_ANNOTATION_BYTES} bytes together, not {size}")


def interface(at: At, text: str) -> None:
    if not _INTERFACE.fullmatch(text):
        at.refuse("must be an interface name: 1 to 15 letters, digits, '_', '.' or '-'", text)


# --- selectors and patterns -------------------------------------------------------------------------------------------


def selector(at: At, text: str, *, allow_global: bool = False) -> None:
    """allow_global: global() may stand alone; never among other terms."""
    if len(text) > MAX_SELECTOR_CHARS:
        at.refuse(f"must be at most {MAX_SELECTOR_CHARS} characters, not {len(text)}")
        return
    try:
        parsed = selectors.parse(text)
    except selectors.SelectorError as error:
        at.refuse(f"invalid selector: {error.reason} at position {error.position}", text)
        return
    if isinstance(parsed.root, selectors.Global) and allow_global:
        return
    if _has_global(parsed.root):
        at.refuse(
            "global() cannot be combined with other selectors"
            if allow_global
            else "global() can only be used in the namespaceSelector of a rule's source or destination",
            text,
        )


def _has_global(node: selectors.Node) -> bool:
    match node:
        case selectors.Global():
            return True
        case selectors.Not():
            return _has_global(node.operand)
        case selectors.And() | selectors.Or():
            return any(map(_has_global, node.operands))
    return False


def regexp(at: At, text: str) -> None:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        at.refuse(f"must be a regular expression: {error}", text)
        return
    if _NOT_RE2.search(_CLASS_OR_ESCAPE.sub("x", text)):
        at.refuse("must be a regular expression without look-around, back references and possessive repeats", text)


def duration(at: At, value: Duration | str) -> None:
    """Not negative, in ms or longer units."""
    if not _DURATION.fullmatch(value):
        at.refuse("must be a duration in ms, s, m or h that is not negative, as in '90s'", value)


# --- numbers, enumerations, lists -------------------------------------------------------------------------------------


def within(at: At, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        at.refuse(f"must be between {low} and {high}", value)


def one_of(at: At, value: str | None, allowed: Sequence[str], *, any_case: bool = False) -> None:
    """None passes; "" does not unless listed."""
    if value is None or value in allowed:
        return
    if any_case and value.lower() in (choice.lower() for choice in allowed):
        return
    at.refuse(f"must be one of {', '.join(choice for choice in allowed if choice)}", value)


def optional_one_of(at: At, value: str | None, allowed: Sequence[str], *, any_case: bool = False) -> None:
    """Like `one_of`, with "" for not set."""
    if value:
        one_of(at, value, allowed, any_case=any_case)


def at_most(at: At, values: Collection[object], limit: int) -> None:
    if len(values) > limit:
        at.refuse(f"must have at most {limit} entries, not {len(values)}")


def unique(at: At, values: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            at.item(index).refuse("must not be given twice", value)
        seen.add(value)


# --- protocols and ports ----------------------------------------------------------------------------------------------


def protocol(at: At, value: Protocol) -> None:
    if value.number is None:
        at.refuse(f"must be one of {', '.join(PROTOCOL_NUMBERS)} or a number from 1 to 255", str(value))
    elif not 1 <= value.number <= 255:
        at.refuse("must be a protocol number from 1 to 255", value.number)


def port(at: At, value: Port) -> None:
    if not value.is_name and value.min < 1:
        at.refuse("must be a port number from 1 to 65535, or a range of them", str(value))


def port_name(at: At, value: str) -> None:
    if not _PORT_NAME.fullmatch(value):
        at.refuse("must be a port name: 1 to 128 letters, digits, '_', '.' or '-'", value)


def protocol_with_ports(at: At, value: Protocol) -> None:
    protocol(at, value)
    if value.number is not None and not value.has_ports:
        at.refuse("must be a protocol with ports: TCP, UDP or SCTP", str(value))


def dscp(at: At, value: DSCP) -> None:
    if value.number is None:
        at.refuse("must be a DSCP from 0 to 63, or a name such as EF, CS1 or AF41", str(value))
