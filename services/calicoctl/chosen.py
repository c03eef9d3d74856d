"""What a command works on: documents of files, or KIND and NAMES of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import click

from libs.resources import codec
from libs.resources.errors import ResourceError
from services.calicoctl.actions import Input
from services.calicoctl.documents import ARGUMENTS, Document, FileProblem, Position
from services.calicoctl.session import fail


def read(files: Sequence[str], recursive: bool, skip_empty: bool) -> list[Input]:
    from services.calicoctl.files import read_all  # YAML, which KIND and NAMES can do without

    try:
        return read_all(files, recursive=recursive, skip_empty=skip_empty)
    except FileProblem as problem:
        fail(f"Failed to execute command: {problem}")


def chosen(
    kind: str | None, names: Sequence[str], files: Sequence[str], recursive: bool, skip_empty: bool
) -> list[Input]:
    """Documents of -f, or of KIND and NAMES; exactly one of the two ways."""
    if bool(kind) == bool(files):
        raise click.UsageError("give either KIND [NAME…] or --filename")
    if kind is None:
        return read(files, recursive, skip_empty)
    known = kind_of(kind)
    if any(not name for name in names):
        fail("resource name may not be empty")
    return [
        Document(ARGUMENTS, number, {"kind": known, "metadata": {"name": name}}, Position(1))
        for number, name in enumerate(names, start=1)
    ]


def kind_of(text: str) -> str:
    try:
        return codec.kind_of(text)
    except ResourceError as error:
        fail(str(error))
