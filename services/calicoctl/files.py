"""Resource files: YAML or JSON text in, plain documents out.

A file is cut at its `---` lines first, so a document that cannot be read spoils only itself: the others are still
handled and reported one by one. YAML is read as `libs.model.yamltext` has it; duplicate keys are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import yaml

from libs.model.yamltext import Builder, SyntaxProblem, single_node
from services.calicoctl.documents import Broken, Document, FileProblem, Json, Position

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """(lines before it, text) of each document that holds anything but comments and markers."""
    lines = text.splitlines(keepends=True)
    start = 0
    cuts = [
        index for index, line in enumerate(lines) if line.startswith("---") and (len(line) == 3 or line[3].isspace())
    ]
    for end in [*cuts, len(lines)]:
        chunk = lines[start:end]
        if any(_has_content(line) for line in chunk):
            yield start, "".join(chunk)
        start = end


def _has_content(line: str) -> bool:
    text = line.strip()
    if text.startswith("---") and line.startswith("---"):
        text = text[3:].strip()
    return bool(text) and not text.startswith(("#", "%")) and text != "..."


def parse(text: str, source: str) -> Iterator[Document | Broken]:
    """Every resource of one file in order, lists taken apart; what cannot be read comes as `Broken` in its place."""
    if text.startswith("\ufeff"):
        text = text[1:]
    if text.lstrip()[:1] in ("{", "["):
        whole = _parse_json(text, source)
        if whole is not None:
            yield from whole
            return
    for number, (offset, chunk) in enumerate(_chunks(text), start=1):
        start = Position(_first_line(chunk) + offset)
        try:
            builder = Builder(offset)
            node = single_node(chunk)
            value = builder.build(node, "") if node is not None else None
        except SyntaxProblem as problem:
            yield Broken(source, number, problem.message, problem.position)
        except yaml.MarkedYAMLError as error:
            place = _place(error, chunk, offset) or start
            message = ", ".join(part for part in (error.context, error.problem) if part)
            yield Broken(source, number, f"not valid YAML: {message}", place)
        except yaml.YAMLError as error:
            yield Broken(source, number, f"not valid YAML: {' '.join(str(error).split())}", start)
        except RecursionError:
            yield Broken(source, number, "nested too deeply", start)
        else:
            yield from _resources(value, source, number, start, builder.marks)


def _place(error: yaml.MarkedYAMLError, chunk: str, offset: int) -> Position | None:
    """Where the error is; what is missing at the very end is shown where it began, or on the last line."""
    lines = len(chunk.splitlines())
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
    inside = [mark for mark in marks if mark.line < lines]
    if inside:
        return Position(inside[0].line + 1 + offset, inside[0].column + 1)
    return Position(lines + offset) if marks else None


def _first_line(chunk: str) -> int:
    """Line (from 1) of the first content in a chunk."""
    return next((index for index, line in enumerate(chunk.splitlines(), start=1) if _has_content(line)), 1)


def _parse_json(text: str, source: str) -> list[Document | Broken] | None:
    """JSON text, several values one after another included; None when it is not JSON (flow-style YAML begins alike)."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    found: list[Document | Broken] = []
    at, number = 0, 0
    while (at := _skip_space(text, at)) < len(text):
        number += 1
        line = text.count("\n", 0, at) + 1
        try:
            value, at = decoder.raw_decode(text, at)
        except SyntaxProblem as problem:
            return [*found, Broken(source, number, problem.message, Position(line))]
        except json.JSONDecodeError as error:
            if not source.endswith(".json"):
                return None
            return [*found, Broken(source, number, f"not valid JSON: {error.msg}", Position(error.lineno, error.colno))]
        except RecursionError:
            return [*found, Broken(source, number, "nested too deeply", Position(line))]
        found += _resources(value, source, number, Position(line), {})
    return found


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    values: dict[str, Json] = {}
    for name, value in pairs:
        if name in values:
            raise SyntaxProblem(f"field {name!r} is given twice", Position(1))
        values[name] = value
    return values


def _resources(
    value: Json, source: str, number: int, start: Position, marks: dict[str, Position]
) -> Iterator[Document | Broken]:
    if value is None:
        return
    if isinstance(value, list):
        yield from _items(value, "", "", source, number, start, marks)
    elif not isinstance(value, dict):
        yield Broken(source, number, f"expected a resource (a mapping with kind), found {type(value).__name__}", start)
    elif isinstance(kind := value.get("kind"), str) and kind.endswith("List") and "items" in value:
        items = value["items"]
        if items is None:
            return
        if not isinstance(items, list):
            yield Broken(source, number, "items: expected a list", marks.get("items", start))
            return
        yield from _items(items, kind.removesuffix("List"), "items", source, number, start, marks)
    else:
        yield Document(source, number, value, start, marks=marks)


def _items(
    items: Sequence[Json], kind: str, prefix: str, source: str, number: int, start: Position, marks: dict[str, Position]
) -> Iterator[Document | Broken]:
    for index, item in enumerate(items):
        path = f"{prefix}[{index}]"
        place = marks.get(path, start)
        if not isinstance(item, dict):
            yield Broken(source, number, f"{path}: expected a resource (a mapping with kind)", place)
            continue
        # Entries of a NetworkPolicyList may leave out what the list already says; those of a plain List may not.
        given = {"apiVersion": "projectcalico.org/v3", "kind": kind, **item} if kind and "kind" not in item else item
        yield Document(source, number, given, place, item=index + 1, marks=marks, prefix=path)


def read_all(
    names: Sequence[str], *, recursive: bool, skip_empty: bool, stdin: TextIO | None = None
) -> list[Document | Broken]:
    """Documents of all files, directories (their .yaml, .yml and .json files, by name) and `-` for standard input.

    Raises FileProblem for an unreadable file, and for an empty one unless skip_empty.
    """
    found: list[Document | Broken] = []
    for name in names:
        files = list(_expand(name, recursive))
        documents: list[Document | Broken] = []
        for file in files:
            of_file = list(parse(_read(file, stdin), file))
            if not of_file and not skip_empty:
                raise FileProblem(f"No resources specified in file {file}")
            documents += of_file
        if not files and not skip_empty:
            raise FileProblem(f"No resources specified in directory {name}")
        found += documents
    return found


def _read(name: str, stdin: TextIO | None) -> str:
    try:
        return (stdin or sys.stdin).read() if name == STDIN else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileProblem(f"{name}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise FileProblem(f"{name}: {error.strerror or error}") from error


def _expand(name: str, recursive: bool) -> Iterator[str]:
    path = Path(name)
    if name == STDIN or not path.is_dir():
        yield name
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise FileProblem(f"{name}: {error.strerror or error}") from error
    for entry in entries:
        if entry.is_dir():
            if recursive:
                yield from _expand(str(entry), recursive)
        elif entry.suffix in SUFFIXES:
            yield str(entry)
