"""`calicoctl tap`: what goes over the bus, one readable line a message.

Flows in: subject and payload of each message. Flows out: `time subject kind rev summary`, or the JSON itself. Decoding
is deliberately loose: a message of a newer or broken service must still be shown, so nothing is checked against its
struct.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.bus import Bus, Msg
from libs.runtime.redact import MASK, is_secret_name

Message = dict[str, Any]

EVERYTHING = "calico.>"
MAX_NAMED = 4
_TAG = "kind"  # the tag field of libs/bus/wire.py
MAX_INFLATED_BYTES = 64 << 20


QUEUE = 10_000
"""Messages received and not yet printed; a terminal that is slower loses the newest, and is told how many."""


class Dropped:
    """Stands in the stream for messages that were lost because printing was too slow."""

    def __init__(self, count: int) -> None:
        self.count = count


async def listen(
    bus: Bus, subjects: Sequence[str], count: int | None, accept: Callable[[Msg], bool] = lambda message: True
) -> AsyncIterator[Msg | Dropped]:
    """Messages on these subjects as they come, those that are accepted, `count` of them or without end. Raises
    BusError, ValueError.
    """
    queue: asyncio.Queue[Msg] = asyncio.Queue(QUEUE)
    dropped = 0

    def received(message: Msg) -> None:
        nonlocal dropped
        if not accept(message):
            return
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            dropped += 1

    subscriptions = [bus.subscribe(subject, received) for subject in subjects]
    try:
        await bus.barrier()
        shown = 0
        while count is None or shown < count:
            message = await queue.get()
            if dropped:
                lost, dropped = dropped, 0
                yield Dropped(lost)
            yield message
            shown += 1
    finally:
        for subscription in subscriptions:
            subscription.unsubscribe()


@dataclass(frozen=True, slots=True)
class Line:
    at: datetime
    subject: str
    kind: str
    rev: str
    summary: str

    def __str__(self) -> str:
        return f"{self.at:%H:%M:%S.%f}"[:-3] + f" {self.subject} {self.kind} {self.rev or '-'} {self.summary}".rstrip()


def describe(subject: str, payload: bytes, at: datetime) -> Line:
    """Never raises: a payload that is no JSON object is described by its size."""
    value = _decode(payload)
    if not isinstance(value, dict):
        kind = "empty" if not payload else "data" if value is None else type(value).__name__
        detail = f"{len(value)} entries" if isinstance(value, list) else f"{len(payload)} bytes"
        return Line(at, subject, kind, "", detail)
    kind = _kind(subject, value)
    rev = value.get("rev")
    summarise = _SUMMARIES.get(kind, _fields)
    return Line(at, subject, kind, str(rev) if isinstance(rev, int) else "", summarise(hidden(value)))


def raw(subject: str, payload: bytes, at: datetime) -> str:
    """One JSON object a line: time, subject, message (text when it is no JSON)."""
    value = _decode(payload)
    if value is None:
        value = payload.decode("utf-8", "replace")
    return json.dumps({"time": at.isoformat(), "subject": subject, "message": hidden(value)}, ensure_ascii=False)


def hidden(value: Any) -> Any:
    """A copy in which text under a telling name (password, token, …) is replaced. References to secrets stay."""
    if isinstance(value, dict):
        return {
            name: MASK if isinstance(item, str) and item and is_secret_name(name) else hidden(item)
            for name, item in value.items()
        }
    return [hidden(item) for item in value] if isinstance(value, list) else value


def _decode(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _kind(subject: str, value: Message) -> str:
    """The message's own tag, else what its subject says (libs/bus/subjects.py)."""
    if isinstance(tag := value.get(_TAG), str):
        return tag
    parts = subject.split(".")
    if len(parts) > 2 and parts[1] == "typha" and parts[2] == "snapshot":
        return "snapshot"
    if len(parts) > 3 and parts[1] == "typha":
        return parts[4] if parts[2:4] == ["rpc"] and len(parts) > 4 else parts[3]
    if len(parts) > 3:
        return parts[4] if parts[3] == "rpc" and len(parts) > 4 else parts[3]
    return parts[1] if len(parts) > 1 else "message"


def _named(names: list[str]) -> str:
    more = f" +{len(names) - MAX_NAMED}" if len(names) > MAX_NAMED else ""
    return ",".join(names[:MAX_NAMED]) + more


