"""`calicoctl get`."""

from __future__ import annotations

from contextlib import aclosing, suppress

import click

from libs.resources.errors import Identity
from services.calicoctl import actions, reading
from services.calicoctl.chosen import chosen, kind_of
from services.calicoctl.columns import DEFAULT_AS_NUMBER, UnknownHeading
from services.calicoctl.completing import kind_names, resource_names
from services.calicoctl.options import common, namespaced, or_files
from services.calicoctl.output import FORMATS, Answer, Format, OutputProblem, exported, parse_format, render
from services.calicoctl.session import Session, fail, run
from services.calicoctl.terminal import echo


@click.command()
@click.argument("kind", required=False, shell_complete=kind_names)
@click.argument("names", nargs=-1, shell_complete=resource_names)
@or_files
@click.option("-o", "--output", default="ps", metavar="FORMAT", help=FORMATS)
@click.option("-A", "-a", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster; with names only.")
@click.option("-w", "--watch", "watched", is_flag=True, help="Go on showing what changes, until interrupted.")
@click.option("--watch-only", is_flag=True, help="Show changes only, not what there is.")
@namespaced
@common
def get(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool, output: str,
    everywhere: bool, export: bool, watched: bool, watch_only: bool, namespace: str, session: Session,
) -> None:  # fmt: skip
    """Show resources by KIND and NAMES, or those that files name."""
    try:
        form = parse_format(output)
    except OutputProblem as problem:
        fail(str(problem))
    documents = chosen(kind, names, files, recursive, skip_empty)
    if watched or watch_only:
        if kind is None or export:
            raise click.UsageError("--watch goes with KIND [NAME…], and not with --export")
        _watch(kind_of(kind), names, form, namespace, session, everywhere=everywhere, listing=not watch_only)
        return

    async def work() -> tuple[list[Answer], list[str], str]:
        async with session.resources() as client:
            if kind and not names:
                answers = [await reading.listed(client, kind_of(kind), namespace, everywhere=everywhere)]
                problems: list[str] = []
            else:
                answers, problems = await reading.named(client, documents, namespace, everywhere=everywhere)
            nodes = form.form == "template" or any(answer.kind == "Node" for answer in answers)
            return answers, problems, await reading.cluster_as_number(client) if nodes else DEFAULT_AS_NUMBER

    try:
        answers, problems, as_number = run(work())
    except actions.NamespaceProblem as problem:
        fail(f"Failed to get resources: {problem}")
    if export:
        answers = [
            Answer(answer.kind, [exported(item) for item in answer.resources]) if answer.revision is None else answer
            for answer in answers
        ]
    if answers:
        try:
            click.echo(render(answers, form, namespace=bool(everywhere or namespace), as_number=as_number), nl=False)
        except (UnknownHeading, OutputProblem) as problem:
            fail(str(problem))
    if problems:
        fail("\n".join(problems))


def _watch(
    kind: str, names: tuple[str, ...], form: Format, namespace: str, session: Session, *, everywhere: bool,
    listing: bool,
) -> None:  # fmt: skip
    from services.calicoctl import watching

    async def work() -> None:
        where = actions.placed(Identity(kind, ""), namespace, everywhere=everywhere).namespace
        async with session.resources() as client:
            number = await reading.cluster_as_number(client) if kind == "Node" else DEFAULT_AS_NUMBER
            printer = watching.Printer(
                kind, form, echo, namespace=bool(everywhere or namespace), as_number=number
            )  # fmt: skip
            found = watching.changes(client, kind, where, names, listing=listing)
            async with aclosing(found):
                async for event, resource in found:
                    printer.show(event, resource)

    try:
        with suppress(KeyboardInterrupt):
            run(work())
    except (UnknownHeading, OutputProblem, actions.NamespaceProblem) as problem:
        fail(str(problem))
