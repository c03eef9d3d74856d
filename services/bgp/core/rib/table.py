"""The Loc-RIB's table: prefix -> its path, or the list of its paths where there are several.

Nearly every prefix has one path, and then costs a reference and no list.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from services.bgp.core.paths import Nlri
from services.bgp.core.rib.path import Path, Source

Entry: TypeAlias = Path | list[Path]
Table: TypeAlias = dict[Nlri, Entry]


def paths_of(entry: Entry | None) -> tuple[Path, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, list) else (entry,)


def insert(table: Table, prefix: Nlri, path: Path) -> None:
    """In place of what the same source said under the same path id, or beside what others say."""
    entry = table.get(prefix)
    if entry is None:
        table[prefix] = path
    elif isinstance(entry, list):
        for at, other in enumerate(entry):
            if other.source is path.source and other.path_id == path.path_id:
                entry[at] = path
                return
        entry.append(path)
    elif entry.source is path.source and entry.path_id == path.path_id:
        table[prefix] = path
    else:
        table[prefix] = [entry, path]


def remove(table: Table, prefix: Nlri, source: Source, path_id: int) -> bool:
    """Take one path away, if it is there; returns whether the source has no path of the prefix left."""
    entry = table.get(prefix)
    if entry is None:
        return True
    if not isinstance(entry, list):
        if entry.source is not source:
            return True
        if entry.path_id != path_id:
            return False
        del table[prefix]
        return True
    left = [path for path in entry if path.source is not source or path.path_id != path_id]
    _put_back(table, prefix, left)
    return all(path.source is not source for path in left)


def remove_all(table: Table, prefix: Nlri, source: Source, keep: int | None = None) -> bool:
    """Take all paths of a source away but those of generation `keep`; returns whether it has none left."""
    left = [path for path in paths_of(table.get(prefix)) if path.source is not source or path.generation == keep]
    _put_back(table, prefix, left)
    return all(path.source is not source for path in left)


def of_source(table: Table, prefix: Nlri, source: Source) -> Iterator[Path]:
    return (path for path in paths_of(table.get(prefix)) if path.source is source)


def _put_back(table: Table, prefix: Nlri, left: list[Path]) -> None:
    if not left:
        table.pop(prefix, None)
    elif len(left) == 1:
        table[prefix] = left[0]
    else:
        table[prefix] = left
