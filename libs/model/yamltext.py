"""One YAML document into plain JSON values and back, as Go's YAML libraries and Kubernetes read it.

Compared with a plain YAML loader: duplicate keys are found (the last one would win silently), `22:53` and `2026-01-02`
stay text (YAML 1.1 would make them a base-60 number and a date; a port range and a label they are), every key is the
text it was written as. Python objects and unknown tags are refused, and aliases of aliases end at a limit.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import yaml

from libs.model.places import Json, Position, join

MAX_NODES = 200_000
"""Values one document may expand to: a few aliases of aliases would otherwise fill the memory."""


class SyntaxProblem(Exception):
    """Text that is no acceptable YAML, and where."""

    def __init__(self, message: str, position: Position) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


class Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars resolve as Go's YAML does: no base-60 numbers, no dates."""


Loader.yaml_implicit_resolvers = {}


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile(r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"),
    list("yYnNtTfFoO"),
)
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o?[0-7]+|0b[01]+)$"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)
Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"])


IMPLICIT_RESOLVERS: dict[str | None, list[tuple[str, re.Pattern[str]]]] = Loader.yaml_implicit_resolvers
"""First character -> (tag, pattern) of plain scalars that are not text here; writers must quote such text."""

_PREFIX = "tag:yaml.org,2002:"
_TEXT = _PREFIX + "str"


class _FastLoader(yaml.CSafeLoader):
    """The same over libyaml, some six times as fast. A text that it refuses goes to the other one, for its words.

    What the composer asks for each node is answered from what was found for the same text before: files of many
    resources repeat themselves. There are no path resolvers, which those two would follow.
    """

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        if kind is yaml.ScalarNode and value is not None:
            return _tag(value) if implicit[0] else _TEXT
        return str(self.DEFAULT_SEQUENCE_TAG if kind is yaml.SequenceNode else self.DEFAULT_MAPPING_TAG)

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None: ...

    def ascend_resolver(self) -> None: ...


@lru_cache(maxsize=4096)
def _tag(text: str) -> str:
    """Of a plain scalar, by its first character, as yaml.resolver.Resolver.resolve has it."""
    for tag, pattern in IMPLICIT_RESOLVERS.get(text[:1], ()):
        if pattern.match(text):
            return tag
    return _TEXT


_FLOW_LIMIT, _INDENT_LIMIT = 2000, 200
_INDENT = re.compile(r"^[ \t?:-]*", re.MULTILINE)


def single_node(text: str) -> yaml.Node | None:
    """The only document's root, None when there is none. Raises yaml.YAMLError, RecursionError."""
    if _shallow(text):
        try:
            return _composed(_FastLoader(text))
        except (yaml.YAMLError, UnicodeError):
            pass
    return _composed(Loader(text))


def _shallow(text: str) -> bool:
    """libyaml's composer calls itself for each level and does not look how much stack is left."""
    flow = text.count("[") + text.count("{")
    return flow < _FLOW_LIMIT and max(len(found) for found in _INDENT.findall(text)) < _INDENT_LIMIT


def _composed(loader: Loader | _FastLoader) -> yaml.Node | None:
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


_TRUE = {"yes", "true", "on"}


