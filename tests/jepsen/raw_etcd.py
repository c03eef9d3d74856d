"""etcd as the verdict reads it: HTTP and JSON (the server's own gateway), nothing of this project in between."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """`value` None: deleted."""

    revision: int
    key: str
    value: bytes | None


def post(endpoint: str, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)


def is_leader(endpoint: str) -> bool:
    try:
        status = post(endpoint, "maintenance/status", {}, 2.0)
    except (OSError, ValueError):
        return False
    return bool(status["header"]["member_id"] == status.get("leader"))


def snapshot(endpoint: str, prefix: str, revision: int = 0) -> tuple[dict[str, bytes], int]:
    """Every key under the prefix at one revision (0: now, as the majority has it), and that revision."""
    reply = post(endpoint, "kv/range", {**_range(prefix), "revision": str(revision)})
    found = {_text(kv["key"]).decode(): _text(kv.get("value", "")) for kv in reply.get("kvs", [])}
    return found, revision or int(reply["header"]["revision"])


def history(endpoint: str, prefix: str, first: int, last: int) -> Iterator[list[Change]]:
    """Every revision from `first` to `last` that changed something under the prefix. `last` must be one of them, and
    nothing may be compacted.
    """
    body = {"create_request": {**_range(prefix), "start_revision": str(first)}}
    request = urllib.request.Request(f"{endpoint}/v3/watch", json.dumps(body).encode())
    pending: list[Change] = []
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as stream:
        for line in stream:
            result = json.loads(line)["result"]
            if int(result.get("compact_revision", 0)) or result.get("canceled"):
                raise RuntimeError(f"etcd does not tell its history: {result}")
            for event in result.get("events", []):
                kv = event["kv"]
                gone = event.get("type") == "DELETE"
                change = Change(
                    int(kv["mod_revision"]), _text(kv["key"]).decode(), None if gone else _text(kv.get("value", ""))
                )
                if pending and pending[0].revision != change.revision:
                    yield pending
                    pending = []
                pending.append(change)
            if pending and pending[0].revision >= last:
                break
    if pending:
        yield pending


def _range(prefix: str) -> dict[str, str]:
    raw = prefix.encode()
    end = raw[:-1] + bytes([raw[-1] + 1])
    return {"key": base64.b64encode(raw).decode(), "range_end": base64.b64encode(end).decode()}


def _text(encoded: str) -> bytes:
    return base64.b64decode(encoded)
