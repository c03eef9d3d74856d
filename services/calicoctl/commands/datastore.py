"""The commands `calicoctl datastore …`: options, and what they print."""

from __future__ import annotations

import click

from services.calicoctl import lock
from services.calicoctl.options import common
from services.calicoctl.session import Session, run


@click.group("datastore")
def datastore_group() -> None:
    """The datastore as a whole."""


@datastore_group.group("migrate")
def migrate_group() -> None:
    """Locking, for work during which nothing must change."""


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
