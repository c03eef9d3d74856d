"""Many small pieces of an answer in groups that are worth a write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def groups(parts: Iterable[bytes], size_bytes: int) -> Iterator[list[bytes]]:
    """In order, each of about that size."""
    group: list[bytes] = []
    held = 0
    for part in parts:
        group.append(part)
        held += len(part)
        if held >= size_bytes:
            yield group
            group, held = [], 0
    if group:
        yield group
