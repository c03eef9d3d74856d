"""`calicoctl get --watch`: a line, or a document, for each change, for as long as the reader wants.

Tables get a column EVENT in front: without it a resource that goes looks like one that changes. Columns keep the width
that the listing gave them and grow when something longer comes. JSON is one object in a line, YAML one document:
`{"type": "ADDED" | "MODIFIED" | "DELETED", "object": …}`, as a Kubernetes watch tells it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing

from libs.model.yamltext import dump_yaml
from libs.resources import codec
from libs.resources.api import Changed, Resources
from services.calicoctl import columns
from services.calicoctl.columns import Resource
from services.calicoctl.output import Answer, Format, name_of, render

HEADING = "EVENT"
COLOURS = {"ADDED": "green", "DELETED": "red", "MODIFIED": None}
PADDING = 3


async def changes(
    client: Resources, kind: str, namespace: str, names: Collection[str], *, listing: bool
) -> AsyncGenerator[tuple[str, Resource], None]:
    """(event, resource as JSON): first what there is, as "" (unless not `listing`), then each change. names: of these
    only; empty: all.
    """
    listed = await client.list(kind, namespace)
    if listing:
        for item in listed.items:
            if not names or item.metadata.name in names:
                yield "", codec.to_json(item)
    async with aclosing(client.follow(kind, listed, namespace)) as following:
        async for change in following:
            if not names or change.resource.metadata.name in names:
                yield _event(change), codec.to_json(change.resource)


def _event(change: Changed) -> str:
    if change.gone:
        return "DELETED"
    return "ADDED" if change.created else "MODIFIED"


class Printer:
    """Makes text of each change; `write` takes it with the colour it has at a terminal."""

    def __init__(
        self, kind: str, form: Format, write: Callable[[str, str | None], None], *, namespace: bool, as_number: str
    ) -> None:
        self._kind = kind
        self._form = form
        self._write = write
        self._namespace = namespace
        self._as_number = as_number
        self._widths: list[int] = []

    def show(self, event: str, resource: Resource) -> None:
        """Raises columns.UnknownHeading, output.OutputProblem."""
        colour = COLOURS.get(event)
        match self._form.form:
            case "json":
                self._write(json.dumps({"type": event or "ADDED", "object": resource}, ensure_ascii=False), colour)
            case "yaml":
                self._write("---\n" + dump_yaml({"type": event or "ADDED", "object": resource}).rstrip("\n"), colour)
            case "name":
                self._write(f"{event or 'ADDED'} {name_of(self._kind, resource)}", colour)
            case "template":
                answer = Answer(self._kind, [resource])
                text = render([answer], self._form, namespace=self._namespace, as_number=self._as_number)
                self._write(text.rstrip("\n"), colour)
            case _:
                self._row(event, resource, colour)

    def _row(self, event: str, resource: Resource, colour: str | None) -> None:
        heading, row = columns.rows(
            self._kind, [resource], self._form.headings, wide=self._form.form == "wide", namespace=self._namespace,
            as_number=self._as_number,
        )  # fmt: skip
        first = not self._widths
        if first:
            self._widths = [len("MODIFIED") + PADDING, *(len(cell) + PADDING for cell in heading)]
        cells = [event, *row]
        self._widths = [max(width, len(cell) + PADDING) for width, cell in zip(self._widths, cells, strict=True)]
        if first:
            self._write(self._line([HEADING, *heading]), None)
        self._write(self._line(cells), colour)

    def _line(self, cells: list[str]) -> str:
        return "".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()