class Builder:
    """Turns a YAML node graph into plain values, noting where each field stands.

    duplicates: takes the paths of fields that are given twice, of which the last one then counts; None refuses them.
    """

    def __init__(self, line_offset: int = 0, duplicates: list[str] | None = None) -> None:
        self._duplicates = duplicates
        self.marks: dict[str, Position] = {}
        self._offset = line_offset
        self._nodes = 0
        self._open: set[int] = set()

    def at(self, node: yaml.Node) -> Position:
        return Position(node.start_mark.line + 1 + self._offset, node.start_mark.column + 1)

    def build(self, node: yaml.Node, path: str) -> Json:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SyntaxProblem(f"more than {MAX_NODES} values (aliases counted each time)", self.at(node))
        if id(node) in self._open:
            raise SyntaxProblem("an alias may not contain itself", self.at(node))
        if path and path not in self.marks:
            self.marks[path] = self.at(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                if node.tag != _PREFIX + "seq":
                    raise SyntaxProblem(f"tag {node.tag} is not supported", self.at(node))
                return [self.build(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Json]:
        if node.tag != _PREFIX + "map":
            raise SyntaxProblem(f"tag {node.tag} is not supported", self.at(node))
        values: dict[str, Json] = {}
        merged: dict[str, Json] = {}
        first: dict[str, Position] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise SyntaxProblem("`<<` needs a mapping or a list of mappings", self.at(source))
                    for name, value in self._mapping(source, path).items():
                        merged.setdefault(name, value)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise SyntaxProblem("a key must be a plain value, not a list or mapping", self.at(key_node))
            name = key_node.value
            here = self.at(key_node)
            if name in first and self._duplicates is not None:
                self._duplicates.append(join(path, name))
            elif name in first:
                raise SyntaxProblem(f"field {name!r} is given twice (first on line {first[name].line})", here)
            first[name] = here
            child = join(path, name)
            self.marks[child] = here
            values[name] = self.build(value_node, child)
        return {**merged, **values}

    def _scalar(self, node: yaml.Node) -> Json:
        text = str(node.value)
        match node.tag.removeprefix(_PREFIX):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() in _TRUE
            case "int":
                return _integer(text, self.at(node))
            case "float":
                try:
                    return float(text)
                except ValueError as error:
                    raise SyntaxProblem(f"{text!r} is not a number", self.at(node)) from error
            case _:
                raise SyntaxProblem(f"tag {node.tag} is not supported", self.at(node))


def _integer(text: str, position: Position) -> int:
    digits = text.lstrip("+-")
    sign = -1 if text.startswith("-") else 1
    try:
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return sign * int(digits, 8)
        return sign * int(digits, 0)
    except ValueError as error:
        raise SyntaxProblem(f"{text!r} is not an integer", position) from error


def load(text: str, duplicates: list[str] | None = None) -> Json:
    """The only document of a text; None for an empty one. duplicates: see Builder. Raises SyntaxProblem."""
    try:
        node = single_node(text)
        return None if node is None else Builder(0, duplicates).build(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        place = Position(mark.line + 1, mark.column + 1) if mark else Position(1)
        raise SyntaxProblem(message, place) from error
    except yaml.YAMLError as error:
        raise SyntaxProblem(" ".join(str(error).split()), Position(1)) from error
    except RecursionError as error:
        raise SyntaxProblem("nested too deeply", Position(1)) from error


class _Dumper(yaml.SafeDumper):
    """Writes shared values out each time: aliases would surprise readers of a resource file.

    Text is quoted when any reader would take it for something else: YAML 1.1, our own, or Go's (`y` is true there).
    """

    def ignore_aliases(self, data: object) -> bool:
        return True


class _FastDumper(yaml.CSafeDumper):
    """The same over libyaml. It would write characters beyond U+FFFF as escapes, so it is for ASCII."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *IMPLICIT_RESOLVERS.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *IMPLICIT_RESOLVERS}
}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))
_FastDumper.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers


def dump_yaml(value: Json) -> str:
    return _dumped(value, _FastDumper if _ascii(value) else _Dumper)


def _ascii(value: Json) -> bool:
    if isinstance(value, dict):
        return all(map(str.isascii, value)) and all(map(_ascii, value.values()))
    if isinstance(value, list):
        return all(map(_ascii, value))
    return not isinstance(value, str) or value.isascii()


def _dumped(value: Json, dumper: type[_Dumper | _FastDumper]) -> str:
    return yaml.dump(value, Dumper=dumper, sort_keys=True, default_flow_style=False, allow_unicode=True, width=10_000)
