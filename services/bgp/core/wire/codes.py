"""Numbers of the protocol (IANA, "Border Gateway Protocol (BGP) Parameters"), named as the RFCs name them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

HEADER_OCTETS: Final = 19
MARKER: Final = b"\xff" * 16
MAX_MESSAGE: Final = 4096  # RFC 4271 section 4.1
MAX_EXTENDED_MESSAGE: Final = 65535  # RFC 8654
AS_TRANS: Final = 23456  # RFC 6793
SAFI_UNICAST: Final = 1
VERSION: Final = 4


class MessageType(IntEnum):
    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5  # RFC 2918


class AttributeType(IntEnum):
    ORIGIN = 1
    AS_PATH = 2
    NEXT_HOP = 3
    MULTI_EXIT_DISC = 4
    LOCAL_PREF = 5
    ATOMIC_AGGREGATE = 6
    AGGREGATOR = 7
    COMMUNITIES = 8  # RFC 1997
    ORIGINATOR_ID = 9  # RFC 4456
    CLUSTER_LIST = 10
    MP_REACH_NLRI = 14  # RFC 4760
    MP_UNREACH_NLRI = 15
    EXTENDED_COMMUNITIES = 16  # RFC 4360
    AS4_PATH = 17  # RFC 6793
    AS4_AGGREGATOR = 18
    LARGE_COMMUNITIES = 32  # RFC 8092


OPTIONAL: Final = 0x80
TRANSITIVE: Final = 0x40
PARTIAL: Final = 0x20
EXTENDED_LENGTH: Final = 0x10


class CapabilityCode(IntEnum):
    MULTIPROTOCOL = 1  # RFC 4760
    ROUTE_REFRESH = 2  # RFC 2918
    EXTENDED_NEXT_HOP = 5  # RFC 8950
    EXTENDED_MESSAGE = 6  # RFC 8654
    GRACEFUL_RESTART = 64  # RFC 4724
    FOUR_OCTET_AS = 65  # RFC 6793
    ADD_PATH = 69  # RFC 7911
    ENHANCED_ROUTE_REFRESH = 70  # RFC 7313
    LONG_LIVED_GRACEFUL_RESTART = 71  # RFC 9494
    FQDN = 73  # draft-walton-bgp-hostname-capability


class RefreshSubtype(IntEnum):
    """RFC 7313 section 3."""

    REQUEST = 0
    BEGIN = 1
    END = 2
