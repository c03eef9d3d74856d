"""`calicoctl datastore auth …`: etcd's users and roles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run

if TYPE_CHECKING:
    from libs.store.connection import Connection
    from libs.trust.etcd_auth import Step

_dry_run = click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")


@click.group("auth")
def auth_group() -> None:
    """Who may read and write what in etcd. Needs etcd's user root (a certificate whose common name is `root`)."""


@auth_group.command("setup")
@click.option("--node", "nodes", multiple=True, metavar="NAME",
              help="A node to make a user for, beside those that have a Node resource; may be repeated.")  # fmt: skip
@click.option("--passwords-dir", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Files named like users that hold their passwords, for users without certificates.")  # fmt: skip
@_dry_run
@common
def setup(nodes: tuple[str, ...], passwords_dir: Path | None, dry_run: bool, session: Session) -> None:
    """Make one role for each component and one user for each identity, then switch authentication on.

    May be run again: only what differs is changed. Users and roles of others are left alone.
    """
    from libs.trust import etcd_auth, etcd_roles
    from libs.trust.identities import ROOT, IdentityError

    passwords: dict[str, str] = {}
    if passwords_dir is not None:
        passwords = {path.name: path.read_text().strip() for path in passwords_dir.iterdir() if path.is_file()}

    async def work() -> list[etcd_auth.Step]:
        from libs.store.connection import Connection
        from libs.store.etcd import EtcdStore

        config = session.settings().store
        store = EtcdStore(config)
        try:
            prefix = f"{etcd_roles.RESOURCES}nodes/"
            known = [kv.key.removeprefix(prefix) for kv in (await store.list(prefix, keys_only=True)).kvs]
        finally:
            await store.close()
        connection = Connection(config)
        try:
            users = etcd_roles.users([*known, *nodes])
            if unknown := sorted(passwords.keys() - {*users, ROOT}):
                fail(f"No such user, in {passwords_dir}: {', '.join(unknown)}")
            steps = etcd_auth.plan(await etcd_auth.read(connection), users, passwords)
            await _carry_out(connection, steps, dry_run)
        finally:
            await connection.close()
        return steps

    try:
        steps = run(work(), "set up authentication")
    except IdentityError as error:
        fail(str(error))
    _end(steps, dry_run, "Nothing to change: authentication is on, with these roles and users.")


@auth_group.command("remove")
@_dry_run
@common
def remove(dry_run: bool, session: Session) -> None:
    """Switch authentication off and delete what `setup` made. Whoever reaches etcd may then do anything."""
    from libs.trust import etcd_auth

    async def work() -> list[etcd_auth.Step]:
        from libs.store.connection import Connection

        connection = Connection(session.settings().store)
        try:
            steps = etcd_auth.removal(await etcd_auth.read(connection))
            await _carry_out(connection, steps, dry_run)
        finally:
            await connection.close()
        return steps

    _end(run(work(), "remove authentication"), dry_run, "Nothing to remove.")


async def _carry_out(connection: Connection, steps: Sequence[Step], dry_run: bool) -> None:
    from libs.trust.etcd_auth import carry_out

    if dry_run:
        for step in steps:
            click.echo(f"would {step.text}")
        return

    def done(step: Step) -> None:
        click.echo(step.text)

    await carry_out(connection, steps, done)


def _end(steps: Sequence[Step], dry_run: bool, nothing: str) -> None:
    if not steps:
        click.echo(nothing)
    elif dry_run:
        click.echo("Dry run: nothing was changed.")
