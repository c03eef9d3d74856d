"""Files that others read, or that a restart depends on: replaced as a whole, checked after writing, told apart by a
cheap look.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

Signature = tuple[tuple[int, int, int] | None, ...]


def signature(paths: Iterable[Path]) -> Signature:
    """Changes whenever one of the files is written, replaced, removed or made, or its mode changes. No file is read."""
    return tuple(_look(path) for path in paths)


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # what links lead to: projected volumes change by moving one
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size  # mtime is what anybody says it is, and no mode changes it


def write_atomically(path: Path, content: bytes, *, mode: int) -> bool:
    """False when the file had that content and mode already. Raises OSError, also when it reads back differently."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content and path.stat().st_mode & 0o7777 == mode:
            return False
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # no extension: no runtime reads it
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    if path.read_bytes() != content:
        raise OSError(f"{path} does not hold what was written to it")
    return True
