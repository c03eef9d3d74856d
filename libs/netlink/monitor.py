"""What changes in the kernel: links, addresses, routes, rules, neighbours, as they happen.

Events can be lost when we are slow; then the callback gets `Lost`, and whoever holds a picture must list everything
again.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

from libs.netlink.addresses import RTM_DELADDR, RTM_NEWADDR, Address, decode_address
from libs.netlink.codec import split_messages
from libs.netlink.fdb import FdbEntry, decode_fdb
from libs.netlink.links import RTM_DELLINK, RTM_NEWLINK, Link, decode_link
from libs.netlink.neighbours import RTM_DELNEIGH, RTM_NEWNEIGH, Neighbour, decode_neighbour
from libs.netlink.routes import RTM_DELROUTE, RTM_NEWROUTE, Route, decode_route
from libs.netlink.rules import RTM_DELRULE, RTM_NEWRULE, RuleInto, decode_rule
from libs.netlink.socket import NETLINK_ADD_MEMBERSHIP, NETLINK_ROUTE, SOL_NETLINK, NetlinkSocket


class Group(IntEnum):
    """enum rtnetlink_groups"""

    LINK = 1
    NEIGHBOUR = 3
    IPV4_ADDRESS = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_ADDRESS = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19


LINKS = (Group.LINK,)
ADDRESSES = (Group.IPV4_ADDRESS, Group.IPV6_ADDRESS)
ROUTES = (Group.IPV4_ROUTE, Group.IPV6_ROUTE)
RULES = (Group.IPV4_RULE, Group.IPV6_RULE)
NEIGHBOURS = (Group.NEIGHBOUR,)


@dataclass(frozen=True, slots=True)
class Changed:
    """An object that is new or different, or that is gone (then as it was last)."""

    object: Link | Address | Route | Neighbour | FdbEntry | RuleInto
    gone: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """Events were dropped: list again."""


Event: TypeAlias = Changed | Lost

_GONE = {RTM_DELLINK, RTM_DELADDR, RTM_DELROUTE, RTM_DELNEIGH, RTM_DELRULE}


def decode_event(kind: int, body: bytes) -> Changed | None:
    """None for messages that are none of these kinds, or entries without an address."""
    found: Link | Address | Route | Neighbour | FdbEntry | RuleInto | None = None
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        found = decode_link(body)
    elif kind in (RTM_NEWADDR, RTM_DELADDR):
        found = decode_address(body)
    elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
        found = decode_route(body)
    elif kind in (RTM_NEWRULE, RTM_DELRULE):
        found = decode_rule(body)
    elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        found = decode_neighbour(body) or decode_fdb(body)
    return None if found is None else Changed(found, kind in _GONE)


_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SOCK_FILTER = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_SOCK_FPROG = struct.Struct("@HP")  # struct sock_fprog: length, pointer
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_OFFSET_PORT = 12  # of nlmsg_pid in struct nlmsghdr: in a notification, the port of who asked for the change


def ignore_changes_by(channel: socket.socket, port: int) -> None:
    """Have the kernel leave out what the netlink socket with this port changes: a classic BPF filter on the monitoring
    socket. Who writes a hundred thousand routes does not want to read about each."""
    wanted = int.from_bytes(struct.pack("=I", port), "big")  # BPF loads words in network order
    program = b"".join(
        (
            _SOCK_FILTER.pack(_LOAD_WORD, 0, 0, _OFFSET_PORT),
            _SOCK_FILTER.pack(_JUMP_IF_EQUAL, 0, 1, wanted),
            _SOCK_FILTER.pack(_RETURN, 0, 0, 0),
            _SOCK_FILTER.pack(_RETURN, 0, 0, 0xFFFFFFFF),
        )
    )
    memory = ctypes.create_string_buffer(program)
    channel.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        _SOCK_FPROG.pack(len(program) // _SOCK_FILTER.size, ctypes.addressof(memory)),
    )


class Monitor:
    """Calls back from the event loop. Subscribes at once, so list after creating it and before start(): nothing is
    missed. ignore_port: of a netlink socket of our own, whose changes are no news.
    """

    def __init__(
        self,
        event: Callable[[Event], None],
        groups: Iterable[Group],
        netns: int | str | Path | None = None,
        *,
        ignore_port: int = 0,
    ) -> None:
        self._event = event
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        if ignore_port:
            ignore_changes_by(self._netlink.socket, ignore_port)
        for group in groups:
            self._netlink.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._netlink.socket.setblocking(False)

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._netlink.socket, self._readable)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._netlink.socket)
        self._netlink.close()

    def _readable(self) -> None:
        for _ in range(64):  # give others their turn, the loop calls again
            try:
                data = self._netlink.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._event(Lost())
                continue
            for kind, _, _, _, body in split_messages(data):
                changed = decode_event(kind, body)
                if changed is not None:
                    self._event(changed)


@asynccontextmanager
async def events(
    groups: Iterable[Group], netns: int | str | Path | None = None, backlog: int = 10_000
) -> AsyncIterator[AsyncIterator[Event]]:
    """`async with events(LINKS) as stream: async for event in stream`. Beyond `backlog` unread events they become
    one Lost.
    """
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(event: Event) -> None:
        if queue.qsize() >= backlog:
            while not queue.empty():
                queue.get_nowait()
            event = Lost()
        queue.put_nowait(event)

    async def stream() -> AsyncIterator[Event]:
        while True:
            yield await queue.get()

    monitor = Monitor(put, groups, netns)
    monitor.start()
    try:
        yield stream()
    finally:
        monitor.stop()
