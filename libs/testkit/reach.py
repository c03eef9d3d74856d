"""Can this pod reach that address? Many questions at once, answered by real packets.

Sockets are made inside the source's namespace and then driven together from one thread: a hundred flows cost one
time-out, not a hundred. TCP and UDP need an answer from a probe server (`probe.c`), ICMP an echo reply.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import selectors
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from libs.netlink.netns import in_netns
from libs.testkit.patience import Allowance, patient

LATE_S = 5.0
_UDP_PORTS = itertools.cycle(range(20_000, 30_000))
"""One of chance may be that of an earlier flow, whose connection the kernel still knows as an allowed one."""
_RTT_AND_RETRANS = struct.Struct("=68xI28xI")  # tcpi_rtt, tcpi_total_retrans of struct tcp_info, linux/tcp.h

Protocol = Literal["tcp", "udp", "icmp"]


class Verdict(enum.StrEnum):
    ALLOW = "allow"
    DENY = "deny"  # silence until the time-out
    REFUSED = "refused"  # a reset or "port unreachable": nobody listens, or a policy rejects
    UNREACHABLE = "unreachable"  # "no route", "host unreachable", "prohibited"


@dataclass(frozen=True, slots=True)
class Flow:
    """From the namespace at `netns` to `address`; `port` 0 for icmp. source: address to send from."""

    netns: Path
    address: IPv4Address | IPv6Address
    port: int
    protocol: Protocol = "tcp"
    source: IPv4Address | IPv6Address | None = None

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6


def verdict_of(code: int) -> Verdict:
    """What an errno of connect, send or receive says about a flow."""
    if code in (errno.ECONNREFUSED, errno.ECONNRESET):
        return Verdict.REFUSED
    if code == errno.ETIMEDOUT:
        return Verdict.DENY
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.EHOSTDOWN):
        return Verdict.UNREACHABLE
    raise OSError(code, os.strerror(code))


def open_flow(flow: Flow) -> socket.socket:
    """A non-blocking socket in the source's namespace, not yet connected."""
    with in_netns(flow.netns):
        if flow.protocol == "tcp":
            made = socket.socket(flow.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        elif flow.protocol == "udp":
            made = socket.socket(flow.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        else:
            proto = socket.IPPROTO_ICMP if flow.family == socket.AF_INET else socket.IPPROTO_ICMPV6
            made = socket.socket(flow.family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, proto)
    made.setblocking(False)
    return made


def rtt_and_repeated(connection: socket.socket) -> tuple[int, int]:
    """Of a TCP connection: the round trip in us, and how many packets the kernel has sent again."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AND_RETRANS.size)
    rtt_us, repeated = _RTT_AND_RETRANS.unpack(info)
    return rtt_us, repeated


class _Try:
    """One socket of one flow; a flow may have several when the first one's packet seems lost."""

    def __init__(self, index: int, flow: Flow) -> None:
        self.index, self.flow = index, flow
        self.token = os.urandom(8)
        self.socket = open_flow(flow)

    def begin(self) -> Verdict | None:
        try:
            if self.flow.protocol == "udp":
                self._bind_udp()
            elif self.flow.source is not None:
                self.socket.bind((str(self.flow.source), 0))
            code = self.socket.connect_ex((str(self.flow.address), self.flow.port))
            if code not in (0, errno.EINPROGRESS):
                return verdict_of(code)
            if self.flow.protocol != "tcp":
                self.socket.send(self._datagram())
        except OSError as error:
            return verdict_of(error.errno or 0)
        return None

    def _bind_udp(self) -> None:
        while True:
            try:
                self.socket.bind((str(self.flow.source or ""), next(_UDP_PORTS)))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise

    def writable(self) -> Verdict | None:
        """A connection was made or failed."""
        if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return verdict_of(code)
        try:
            self.socket.send(b"GET / HTTP/1.0\r\n\r\n")
        except OSError as error:
            return verdict_of(error.errno or 0)
        return None

    def readable(self) -> Verdict | None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:
            return verdict_of(error.errno or 0)
        if self.flow.protocol == "tcp":
            return Verdict.ALLOW
        if self.flow.protocol == "icmp":
            start = (
                (data[0] & 15) * 4 if self.flow.family == socket.AF_INET else 0
            )  # a raw IPv4 socket shows the header
            if data[start] not in (0, 129):  # echo reply of ICMP, ICMPv6; our own request is seen too
                return None
        return Verdict.ALLOW if self.token in data else None

    def sent_again(self) -> bool:
        """Whether the kernel repeated the SYN."""
        return self.flow.protocol == "tcp" and rtt_and_repeated(self.socket)[1] > 0

    def _datagram(self) -> bytes:
        if self.flow.protocol == "udp":
            return self.token
        kind = 8 if self.flow.family == socket.AF_INET else 128
        packet = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1) + self.token
        if self.flow.family == socket.AF_INET6:
            return packet  # the kernel fills in ICMPv6's checksum
        total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
        total = (total >> 16) + (total & 0xFFFF)
        return packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]


