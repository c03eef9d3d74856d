"""What validation finds, and the place it found it at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """path: JSON path such as `spec.ingress[0].source.nets[1]`, "" for the whole value. message: what was expected."""

    path: str
    message: str
    value: object = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return text if self.value is None else f"{text} (is {_show(self.value)})"


def _show(value: object) -> str:
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


class ValidationError(ValueError):
    """A resource, or a part of one, that is not acceptable. `problems` has everything that is wrong, in order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class At:
    """A place in a value, and the list that problems found below it go to."""

    path: str = ""
    problems: list[Problem] = field(default_factory=list)

    def field(self, *names: str) -> At:
        """`At("spec").field("bgp", "asNumber")` is at `spec.bgp.asNumber`."""
        return At(".".join([self.path, *names] if self.path else names), self.problems)

    def item(self, index: int | str) -> At:
        """`[3]` of a list, `[key]` of a map."""
        return At(f"{self.path}[{index}]", self.problems)

    def refuse(self, message: str, value: object = None) -> None:
        self.problems.append(Problem(self.path, message, value))
