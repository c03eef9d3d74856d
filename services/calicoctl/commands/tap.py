"""`calicoctl tap`."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import click

from libs.bus.subject_match import check_subscribe_subject
from services.calicoctl import tap
from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run


@click.command("tap")
@click.argument("subjects", nargs=-1)
@click.option(
    "-o", "--output", type=click.Choice(["line", "json"]), default="line", help="Readable lines, or raw JSON."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@common
def tap_(subjects: tuple[str, ...], output: str, count: int | None, session: Session) -> None:
    """Show what goes over the bus; SUBJECTS as NATS writes them, `calico.>` when none is given."""
    try:
        for subject in subjects:
            check_subscribe_subject(subject)
    except ValueError as problem:
        fail(str(problem))

    async def work() -> None:
        async with session.bus() as bus:
            async for message in tap.listen(bus, subjects or (tap.EVERYTHING,), count):
                if isinstance(message, tap.Dropped):
                    click.echo(f"{message.count} messages lost: this terminal is slower than the bus", err=True)
                    continue
                now = datetime.now().astimezone()
                describe = tap.raw if output == "json" else tap.describe
                click.echo(describe(message.subject, message.data, now))

    with suppress(KeyboardInterrupt):
        run(work())
