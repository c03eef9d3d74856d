"""WireGuard in a process of its own, over TUN, for kernels that have none: `wireguard-go` and its like.

The process is told by a unix socket in a text protocol (https://www.wireguard.com/xplatform/#configuration-protocol):
`key=value` lines, keys in hexadecimal, an empty line at the end, the answer ending in `errno=N`. It lives on when felix
ends, as a kernel's device would, and ends by itself when its interface is deleted. It is slower than the kernel's: each
packet crosses into the process and back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from libs.netlink.wireguard import IPAddress, IPNetwork, WgChange, WgDevice, WgPeer, WgStats
from libs.netlink.wireguard_keys import public_key
from services.felix.drivers.wireguard import Unsupported, WireguardError

SOCKETS = Path("/var/run/wireguard")
START_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
BIND_TIMEOUT_S = 2.0  # a program that binds only once its interface is up never gets there
_RECEIVE = 1 << 16


class UserspaceDevices:
    """program: its name or path; empty: there is none."""

    kind = "tun"

    def __init__(self, program: str, *, sockets: Path = SOCKETS) -> None:
        self._program = program
        self._sockets = sockets

    def create(self, name: str) -> None:
        path = shutil.which(self._program) if self._program else None
        if path is None:
            raise Unsupported(
                f"{self._program} is not installed" if self._program else "and no program is set to stand in for it"
            )
        # Nothing of our environment: its LOG_LEVEL would make it keep our standard error, and is not meant for it.
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        try:
            done = subprocess.run(
                [path, name], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=START_TIMEOUT_S, start_new_session=True, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WireguardError(f"{path} did not start: {error}") from error
        if done.returncode:
            said = " ".join(line for line in done.stderr.splitlines() if "│" not in line and "─" not in line).strip()
            raise WireguardError(f"{path} {name}: exit status {done.returncode}: {said[-500:]}")
        self._until_bound(name)

    def _until_bound(self, name: str) -> None:
        """wireguard-go takes a port of chance by itself, a little after it has begun to answer. A port that is set
        before is bound later, and nobody is told when another has it.
        """
        deadline = time.monotonic() + BIND_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(WireguardError):  # the device is made; who uses it next tells what it lacks
                if self.read(name).listen_port:
                    return
            time.sleep(0.005)

    def read(self, name: str) -> WgDevice:
        try:
            return decode(self._talk(name, "get=1\n\n"))
        except ValueError as error:
            raise WireguardError(f"{name}: answer not understood: {error}") from error

    def change(self, name: str, change: WgChange) -> None:
        if change:
            self._talk(name, encode(change))

    def _talk(self, name: str, question: str) -> str:
        """The answer without its last line. Raises WireguardError."""
        path = self._sockets / f"{name}.sock"
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(ANSWER_TIMEOUT_S)
                channel.connect(str(path))
                channel.sendall(question.encode())
                while not answer.endswith(b"\n\n"):
                    part = channel.recv(_RECEIVE)
                    if not part:
                        break
                    answer += part
        except OSError as error:
            raise WireguardError(f"{path}: {error}") from error
        body, _, last = answer.decode(errors="replace").rstrip("\n").rpartition("\n")
        if not last.startswith("errno="):
            raise WireguardError(f"{path}: answer cut short")
        code = last.removeprefix("errno=")
        if code != "0":
            number = abs(int(code)) if code.lstrip("-").isdigit() else errno.EPROTO
            raise WireguardError(f"{name}: {os.strerror(number)} ({code})")
        return body


def encode(change: WgChange) -> str:
    """The text of a `set` operation."""
    return "".join(f"{key}={value}\n" for key, value in _lines(change)) + "\n"


def _lines(change: WgChange) -> Iterator[tuple[str, str]]:
    yield "set", "1"
    if change.private_key is not None:
        yield "private_key", change.private_key.hex()
    if change.listen_port is not None:
        yield "listen_port", str(change.listen_port)
    if change.fwmark is not None:
        yield "fwmark", str(change.fwmark)
    for key in change.drop:
        yield "public_key", key.hex()
        yield "remove", "true"
    for peer in change.put:
        yield "public_key", peer.public_key.hex()
        if peer.endpoint is not None:
            address, port = peer.endpoint
            yield "endpoint", f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        yield "persistent_keepalive_interval", str(peer.keepalive_s)
        yield "replace_allowed_ips", "true"
        for net in sorted(peer.allowed, key=lambda one: (one.version, one)):
            yield "allowed_ip", str(net)


@dataclass(slots=True)
class _Reading:
    """A peer in the making."""

    key: bytes
    endpoint: tuple[IPAddress, int] | None = None
    keepalive_s: int = 0
    allowed: set[IPNetwork] = field(default_factory=set)
    seconds: int = 0
    nanoseconds: int = 0
    received: int = 0
    sent: int = 0


def decode(answer: str) -> WgDevice:
    """The answer of a `get` operation, without its errno. Raises ValueError."""
    private: bytes | None = None
    listen_port = fwmark = 0
    peers: list[_Reading] = []
    for line in answer.splitlines():
        key, separator, value = line.partition("=")
        if not separator:
            raise ValueError(f"{key!r} is no key=value")
        if key == "private_key":
            private = bytes.fromhex(value)
        elif key == "listen_port":
            listen_port = int(value)
        elif key == "fwmark":
            fwmark = int(value, 0)
        elif key == "public_key":
            peers.append(_Reading(bytes.fromhex(value)))
        elif peers:
            _peer_line(peers[-1], key, value)
    return WgDevice(
        public_key(private) if private is not None and any(private) else None,
        listen_port,
        fwmark,
        {one.key: WgPeer(one.key, one.endpoint, frozenset(one.allowed), one.keepalive_s) for one in peers},
        {
            one.key: WgStats(
                one.seconds + one.nanoseconds / 1e9 if one.seconds else 0.0,
                one.received,
                one.sent,
            )
            for one in peers
        },
    )


def _peer_line(peer: _Reading, key: str, value: str) -> None:
    match key:
        case "endpoint":
            host, _, port = value.rpartition(":")
            peer.endpoint = (ip_address(host.strip("[]").partition("%")[0]), int(port))
        case "persistent_keepalive_interval":
            peer.keepalive_s = int(value)
        case "allowed_ip":
            peer.allowed.add(ip_network(value))
        case "last_handshake_time_sec":
            peer.seconds = int(value)
        case "last_handshake_time_nsec":
            peer.nanoseconds = int(value)
        case "rx_bytes":
            peer.received = int(value)
        case "tx_bytes":
            peer.sent = int(value)
        case _:
            pass  # protocol_version, preshared_key, and what newer ones may tell
