"""The first file system of a Linux that starts: an archive in cpio's "newc" format.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_END = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a directory where content is None. path: without the leading slash."""

    path: str
    content: bytes | None
    executable: bool = False

    @property
    def mode(self) -> int:
        if self.content is None:
            return stat.S_IFDIR | 0o755
        return stat.S_IFREG | (0o755 if self.executable else 0o644)


def pack(entries: Iterable[Entry]) -> bytes:
    """Directories must come before what they hold."""
    packed = bytearray()
    for number, entry in enumerate(entries, 1):
        packed += _record(number, entry.mode, entry.path, entry.content or b"")
    return bytes(packed + _record(0, 0, _END, b""))


def _record(inode: int, mode: int, path: str, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
