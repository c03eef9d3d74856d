"""Nodes and data to text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.calicoctl.gotemplate.functions import FUNCTIONS, LAZY, TemplateProblem, member, show, true
from services.calicoctl.gotemplate.parse import Node, Operand, Pipe, Reader

_NOTHING = object()
"""No value was piped in; None is a value."""


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was read. functions: calicoctl's own, by name."""

    nodes: list[Node]
    config: Callable[[str], str]

    def render(self, data: Any) -> str:
        """Raises TemplateProblem."""
        out: list[str] = []
        try:
            self._walk(self.nodes, data, [{"$": data}], out)
        except (_Break, _Continue):
            raise TemplateProblem("{{break}} or {{continue}} outside of {{range}}") from None
        return "".join(out)

    def _walk(self, nodes: list[Node], dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
        scopes = [*scopes, {}]
        for node in nodes:
            match node.word:
                case "text":
                    out.append(node.text)
                case "action":
                    assert node.pipe is not None
                    value = self._pipe(node.pipe, dot, scopes)
                    if not node.pipe.names:
                        out.append(show(value))
                case "if" | "with":
                    assert node.pipe is not None
                    inner = [*scopes, {}]
                    value = self._pipe(node.pipe, dot, inner)
                    chosen = node.body if true(value) else node.other
                    self._walk(chosen, value if node.word == "with" and true(value) else dot, inner, out)
                case "range":
                    self._range(node, dot, scopes, out)
                case "break":
                    raise _Break
                case "continue":
                    raise _Continue

    def _range(self, node: Node, dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
        assert node.pipe is not None
        over = self._pipe(Pipe((), False, node.pipe.commands), dot, scopes)
        items: list[tuple[Any, Any]]
        if isinstance(over, Mapping):
            items = sorted(over.items())
        elif isinstance(over, int) and not isinstance(over, bool):
            items = [(index, index) for index in range(over)]
        elif over is None or (isinstance(over, Sequence) and not isinstance(over, str)):
            items = list(enumerate(over or ()))
        else:
            raise TemplateProblem(f"range can't iterate over {show(over)}")
        if not items:
            self._walk(node.other, dot, scopes, out)
        for key, value in items:
            given = (key, value) if len(node.pipe.names) > 1 else (value,)
            inner = [*scopes, dict(zip(node.pipe.names, given, strict=False))]
            try:
                self._walk(node.body, value, inner, out)
            except _Continue:
                continue
            except _Break:
                break

    def _pipe(self, pipe: Pipe, dot: Any, scopes: list[dict[str, Any]]) -> Any:
        value: Any = _NOTHING
        for command in pipe.commands:
            value = self._command(command, value, dot, scopes)
        for name in pipe.names:
            if pipe.declares:
                scopes[-1][name] = value
                continue
            scope = next((scope for scope in reversed(scopes) if name in scope), None)
            if scope is None:
                raise TemplateProblem(f"undefined variable {name}")
            scope[name] = value
        return value

    def _command(self, command: tuple[Operand, ...], piped: Any, dot: Any, scopes: list[dict[str, Any]]) -> Any:
        first, *rest = command
        if first.what != "function":
            if rest or piped is not _NOTHING:
                raise TemplateProblem("can't give argument to non-function")
            return self._value(first, dot, scopes)
        if first.value in LAZY:
            stop = first.value == "or"
            value: Any = None
            for operand in rest:
                value = self._value(operand, dot, scopes)
                if true(value) == stop:
                    return value
            return value if piped is _NOTHING else piped
        arguments = [self._value(operand, dot, scopes) for operand in rest]
        if piped is not _NOTHING:
            arguments.append(piped)
        if first.value == "config":
            return self.config(*arguments)
        try:
            return FUNCTIONS[first.value](*arguments)
        except TemplateProblem:
            raise
        except (TypeError, ValueError, LookupError) as error:
            raise TemplateProblem(f"error calling {first.value}: {error}") from error

    def _value(self, operand: Operand, dot: Any, scopes: list[dict[str, Any]]) -> Any:
        match operand.what:
            case "dot":
                value = dot
            case "variable":
                scope = next((scope for scope in reversed(scopes) if operand.value in scope), None)
                if scope is None:
                    raise TemplateProblem(f"undefined variable {operand.value}")
                value = scope[operand.value]
            case "pipe":
                value = self._pipe(operand.value, dot, scopes)
            case "function":
                value = self._command((operand,), _NOTHING, dot, scopes)
            case _:
                value = operand.value
        for name in operand.path:
            value = member(value, name)
        return value


def read(template: str, as_number: str) -> Template:
    """Raises TemplateProblem. as_number: what `config "asnumber"` says."""

    def config(name: str) -> str:
        if name.lower() != "asnumber":
            raise TemplateProblem(f"unknown setting {name!r}: only asnumber is known")
        return as_number

    return Template(Reader(template).read(), config)