def _changes(label: str, entries: Any) -> str:
    if not isinstance(entries, dict) or not entries:
        return ""
    put = sorted(name for name, value in entries.items() if value is not None)
    gone = sorted(name for name, value in entries.items() if value is None)
    parts = [*([f"+{_named(put)}"] if put else []), *([f"-{_named(gone)}"] if gone else [])]
    return f"{label} {' '.join(parts)}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _size(value: Message, name: str) -> int:
    entries = value.get(name)
    return len(entries) if isinstance(entries, (list, dict)) else 0


def _commit(value: Message) -> str:
    add, remove = sorted(value.get("add") or {}), list(value.get("remove") or [])
    return _joined(
        f"seq {value.get('seq')}",
        _changes("workloads", value.get("workloads")),
        _changes("hosts", value.get("hosts")),
        f"follows {_named(add)}" if add else "",
        f"drops {_named(remove)}" if remove else "",
        f"needs {_size(value, 'needs')}" if value.get("needs") else "",
    )


def _ipset(value: Message) -> str:
    added, removed = list(value.get("added") or []), list(value.get("removed") or [])
    return _joined(
        f"seq {value.get('seq')}",
        f"+{_named([str(item) for item in added])}" if added else "",
        f"-{_named([str(item) for item in removed])}" if removed else "",
    )


def _policy(value: Message) -> str:
    content = value.get("policy") or value.get("profile")
    if not isinstance(content, dict):
        return f"seq {value.get('seq')}; empty"
    rules = [f"{_size(content, name)} {label}" for name, label in _RULES if content.get(name)]
    return _joined(f"seq {value.get('seq')}", ", ".join(rules) or "no rules")


_RULES = (
    ("ingress", "ingress"), ("egress", "egress"), ("inbound", "inbound"), ("outbound", "outbound"),
    ("inbound_rules", "inbound"), ("outbound_rules", "outbound"),
)  # fmt: skip


def _table(value: Message) -> str:
    return _joined(
        f"seq {value.get('seq')}", *(_changes(name, value.get(name)) for name in ("blocks", "nodes", "pools", "config"))
    )


def _beat(value: Message) -> str:
    age = value.get("etcd_age_s")
    return _joined(f"head {value.get('head')}", f"etcd {age:.1f} s ago" if isinstance(age, (int, float)) else "")


def _event(value: Message) -> str:
    error = value.get("error")
    return f"{value.get('action')} {value.get('key')}" + (f" (ignored: {error})" if error else "")


def _applied(value: Message) -> str:
    failures = value.get("failures") or {}
    shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(failures.items())[:MAX_NAMED])
    return f"{len(failures)} failed: {shown}" if failures else "ok"


def _status(value: Message) -> str:
    detail = value.get("detail")
    return f"{value.get('endpoint')} {value.get('status')}" + (f" ({detail})" if detail else "")


def _snapshot(value: Message) -> str:
    if isinstance(value.get("data"), str):
        return f"chunk {value.get('chunk', 0) + 1} of {value.get('chunks')}: {_chunk(value['data'])}"
    if "node" not in value:
        return _fields(value)
    if value.get("hello"):
        wanted = "hello"
    elif value.get("streams"):
        wanted = f"streams {_named(sorted(value['streams']))}"
    elif value.get("id"):
        wanted = f"chunk {value.get('chunk', 0)} of {value['id']}"
    else:
        wanted = "everything"
    return f"{value['node']} asks for {wanted}"


def _chunk(data: str) -> str:
    """A compressed chunk, opened when it is whole."""
    try:
        packed = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return f"{len(data)} characters"
    try:
        content = json.loads(zlib.decompressobj().decompress(packed, MAX_INFLATED_BYTES))
    except (zlib.error, ValueError):
        return f"{len(packed)} bytes, compressed"
    counts = [
        f"{_size(content, name)} {name}" for name in ("workloads", "hosts", "streams") if isinstance(content, dict)
    ]
    return f"{len(packed)} bytes, compressed: {', '.join(counts)}"


def _fields(value: Message) -> str:
    """Any other message: its simple fields as they are, of the others only how many entries they have."""
    shown = []
    for name, item in value.items():
        if name in (_TAG, "rev", "epoch"):
            continue
        if isinstance(item, (dict, list)):
            shown.append(f"{name}[{len(item)}]")
        else:
            word = str(item)
            shown.append(f"{name}={word if len(word) <= 60 else word[:57] + '...'}")
    return " ".join(shown)


_SUMMARIES: dict[str, Callable[[Message], str]] = {
    "commit": _commit,
    "ipset": _ipset,
    "policy": _policy,
    "table": _table,
    "beat": _beat,
    "event": _event,
    "applied": _applied,
    "status": _status,
    "snapshot": _snapshot,
}
