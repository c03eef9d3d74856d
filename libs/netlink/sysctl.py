"""Kernel settings under /proc/sys. Those below `net` are those of the calling thread's network namespace."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/proc/sys")


class SysctlError(OSError):
    """A setting that is missing, read-only, or that refuses the value."""


def read_sysctl(path: str) -> str:
    """path: relative to /proc/sys with slashes ("net/ipv4/ip_forward"), so that interface names may hold dots."""
    try:
        return (ROOT / path).read_text().strip()
    except OSError as error:
        raise SysctlError(error.errno, f"cannot read sysctl {path}: {error.strerror}") from error


def write_sysctl(path: str, value: int | str) -> None:
    try:
        with (ROOT / path).open("wb", buffering=0) as file:
            file.write(str(value).encode())
    except OSError as error:
        raise SysctlError(error.errno, f"cannot set sysctl {path} to {value}: {error.strerror}") from error
