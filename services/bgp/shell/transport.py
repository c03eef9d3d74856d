"""TCP sockets as BGP wants them: MD5 signatures (RFC 2385), GTSM (RFC 5082), source address, precedence.

Everything is set before connect or listen, so that not one segment goes out without it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from services.bgp.core.paths import IPAddress, IPNetwork

TCP_MD5SIG, TCP_MD5SIG_EXT = 14, 38  # linux/tcp.h
TCP_MD5SIG_FLAG_PREFIX = 1
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73  # linux/in.h, linux/in6.h
IP_FREEBIND = 15  # linux/in.h; holds for IPv6 too
IPV6_TCLASS = 67
MD5_KEY_MAX = 80  # TCP_MD5SIG_MAXKEYLEN
CS6 = 0xC0  # network control, as every BGP implementation marks it (RFC 4594 section 3.1)
MAX_TTL = 255
_MD5SIG = struct.Struct("=128sBBHi80s")  # struct tcp_md5sig: address, flags, prefix length, key length, interface, key


class PasswordRefused(Exception):
    """The kernel does not take this password, or knows no TCP MD5 at all."""


def family_of(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def sign(channel: socket.socket, peer: IPAddress | IPNetwork, password: bytes | None) -> None:
    """Segments from and to this peer (or all in this network) carry MD5 signatures from now on; None ends that.

    Raises PasswordRefused. Ending what never was is no error.
    """
    if password is not None and not 0 < len(password) <= MD5_KEY_MAX:
        raise PasswordRefused(f"a TCP MD5 password has 1 to {MD5_KEY_MAX} octets, this one has {len(password)}")
    key = password or b""
    if isinstance(peer, IPv4Address | IPv6Address):
        option, flags, length, address = TCP_MD5SIG, 0, 0, peer
    else:
        option, flags, length, address = TCP_MD5SIG_EXT, TCP_MD5SIG_FLAG_PREFIX, peer.prefixlen, peer.network_address
    value = _MD5SIG.pack(_sockaddr(address), flags, length, len(key), 0, key)
    try:
        channel.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError as error:
        if password is None and error.errno in (errno.ENOENT, errno.ENOPROTOOPT):
            return
        raise PasswordRefused(f"TCP MD5 for {peer}: {error.strerror}") from error


def _sockaddr(address: IPAddress) -> bytes:
    """struct sockaddr_in or sockaddr_in6; `struct` fills up to sockaddr_storage."""
    if address.version == 4:
        return struct.pack("=HH4s", socket.AF_INET, 0, address.packed)
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address.packed, 0)


def secure_ttl(channel: socket.socket, hops: int | None) -> None:
    """GTSM for a peer at most so many hops away: what we send starts at 255, what came further is dropped."""
    if channel.family == socket.AF_INET:
        channel.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, MAX_TTL)
        channel.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 0 if hops is None else MAX_TTL + 1 - hops)
    else:
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, MAX_TTL)
        channel.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, 0 if hops is None else MAX_TTL + 1 - hops)


def _prepare(channel: socket.socket) -> None:
    channel.setblocking(False)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if channel.family == socket.AF_INET:
        channel.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, CS6)
    else:
        channel.setsockopt(socket.IPPROTO_IPV6, IPV6_TCLASS, CS6)


def outgoing(
    peer: IPAddress, *, source: IPAddress | None, password: bytes | None, ttl_security: int | None, interface: str = ""
) -> socket.socket:
    """A socket to connect with. Raises PasswordRefused, OSError (the source is not an address of this host)."""
    channel = socket.socket(family_of(peer), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _prepare(channel)
        secure_ttl(channel, ttl_security)
        if interface:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        if source is not None:
            channel.bind((str(source), 0))
        if password is not None:
            sign(channel, peer, password)
    except BaseException:
        channel.close()
        raise
    return channel


async def connect(channel: socket.socket, peer: IPAddress, port: int, *, interface_index: int = 0) -> None:
    """Raises OSError; the socket is closed then, and when cancelled."""
    target = (str(peer), port) if peer.version == 4 else (str(peer), port, 0, interface_index)
    try:
        await asyncio.get_running_loop().sock_connect(channel, target)
    except BaseException:
        channel.close()
        raise


def accepted(channel: socket.socket, ttl_security: int | None) -> None:
    """What a connection that came in gets, the peer being known now. MD5 it has from the listener."""
    _prepare(channel)
    secure_ttl(channel, ttl_security)


def listening(address: IPAddress, port: int) -> socket.socket:
    """Raises OSError: in use."""
    channel = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _prepare(channel)
        secure_ttl(channel, None)  # of the answer to a SYN: a peer with GTSM takes nothing below 255
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if channel.family == socket.AF_INET6:
            channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # An address may come later: a node's own with its interface, that of local peerings with the first workload.
        channel.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        channel.bind((str(address), port))
        channel.listen(256)
    except BaseException:
        channel.close()
        raise
    return channel
