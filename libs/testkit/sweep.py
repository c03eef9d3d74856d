"""Which cluster belongs to whom, so that what a dead owner left can be removed and a living one's is not touched."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from libs.testkit.topology import namespaces, remove

# Short, because the path of a unix socket has 107 characters at most.
RUN_DIR = Path(os.environ.get("CALICO_TEST_RUN_DIR", "/run/calico-clusters"))
_OWNER = "owner"


def claim(run_dir: Path) -> tuple[str, Path]:
    """A new cluster id and its directory, marked as this process's."""
    run_dir.mkdir(parents=True, exist_ok=True)
    while True:
        identity = secrets.token_hex(3)
        directory = run_dir / identity
        # Marked before it is visible: a sweep elsewhere must not find it without an owner.
        fresh = run_dir / f".{identity}"
        try:
            fresh.mkdir()
            (fresh / _OWNER).write_text(_process_mark(os.getpid()) or "")
            fresh.rename(directory)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not directory.exists():
                raise
            continue
        return identity, directory


def release(directory: Path) -> None:
    """The directory stays, nobody owns it: there is nothing left to sweep but files."""
    (directory / _OWNER).unlink(missing_ok=True)


def sweep_stale(run_dir: Path = RUN_DIR) -> list[str]:
    """Remove namespaces, processes and files of clusters whose owner has died; their ids."""
    if not run_dir.is_dir():
        return []
    swept = []
    for directory in sorted(run_dir.iterdir()):
        try:
            owner = (directory / _OWNER).read_text()
        except OSError:
            continue  # kept on purpose, or being claimed
        if owner and _process_mark(int(owner.split()[0])) == owner:
            continue
        remove(namespaces(f"cal-{directory.name}-"))
        shutil.rmtree(directory, ignore_errors=True)
        swept.append(directory.name)
    return swept


def _process_mark(pid: int) -> str | None:
    """Process id and start time, which together name it for ever; None when there is none (proc(5), /proc/pid/stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"
