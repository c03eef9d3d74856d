"""Steady traffic while something is done to the cluster, and an exact account of what did not arrive.

Allowed flows: numbered UDP packets to an echo server, new TCP connections with a request and an answer, and TCP
connections that stay. Denied flows: packets and connection attempts of which none may be answered. One thread with one
poll loop sends at fixed times, and catches up when it was held back, so that the number sent does not depend on the
machine.

    with Load(udp=flows, tcp=flows, denied=others) as load:
        ... restart felix, change policies ...
    assert load.result.lost_nothing, load.result
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from libs.testkit.patience import Allowance
from libs.testkit.reach import Flow, open_flow, rtt_and_repeated

_NUMBER = struct.Struct("!Q")
_SLOW_S = 0.9  # the kernel repeats a lost SYN after 1 s: such a connection was made, but a packet was lost
_GIVE_UP_S = 15.0
_DRAIN_S = 10.0  # what was lost does not come later either
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: beyond what net.core.rmem_max allows
_LONG_RTT_US = 300_000  # the kernels answer each other in microseconds, whatever their processes do


@dataclass(slots=True)
class LoadResult:
    """What happened. Times in seconds; `lost_at_s` counts from the start (the first 1,000 losses)."""

    duration_s: float = 0.0
    udp_sent: int = 0
    udp_received: int = 0
    udp_lost: int = 0
    longest_silence_s: float = 0.0  # of one UDP flow
    lost_at_s: list[float] = field(default_factory=list)
    tcp_opened: int = 0
    tcp_ok: int = 0
    tcp_slow: int = 0  # of those, longer than 0.9 s, and a packet had to be repeated or waited
    tcp_failed: int = 0
    streams: int = 0
    stream_messages: int = 0
    streams_broken: int = 0
    longest_stall_s: float = 0.0  # of one connection that stays
    denied_tried: int = 0
    denied_passed: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def lost_nothing(self) -> bool:
        """No allowed packet or connection was lost, repeated or broken."""
        return not (self.udp_lost or self.tcp_failed or self.tcp_slow or self.streams_broken)


class _Udp:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.socket = open_flow(flow)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        self.waiting: dict[int, float] = {}
        self.heard_at = 0.0
        self.numbers = itertools.count()


class _Tcp:
    """A connection: `echo` stays and counts what returns, the others end with their first answer."""

    def __init__(self, flow: Flow, now: float, *, denied: bool = False, echo: bool = False) -> None:
        self.flow, self.denied, self.echo = flow, denied, echo
        self.socket = open_flow(flow)
        self.opened_at = self.heard_at = now
        self.connected = False
        self.unanswered = 0


class Load:
    """Runs from `start` to `stop`, or as a context manager; `result` is complete after it, a live count before."""

    def __init__(
        self,
        *,
        udp: Sequence[Flow] = (),
        tcp: Sequence[Flow] = (),
        streams: Sequence[Flow] = (),
        denied: Sequence[Flow] = (),
        udp_per_s: float = 1000.0,
        tcp_per_s: float = 100.0,
        stream_per_s: float = 50.0,
        denied_per_s: float = 50.0,
    ) -> None:
        """The rates are totals over all flows of a kind, which take turns."""
        self.result = LoadResult()
        self._flows = {"udp": list(udp), "tcp": list(tcp), "streams": list(streams), "denied": list(denied)}
        self._rates = {"udp": udp_per_s, "tcp": tcp_per_s, "streams": stream_per_s, "denied": denied_per_s}
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._errors: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> LoadResult:
        """Stop sending, wait a moment for what is on its way, and count."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.result

    def snapshot(self) -> LoadResult:
        return replace(self.result)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- the thread
    # ----------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with contextlib.ExitStack() as sockets:
                self._run(sockets)
        except BaseException as error:  # handed to whoever calls stop()
            self._failure = error

    def _run(self, sockets: contextlib.ExitStack) -> None:
        self._selector = sockets.enter_context(selectors.DefaultSelector())
        self._live: set[_Tcp] = set()
        sockets.callback(self._close_all)
        self._started = time.monotonic()
        self._udp = [self._open_udp(flow, sockets) for flow in self._flows["udp"]]
        self._denied_udp = [self._open_udp(f, sockets) for f in self._flows["denied"] if f.protocol == "udp"]
        self._streams = [self._open_tcp(flow, echo=True) for flow in self._flows["streams"]]
        self.result.streams = len(self._streams)
        turns = {
            "udp": self._endless(self._udp),
            "tcp": self._endless(self._flows["tcp"]),
            "streams": self._endless(self._streams),
            "denied": self._endless([*self._denied_udp, *(f for f in self._flows["denied"] if f.protocol == "tcp")]),
        }
        due = {kind: self._started for kind, rate in self._rates.items() if self._flows[kind] and rate > 0}
        while not self._stop.is_set():
            now = time.monotonic()
            for kind, at in due.items():
                while at <= now:
                    self._send(kind, next(turns[kind]), now)
                    at += 1 / self._rates[kind]
                due[kind] = at
            self._poll(max(0.0, min(due.values(), default=now + 0.1) - time.monotonic()))
        ended = time.monotonic()
        self.result.duration_s = ended - self._started
        allowance = Allowance(_DRAIN_S)
        while (step_s := allowance.step()) > 0 and self._outstanding():
            self._poll(step_s)
        self._account(ended)

    def _close_all(self) -> None:
        for one in self._live:
            one.socket.close()

    @staticmethod
    def _endless(things: Sequence[object]) -> Iterator[object]:
        return itertools.cycle(things)

    def _open_udp(self, flow: Flow, sockets: contextlib.ExitStack) -> _Udp:
        made = _Udp(flow)
        sockets.enter_context(made.socket)
        made.socket.connect((str(flow.address), flow.port))
        made.heard_at = self._started
        self._selector.register(made.socket, selectors.EVENT_READ, made)
        return made

    def _open_tcp(self, flow: Flow, *, denied: bool = False, echo: bool = False) -> _Tcp:
        made = _Tcp(flow, time.monotonic(), denied=denied, echo=echo)
        self._live.add(made)
        try:
            made.socket.connect((str(flow.address), flow.port))
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(made, error)
            return made
        self._selector.register(made.socket, selectors.EVENT_WRITE, made)
        return made

    def _send(self, kind: str, what: object, now: float) -> None:
        if isinstance(what, _Udp):
            number = next(what.numbers)
            if kind == "denied":
                self.result.denied_tried += 1
            else:
                self.result.udp_sent += 1
                what.waiting[number] = now
            try:
                what.socket.send(_NUMBER.pack(number))
            except OSError as error:  # also a "port unreachable" that an earlier packet caused
                self._errors[f"udp send: {error.strerror}"] += 1
        elif isinstance(what, _Tcp):
            self._send_stream(what, now)
        elif isinstance(what, Flow):
            if kind == "denied":
                self.result.denied_tried += 1
            else:
                self.result.tcp_opened += 1
            self._open_tcp(what, denied=kind == "denied")

    def _send_stream(self, stream: _Tcp, now: float) -> None:
        if stream not in self._live or not stream.connected:
            return
        if not stream.unanswered:
            stream.heard_at = now  # a stall is counted from the first unanswered message
        try:
            stream.unanswered += stream.socket.send(b"message.")
        except BlockingIOError:
            pass  # the buffer is full because nothing comes through: the stall is being measured
        except OSError as error:
            self._end(stream, error)

    def _poll(self, timeout_s: float) -> None:
        ready = self._selector.select(timeout_s)
        now = time.monotonic()
        for key, events in ready:
            if isinstance(key.data, _Udp):
                self._receive_udp(key.data, now)
            elif events & selectors.EVENT_WRITE:
                self._connected(key.data)
            else:
                self._receive_tcp(key.data, now)
        for one in [t for t in self._live if not t.echo and now - t.opened_at > (1.0 if t.denied else _GIVE_UP_S)]:
            self._end(one, TimeoutError("no answer"))

    def _receive_udp(self, one: _Udp, now: float) -> None:
        denied = one in self._denied_udp
        while True:
            try:
                data = one.socket.recv(2048)
            except BlockingIOError:
                return
            except OSError as error:
                self._errors[f"udp receive: {error.strerror}"] += 1
                return
            if denied:
                self.result.denied_passed += 1
            elif one.waiting.pop(_NUMBER.unpack(data)[0], None) is not None:
                self.result.udp_received += 1
                self.result.longest_silence_s = max(self.result.longest_silence_s, now - one.heard_at)
                one.heard_at = now

    def _connected(self, one: _Tcp) -> None:
        if code := one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(one, OSError(code, os.strerror(code)))
            return
        one.connected = True
        if one.denied:
            self._end(one, None)
            return
        self._selector.modify(one.socket, selectors.EVENT_READ, one)
        if not one.echo:
            with contextlib.suppress(OSError):  # reading tells
                one.socket.send(b"GET / HTTP/1.0\r\n\r\n")

    def _receive_tcp(self, one: _Tcp, now: float) -> None:
        try:
            data = one.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(one, error)
            return
        if not data:
            self._end(one, ConnectionError("closed without an answer"))
        elif not one.echo:
            self._end(one, None)
        else:
            self.result.stream_messages += len(data) // 8
            self.result.longest_stall_s = max(self.result.longest_stall_s, now - one.heard_at)
            one.unanswered -= len(data)
            one.heard_at = now

    def _end(self, one: _Tcp, error: OSError | None) -> None:
        """A connection is over: with an answer, or for this reason."""
        self._live.discard(one)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one.socket)
        slow = time.monotonic() - one.opened_at > _SLOW_S and _held_up(one.socket)
        one.socket.close()
        if one.denied:
            self.result.denied_passed += error is None
            return
        if error is not None:
            self._errors[f"tcp: {error.strerror or error}"] += 1
        if one.echo:
            self.result.streams_broken += 1
        elif error is None:
            self.result.tcp_ok += 1
            self.result.tcp_slow += slow
        else:
            self.result.tcp_failed += 1

    def _outstanding(self) -> bool:
        return any(u.waiting for u in self._udp) or any(
            not t.denied and (not t.echo or t.unanswered) for t in self._live
        )

    def _account(self, ended: float) -> None:
        lost = sorted(at for one in self._udp for at in one.waiting.values())
        self.result.udp_lost = len(lost)
        self.result.lost_at_s = [round(at - self._started, 4) for at in lost[:1000]]
        for one in self._udp:
            if self._rates["udp"] > 0:
                self.result.longest_silence_s = max(self.result.longest_silence_s, ended - one.heard_at)
        for left in list(self._live):
            if left.echo and left.connected and not left.unanswered:
                continue
            if left.echo:
                self.result.longest_stall_s = max(self.result.longest_stall_s, time.monotonic() - left.heard_at)
            self._end(left, TimeoutError("no answer"))
        self.result.errors = dict(self._errors)


def _held_up(connection: socket.socket) -> bool:
    """Did the network do it? A process that had no processor for a second makes a slow connection as well."""
    rtt_us, repeated = rtt_and_repeated(connection)
    return repeated > 0 or rtt_us > _LONG_RTT_US
