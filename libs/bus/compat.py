"""Services of different releases on one bus: what is skipped, what is refused (docs/design/compatibility.md).

Within one `PROTOCOL` messages only grow: fields with defaults, and kinds of messages that a reader may leave out. Both
are skipped by who does not know them. Anything else raises PROTOCOL, and who does not speak it is told so.
"""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec

PROTOCOL: Final = 1
"""What we speak. A message that does not say is of protocol 1, for ever: that is what the first ones were."""

FAMILIES: Final = frozenset({"policy", "ipset", "route", "config", "local"})
"""Of streams that we have a use for; a reader does not follow others."""


class NotUnderstood(Exception):
    """A well-formed message that means nothing to this release. str(): why, for whoever has to upgrade something."""


class Header(msgspec.Struct):
    """Of a message that cannot be decoded otherwise: these names and types hold in every protocol."""

    protocol: int = 1
    version: str = ""
    kind: str = ""


def header(data: bytes) -> Header:
    """Raises msgspec.DecodeError when not even that can be read."""
    return msgspec.json.decode(data, type=Header)


def unknown_kind(union: Any, data: bytes) -> str:
    """The message's kind, if it is none of the union's; else "": then something is wrong with the message itself."""
    try:
        kind = header(data).kind
    except msgspec.DecodeError:
        return ""
    known = {member.__struct_config__.tag for member in get_args(union)}
    return "" if not known or kind in known else kind


def difference(protocol: int, version: str, who: str, us: str = "this reader") -> str:
    """Why we and `who`, of this version, do not talk; "" when we do."""
    if protocol == PROTOCOL:
        return ""
    told = f"{who} ({version or 'version unknown'}) speaks protocol {protocol}, {us} protocol {PROTOCOL}"
    return f"{told}: upgrade {who if protocol < PROTOCOL else us}"


def not_understood(what: str, data: bytes, error: Exception, who: str, us: str = "this reader") -> NotUnderstood:
    """Of a message that could not be decoded: the protocol, if that is why, else the place in the message."""
    try:
        found = header(data)
    except msgspec.DecodeError:
        found = Header()
    reason = difference(found.protocol, found.version, who, us)
    return NotUnderstood(reason or f"{what} is not understood: {error}")
