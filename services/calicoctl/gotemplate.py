"""Go's text/template, as far as `-o go-template=` is used: to pick values out of resources.

There: text and trim markers, comments, pipelines, variables, if/else, range/else, with, break, continue, the
comparison and logic functions, len, index, print, printf, println, slice-free indexing, and calicoctl's own join,
joinAndTruncate and config. Not there: define, template, block, method calls, complex numbers. What is missing is
refused when the template is read.

Fields go by their Go names (`.Spec.NATOutgoing`, `.ObjectMeta.Name`); they are found by comparing with our JSON names
without regard to case, and those of the embedded metadata also directly (`.Name`). A field that the kind does not have
is an error, one that is not set has its zero value, as in Go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.calicoctl.columns import go_float


class TemplateProblem(Exception):
    """The template cannot be read, or does not fit the resources."""


# --- reading ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<variable>\$\w*(?:\.\w+)*)
    |(?P<field>(?:\.\w+)+)
    |(?P<dot>\.)
    |(?P<word>\w+)
    |(?P<mark>:=|[=|(),])""",
    re.VERBOSE,
)
_QUOTED = r"\"(?:[^\"\\\n]|\\.)*\"|`[^`]*`"
_ACTION = re.compile(r"\{\{(-(?=\s))?\s*(/\*.*?\*/|(?:" + _QUOTED + r"|(?!\}\})[^\"`])*?)\s*((?<=\s)-)?\}\}", re.DOTALL)

Token = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Pipe:
    """names: variables that it sets (`$i, $x :=`). The result of a command is the last argument of the next."""

    names: tuple[str, ...]
    declares: bool
    commands: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """what: dot | variable | literal | function | pipe; path: fields taken of it."""

    what: str
    value: Any
    path: tuple[str, ...] = ()


@dataclass(slots=True)
class Node:
    """word: text | action | if | range | with | break | continue."""

    word: str
    text: str = ""
    pipe: Pipe | None = None
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("action", …) in turn, trimmed and without comments."""
    at, trim = 0, False
    while (start := template.find("{{", at)) >= 0:
        match = _ACTION.match(template, start)
        if match is None:
            raise TemplateProblem(f"unclosed action: {template[start : start + 30]!r}")
        text = template[at:start]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if match[1] else text
        if not match[2].startswith("/*"):
            yield "action", match[2].strip()
        at, trim = match.end(), bool(match[3])
    yield "text", template[at:].lstrip() if trim else template[at:]


def _tokens(action: str) -> list[Token]:
    found, at = [], 0
    while at < len(action):
        match = _TOKEN.match(action, at)
        if match is None or match.lastgroup is None:
            raise TemplateProblem(f"unexpected {action[at:]!r} in {{{{{action}}}}}")
        if match.lastgroup != "space":
            found.append((match.lastgroup, match[0]))
        elif found:
            found.append(("space", " "))
        at = match.end()
    return found


class _Reader:
    """Recursive descent over the pieces of one template."""

    def __init__(self, template: str) -> None:
        self._pieces = list(_pieces(template))
        self._at = 0

    def read(self) -> list[Node]:
        nodes, end = self._block(nested=False)
        if end:
            raise TemplateProblem(f"unexpected {{{{{end}}}}}")
        return nodes

    def _block(self, *, nested: bool) -> tuple[list[Node], str]:
        """Nodes up to the end, or to the `end` or `else…` that closes the block, which is returned too."""
        nodes: list[Node] = []
        while self._at < len(self._pieces):
            kind, text = self._pieces[self._at]
            self._at += 1
            if kind == "text":
                if text:
                    nodes.append(Node("text", text))
                continue
            word, _, rest = text.partition(" ")
            if word in ("end", "else"):
                return nodes, text
            if word in ("if", "range", "with"):
                nodes.append(self._control(word, rest))
            elif word in ("break", "continue"):
                nodes.append(Node(word))
            elif word in ("define", "template", "block"):
                raise TemplateProblem(f"{{{{{word}}}}} is not supported")
            else:
                nodes.append(Node("action", pipe=_pipe(_tokens(text))))
        if nested:
            raise TemplateProblem("unexpected end of the template: {{end}} is missing")
        return nodes, ""

    def _control(self, word: str, rest: str) -> Node:
        node = Node(word, pipe=_pipe(_tokens(rest)))
        node.body, end = self._block(nested=True)
        if end == "else":
            node.other, end = self._block(nested=True)
        elif end.startswith("else "):
            again, _, condition = end.removeprefix("else ").strip().partition(" ")
            if again not in ("if", "with"):
                raise TemplateProblem(f"unexpected {{{{{end}}}}}")
            node.other = [self._control(again, condition)]
            return node  # the inner one has taken the common {{end}}
        if end != "end":
            raise TemplateProblem(f"expected {{{{end}}}}, found {{{{{end}}}}}")
        return node


def _pipe(tokens: list[Token]) -> Pipe:
    names: tuple[str, ...] = ()
    declares = False
    plain = [token for token in tokens if token[0] != "space"]
    for mark in (":=", "="):
        if ("mark", mark) in plain[:4]:
            cut = plain.index(("mark", mark))
            names = tuple(value for kind, value in plain[:cut] if kind == "variable")
            declares = mark == ":="
            tokens = tokens[tokens.index(("mark", mark)) + 1 :]
            break
    parser = _Pipeline(tokens)
    commands = parser.commands(closing=False)
    return Pipe(names, declares, commands)


class _Pipeline:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def commands(self, *, closing: bool) -> tuple[tuple[Any, ...], ...]:
        commands: list[tuple[Any, ...]] = []
        current: list[Operand] = []
        while self._at < len(self._tokens):
            kind, value = self._tokens[self._at]
            self._at += 1
            if kind == "space":
                continue
            if (kind, value) == ("mark", "|"):
                commands.append(_command(current))
                current = []
            elif (kind, value) == ("mark", ")"):
                if not closing:
                    raise TemplateProblem("unexpected )")
                return (*commands, _command(current))
            else:
                current.append(self._operand(kind, value))
        if closing:
            raise TemplateProblem("unclosed (")
        return (*commands, _command(current))

    def _operand(self, kind: str, value: str) -> Operand:
        match kind:
            case "dot":
                return Operand("dot", None)
            case "field":
                return Operand("dot", None, tuple(value[1:].split(".")))
            case "variable":
                name, *path = value.split(".")
                return Operand("variable", name, tuple(path))
            case "string":
                return Operand("literal", value[1:-1] if value[0] == "`" else _unquote(value))
            case "number":
                return Operand("literal", float(value) if re.search(r"[.eE]", value) else int(value))
            case "word" if value in ("true", "false", "nil"):
                return Operand("literal", {"true": True, "false": False, "nil": None}[value])
            case "word":
                if value not in FUNCTIONS and value not in _LAZY:
                    raise TemplateProblem(f'function "{value}" not defined')
                return Operand("function", value)
            case "mark" if value == "(":
                inner = Pipe((), False, self.commands(closing=True))
                if self._at < len(self._tokens) and self._tokens[self._at][0] == "field":
                    fields = self._tokens[self._at][1][1:].split(".")
                    self._at += 1
                    return Operand("pipe", inner, tuple(fields))
                return Operand("pipe", inner)
        raise TemplateProblem(f"unexpected {value!r}")


def _command(operands: list[Operand]) -> tuple[Operand, ...]:
    if not operands:
        raise TemplateProblem("missing value for command")
    return tuple(operands)


def _unquote(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise TemplateProblem(f"bad text {text}") from error


# --- values ----------------------------------------------------------------------------------------------------------


def true(value: Any) -> bool:
    """Go's truth: not zero, not empty, not nil. A struct is always true."""
    return isinstance(value, msgspec.Struct) or bool(value)


