"""Kernel routing tables that felix may use: `routeTableRanges`, and the older `routeTableRange`. It takes one, the
first, for WireGuard."""

from __future__ import annotations

import re
from typing import Any

from libs.model.validation.felix import MAX_TABLE, MAX_TABLES

MAX_TABLE_OF_RANGES = 0xFFFFFFFF
KERNEL_TABLES = frozenset({253, 254, 255})  # default, main, local
_RANGE = re.compile(r"([0-9]{1,10})\s*-\s*([0-9]{1,10})")


def first_of_ranges(value: Any) -> int:
    """value: of the resource, or text `1-250,1000-2000`. Raises ValueError."""
    ranges = _read(value)
    _check(ranges, MAX_TABLE_OF_RANGES)
    if sum(high - low + 1 for low, high in ranges) > MAX_TABLES:
        raise ValueError(f"{MAX_TABLES} tables together are the most")
    for low, high in ranges:
        first = low if low not in KERNEL_TABLES else max(KERNEL_TABLES) + 1
        if first <= high:
            return first
    raise ValueError("there is no table in it but the kernel's, 253 to 255")


def first_of_range(value: Any) -> int:
    """The same of one range, `1-250`."""
    ranges = _read(value)
    if len(ranges) != 1:
        raise ValueError(f"{value!r} is not one range such as 1-{MAX_TABLE}")
    _check(ranges, MAX_TABLE)
    return ranges[0][0]


def _read(value: Any) -> list[tuple[int, int]]:
    if not isinstance(value, str):
        return [(one.min, one.max) for one in (value if isinstance(value, list) else [value])]
    found = []
    for text in value.split(","):
        match = _RANGE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text.strip()!r} is no range of tables such as 1-{MAX_TABLE}")
        found.append((int(match[1]), int(match[2])))
    return found


def _check(ranges: list[tuple[int, int]], highest: int) -> None:
    for low, high in ranges:
        if not 1 <= low <= high <= highest:
            raise ValueError(f"{low}-{high} is no range within 1 to {highest}")
