"""`calicoctl version`."""

from __future__ import annotations

from contextlib import suppress

import click

from services.calicoctl import version
from services.calicoctl.options import Duration, common
from services.calicoctl.session import Session, run


@click.command("version")
@click.option("--client", "client_only", is_flag=True, help="Only of this program.")
@click.option(
    "--poll",
    metavar="DURATION",
    type=Duration(),
    help="Ask again at this interval, and tell what changed, until interrupted.",
)
@common
def version_(client_only: bool, poll: float | None, session: Session) -> None:
    """Versions of this program and of the cluster."""

    click.echo("\n".join(version.client_lines()))
    if client_only:
        return
    import asyncio  # with all that follows it is most of the time that this command takes

    from libs.resources.errors import ResourceError
    from libs.store.api import StoreError

    async def work() -> None:
        shown: list[str] = []
        async with session.resources(guarded=False) as client:
            while True:
                try:
                    lines = await version.cluster_lines(client)
                except (ResourceError, StoreError) as error:
                    if poll is None:
                        raise
                    click.echo(f"Unable to retrieve Cluster Version or Type: {error}", err=True)
                    lines = []
                for line in lines:
                    if line not in shown:
                        click.echo(line)
                shown = lines
                if poll is None:
                    return
                await asyncio.sleep(poll)

    with suppress(KeyboardInterrupt):
        run(work(), "retrieve Cluster Version or Type")
