"""`calicoctl node status`."""

from __future__ import annotations

import asyncio
import json

import click

from libs.model.yamltext import dump_yaml
from services.calicoctl import status as node_status
from services.calicoctl.completing import node_names
from services.calicoctl.options import Duration, common
from services.calicoctl.session import Session, fail, run


@click.command()
@click.argument("nodes", nargs=-1, metavar="[NODE]...", shell_complete=node_names)
@click.option("--timeout", "timeout_s", metavar="DURATION", type=Duration(), default="10s", show_default=True,
              help="How long to wait for reports.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True,
              help="For people, or for programs.")  # fmt: skip
@common
def status(nodes: tuple[str, ...], timeout_s: float, output: str, session: Session) -> None:
    """What each node's kernel holds, what could not be programmed, which settings have no effect, and the sessions of
    its BGP speaker, where it has one: prefixes received, used and advertised.

    All nodes, or the ones named. Exit status 1 unless every one of them is up to date and without failures, and every
    BGP speaker that answers works with its settings. A session that is down is told and nothing more.
    """

    async def work() -> tuple[str, bool]:
        async with session.resources(guarded=False) as client:
            listed = await client.list("Node")
        known = [one.metadata.name for one in listed.items]
        if unknown := sorted(set(nodes) - set(known)):
            fail(f"no such node: {', '.join(unknown)}")
        chosen = sorted(set(nodes)) or known
        if not chosen:
            fail("there are no nodes")
        async with session.bus() as bus:
            reports, states = await asyncio.gather(
                node_status.gather(bus, chosen, timeout_s), node_status.gather_bgp(bus, chosen, timeout_s)
            )
        text, good = node_status.show(chosen, reports)
        of_bgp, bgp_good = node_status.show_bgp(chosen, states)
        if output != "table":
            told = node_status.document(chosen, reports, states)
            return json.dumps(told, indent=2) + "\n" if output == "json" else dump_yaml(told), good and bgp_good
        return text + of_bgp, good and bgp_good

    text, good = run(work())
    click.echo(text, nl=False)
    if not good:
        raise SystemExit(1)
