"""`calicoctl apply | create | replace | delete | validate`: the commands that work through documents."""

from __future__ import annotations

from collections.abc import Sequence

import click

from services.calicoctl import actions
from services.calicoctl.actions import Input
from services.calicoctl.chosen import chosen, read
from services.calicoctl.options import common, from_files, namespaced, or_files, waits
from services.calicoctl.session import Session, fail, run


def _write(
    verb: actions.Verb, session: Session, documents: Sequence[Input], namespace: str, wait_s: float | None
) -> None:
    """Run the verb, print the summary, wait for the nodes when asked, and end with the right exit status."""

    async def work() -> tuple[actions.Outcome, str, str]:
        if wait_s is None:
            async with session.client(writes=verb.initialises) as client:
                return await actions.run(verb, client, documents, namespace), "", ""
        from libs.bus.applied import WaitProblem, listening  # not needed without --wait, and the bus is large

        async with (
            session.client(writes=verb.initialises) as client,
            session.bus() as bus,
            listening(bus, wait_s) as waiter,
        ):
            outcome = await actions.run(verb, client, documents, namespace)
            try:
                nodes = await waiter.until_applied(outcome.revisions)
            except WaitProblem as problem:
                return outcome, "", f"Hit error: {problem}"
            return outcome, f"Applied on {len(nodes)} node(s){': ' if nodes else ''}{', '.join(nodes)}", ""

    outcome, applied, late = run(work())
    good, bad = actions.summary(verb.name, verb.past, outcome)
    for text in (good, *outcome.notes, applied):
        if text:
            click.echo(text)
    if bad or late:
        fail("\n".join(text for text in (bad, late) if text))


@click.command()
@from_files
@waits
@namespaced
@common
def apply(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, waiting: bool, timeout_s: float, namespace: str,
    session: Session
) -> None:  # fmt: skip
    """Create resources, or replace those that exist."""
    documents = read(files, recursive, skip_empty)
    _write(actions.verb("apply"), session, documents, namespace, timeout_s if waiting else None)


@click.command()
@from_files
@click.option("--skip-exists", is_flag=True, help="Leave resources that exist as they are, without an error.")
@waits
@namespaced
@common
def create(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, skip_exists: bool, waiting: bool, timeout_s: float,
    namespace: str, session: Session
) -> None:  # fmt: skip
    """Create resources; one that exists is an error."""
    verb = actions.verb("create", skip_exists=skip_exists)
    documents = read(files, recursive, skip_empty)
    _write(verb, session, documents, namespace, timeout_s if waiting else None)


@click.command()
@from_files
@waits
@namespaced
@common
def replace(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, waiting: bool, timeout_s: float, namespace: str,
    session: Session
) -> None:  # fmt: skip
    """Replace resources; one that does not exist is an error."""
    documents = read(files, recursive, skip_empty)
    _write(actions.verb("replace"), session, documents, namespace, timeout_s if waiting else None)


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@or_files
@click.option("-s", "--skip-not-exists", is_flag=True, help="Resources that do not exist are no error.")
@waits
@namespaced
@common
def delete(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool,
    skip_not_exists: bool, waiting: bool, timeout_s: float, namespace: str, session: Session
) -> None:  # fmt: skip
    """Delete resources by KIND and NAMES, or those of files."""
    documents = chosen(kind, names, files, recursive, skip_empty)
    if kind and not names:
        fail("resource name may not be empty")
    verb = actions.verb("delete", skip_not_exists=skip_not_exists)
    _write(verb, session, documents, namespace, timeout_s if waiting else None)


@click.command()
@from_files
@namespaced
@common
def validate(files: tuple[str, ...], recursive: bool, skip_empty: bool, namespace: str, session: Session) -> None:
    """Check resources without storing them; needs no datastore."""
    documents = read(files, recursive, skip_empty)
    good, bad = actions.summary("validate", "validated", run(actions.validate(documents, namespace)))
    if good:
        click.echo(good)
    if bad:
        fail(bad)
