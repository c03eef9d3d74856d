"""The kernel's ruleset over one netlink socket, and a watch on what others change in it.

Socket calls run in one dedicated worker thread, so the event loop never waits for the kernel, and requests never mix.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import addressof, create_string_buffer
from pathlib import Path
from typing import TypeVar

from libs.netlink.codec import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    DumpInterrupted,
    ObjectNotFound,
    attrs,
    cstring,
    decode_error,
    error_for,
    message,
    split_messages,
    text,
    to_be32,
)
from libs.netlink.socket import NETLINK_ADD_MEMBERSHIP, NETLINK_NETFILTER, SOL_NETLINK, NetlinkSocket
from libs.nftables.codec import FAMILY_NUMBERS
from libs.nftables.messages import (
    GETCHAIN,
    GETGEN,
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFNL_SUBSYS_NFTABLES,
    BatchBuilder,
    batch_begin,
    decode_chain,
    decode_counter,
    decode_elements,
    decode_rule,
    decode_set,
    family_number,
    nfgen,
)
from libs.nftables.model import Table, Verdict
from libs.nftables.ops import (
    Committed,
    Drifted,
    Failure,
    KernelChain,
    KernelRule,
    KernelTable,
    Op,
    SetSpec,
    SpliceRules,
    TransactionRefused,
)

READ_ATTEMPTS = 10
NFNLGRP_NFTABLES = 7
SO_ATTACH_FILTER = 26

R = TypeVar("R")


class KernelRuleset:
    """Synchronous: reads tables and commits transactions. Raises NetlinkError, and what Transport lists."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, netns)
        self.port = self._netlink.port

    def close(self) -> None:
        self._netlink.close()

    def generation(self) -> int:
        """Number of commits since boot in this network namespace, by anyone, to any table."""
        (_, body), *_ = self._netlink.request(GETGEN, 0, nfgen(0), "nftables generation")
        return to_be32(attrs(body, 4)[1])

    def tables(self) -> list[Table]:
        families = {number: family for family, number in FAMILY_NUMBERS.items()}
        return [
            Table(families[body[0]], cstring(attrs(body, 4)[1]))
            for _, body in self._netlink.dump(GETTABLE, nfgen(0), "nftables tables")
            if body[0] in families
        ]

    def chains(self, table: Table) -> list[str]:
        """Names alone, for tables of others, whose rules need not be read; [] when there is no such table."""
        found = (
            decode_chain(body, table.family)
            for _, body in self._netlink.dump(GETCHAIN, nfgen(family_number(table)), f"chains of table {table}")
        )
        return [chain for of, chain, _ in found if of == table.name]

    def read(self, table: Table) -> KernelTable:
        """One consistent view: read again when anyone commits meanwhile. Raises DumpInterrupted if that never ends."""
        for _ in range(READ_ATTEMPTS):
            before = self.generation()
            try:
                found = self._read_once(table, before)
            except ObjectNotFound:  # a set went between two listings
                continue
            if self.generation() == before:
                return found
        raise DumpInterrupted(errno.EINTR, f"table {table}", f"changed during each of {READ_ATTEMPTS} readings")

    def _read_once(self, table: Table, generation: int) -> KernelTable:
        head, name = nfgen(family_number(table)), text(1, table.name)
        found = KernelTable(table in self.tables(), generation)
        if not found.exists:
            return found
        for _, body in self._netlink.dump(GETCHAIN, head, f"chains of table {table}"):
            of, chain, base = decode_chain(body, table.family)
            if of == table.name:
                found.chains[chain] = KernelChain(base)
        for _, body in self._netlink.dump(GETRULE, head + name, f"rules of table {table}"):
            chain, handle, wire = decode_rule(body)
            if chain in found.chains:  # else someone made it just now, and the generation tells
                found.chains[chain].rules.append(KernelRule(handle, wire))
        for _, body in self._netlink.dump(GETSET, head + name, f"sets of table {table}"):
            entry = decode_set(body)
            if entry is not None:
                found.sets[entry.name] = entry
        for entry in found.sets.values():
            if entry.spec is not None:
                entry.elements, entry.verdicts = self._elements(head + name, entry.name, entry.spec, entry.count)
        return found

    def _elements(
        self, table: bytes, name: str, spec: SetSpec, count: int | None
    ) -> tuple[set[bytes], dict[bytes, Verdict | None]]:
        """All of them. After a commit the kernel moves a grown hash set to a larger table in its own time. A listing of
        more than one message goes on by the number of elements told already (nft_rhash_walk), so while that lasts it
        leaves out up to a quarter and no generation tells. It is taken if it has `count` elements, and where that is
        not known, if the next one says the same.
        """
        before = None
        for attempt in range(READ_ATTEMPTS):
            listing = self._netlink.dump(GETSETELEM, table + text(2, name), f"elements of {name}")
            found = decode_elements((body for _, body in listing), spec)
            whole = found == before if count is None else len(found[0]) + len(found[1]) == count
            if whole or spec.interval or len(listing) < 2:
                return found
            before = found
            time.sleep(0.001 * 2**attempt)
        raise DumpInterrupted(errno.EINTR, f"set {name}", f"was listed in part {READ_ATTEMPTS} times")

    def counters(self, table: Table, chain: str) -> dict[int, tuple[int, int]]:
        """handle -> (packets, octets) of those rules of a chain that count."""
        head = nfgen(family_number(table)) + text(1, table.name) + text(2, chain)
        listing = self._netlink.dump(GETRULE, head, f"rules of chain {chain}")
        return {handle: seen for handle, seen in (decode_counter(body) for _, body in listing) if seen is not None}

    def _handles(self, table: Table, chain: str) -> list[int]:
        head = nfgen(family_number(table)) + text(1, table.name) + text(2, chain)
        return [decode_rule(body)[1] for _, body in self._netlink.dump(GETRULE, head, f"rules of chain {chain}")]

    def commit(self, table: Table, ops: Sequence[Op], generation: int | None = None) -> Committed:
        builder = BatchBuilder(table)
        for op in ops:
            handles: list[int] = []
            if isinstance(op, SpliceRules):
                handles = self._handles(table, op.chain)
                if len(handles) != op.length:
                    raise Drifted(f"chain {op.chain} of table {table} has {len(handles)} rules, not {op.length}")
            builder.add(op, handles)
        self._send(table, builder, generation)
        return Committed(len(builder.messages))

    def _send(self, table: Table, builder: BatchBuilder, generation: int | None) -> None:
        netlink, messages = self._netlink, builder.messages
        begin = netlink.next_seq()
        parts = [message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, begin, batch_begin(generation))]
        parts.extend(message(m.kind, NLM_F_REQUEST | m.flags, netlink.next_seq(), m.body) for m in messages)
        last = begin + len(messages)
        final = messages[-1]
        parts[-1] = message(final.kind, NLM_F_REQUEST | NLM_F_ACK | final.flags, last, final.body)
        parts.append(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, netlink.next_seq(), nfgen(0, NFNL_SUBSYS_NFTABLES)))
        netlink.drain()
        netlink.send(b"".join(parts))
        failures: list[Failure] = []
        done = False
        while not done:
            for kind, flags, seq, _, body in split_messages(netlink.receive()):
                if kind != NLMSG_ERROR or not begin <= seq <= last:
                    continue
                code, words, offset = decode_error(body, flags)
                if code == errno.ERESTART:
                    raise Drifted(f"the ruleset is not at generation {generation} any more")
                if code and seq == begin:
                    raise error_for(code, f"transaction on table {table}", words)
                if code:
                    about = messages[seq - begin - 1].about(offset)
                    failures.append(Failure(about, code, str(error_for(code, "", words).strerror)))
                done |= seq == last
        if failures:
            raise TransactionRefused(table, failures)


