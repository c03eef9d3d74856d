"""`calicoctl get`."""

from __future__ import annotations

import click

from services.calicoctl import actions, reading
from services.calicoctl.chosen import chosen, kind_of
from services.calicoctl.columns import DEFAULT_AS_NUMBER, UnknownHeading
from services.calicoctl.gotemplate import TemplateProblem
from services.calicoctl.options import common, namespaced, or_files
from services.calicoctl.output import FORMATS, Answer, OutputProblem, exported, parse_format, render
from services.calicoctl.session import Session, fail, run


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@or_files
@click.option("-o", "--output", default="ps", metavar="FORMAT", help=FORMATS)
@click.option("-A", "-a", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster; with names only.")
@namespaced
@common
def get(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool, output: str,
    everywhere: bool, export: bool, namespace: str, session: Session
) -> None:  # fmt: skip
    """Show resources by KIND and NAMES, or those that files name."""
    try:
        form = parse_format(output)
    except OutputProblem as problem:
        fail(str(problem))
    documents = chosen(kind, names, files, recursive, skip_empty)

    async def work() -> tuple[list[Answer], list[str], str]:
        async with session.client() as client:
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
        except (UnknownHeading, TemplateProblem) as problem:
            fail(str(problem))
    if problems:
        fail("\n".join(problems))
