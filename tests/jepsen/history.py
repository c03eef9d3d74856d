"""What the clients asked and were told, as each of them wrote it down, line by line, before and after every operation.

One file per client, JSON lines, appended with one write(2) each: what a killed process had written is there.

    {"e": "invoke", "id": "s3.1.17", "t": ns, "f": "assign", "a": {…}}   before the call
    {"e": "ok"|"fail"|"info", "id": "s3.1.17", "t": ns, "r": …}          its answer; without one the process died
    {"e": "txn", "k": kind, "ok": true|false|null}                       a compare-and-swap; null: no answer
    {"e": "crash", "k": kind, "w": "before"|"after"}                     the client kills itself here
    {"e": "start", "pid": n} · {"e": "bug", "r": traceback}

`fail`: certainly nothing was done. `info`: it may have happened, or happen a moment later. t: CLOCK_MONOTONIC in
nanoseconds, the same for every process of the machine.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

NEVER = 1 << 62


class Instance(NamedTuple):
    """One allocation: an address, to whom, and the block's sequence number that tells it from earlier ones."""

    address: str
    handle: str
    sequence: int


class Journal:
    """Where one client writes."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **event: Any) -> None:
        os.write(self._fd, json.dumps(event).encode() + b"\n")

    def invoke(self, id_: str, kind: str, **arguments: Any) -> None:
        self.write(e="invoke", id=id_, t=time.monotonic_ns(), f=kind, a=arguments)

    def answer(self, id_: str, outcome: str, result: Any = None) -> None:
        self.write(e=outcome, id=id_, t=time.monotonic_ns(), r=result)


@dataclass(slots=True)
class Operation:
    id: str
    kind: str
    arguments: dict[str, Any]
    invoked: int
    returned: int = NEVER
    outcome: str = "info"  # ok, fail, info; a process that dies leaves it at info
    result: Any = None

    @property
    def assigns(self) -> bool:
        return self.kind in ("assign", "assign_ip")

    @property
    def releases(self) -> bool:
        return self.kind in ("release_ips", "release_handle")

    @property
    def gained(self) -> list[Instance]:
        """What an assignment was told to have got. (`assign_ip` is not told its sequence number: -1.)"""
        if not self.assigns or self.outcome != "ok":
            return []
        return [Instance(address, self.arguments["handle"], sequence) for address, sequence in self.result["got"]]

    def may_release(self, instance: Instance) -> bool:
        """Whether it asks for this allocation; not whether it was the one that got it."""
        if self.kind == "release_handle":
            return bool(self.arguments["handle"] == instance.handle)
        if self.kind != "release_ips":
            return False
        return any(
            address == instance.address and handle in (None, instance.handle) and sequence in (None, instance.sequence)
            for address, handle, sequence in self.arguments["options"]
        )


@dataclass(slots=True)
class History:
    operations: dict[str, Operation] = field(default_factory=dict)
    transactions: Counter[tuple[str, bool | None]] = field(default_factory=Counter)  # (kind, whether it succeeded)
    crashes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, before or after)
    starts: int = 0
    bugs: list[str] = field(default_factory=list)  # what no client may raise

    def take(self, event: dict[str, Any]) -> None:
        match event["e"]:
            case "invoke":
                self.operations[event["id"]] = Operation(event["id"], event["f"], event["a"], event["t"])
            case "ok" | "fail" | "info" as outcome:
                operation = self.operations[event["id"]]
                operation.outcome, operation.result = outcome, event["r"]
                operation.returned = event["t"] if outcome != "info" else NEVER
            case "txn":
                self.transactions[event["k"], event["ok"]] += 1
            case "crash":
                self.crashes[event["k"], event["w"]] += 1
            case "start":
                self.starts += 1
            case "bug":
                self.bugs.append(event["r"])

    @property
    def conflict_share(self) -> float:
        """Of the compare-and-swaps that were answered, how many were refused."""
        refused = sum(count for (_, ok), count in self.transactions.items() if ok is False)
        return refused / max(1, refused + sum(count for (_, ok), count in self.transactions.items() if ok))


class Reader:
    """Follows a file that grows. The last line of a killed process may be cut short; it was never finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def events(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def read(paths: Iterable[Path]) -> History:
    history = History()
    for path in paths:
        for event in Reader(path).events():
            history.take(event)
    return history


@dataclass(slots=True)
class Estate:
    """What a client leaves behind when it dies: the pods that live on, and the handles nobody knows about."""

    held: dict[Instance, None] = field(default_factory=dict)
    doubtful: dict[str, None] = field(default_factory=dict)
    open: dict[str, Operation] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        if event["e"] == "invoke":
            operation = Operation(event["id"], event["f"], event["a"], event["t"])
            self.open[operation.id] = operation
            self.held = {instance: None for instance in self.held if not operation.may_release(instance)}
        elif event["e"] in ("ok", "fail", "info"):
            operation = self.open.pop(event["id"])
            operation.outcome, operation.result = event["e"], event["r"]
            if operation.kind == "assign" and operation.arguments["keep"]:
                self.held |= dict.fromkeys(operation.gained)
            if operation.outcome == "info":
                self._doubt(operation)
            elif operation.kind == "release_handle":
                self.doubtful.pop(operation.arguments["handle"], None)

    def died(self) -> None:
        """No more events come from that process."""
        for operation in self.open.values():
            self._doubt(operation)
        self.open.clear()

    def _doubt(self, operation: Operation) -> None:
        if operation.assigns or operation.kind == "release_handle":
            self.doubtful[operation.arguments["handle"]] = None
        elif operation.kind == "release_ips" and not operation.arguments["stale"]:
            self.doubtful |= dict.fromkeys(handle for _, handle, _ in operation.arguments["options"] if handle)
