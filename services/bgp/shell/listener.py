"""Where peers connect to us: one listening socket per address, with the passwords of those who have one.

The kernel drops what is not signed as it should be before we hear of it. A socket stays open while its address and port
stay the same; changes of passwords and peers are made on it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from services.bgp.core.paths import IPAddress, IPNetwork
from services.bgp.shell.transport import PasswordRefused, listening, sign

log = logging.getLogger(__name__)

Key = IPAddress | IPNetwork
ANY: tuple[IPAddress, ...] = (IPv4Address("0.0.0.0"), IPv6Address("::"))
ACCEPTS_AT_ONCE = 64
PAUSE_S = 1.0  # when there are no descriptors left


class Listener:
    """accept: called with each new connection and the address it comes from; it owns the socket then."""

    def __init__(self, accept: Callable[[socket.socket, IPAddress], None]) -> None:
        self.failures: dict[str, str] = {}  # address or peer -> why it does not listen, why the password is not taken
        self._accept = accept
        self._sockets: dict[tuple[IPAddress, int], socket.socket] = {}
        self._signed: dict[socket.socket, dict[Key, bytes]] = {}

    def configure(self, addresses: tuple[IPAddress, ...], port: int, passwords: Mapping[Key, bytes]) -> None:
        """addresses: empty for all. What cannot be had stands in `failures` and is tried again at the next call."""
        self.failures = {}
        wanted = {(address, port) for address in addresses or ANY}
        for name in self._sockets.keys() - wanted:
            self._close(name)
        for name in sorted(wanted - self._sockets.keys(), key=str):
            self._open(*name)
        for channel in self._sockets.values():
            self._sign(channel, passwords)

    def _open(self, address: IPAddress, port: int) -> None:
        try:
            channel = listening(address, port)
        except OSError as error:
            self.failures[f"{address} port {port}"] = f"cannot listen: {error.strerror}"
            log.error("cannot listen", extra={"address": str(address), "port": port, "error": str(error)})
            return
        self._sockets[address, port] = channel
        self._signed[channel] = {}
        asyncio.get_running_loop().add_reader(channel, self._readable, channel)
        log.info("listening", extra={"address": str(address), "port": port})

    def _sign(self, channel: socket.socket, passwords: Mapping[Key, bytes]) -> None:
        version = 4 if channel.family == socket.AF_INET else 6
        has = self._signed[channel]
        for peer in [peer for peer in has if peer not in passwords]:
            sign(channel, peer, None)
            del has[peer]
        for peer, password in passwords.items():
            if peer.version == version and has.get(peer) != password:
                try:
                    sign(channel, peer, password)
                except PasswordRefused as error:
                    self.failures[str(peer)] = str(error)
                else:
                    has[peer] = password

    def signs(self, peer: Key, password: bytes) -> bool:
        """Does every socket that this peer can reach have its password? If not, it could connect without one."""
        channels = [one for one in self._signed if (one.family == socket.AF_INET) == (peer.version == 4)]
        return all(self._signed[one].get(peer) == password for one in channels)

    def _readable(self, channel: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, where = channel.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("connection not accepted", extra={"error": str(error)})
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):  # it stays readable
                    asyncio.get_running_loop().remove_reader(channel)
                    asyncio.get_running_loop().call_later(PAUSE_S, self._listen_again, channel)
                return
            self._accept(connection, ip_address(where[0].partition("%")[0]))

    def _listen_again(self, channel: socket.socket) -> None:
        if channel in self._signed:
            asyncio.get_running_loop().add_reader(channel, self._readable, channel)

    def _close(self, name: tuple[IPAddress, int]) -> None:
        channel = self._sockets.pop(name)
        self._signed.pop(channel)
        asyncio.get_running_loop().remove_reader(channel)
        channel.close()

    def close(self) -> None:
        for name in list(self._sockets):
            self._close(name)
