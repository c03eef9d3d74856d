"""`calicoctl tap`."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import click

from services.calicoctl import tap, tap_kinds
from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run
from services.calicoctl.tap_kinds import TapProblem


@click.command("tap")
@click.argument("kinds", nargs=-1, metavar="[KIND|SUBJECT]...")
@click.option(
    "-o", "--output", type=click.Choice(["line", "json"]), default="line", help="Readable lines, or raw JSON."
)
@click.option("-n", "--namespace", default="", metavar="NAME", help="Only of resources and endpoints in it.")
@click.option("--name", default="", metavar="NAME", help="Only of this resource, pod or host endpoint.")
@click.option("--node", default="", metavar="NAME", help="Only of this node.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@common
def tap_(
    kinds: tuple[str, ...], output: str, namespace: str, name: str, node: str, count: int | None, session: Session
) -> None:
    """Show what goes over the bus: all of it, or messages of some KINDs.

    A kind of resource, by any of its names (np, pods, nodes …), is every change of such resources. Others: events,
    endpoints, applied, bgp, felix, flows, typha, beats, commits, rules, sets, routes, config, rpc, apiserver. What has
    a dot is a SUBJECT as NATS writes it.
    """
    try:
        choice = tap_kinds.choose(kinds, namespace=namespace, name=name, node=node)
    except TapProblem as problem:
        fail(str(problem))

    async def work() -> None:
        # Without kinds all is shown as it is, each typha's word for itself.
        accept = choice.accept if choice.subjects else lambda message: True
        async with session.bus() as bus:
            async for message in tap.listen(bus, choice.subjects or (tap.EVERYTHING,), count, accept):
                if isinstance(message, tap.Dropped):
                    click.echo(f"{message.count} messages lost: this terminal is slower than the bus", err=True)
                    continue
                now = datetime.now().astimezone()
                describe = tap.raw if output == "json" else tap.describe
                click.echo(describe(message.subject, message.data, now))

    with suppress(KeyboardInterrupt):
        run(work())