def show(value: Any) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case float():
            return go_float(value)
        case str() | int():
            return str(value)
        case Mapping():
            return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
        case msgspec.Struct():
            return "{" + " ".join(show(getattr(value, name)) for name in value.__struct_fields__) + "}"
        case Sequence():
            return "[" + " ".join(show(item) for item in value) + "]"
    return str(value)


def member(value: Any, name: str) -> Any:
    """`.Name` of a value. Raises TemplateProblem where there is none."""
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, msgspec.Struct):
        if (wanted := name.lower()) in ("kind", "apiversion"):
            return value.kind if wanted == "kind" else value.api_version  # type: ignore[attr-defined]
        if wanted in ("objectmeta", "listmeta"):
            return value.metadata  # type: ignore[attr-defined]
        for attribute, encoded in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
            if encoded.lower() == wanted:
                return getattr(value, attribute)
        if (metadata := getattr(value, "metadata", None)) is not None:
            return member(metadata, name)
        raise TemplateProblem(f"can't evaluate field {name} in type {type(value).__name__}")
    if value is None:
        raise TemplateProblem(f"nil pointer evaluating field {name}")
    raise TemplateProblem(f"can't evaluate field {name} in type {type(value).__name__}")


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
        if first.value in _LAZY:
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


# --- functions -------------------------------------------------------------------------------------------------------

_NOTHING = object()
_LAZY = ("and", "or")


def _join(items: Any, separator: str, limit: int = 0) -> str:
    if items is None:
        return ""
    if isinstance(items, Mapping):
        items = sorted(f"{key}={show(value)}" for key, value in items.items())
    if isinstance(items, str) or not isinstance(items, Sequence):
        items = [items]
    joined = separator.join(show(item) for item in items)
    return joined[: limit - 3] + "..." if limit and len(joined) > limit else joined


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d+))?([vdsqfgexXtT%])")


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        digits = f".{precision}" if precision else ""
        match verb:
            case "q":
                shown = json.dumps(show(value), ensure_ascii=False)
            case "d" | "x" | "X":
                shown = f"{int(value):{verb}}"
            case "f" | "g" | "e":
                shown = f"{float(value):{digits}{verb}}"
            case _:
                shown = show(value)[: int(precision)] if precision else show(value)
        size = int(width or 0)
        if "-" in flags:
            return shown.ljust(size)
        return shown.rjust(size, "0" if "0" in flags and verb not in "sqv" else " ")

    text = _VERB.sub(one, form)
    return text + (f"%!(EXTRA {', '.join(show(value) for value in left)})" if left else "")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "config": lambda name: name,  # bound to the cluster by Template
    "eq": lambda first, *others: any(first == other for other in others),
    "ge": lambda one, two: one >= two,
    "gt": lambda one, two: one > two,
    "index": _index,
    "join": _join,
    "joinAndTruncate": _join,
    "le": lambda one, two: one <= two,
    "len": len,
    "lt": lambda one, two: one < two,
    "ne": lambda one, two: one != two,
    "not": lambda value: not true(value),
    "print": lambda *values: "".join(show(value) for value in values),
    "printf": _printf,
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
}


def read(template: str, as_number: str) -> Template:
    """Raises TemplateProblem. as_number: what `config "asnumber"` says."""

    def config(name: str) -> str:
        if name.lower() != "asnumber":
            raise TemplateProblem(f"unknown setting {name!r}: only asnumber is known")
        return as_number

    return Template(_Reader(template).read(), config)