class KernelTransport:
    """Transport to the kernel for asyncio. Close it when its users are done."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self.sync = KernelRuleset(netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nftables")

    async def _run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def read(self, table: Table) -> KernelTable:
        return await self._run(lambda: self.sync.read(table))

    async def commit(self, table: Table, ops: Sequence[Op], generation: int | None = None) -> Committed:
        return await self._run(lambda: self.sync.commit(table, ops, generation))

    async def tables(self) -> list[Table]:
        return await self._run(self.sync.tables)

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self.sync.close()


class ForeignChanges:
    """Calls back when someone else changes the ruleset: with the table, or None when events were lost (think: all of
    them).

    Messages caused by `own_port` (KernelRuleset.port) are dropped inside the kernel, so our own big transactions
    cost nothing. Call start() within a running loop; stop() in the end.
    """

    def __init__(
        self, changed: Callable[[Table | None], None], own_port: int, netns: int | str | Path | None = None
    ) -> None:
        self._changed = changed
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, netns)
        self._families = {number: family for family, number in FAMILY_NUMBERS.items()}
        _ignore_port(self._netlink.socket, own_port)
        self._netlink.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        self._netlink.socket.setblocking(False)

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._netlink.socket, self._readable)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._netlink.socket)
        self._netlink.close()

    def _readable(self) -> None:
        touched: set[Table | None] = set()
        for _ in range(64):  # give others their turn, the loop calls again
            try:
                data = self._netlink.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                touched.add(None)
                continue
            for kind, _, _, _, body in split_messages(data):
                if kind >> 8 == NFNL_SUBSYS_NFTABLES and body[0] in self._families:
                    name = attrs(body, 4).get(1)  # attribute 1 names the table in every kind of object
                    if name is not None and kind & 0xFF < 15:
                        touched.add(Table(self._families[body[0]], cstring(name)))
        for table in touched:
            self._changed(table)


def _ignore_port(sock: socket.socket, port: int) -> None:
    """Attach a classic BPF filter: drop datagrams whose first message was caused by `port` (offset 12 of struct
    nlmsghdr).
    """
    big_endian = struct.unpack("!I", struct.pack("=I", port))[0]  # BPF loads words in network order
    program = [
        (0x20, 0, 0, 12),  # ld [12]
        (0x15, 0, 1, big_endian),  # jeq
        (0x06, 0, 0, 0),  # ret 0: drop
        (0x06, 0, 0, 0xFFFFFFFF),  # ret all
    ]
    code = create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), addressof(code)))
