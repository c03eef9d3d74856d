"""What a CNI request is about to do, on disk before it does it, so that a restart can finish or undo what a crash cut
short.

One small file per attachment, named after it; written and synced before the first effect, removed after the last. An
ADD that was never answered is undone: the runtime did not see its result and asks again, or deletes. A DEL is done
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment in transition. handle: of IPAM. wep: name of the WorkloadEndpoint in `namespace`."""

    verb: Literal["ADD", "DEL"]
    container: str
    ifname: str
    host_interface: str
    handle: str
    namespace: str
    wep: str
    netns: str = ""


class Journal:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def begin(self, entry: Entry) -> None:
        """Durable when this returns."""
        path = self._path(entry)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(entry))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        self._sync_directory()

    def end(self, entry: Entry) -> None:
        """Not synced: an entry that survives a crash is replayed, which does no harm."""
        with contextlib.suppress(FileNotFoundError):
            self._path(entry).unlink()

    def holds(self, entry: Entry) -> bool:
        """Is exactly this still to be settled?"""
        try:
            return msgspec.json.decode(self._path(entry).read_bytes(), type=Entry) == entry
        except (FileNotFoundError, msgspec.DecodeError):
            return False

    def unfinished(self) -> tuple[list[Entry], list[Path]]:
        """Entries left by a crash, and files that are none (torn writes under a temporary name are removed at once)."""
        entries: list[Entry] = []
        bad: list[Path] = []
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".tmp":
                path.unlink()
                continue
            try:
                entries.append(msgspec.json.decode(path.read_bytes(), type=Entry))
            except msgspec.DecodeError:
                bad.append(path)
        return entries, bad

    def _path(self, entry: Entry) -> Path:
        ident = hashlib.sha256(f"{entry.container}\0{entry.ifname}".encode()).hexdigest()[:32]
        return self._directory / f"{ident}.json"

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
