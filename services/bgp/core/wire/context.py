"""What a session negotiated, as far as it changes how an UPDATE is read and written."""

from __future__ import annotations

from dataclasses import dataclass

from services.bgp.core.paths import Family
from services.bgp.core.wire.codes import MAX_MESSAGE

ALL_FAMILIES = frozenset(Family)


@dataclass(frozen=True, slots=True)
class Context:
    """internal: the peer is of our AS. as4: both sides have four-octet AS numbers. families: those both sides
    announced; others are ignored when received. add_path_receive, add_path_send: with path identifiers (RFC 7911).
    extended_next_hop: IPv4 prefixes may have an IPv6 next hop (RFC 8950). max_message: 4,096, or 65,535 (RFC
    8654)."""

    internal: bool
    as4: bool = True
    families: frozenset[Family] = ALL_FAMILIES
    add_path_receive: frozenset[Family] = frozenset()
    add_path_send: frozenset[Family] = frozenset()
    extended_next_hop: bool = False
    max_message: int = MAX_MESSAGE
