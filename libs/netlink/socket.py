"""A netlink socket: requests, dumps and batches, with every refusal as a typed exception.

Calls are synchronous: the kernel handles a request inside `send`, so the answer waits when it returns. Who must not
stall an event loop calls from a worker thread; one socket is used by one thread at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from libs.netlink.codec import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    DumpInterrupted,
    NetlinkError,
    RepliesLost,
    decode_error,
    error_for,
    message,
    split_messages,
)
from libs.netlink.netns import in_netns

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

RECEIVE_BUFFER = 4 << 20
REPLY_TIMEOUT_S = 30
DUMP_ATTEMPTS = 10
_RECEIVE = 1 << 16  # the kernel fills at most 32 KiB per datagram of a dump


class NetlinkSocket:
    """netns: descriptor or path of the namespace to open the socket in; the socket stays there, the thread does not."""

    def __init__(self, protocol: int, netns: int | str | Path | None = None) -> None:
        with in_netns(netns):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self.socket.bind((0, 0))
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self.socket.setsockopt(SOL_NETLINK, option, 1)
            if protocol == NETLINK_ROUTE:  # kernels before 4.20 lack it: filters in dumps are then ours to apply
                try:
                    self.socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
                except OSError as error:
                    if error.errno != errno.ENOPROTOOPT:
                        raise
            self.set_buffer(SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", REPLY_TIMEOUT_S, 0))
        except BaseException:
            self.socket.close()
            raise
        self.port: int = self.socket.getsockname()[0]
        self._seq = count(1)
        self._send_buffer = 0

    def set_buffer(self, force: int, polite: int, size: int) -> None:
        """Beyond the system's limit when we may, up to it when not."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, force, size)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, polite, size)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_seq(self) -> int:
        return next(self._seq) & 0xFFFFFFFF

    def send(self, data: bytes) -> None:
        if len(data) + 4096 > self._send_buffer:
            self._send_buffer = max(2 * len(data), 1 << 18)
            self.set_buffer(SO_SNDBUFFORCE, socket.SO_SNDBUF, self._send_buffer)
        self.socket.send(data)

    def receive(self) -> bytes:
        """One datagram. Raises RepliesLost when the buffer overflowed, NetlinkError(ETIMEDOUT) when nothing comes."""
        try:
            return self.socket.recv(_RECEIVE)
        except BlockingIOError:
            raise error_for(errno.ETIMEDOUT, "no reply from the kernel") from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise RepliesLost(errno.ENOBUFS, "receive buffer overflowed") from error
            raise

    def drain(self) -> None:
        """Throw away what is queued, so that the next request does not meet replies to an abandoned one."""
        while True:
            try:
                self.socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def request(self, kind: int, flags: int, body: bytes, what: str = "") -> list[tuple[int, bytes]]:
        """Send one request, wait for its acknowledgement; (type, body) of what came before it. Raises NetlinkError."""
        seq = self.next_seq()
        self.send(message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, seq, body))
        replies: list[tuple[int, bytes]] = []
        while True:
            for got, got_flags, got_seq, _, payload in split_messages(self.receive()):
                if got_seq != seq or got == NLMSG_NOOP:
                    continue
                if got == NLMSG_ERROR:
                    code, words, offset = decode_error(payload, got_flags)
                    if code:
                        raise error_for(code, what, words, offset)
                    return replies
                replies.append((got, payload))

    def dump(
        self, kind: int, body: bytes, what: str = "", skip: Callable[[bytes], bool] = lambda body: False
    ) -> list[tuple[int, bytes]]:
        """Every (type, body) of a listing; asked again when the objects changed meanwhile. skip: bodies that are not
        kept, of which there may be very many.

        Raises NetlinkError; DumpInterrupted when it changed every time.
        """
        for _ in range(DUMP_ATTEMPTS):
            try:
                found = list(self._dump_once(kind, body, what, skip))
            except RepliesLost:
                self.drain()
                continue
            if found and found[-1] is _INTERRUPTED:
                continue
            return found
        raise DumpInterrupted(errno.EINTR, what, f"changed during each of {DUMP_ATTEMPTS} listings")

    def _dump_once(
        self, kind: int, body: bytes, what: str, skip: Callable[[bytes], bool]
    ) -> Iterator[tuple[int, bytes]]:
        seq = self.next_seq()
        self.send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, body))
        interrupted = False
        while True:
            for got, flags, got_seq, _, payload in split_messages(self.receive()):
                if got_seq != seq:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if got == NLMSG_ERROR:
                    code, words, offset = decode_error(payload, flags)
                    raise error_for(code, what, words, offset)
                if got == NLMSG_DONE:
                    code = -int(struct.unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0
                    if code == errno.EINTR:
                        interrupted = True
                    elif code > 0:
                        raise error_for(code, what)
                    if interrupted:
                        yield _INTERRUPTED
                    return
                if not skip(payload):
                    yield got, payload

    def batch(self, requests: Sequence[tuple[int, int, bytes]]) -> dict[int, NetlinkError]:
        """Send (type, flags, body) requests in one go; index → error of each one that was refused, the others are done.

        Only the last asks for an acknowledgement: a refusal is always reported, and silence before the end means
        success. Raises RepliesLost when reports overflowed.
        """
        if not requests:
            return {}
        first = self.reserve(len(requests))
        last = first + len(requests) - 1
        parts = [
            message(kind, NLM_F_REQUEST | flags, first + i, body) for i, (kind, flags, body) in enumerate(requests)
        ]
        kind, flags, body = requests[-1]
        parts[-1] = message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, last, body)
        return self.exchange(b"".join(parts), first, last)

    def reserve(self, number: int) -> int:
        """So many sequence numbers, one after the other; the first of them."""
        first = self.next_seq()
        if first + number > 0xFFFFFFFF:
            self._seq = count(1)
            first = self.next_seq()
        self._seq = count(first + max(number, 1))
        return first

    def exchange(self, data: bytes, first: int, last: int) -> dict[int, NetlinkError]:
        """Send requests numbered first to last, of which the last one asks for an acknowledgement; as `batch`."""
        self.send(data)
        failed: dict[int, NetlinkError] = {}
        while True:
            for got, got_flags, seq, _, payload in split_messages(self.receive()):
                if got != NLMSG_ERROR or not first <= seq <= last:
                    continue
                code, words, offset = decode_error(payload, got_flags)
                if code:
                    failed[seq - first] = error_for(code, "", words, offset)
                if seq == last:
                    return failed


_INTERRUPTED = (-1, b"")  # last item of a dump that has to be repeated


def current_netns_id() -> int:
    """Inode of the thread's network namespace: equal for two threads in the same one."""
    return os.stat("/proc/thread-self/ns/net").st_ino
