"""The commands `calicoctl datastore …`: options, and what they print."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from services.calicoctl import lock
from services.calicoctl.actions import Outcome, summary
from services.calicoctl.commands.datastore_auth import auth_group
from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run
from services.calicoctl.terminal import progress


@click.group("datastore")
def datastore_group() -> None:
    """The datastore as a whole."""


datastore_group.add_command(auth_group)


@datastore_group.group("migrate")
def migrate_group() -> None:
    """Move a cluster's data to another datastore: lock, export, import there, unlock there."""


def _lock(session: Session, *, locked: bool) -> None:
    async def work() -> None:
        async with session.resources(writes=True) as client:
            await lock.set_lock(client, locked=locked)

    run(work(), f"{'lock' if locked else 'unlock'} the datastore")
    click.echo(f"Datastore {'locked' if locked else 'unlocked'}.")


@migrate_group.command("lock")
@common
def lock_(session: Session) -> None:
    """Stop CNI requests and new Felixes; what runs keeps forwarding."""
    _lock(session, locked=True)


@migrate_group.command("unlock")
@common
def unlock(session: Session) -> None:
    """Undo `lock`."""
    _lock(session, locked=False)


@migrate_group.command("export")
@click.option("--all", "everything", is_flag=True,
              help="All kinds, and nodes under their own names: for another etcd, not for Kubernetes.")  # fmt: skip
@common
def export_(everything: bool, session: Session) -> None:
    """Print the contents of etcd in the form that `import` reads (Calico's). The datastore must be locked.

    Workload endpoints and profiles are left out: Kubernetes' datastore makes them of its own objects.
    """
    from services.calicoctl import export

    async def work() -> export.Export:
        async with session.client(purpose="export") as client:
            return await export.export(client, everything=everything)

    try:
        made = run(work())
    except export.ExportProblem as problem:
        fail(str(problem))
    click.echo(made.text, nl=False)
    for note in made.notes:
        click.echo(f"Note: {note}", err=True)


@migrate_group.command("import")
@click.option("-f", "--filename", required=True, type=click.Path(), metavar="FILE|-", help="What `export` printed.")
@common
def import_(filename: str, session: Session) -> None:
    """Write an exported datastore into this one, which must be empty, and locked where it is initialised already.

    It stays locked: start the components, then `datastore migrate unlock`.
    """
    from services.calicoctl import import_ as importing

    try:
        text = sys.stdin.read() if filename == "-" else Path(filename).read_text(encoding="utf-8")
        parts = importing.read(text, filename)
    except OSError as error:
        fail(f"Error while reading migration file: {filename}: {error.strerror or error}")
    except UnicodeDecodeError:
        fail(f"Error while reading migration file: {filename}: not UTF-8 text")
    except importing.ImportProblem as problem:
        fail(f"Error while reading migration file: {problem}")

    async def work() -> tuple[Outcome, list[str]]:
        # Whatever version the file is of: it becomes the cluster's, so there is nothing to compare yet.
        async with session.client(guarded=False, purpose="import of IPAM's data") as client:
            with progress(importing.steps(parts), "imported") as more:
                return await importing.import_all(client, parts, more)

    try:
        outcome, failures = run(work(), "import")
    except importing.ImportProblem as problem:
        fail(str(problem))
    good, bad = summary("apply", "applied", outcome)
    if good:
        click.echo(good)
    if bad:
        fail(f"Failed to import v3 resources: {bad}\nThe datastore is incomplete: empty it and import again.")
    done = len(parts.ipam) - len(failures)
    if failures:
        click.echo(f"Partial success: applied {done} out of {len(parts.ipam)} IPAM resources:")
        fail(importing.failures_text(failures))
    click.echo(f"Successfully applied {done} IPAM resource(s)")
    click.echo("Datastore information successfully imported. It is locked: start the components, then run")
    click.echo("`calicoctl datastore migrate unlock`.")


@datastore_group.command("migrate-policy-names")
@common
def migrate_policy_names(session: Session) -> None:
    """Store policies under their own name that older clients stored as `default.NAME`. May be run again."""
    from libs.resources import policy_names

    async def work() -> policy_names.Moved:
        async with session.client(purpose="migrate-policy-names") as client:
            return await policy_names.migrate(client.store)

    moved = run(work(), "migrate policy names")
    click.echo(f"Policy name migration complete, migrated {len(moved.policies)} policies.")
    if moved.problems:
        fail("Not migrated:\n" + "\n".join(moved.problems))
