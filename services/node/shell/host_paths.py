"""Directories and file systems of the host that are there before anything runs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

BPFFS = Path("/sys/fs/bpf")
DIRECTORIES = (Path("/var/run/calico"), Path("/var/lib/calico"), Path("/var/log/calico"))
_libc = ctypes.CDLL(None, use_errno=True)


class PathProblem(Exception):
    """A directory that cannot be made or given away."""


def mount_for_ebpf(cgroup: Path) -> list[str]:
    """Mounts what is not mounted yet; what could not be, in words."""
    return [said for said in (_mounted("bpf", "bpffs", BPFFS), _mounted("cgroup2", "none", cgroup)) if said]


def _mounted(kind: str, source: str, where: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
        if [str(where), kind] in mounts:
            return ""
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{where}: {error.strerror or error}"
    if _libc.mount(source.encode(), str(where).encode(), kind.encode(), 0, None) != 0:
        return f"{kind} cannot be mounted at {where}: {os.strerror(ctypes.get_errno())}"
    return ""


def prepare_paths(user: int, directories: tuple[Path, ...] = DIRECTORIES) -> Iterator[Path]:
    """Each directory that is there and belongs, with all inside, to that user now. Raises PathProblem."""
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, user, -1)
            for inside in directory.rglob("*"):
                os.chown(inside, user, -1, follow_symlinks=False)
        except OSError as error:
            raise PathProblem(f"{directory}: {error.strerror or error}") from error
        yield directory
