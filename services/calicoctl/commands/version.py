"""`calicoctl version`."""

from __future__ import annotations

import asyncio

import click

from services.calicoctl import version
from services.calicoctl.options import Duration, common
from services.calicoctl.session import Session, run


@click.command("version")
@click.option("--client", "client_only", is_flag=True, help="Only of this program.")
@click.option("--poll", metavar="DURATION", type=Duration(), help="Ask again at this interval until interrupted.")
@common
def version_(client_only: bool, poll: float | None, session: Session) -> None:
    """Versions of this program and of the cluster."""

    async def work() -> None:
        while True:
            click.echo("\n".join(version.client_lines()))
            if not client_only:
                async with session.client() as client:
                    click.echo("\n".join(await version.cluster_lines(client)))
            if poll is None:
                return
            await asyncio.sleep(poll)

    run(work())
