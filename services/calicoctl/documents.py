"""Documents, each knowing where in the text its fields stand. `files` reads them; a command without files, which this
module also serves, need not wait for what reads YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.model.places import Json, Position, join

ARGUMENTS = ""
"""Source of what the command line itself names; it has no place worth telling."""


@dataclass(frozen=True, slots=True)
class Document:
    """One resource as written. `number` counts documents of the file from 1; `item` within a list, 0 outside of one."""

    source: str
    number: int
    value: dict[str, Json]
    start: Position
    item: int = 0
    marks: dict[str, Position] = field(default_factory=dict, repr=False, compare=False)
    prefix: str = ""

    def where(self, path: str = "") -> str:
        """`pools.yaml: document 2, line 14`: the nearest enclosing field whose place is known."""
        position = self.position(path)
        item = f" item {self.item}" if self.item else ""
        column = f", column {position.column}" if position.column and path else ""
        return f"{self.source}: document {self.number}{item}, line {position.line}{column}"

    def position(self, path: str) -> Position:
        full = join(self.prefix, path)
        while full:
            if found := self.marks.get(full):
                return found
            full = _parent(full)
        return self.start


@dataclass(frozen=True, slots=True)
class Broken:
    """A document that cannot even be read."""

    source: str
    number: int
    message: str
    position: Position

    def __str__(self) -> str:
        column = f", column {self.position.column}" if self.position.column else ""
        return f"{self.source}: document {self.number}, line {self.position.line}{column}: {self.message}"


class FileProblem(Exception):
    """A file or directory that cannot be read, or holds nothing where something was asked for."""


def _parent(path: str) -> str:
    cut = max(path.rfind("."), path.rfind("["))
    return path[:cut] if cut > 0 else ""


__all__ = ["ARGUMENTS", "Broken", "Document", "FileProblem", "Json", "Position"]