def check(
    flows: Sequence[Flow], *, timeout_s: float = 1.0, tries: int = 3, wanted: Sequence[Verdict] | None = None
) -> list[Verdict]:
    """A verdict for each flow, in order; blocks for at most about timeout_s, less when nothing is denied.

    tries: how often a silent flow is asked in that time, so that one lost packet does not look like a policy. Time in
    which this thread was held up does not count, as a machine that stands still looks like a policy too.
    wanted: what the caller expects. For an answer that has one and has not come, LATE_S more are waited, since a busy
    server is no policy; only answers to packets of the first timeout_s count, and to no SYN that the kernel repeated.
    Raises OSError for anything that is not a verdict (a namespace that is gone, no more files).
    """
    verdicts: dict[int, Verdict] = {}
    with contextlib.ExitStack() as sockets, selectors.DefaultSelector() as selector:
        for _ in range(tries):
            for index, flow in enumerate(flows):
                if index in verdicts:
                    continue
                attempt = _Try(index, flow)
                sockets.enter_context(attempt.socket)
                if (verdict := attempt.begin()) is not None:
                    verdicts[index] = verdict
                    continue
                events = selectors.EVENT_WRITE if flow.protocol == "tcp" else selectors.EVENT_READ
                selector.register(attempt.socket, events, attempt)
            _collect(selector, verdicts, range(len(flows)), timeout_s / tries, repeated=wanted is None)
            if len(verdicts) == len(flows):
                break
        if wanted is not None:
            answered = [index for index, verdict in enumerate(wanted) if verdict is not Verdict.DENY]
            _collect(selector, verdicts, answered, patient(LATE_S), repeated=False)
    return [verdicts.get(index, Verdict.DENY) for index in range(len(flows))]


def _collect(
    selector: selectors.BaseSelector,
    verdicts: dict[int, Verdict],
    wanted: Sequence[int],
    timeout_s: float,
    *,
    repeated: bool,
) -> None:
    """Until each of the wanted flows has a verdict or the time is up. What had arrived by then counts.

    repeated: whether the answer to a SYN that the kernel repeated is one.
    """
    allowance = Allowance(timeout_s)
    while (step_s := allowance.step()) > 0 and any(index not in verdicts for index in wanted):
        for key, events in selector.select(step_s):
            attempt: _Try = key.data
            if not repeated and attempt.sent_again():
                selector.unregister(attempt.socket)
                continue
            verdict = verdicts.get(attempt.index)
            if verdict is None:
                verdict = attempt.writable() if events & selectors.EVENT_WRITE else attempt.readable()
                if verdict is not None:
                    verdicts[attempt.index] = verdict
            if verdict is not None:
                selector.unregister(attempt.socket)
            elif events & selectors.EVENT_WRITE:
                selector.modify(attempt.socket, selectors.EVENT_READ, attempt)
