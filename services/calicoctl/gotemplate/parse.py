"""Text of a template to nodes: recursive descent over actions, then over the words of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from services.calicoctl.gotemplate.functions import FUNCTIONS, LAZY, TemplateProblem

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


class Reader:
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
                if value not in FUNCTIONS and value not in LAZY:
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
