"""SpeakerSettings as JSON and back: for a speaker that runs by a file, and to show people what one runs with.

Addresses, networks and prefixes are texts, families `ipv4` and `ipv6`, everything else as the dataclasses say. Fields
that have their default value may be left out. Octets (of attributes) are hexadecimal.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Union, get_args, get_origin, get_type_hints

from services.bgp.core.paths import Family, network, nlri
from services.bgp.core.settings import Originated, SpeakerSettings

_ADDRESSES = {IPv4Address, IPv6Address}
_NETWORKS = {IPv4Network, IPv6Network}


class SettingsError(ValueError):
    """Says where in the file, and what was expected there."""


def encode_settings(settings: SpeakerSettings) -> str:
    return json.dumps(_plain(settings), indent=2) + "\n"


def decode_settings(text: str | bytes) -> SpeakerSettings:
    """Raises SettingsError."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"not JSON: {error}") from error
    made = _typed(SpeakerSettings, raw, "settings")
    assert isinstance(made, SpeakerSettings)
    return made


def _plain(value: object) -> Any:
    if isinstance(value, Originated):
        shown = {one.name: _plain(getattr(value, one.name)) for one in _told(value)}
        return {**shown, "prefix": str(network(value.family, value.prefix))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in _told(value)}
    if isinstance(value, Family):
        return value.name.lower()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _told(value: Any) -> list[dataclasses.Field[Any]]:
    """Fields that differ from their default, and those without one."""
    return [one for one in dataclasses.fields(value) if getattr(value, one.name) != _default(one)]


def _default(one: dataclasses.Field[Any]) -> object:
    return one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(kind: Any, raw: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _either(arguments, raw, where)
    if origin in (tuple, list):
        return _sequence(origin, arguments, raw, where)
    if origin is dict:
        _expect(isinstance(raw, dict), where, "an object", raw)
        return {_typed(arguments[0], k, where): _typed(arguments[1], v, f"{where}.{k}") for k, v in raw.items()}
    if dataclasses.is_dataclass(kind):
        return _object(kind, raw, where)
    if kind is Family:
        _expect(raw in ("ipv4", "ipv6"), where, "ipv4 or ipv6", raw)
        return Family[raw.upper()]
    if isinstance(kind, type) and issubclass(kind, Enum):
        _expect(raw in [one.value for one in kind], where, ", ".join(str(one.value) for one in kind), raw)
        return kind(raw)
    if kind is bytes:
        return _parsed(bytes.fromhex, raw, where, "hexadecimal octets")
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    _expect(isinstance(raw, kind) and isinstance(raw, bool) == (kind is bool), where, kind.__name__, raw)
    return raw


def _either(kinds: tuple[Any, ...], raw: Any, where: str) -> Any:
    if types.NoneType in kinds and raw is None:
        return None
    known = set(kinds) - {types.NoneType}
    if known == _ADDRESSES:
        return _parsed(ip_address, raw, where, "an IP address")
    if known == _NETWORKS:
        return _parsed(ip_network, raw, where, "a network without host bits")
    (kind,) = known
    return _typed(kind, raw, where)


def _sequence(origin: Any, arguments: tuple[Any, ...], raw: Any, where: str) -> Any:
    _expect(isinstance(raw, list), where, "a list", raw)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        _expect(len(raw) == len(arguments), where, f"{len(arguments)} items", raw)
        return tuple(
            _typed(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(zip(arguments, raw, strict=True))
        )
    return origin(_typed(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(raw))


def _object(kind: Any, raw: Any, where: str) -> Any:
    _expect(isinstance(raw, dict), where, "an object", raw)
    hints = _hints(kind)
    if unknown := sorted(raw.keys() - hints.keys()):
        raise SettingsError(f"{where}: no such field: {', '.join(unknown)}")
    values = dict(raw)
    if kind is Originated and "prefix" in values:
        prefix = _parsed(ip_network, values.pop("prefix"), f"{where}.prefix", "a network without host bits")
        made = {name: _typed(hints[name], one, f"{where}.{name}") for name, one in values.items()}
        made |= {"prefix": nlri(prefix), "family": Family.IPV4 if prefix.version == 4 else Family.IPV6}
    else:
        made = {name: _typed(hints[name], one, f"{where}.{name}") for name, one in values.items()}
    try:
        return kind(**made)
    except TypeError as error:
        raise SettingsError(f"{where}: {str(error).partition('__init__() ')[2] or error}") from error


def _parsed(parse: Any, raw: Any, where: str, expected: str) -> Any:
    _expect(isinstance(raw, str), where, expected, raw)
    try:
        return parse(raw)
    except ValueError as error:
        raise SettingsError(f"{where}: expected {expected}: {error}") from error


def _expect(right: bool, where: str, expected: str, raw: Any) -> None:
    if not right:
        raise SettingsError(f"{where}: expected {expected}, not {json.dumps(raw)[:80]}")
