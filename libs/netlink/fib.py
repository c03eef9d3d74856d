"""Many routes fast: destinations in the form that routing protocols have them in (prefix length, then its octets), next
hops encoded once for all that share them. For a handful of routes, libs/netlink/routes.py reads better.

Each call is one or more requests to the kernel in one `send`; it belongs into a worker thread, where the kernel's own
work (7 microseconds a route) does not hold up the event loop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from libs.netlink.codec import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NetlinkError,
    ObjectNotFound,
    u32,
)
from libs.netlink.routes import (
    BLACKHOLE,
    PROTOCOL_BGP,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTMSG,
    SCOPE_GLOBAL,
    SCOPE_LINK,
    SCOPE_NOWHERE,
    TABLE_MAIN,
    UNICAST,
    NextHop,
    encode_tail,
)
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket

Destination = bytes
"""One octet of prefix length, then as many octets as it needs: b"\\x18\\x0a\\x01\\x02" is 10.1.2.0/24."""

Hops = tuple[NextHop, ...]
"""Where packets go; several share them (ECMP); none: they are thrown away (blackhole)."""

Sending = Callable[[], object]
"""Called in the thread that writes when all is encoded: what follows is the kernel's, and holds up no other thread."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_DST = 1


@lru_cache(maxsize=8192)
def _put_parts(af: int, length: int, hops: Hops, metric: int, protocol: int) -> tuple[int, bytes, bytes]:
    """(octets of the message, what stands before the destination's octets, what after them)."""
    tail, flags = encode_tail(4 if af == 2 else 6, hops, metric, TABLE_MAIN, 0, None)
    direct = len(hops) == 1 and hops[0].gateway is None and af == 2
    scope = SCOPE_LINK if direct else SCOPE_GLOBAL
    kind = UNICAST if hops else BLACKHOLE
    return _parts(af, RTMSG.pack(af, length, 0, 0, TABLE_MAIN, protocol, scope, kind, flags), tail)


@lru_cache(maxsize=1024)
def _drop_parts(af: int, length: int, metric: int, protocol: int) -> tuple[int, bytes, bytes]:
    tail = u32(15, TABLE_MAIN) + (u32(6, metric) if metric else b"")
    return _parts(af, RTMSG.pack(af, length, 0, 0, TABLE_MAIN, protocol, SCOPE_NOWHERE, 0, 0), tail)


def _parts(af: int, header: bytes, tail: bytes) -> tuple[int, bytes, bytes]:
    octets = 4 if af == 2 else 16
    head = header + struct.pack("=HH", octets + 4, _DST)
    return _HEADER.size + len(head) + octets + len(tail), head, tail


class FibWriter:
    """Writes routes of one protocol number into the main table, with one metric per call."""

    def __init__(self, *, protocol: int = PROTOCOL_BGP, netns: int | str | Path | None = None) -> None:
        self.netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._protocol = protocol

    @property
    def port(self) -> int:
        """Of the netlink socket, for `Monitor(ignore_port=)`."""
        return self.netlink.port

    def put(
        self, af: int, routes: Sequence[tuple[Destination, Hops]], metric: int, *, exclusive: bool,
        sending: Sending | None = None,
    ) -> dict[int, NetlinkError]:  # fmt: skip
        """Create (exclusive: refused with ObjectExists where there is one already) or overwrite. Index → refusal."""
        flags = NLM_F_REQUEST | NLM_F_CREATE | (NLM_F_EXCL if exclusive else NLM_F_REPLACE)
        octets, protocol, pack = 4 if af == 2 else 16, self._protocol, _HEADER.pack
        first = self.netlink.reserve(len(routes))
        messages, seq, last = [], first, first + len(routes) - 1
        known: dict[tuple[int, int], tuple[int, bytes, bytes]] = {}  # by identity: hashing addresses is slow
        for key, hops in routes:
            place = (key[0], id(hops))
            if (parts := known.get(place)) is None:
                parts = known[place] = _put_parts(af, key[0], hops, metric, protocol)
            size, head, tail = parts
            if seq == last:
                flags |= NLM_F_ACK
            messages.append(pack(size, RTM_NEWROUTE, flags, seq, 0) + head + key[1:].ljust(octets, b"\0") + tail)
            seq += 1
        return self._exchange(messages, first, last, sending)

    def drop(
        self, af: int, keys: Sequence[Destination], metric: int, sending: Sending | None = None
    ) -> dict[int, NetlinkError]:
        """Routes that are gone already count as dropped; those of another protocol are never touched."""
        flags = NLM_F_REQUEST
        octets, protocol, pack = 4 if af == 2 else 16, self._protocol, _HEADER.pack
        first = self.netlink.reserve(len(keys))
        messages, seq, last = [], first, first + len(keys) - 1
        for key in keys:
            size, head, tail = _drop_parts(af, key[0], metric, protocol)
            if seq == last:
                flags |= NLM_F_ACK
            messages.append(pack(size, RTM_DELROUTE, flags, seq, 0) + head + key[1:].ljust(octets, b"\0") + tail)
            seq += 1
        failed = self._exchange(messages, first, last, sending)
        return {index: error for index, error in failed.items() if not isinstance(error, ObjectNotFound)}

    def _exchange(
        self, messages: Sequence[bytes], first: int, last: int, sending: Sending | None
    ) -> dict[int, NetlinkError]:
        if not messages:
            return {}
        data = b"".join(messages)
        if sending is not None:
            sending()
        return self.netlink.exchange(data, first, last)

    def close(self) -> None:
        self.netlink.close()
