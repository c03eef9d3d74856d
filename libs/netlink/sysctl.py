"""Kernel settings under /proc/sys. Those below `net` are those of the calling thread's network namespace."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/proc/sys")
VALUE_BYTES = 4096  # /proc/sys gives a value in one read, a page at most


class SysctlError(OSError):
    """A setting that is missing, read-only, or that refuses the value."""


def read_sysctl(path: str) -> str:
    """path: relative to /proc/sys with slashes ("net/ipv4/ip_forward"), so that interface names may hold dots."""
    try:
        file = os.open(f"{ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, VALUE_BYTES).decode().strip()
        finally:
            os.close(file)
    except OSError as error:
        raise SysctlError(error.errno, f"cannot read sysctl {path}: {error.strerror}") from error


def write_sysctl(path: str, value: int | str) -> None:
    try:
        file = os.open(f"{ROOT}/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, str(value).encode())
        finally:
            os.close(file)
    except OSError as error:
        raise SysctlError(error.errno, f"cannot set sysctl {path} to {value}: {error.strerror}") from error
