"""A neighbour that is quicker than any daemon: UPDATEs encoded before the clock starts, prefixes counted as octets.

Everything runs in one loop of one process, sender and receiver alike, and shares the machine with the daemon; so it
must cost next to nothing. Prefixes are kept as they are on the wire.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from libs.netlink.netns import in_netns
from libs.testkit.routers import raw
from libs.testkit.topology import Namespace

PER_UPDATE = 500


def prefixes(count: int, seed: int = 7) -> list[bytes]:
    """That many different ones of /24 to /32, in 11.0.0.0 to 99.255.255.255, as NLRI."""
    draw = random.Random(seed)
    found: dict[bytes, None] = {}
    while len(found) < count:
        length = draw.randint(24, 32)
        bits = draw.randrange(11 << 24, 100 << 24) >> (32 - length) << (32 - length)
        found[bytes((length,)) + struct.pack("!I", bits)[: (length + 7) // 8]] = None
    return list(found)


def attribute_sets(count: int = 200) -> list[bytes]:
    """Each with its own next hop on the wire (10.255.0.10 and on), MED, path of 0 to 2 numbers, three communities."""
    made = []
    for number in range(count):
        path = (65100 + number % 50, 65200 + number % 7)[: number % 3]
        value = b"".join(struct.pack("!HH", 64512, number * 3 + one) for one in range(3))
        made.append(
            raw.attribute(raw.TRANSITIVE, raw.ORIGIN, b"\0")
            + raw.attribute(raw.TRANSITIVE, raw.AS_PATH, raw.as_path(path))
            + raw.attribute(raw.TRANSITIVE, raw.NEXT_HOP, bytes((10, 255, 0, 10 + number)))
            + raw.attribute(raw.OPTIONAL, raw.MED, struct.pack("!I", number))
            + raw.attribute(raw.TRANSITIVE, raw.LOCAL_PREF, struct.pack("!I", 100))
            + raw.attribute(raw.OPTIONAL | raw.TRANSITIVE, raw.COMMUNITIES, value)
        )
    return made


def updates(nlri: Sequence[bytes], packing: int) -> bytes:
    """The whole table as UPDATEs of `packing` prefixes; small packing comes shuffled, as after much churn."""
    sets = attribute_sets()
    groups = [nlri[at : at + packing] for at in range(0, len(nlri), packing)]
    if packing < PER_UPDATE:
        random.Random(3).shuffle(groups)
    return b"".join(
        raw.message(raw.UPDATE, raw.update_body(b"", sets[number % len(sets)], b"".join(group)))
        for number, group in enumerate(groups)
    )


class Talker:
    """One session from our side: connects, opens, then sends what it is given and counts what it hears."""

    def __init__(self, space: Namespace, local: str, remote: str, asn: int, *, port: int = 179) -> None:
        self.local = local
        self._space, self._remote, self._asn, self._port = space, remote, asn, port
        self.channel: socket.socket
        self.up = False
        self.known: set[bytes] = set()
        self.updates = 0
        self.prefixes_heard = 0
        self.outgoing = memoryview(b"")
        self._incoming = bytearray()
        self._alive_at = time.monotonic()

    def connect(self, timeout_s: float = 60) -> None:
        """Until it is taken. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            with in_netns(self._space.path):
                channel = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                channel.settimeout(2)
                channel.bind((self.local, 0))
                channel.connect((self._remote, self._port))
                break
            except OSError:
                channel.close()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self._remote} takes no connection") from None
                time.sleep(0.05)
        channel.setblocking(False)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.channel, self.up = channel, False
        self._incoming.clear()
        hello = raw.open_body(self._asn, 240, self.local, raw.capabilities(self._asn))
        self.outgoing = memoryview(raw.message(raw.OPEN, hello))

    def abort(self) -> None:
        """A RST, as when the machine goes."""
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.channel.close()
        self.up = False

    def write(self) -> None:
        sent = self.channel.send(self.outgoing[: 1 << 20])
        self.outgoing = self.outgoing[sent:]

    def read(self) -> bool:
        """False when the other end closed."""
        try:
            data = self.channel.recv(4 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._incoming += data
        at, buffer = 0, bytes(self._incoming)
        while len(buffer) - at >= 19:
            length = buffer[at + 16] << 8 | buffer[at + 17]
            if len(buffer) - at < length:
                break
            self._message(buffer[at + 18], buffer[at + 19 : at + length])
            at += length
        del self._incoming[:at]
        return True

    def _message(self, kind: int, body: bytes) -> None:
        if kind == raw.UPDATE:
            self._update(body)
        elif kind == raw.OPEN:
            self.outgoing = memoryview(bytes(self.outgoing) + raw.message(raw.KEEPALIVE))
        elif kind == raw.KEEPALIVE:
            self.up = True
        elif kind == raw.NOTIFICATION:
            raise ConnectionError(f"NOTIFICATION {body[0]}/{body[1]} to {self.local}")

    def _update(self, body: bytes) -> None:
        self.updates += 1
        gone = int.from_bytes(body[:2], "big")
        attributes = int.from_bytes(body[2 + gone : 4 + gone], "big")
        if gone:
            self.known.difference_update(_split(body, 2, 2 + gone))
        start = 4 + gone + attributes
        if start < len(body):
            fresh = _split(body, start, len(body))
            self.prefixes_heard += len(fresh)
            self.known.update(fresh)

    def keepalive(self, now: float) -> None:
        if self.up and now - self._alive_at > 30:
            self._alive_at = now
            self.outgoing = memoryview(bytes(self.outgoing) + raw.message(raw.KEEPALIVE))


def _split(body: bytes, at: int, end: int) -> list[bytes]:
    found = []
    while at < end:
        stop = at + 1 + (body[at] + 7 >> 3)
        found.append(body[at:stop])
        at = stop
    return found


@dataclass
class Watch:
    """When things became true, in seconds since the clock started."""

    started: float
    at: dict[str, float] = field(default_factory=dict)

    def see(self, name: str) -> None:
        self.at.setdefault(name, time.monotonic() - self.started)


def pump(
    talkers: Sequence[Talker], done: Callable[[float], bool], *, timeout_s: float, what: str, idle_s: float = 0.01
) -> None:
    """Send and receive on all sessions until `done(now)`. Raises TimeoutError, ConnectionError."""
    poller = select.poll()
    by_fd = {talker.channel.fileno(): talker for talker in talkers}
    wanted: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while not done(now := time.monotonic()):
        if now > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        for fd, talker in by_fd.items():
            talker.keepalive(now)
            mask = select.POLLIN | (select.POLLOUT if talker.outgoing else 0)
            if wanted.get(fd) != mask:
                poller.register(fd, mask)
                wanted[fd] = mask
        for fd, events in poller.poll(idle_s * 1000):
            if events & select.POLLOUT:
                by_fd[fd].write()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not by_fd[fd].read():
                raise ConnectionError(f"{by_fd[fd].local}: the daemon closed the session")


class KernelCount:
    """How many IPv4 prefixes the namespace's main table holds, by /proc/net/fib_triestat; asked at most so often that
    it takes a tenth of the time."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._next = 0.0
        self.last = self.now()
        self.empty = self.last

    def now(self) -> int:
        with in_netns(self._space.path):
            text = Path("/proc/thread-self/net/fib_triestat").read_text()
        return int(text.partition("Main:")[2].partition("Prefixes:")[2].split()[0])

    def poll(self, now: float) -> int:
        if now >= self._next:
            self.last = self.now()
            took = time.monotonic() - now
            self._next = time.monotonic() + max(0.03, 10 * took)
        return self.last - self.empty


def address(number: int) -> str:
    """Of the mesh's neighbour: 10.255.1.1 and on."""
    return str(IPv4Address("10.255.1.0") + number + 1)
