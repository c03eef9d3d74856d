"""Netlink messages as bytes: headers, attributes, nests, and what an error reply says (linux/netlink.h).

Integers are in the machine's order unless a function's name says big-endian (`be32`): rtnetlink uses the former,
nftables the latter. Attributes are padded to four bytes. Pure functions, no sockets.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTR = struct.Struct("=HH")  # struct nlattr: length, type

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_ECHO = 0x08
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100  # in an error reply: the request is not repeated behind it
NLM_F_ACK_TLVS = 0x200  # in an error reply: attributes follow
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

ATTR_MAX = 0xFFFF  # nla_len is 16 bits


class NetlinkError(OSError):
    """The kernel refused a request. `errno` is the kernel's; `message` its own words, when it gave some."""

    def __init__(self, code: int, what: str = "", message: str = "", offset: int | None = None) -> None:
        name = errno.errorcode.get(code, str(code))
        text = message or os.strerror(code)
        super().__init__(code, f"{what}: {text} ({name})" if what else f"{text} ({name})")
        self.message = message
        self.offset = offset  # of the attribute complained about, from the start of the request


class ObjectExists(NetlinkError):
    pass


class ObjectNotFound(NetlinkError):
    """ENOENT, ENODEV, ESRCH, EADDRNOTAVAIL: what the request names is not there."""


class ObjectBusy(NetlinkError):
    pass


class NotPermitted(NetlinkError):
    pass


class StaleGeneration(NetlinkError):
    """Someone else committed in between (nftables)."""


class DumpInterrupted(NetlinkError):
    """The objects changed during each of several attempts to list them."""


class RepliesLost(NetlinkError):
    """The receive buffer overflowed: what happened to the request is unknown, read the state again."""


_BY_ERRNO: dict[int, type[NetlinkError]] = {
    errno.EEXIST: ObjectExists,
    errno.ENOENT: ObjectNotFound,
    errno.ENODEV: ObjectNotFound,
    errno.ESRCH: ObjectNotFound,
    errno.EADDRNOTAVAIL: ObjectNotFound,
    errno.EBUSY: ObjectBusy,
    errno.EPERM: NotPermitted,
    errno.EACCES: NotPermitted,
    errno.ERESTART: StaleGeneration,
    errno.ENOBUFS: RepliesLost,
}


def error_for(code: int, what: str = "", message: str = "", offset: int | None = None) -> NetlinkError:
    return _BY_ERRNO.get(code, NetlinkError)(code, what, message, offset)


def attr(kind: int, data: bytes) -> bytes:
    size = len(data) + 4
    if size > ATTR_MAX:
        raise ValueError(f"attribute {kind} has {len(data)} bytes, at most {ATTR_MAX - 4} fit")
    return ATTR.pack(size, kind) + data + b"\0" * (-size & 3)


def nest(kind: int, *parts: bytes) -> bytes:
    """A nested attribute with the flag that rtnetlink wants."""
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("!I", value & 0xFFFFFFFF))


def be64(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("!Q", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    size = 16 + len(body)
    return HEADER.pack(size, kind, flags, seq, 0) + body + b"\0" * (-size & 3)


def attr_items(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type without flags, payload) in order. Raises ValueError on a length that does not fit."""
    end = len(data)
    while start + 4 <= end:
        size, kind = ATTR.unpack_from(data, start)
        if size < 4 or start + size > end:
            raise ValueError(f"attribute {kind & NLA_TYPE_MASK} claims {size} bytes, {end - start} are left")
        yield kind & NLA_TYPE_MASK, data[start + 4 : start + size]
        start += size + 3 & ~3


def attrs(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Type → payload; of a repeated attribute the last one."""
    return dict(attr_items(data, start))


def cstring(payload: bytes) -> str:
    return payload.split(b"\0", 1)[0].decode(errors="replace")


def to_u32(payload: bytes) -> int:
    return int(struct.unpack_from("=I", payload)[0])


def to_be32(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "big")


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(type, flags, sequence, port, body) of each message in one datagram. Raises ValueError when it is malformed."""
    start, end = 0, len(data)
    while start + 16 <= end:
        size, kind, flags, seq, port = HEADER.unpack_from(data, start)
        if size < 16 or start + size > end:
            raise ValueError(f"message of type {kind} claims {size} bytes, {end - start} are left")
        yield kind, flags, seq, port, data[start + 16 : start + size]
        start += size + 3 & ~3


NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS = 1, 2


def decode_error(body: bytes, flags: int) -> tuple[int, str, int | None]:
    """(errno or 0, the kernel's words, offset of the attribute at fault) of an NLMSG_ERROR body (struct nlmsgerr)."""
    if len(body) < 20:
        raise ValueError(f"error reply of {len(body)} bytes is too short")
    code = -int(struct.unpack_from("=i", body)[0])
    words, offset = "", None
    if flags & NLM_F_ACK_TLVS:
        request = int(struct.unpack_from("=I", body, 4)[0])
        start = 20 if flags & NLM_F_CAPPED else 4 + (request + 3 & ~3)
        found = attrs(body, start)
        words = cstring(found.get(NLMSGERR_ATTR_MSG, b""))
        if NLMSGERR_ATTR_OFFS in found:
            offset = to_u32(found[NLMSGERR_ATTR_OFFS])
    return code, words, offset
