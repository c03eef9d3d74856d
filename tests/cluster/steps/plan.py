"""What a stepwise felix (tests/cluster/steps/felix.py) is to do, as a file that both sides replace atomically."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec

BEFORE, HALF, AFTER = "before", "half", "after"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """steps: names; at the first one `victim` (0: felix itself) gets `signal`, the next felix goes on with the rest.

    record: file that receives the name of every step; record_last: the same, once no steps are left. hits: file that
    receives the names of the steps at which the signal was sent.
    """

    steps: tuple[str, ...] = ()
    hits: str = ""
    record: str = ""
    record_last: str = ""
    signal: int = int(signal.SIGKILL)
    victim: int = 0


def read_plan(path: Path) -> Plan:
    return msgspec.json.decode(path.read_bytes(), type=Plan)


def write_plan(path: Path, plan: Plan) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(plan))
    fresh.replace(path)


def note(path: str, line: str) -> None:
    """One write, so that lines of several processes and threads do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())
