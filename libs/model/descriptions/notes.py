"""What can be said of a field besides its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from libs.model.base import V3Struct


@dataclass(frozen=True, slots=True)
class Note:
    """text: one or more sentences for whoever writes the field.

    choices: all that the validator takes, of the field itself or of the entries of a list; with any_case in any case.
    low, high: of a number, both included. longest: characters of a text, or of the entries of a list. fewest, most:
    entries of a list. unique: entries of a list differ. required: refused when absent. default: what is stored when the
    field is absent, whatever else the resource says.
    """

    text: str
    choices: tuple[str | int, ...] = ()
    any_case: bool = False
    low: int | None = None
    high: int | None = None
    longest: int | None = None
    fewest: int | None = None
    most: int | None = None
    unique: bool = False
    required: bool = False
    default: str | bool | int | None = None


@dataclass(frozen=True, slots=True)
class About:
    """A struct's own text, and a note for each field by its Python name."""

    text: str
    fields: dict[str, Note]


Abouts: TypeAlias = dict[type[V3Struct], About]
