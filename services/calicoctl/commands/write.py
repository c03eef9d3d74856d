"""`calicoctl apply | create | replace | delete | validate`: the commands that work through documents."""

from __future__ import annotations

from collections.abc import Sequence

import click

from services.calicoctl import actions
from services.calicoctl.actions import Input
from services.calicoctl.chosen import chosen, read
from services.calicoctl.completing import kind_names, resource_names
from services.calicoctl.options import Writing, common, from_files, namespaced, or_files, writes
from services.calicoctl.session import Session, fail, run
from services.calicoctl.terminal import echo, progress


def _write(verb: actions.Verb, session: Session, documents: Sequence[Input], namespace: str, how: Writing) -> None:
    """Run the verb, print the summary, wait for the nodes when asked, and end with the right exit status."""
    if how.dry_run == "client":
        _only_checked(verb, documents, namespace)
    elif how.dry_run == "server":
        _tried(verb, session, documents, namespace)
    else:
        with progress(len(documents), verb.past) as more:
            outcome, applied, late = run(_written(verb, session, documents, namespace, how.wait_s, more))
        _tell(verb, outcome, applied, late)


async def _written(
    verb: actions.Verb, session: Session, documents: Sequence[Input], namespace: str, wait_s: float | None,
    more: actions.Progress,
) -> tuple[actions.Outcome, str, str]:  # fmt: skip
    """(outcome, where it is applied, why that is not known)."""
    if wait_s is None:
        async with session.resources(writes=verb.initialises) as client:
            return await actions.run(verb, client, documents, namespace, more), "", ""
    from libs.bus.applied import WaitProblem, listening  # not needed without --wait, and the bus is large

    async with (
        session.resources(writes=verb.initialises) as client,
        session.bus() as bus,
        listening(bus, wait_s) as waiter,
    ):
        outcome = await actions.run(verb, client, documents, namespace, more)
        revisions = outcome.revisions
        if 0 in revisions:  # of deletions that the server did not number: whatever there is now includes them
            revisions = [*filter(None, revisions), (await client.list("Tier")).revision]
        try:
            nodes = await waiter.until_applied(revisions)
        except WaitProblem as problem:
            return outcome, "", f"Hit error: {problem}"
        return outcome, f"Applied on {len(nodes)} node(s){': ' if nodes else ''}{', '.join(nodes)}", ""


def _only_checked(verb: actions.Verb, documents: Sequence[Input], namespace: str) -> None:
    """--dry-run=client: as far as resources can be judged by themselves."""
    outcome = run(actions.validate(documents, namespace, reads=verb.reads))
    _tell(verb, outcome, "Dry run by the client: the datastore was not asked, nothing is changed.")


def _tried(verb: actions.Verb, session: Session, documents: Sequence[Input], namespace: str) -> None:
    """--dry-run=server: against the datastore as it is, with a diff of what would change."""
    from services.calicoctl.dry_run import COLOURS, Tried

    tried = Tried()

    async def work() -> actions.Outcome:
        async with session.resources(writes=verb.initialises, dry_run=True) as client:
            return await actions.run(tried.watching(verb), client, documents, namespace)

    outcome = run(work())
    for line in tried.diff():
        echo(line, COLOURS.get(line[:1]))
    _tell(verb, outcome, "Dry run by the server: nothing is changed.")


def _tell(verb: actions.Verb, outcome: actions.Outcome, applied: str, late: str = "") -> None:
    good, bad = actions.summary(verb.name, verb.past, outcome)
    for text in (good, *outcome.notes, applied):
        if text:
            click.echo(text)
    if bad or late:
        fail("\n".join(text for text in (bad, late) if text))


@click.command()
@from_files
@writes
@namespaced
@common
def apply(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, how: Writing, namespace: str,
    session: Session,
) -> None:  # fmt: skip
    """Create resources, or replace those that exist."""
    documents = read(files, recursive, skip_empty)
    _write(actions.verb("apply"), session, documents, namespace, how)


@click.command()
@from_files
@click.option("--skip-exists", is_flag=True, help="Leave resources that exist as they are, without an error.")
@writes
@namespaced
@common
def create(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, skip_exists: bool, how: Writing,
    namespace: str, session: Session,
) -> None:  # fmt: skip
    """Create resources; one that exists is an error."""
    verb = actions.verb("create", skip_exists=skip_exists)
    documents = read(files, recursive, skip_empty)
    _write(verb, session, documents, namespace, how)


@click.command()
@from_files
@writes
@namespaced
@common
def replace(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, how: Writing, namespace: str,
    session: Session,
) -> None:  # fmt: skip
    """Replace resources; one that does not exist is an error."""
    documents = read(files, recursive, skip_empty)
    _write(actions.verb("replace"), session, documents, namespace, how)


@click.command()
@click.argument("kind", required=False, shell_complete=kind_names)
@click.argument("names", nargs=-1, shell_complete=resource_names)
@or_files
@click.option("-s", "--skip-not-exists", is_flag=True, help="Resources that do not exist are no error.")
@writes
@namespaced
@common
def delete(
    kind: str | None, names: tuple[str, ...], files: tuple[str, ...], recursive: bool, skip_empty: bool,
    skip_not_exists: bool, how: Writing, namespace: str, session: Session,
) -> None:  # fmt: skip
    """Delete resources by KIND and NAMES, or those of files."""
    documents = chosen(kind, names, files, recursive, skip_empty)
    if kind and not names:
        fail("resource name may not be empty")
    verb = actions.verb("delete", skip_not_exists=skip_not_exists)
    _write(verb, session, documents, namespace, how)


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
