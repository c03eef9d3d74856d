"""What a CNI request is about to do, on disk before it does it, so that a restart can finish or undo what a crash cut
short.

An ADD that was never answered is undone: the runtime did not see its result and asks again, or deletes. A DEL is done
again.

One file, `log`, that only grows, one JSON record a line: {"begin": entry} and {"end": [container, ifname]}. A begin is
synced before its first effect, and those that come together share one sync. An end is only handed to the kernel, which
a death of this process does not undo: a death of the machine does, but then the pods are gone as well. From time to
time, and at start, the file is written anew with what is still open.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal

import msgspec

LOG, UNREADABLE = "log", "unreadable"
LOG_BYTES = 1 << 20  # beyond it the file is written anew


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """How another plugin is called for the attachment's addresses: its name, CNI_* and standard input."""

    plugin: str
    environment: tuple[tuple[str, str], ...]
    config: str


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment in transition. handle: of IPAM. wep: name of the WorkloadEndpoint in `namespace`. delegation: who
    gave the addresses, if not Calico's IPAM.
    """

    verb: Literal["ADD", "DEL"]
    container: str
    ifname: str
    host_interface: str
    handle: str
    namespace: str
    wep: str
    netns: str = ""
    network: str = ""
    delegation: Delegation | None = None

    @property
    def attachment(self) -> tuple[str, str]:
        return self.container, self.ifname


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. Exactly one of the two."""

    begin: Entry | None = None
    end: tuple[str, str] | None = None


class Journal:
    """One per directory. Its methods are called from one thread."""

    def __init__(self, directory: Path) -> None:
        """Reads what the last process left; lines that are no records go into a file of their own, and stay
        in `unreadable`. Raises OSError.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._open, self.unreadable = read_journal(directory)
        if self.unreadable:
            self._keep(self.unreadable)
        self._file = -1
        self._bytes = 0
        self._written = self._durable = 0  # records, those synced
        self._sync: asyncio.Task[None] | None = None
        self._rewrite()

    async def begin(self, entry: Entry) -> None:
        """Durable when this returns; takes the place of an earlier one of the same attachment. Raises OSError, and
        then nothing has begun.
        """
        self._open[entry.attachment] = entry
        try:
            self._append(Record(begin=entry))
            await self._synced(self._written)
        except BaseException:
            self.end(entry)
            raise

    def end(self, entry: Entry) -> None:
        """Not synced, see the module. Also of one that is not open."""
        if self._open.pop(entry.attachment, None) is None:
            return
        self._append(Record(end=entry.attachment))
        if self._bytes > LOG_BYTES and self._sync is None:
            self._rewrite()

    def holds(self, entry: Entry) -> bool:
        """Is exactly this still to be settled?"""
        return self._open.get(entry.attachment) == entry

    def unfinished(self) -> list[Entry]:
        """In the order in which they began."""
        return list(self._open.values())

    def close(self) -> None:
        os.close(self._file)

    # --- the file ---

    def _append(self, record: Record) -> None:
        line = msgspec.json.encode(record) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the disk took only part of a record")
        self._bytes += len(line)
        self._written += 1

    async def _synced(self, number: int) -> None:
        """Until the first `number` records are on disk. A sync that is under way may have missed the newest."""
        while self._durable < number:
            if self._sync is None:
                self._sync = asyncio.ensure_future(self._sync_now())
            await asyncio.shield(self._sync)

    async def _sync_now(self) -> None:
        written = self._written
        try:
            await asyncio.to_thread(os.fdatasync, self._file)
            self._durable = written
        finally:
            self._sync = None

    def _keep(self, unreadable: list[bytes]) -> None:
        with (self._directory / UNREADABLE).open("ab") as file:
            file.write(b"\n".join(unreadable) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        """Old or new, whenever this is cut short."""
        fresh = self._directory / f"{LOG}.new"
        content = b"".join(msgspec.json.encode(Record(begin=entry)) + b"\n" for entry in self._open.values())
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(file, content)
        os.fsync(file)
        os.replace(fresh, self._directory / LOG)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._bytes, self._durable = file, len(content), self._written


def read_journal(directory: Path) -> tuple[dict[tuple[str, str], Entry], list[bytes]]:
    """What is open, by attachment in the order of its beginning, and lines that are no records. The last lines may be
    torn, because nobody waited for them any more when the machine died: they are left out.
    """
    try:
        lines = (directory / LOG).read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    found: dict[tuple[str, str], Entry] = {}
    bad: list[bytes] = []
    torn: list[bytes] = []
    for line in lines:
        try:
            record = msgspec.json.decode(line, type=Record)
        except msgspec.DecodeError:
            torn.append(line)
            continue
        bad += torn
        torn = []
        if record.begin is not None:
            found[record.begin.attachment] = record.begin
        elif record.end is not None:
            found.pop(record.end, None)
    return found, bad
