"""The journal of CNI requests: on disk before anything is done, so that a restart can finish or undo what a crash cut
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
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.felix.core.journal import Attachment, Entry, Record, replay

log = logging.getLogger(__name__)

LOG, UNREADABLE = "log", "unreadable"
LOG_BYTES = 1 << 20  # beyond it the file is written anew


class Journal:
    """One per directory. Its methods are called from one thread."""

    def __init__(self, directory: Path) -> None:
        """Reads what the last process left; lines that are no records are moved to `unreadable`, a file, and counted.
        Raises OSError.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._open, bad = read_journal(directory)
        self.unreadable = len(bad)
        if bad:
            _write(directory / UNREADABLE, b"\n".join(bad) + b"\n", os.O_APPEND)
        self._file = -1
        self._bytes = 0
        self._written = self._durable = 0  # records, those synced
        self._sync: asyncio.Task[None] | None = None
        self._unwritten: dict[Attachment, None] = {}  # ended, and the disk did not take it
        self._notes: list[set[Entry]] = []
        self._rewrite()

    async def begin(self, entry: Entry) -> None:
        """Durable when this returns; takes the place of an earlier one of the same attachment. Raises OSError, and
        then everything is as it was before.
        """
        former = self._open.pop(entry.attachment, None)
        self._open[entry.attachment] = entry
        try:
            self._append(Record(begin=entry))
            await self._synced(self._written)
        except BaseException:
            self._open.pop(entry.attachment)
            if former is not None:
                self._open[entry.attachment] = former
            self._say(Record(begin=former) if former is not None else Record(end=entry.attachment))
            raise
        for note in self._notes:
            note.add(entry)

    def end(self, entry: Entry) -> None:
        """Not synced, see the module. Also of one that is not open. What the disk does not take is written later."""
        if self._open.pop(entry.attachment, None) is None:
            return
        self._say(Record(end=entry.attachment))
        self._shrink()

    def holds(self, entry: Entry) -> bool:
        """Is exactly this still to be settled?"""
        return self._open.get(entry.attachment) == entry

    def is_open(self, attachment: Attachment) -> bool:
        return attachment in self._open

    def unfinished(self) -> list[Entry]:
        """In the order in which they began."""
        return list(self._open.values())

    @contextlib.contextmanager
    def noting(self) -> Iterator[set[Entry]]:
        """What has begun since, also what has ended again."""
        note: set[Entry] = set()
        self._notes.append(note)
        try:
            yield note
        finally:
            self._notes.remove(note)

    # --- the file ---

    def _append(self, record: Record) -> None:
        """Whole, or not at all: half a line would spoil the next one. Raises OSError."""
        ends = [msgspec.json.encode(Record(end=one)) + b"\n" for one in self._unwritten if one not in self._open]
        data = b"".join(ends) + msgspec.json.encode(record) + b"\n"
        try:
            if os.write(self._file, data) != len(data):
                raise OSError("the disk took only part of a record")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._bytes)
            raise
        self._unwritten.clear()
        self._bytes += len(data)
        self._written += 1

    def _say(self, record: Record) -> None:
        try:
            self._append(record)
        except OSError as error:
            if record.end is not None:
                self._unwritten[record.end] = None
            log.error("the journal cannot be written", extra={"error": str(error)})

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
        self._shrink()

    def _shrink(self) -> None:
        if self._bytes > LOG_BYTES and self._sync is None:
            try:
                self._rewrite()
            except OSError as error:
                log.error("the journal cannot be written anew", extra={"error": str(error)})

    def _rewrite(self) -> None:
        """Old or new, whenever this is cut short. Raises OSError."""
        fresh = self._directory / f"{LOG}.new"
        content = b"".join(msgspec.json.encode(Record(begin=entry)) + b"\n" for entry in self._open.values())
        _write(fresh, content, os.O_TRUNC)
        file = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.replace(fresh, self._directory / LOG)
            _sync_directory(self._directory)
        except BaseException:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._bytes, self._durable = file, len(content), self._written
        self._unwritten.clear()


def read_journal(directory: Path) -> tuple[dict[Attachment, Entry], list[bytes]]:
    """See `replay`. Changes nothing."""
    try:
        return replay((directory / LOG).read_bytes().splitlines())
    except FileNotFoundError:
        return {}, []


def _write(path: Path, content: bytes, flag: int) -> None:
    """Synced, and for root alone. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, 0o600)
    try:
        if os.write(file, content) != len(content):
            raise OSError(f"the disk took only part of {path}")
        os.fsync(file)
    finally:
        os.close(file)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
