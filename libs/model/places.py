"""Plain JSON values, and where in a text their fields stand."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


class Position(NamedTuple):
    """Place in a file, both from 1; column 0: unknown."""

    line: int
    column: int = 0


def join(path: str, name: str) -> str:
    """`spec` and `order`: `spec.order`; `[3]` follows without a dot."""
    if not path or not name:
        return path or name
    return path + name if name.startswith("[") else f"{path}.{name}"
