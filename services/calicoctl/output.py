"""Forms in which `get` prints resources: tables, YAML, JSON, names, templates.

YAML and JSON are valid input of every other command. A single resource is printed as itself, a list as the kind's List
with the revision it was read at, several named ones as a plain sequence: as Calico does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from libs.model import codec
from libs.model.base import ObjectMeta, V3Struct
from libs.model.base import Resource as Typed
from libs.model.places import Json
from services.calicoctl.columns import Resource, rows

API_VERSION = "projectcalico.org/v3"
FORMATS = "ps, wide, yaml, json, name, custom-columns=…, go-template=…, go-template-file=…"


class OutputProblem(Exception):
    """--output names no format that we have, or a template that cannot be used."""


@dataclass(frozen=True, slots=True)
class Format:
    """form: ps | wide | yaml | json | name | template; headings: of custom-columns, with form ps."""

    form: str
    headings: tuple[str, ...] | None = None
    template: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request returned. `revision` is set for a list: the revision that it reflects."""

    kind: str
    resources: list[Resource]
    revision: int | None = None

    @property
    def value(self) -> Json:
        if self.revision is None:
            return self.resources[0]
        return {
            "kind": f"{self.kind}List",
            "apiVersion": API_VERSION,
            "metadata": {"resourceVersion": str(self.revision)},
            "items": list(self.resources),
        }


def parse_format(text: str) -> Format:
    """Raises OutputProblem."""
    name, equals, argument = text.partition("=")
    if not equals:
        match name:
            case "ps" | "wide" | "json" | "name":
                return Format(name)
            case "yaml" | "yml":
                return Format("yaml")
    if name == "custom-columns":
        headings = tuple(part.strip().upper() for part in argument.split(",") if part.strip())
        if not headings:
            raise OutputProblem("need to specify at least one column")
        return Format("ps", headings)
    if name in ("go-template", "go-template-file"):
        if not argument:
            raise OutputProblem(f"need to specify a template{' file' if name.endswith('file') else ''}")
        return Format("template", template=_template(argument) if name == "go-template-file" else argument)
    raise OutputProblem(f"unrecognized output format '{text}' (one of {FORMATS})")


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputProblem(f"cannot read template {path}: {error}") from error


class _List(V3Struct):
    """What a template sees of a listing."""

    kind: ClassVar[str] = "List"
    api_version: ClassVar[str] = API_VERSION
    metadata: ObjectMeta
    items: list[Typed]


def _for_template(answer: Answer) -> Typed | _List:
    typed = [codec.from_dict(resource) for resource in answer.resources]
    if answer.revision is None:
        return typed[0]
    return _List(metadata=ObjectMeta(resource_version=str(answer.revision)), items=typed)


def render(answers: Sequence[Answer], form: Format, *, namespace: bool, as_number: str) -> str:
    """Text to print, newline included. Raises columns.UnknownHeading, OutputProblem.

    namespace: show that column for namespaced kinds; as_number: of the cluster, for nodes without their own.
    """
    if form.form in ("yaml", "json"):
        value: Json = answers[0].value if len(answers) == 1 else [answer.value for answer in answers]
        if form.form == "json":
            return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        from libs.model.yamltext import dump_yaml  # tables do without

        return dump_yaml(value)
    if form.form == "template":
        from services.calicoctl import gotemplate

        try:
            return gotemplate.read(form.template, as_number).render([_for_template(answer) for answer in answers])
        except gotemplate.TemplateProblem as problem:
            raise OutputProblem(str(problem)) from problem
    by_kind: dict[str, list[Resource]] = {}
    for answer in answers:
        by_kind.setdefault(answer.kind, []).extend(answer.resources)
    if form.form == "name":
        return "".join(f"{name_of(kind, resource)}\n" for kind, items in by_kind.items() for resource in items)
    tables = [
        rows(kind, items, form.headings, wide=form.form == "wide", namespace=namespace, as_number=as_number)
        for kind, items in by_kind.items()
    ]
    return "".join(table(lines) + "\n" for lines in tables)


def name_of(kind: str, resource: Resource) -> str:
    """`networkpolicy.projectcalico.org/web`, which kubectl accepts as well."""
    metadata = resource.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else ""
    return f"{kind.lower()}.projectcalico.org/{name}"


def table(lines: Sequence[Sequence[str]], *, min_width: int = 5, padding: int = 3) -> str:
    """Columns as wide as their widest cell plus padding, the last one included, as Go's tabwriter leaves them."""
    widths = [max(min_width, *(len(cell) + padding for cell in column)) for column in zip(*lines, strict=True)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + "\n" for line in lines
    )


def boxed(lines: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """A table in a frame of `+-|`, heading first, as the IPAM commands print; `right`: which columns align right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def line(cells: Sequence[str], aligned: frozenset[int]) -> str:
        shown = (
            cell.rjust(width) if index in aligned else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join(shown) + " |"

    body = [line(cells, right) for cells in lines[1:]]
    return "\n".join([rule, line(lines[0], frozenset()), rule, *body, *([rule] if body else [])]) + "\n"


_CLUSTER_FIELDS = (
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "selfLink",
)


def exported(resource: Resource) -> Resource:
    """Without what belongs to one cluster, so that it can be applied in another (--export)."""
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict):
        return resource
    return {**resource, "metadata": {name: value for name, value in metadata.items() if name not in _CLUSTER_FIELDS}}
