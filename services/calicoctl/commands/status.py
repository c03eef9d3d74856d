"""`calicoctl status`."""

from __future__ import annotations

import json

import click

from libs.bus import BusConfigError, BusError
from libs.model.cluster import ClusterInformation
from libs.model.yamltext import dump_yaml
from libs.resources.errors import NotFound
from services.calicoctl.explain import system
from services.calicoctl.options import Duration, common
from services.calicoctl.session import Session, run


@click.command("status")
@click.option("--timeout", "timeout_s", metavar="DURATION", type=Duration(), default="5s", show_default=True,
              help="How long to wait for answers, and for nodes that are behind.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True,
              help="For people, or for programs.")  # fmt: skip
@common
def status_(timeout_s: float, output: str, session: Session) -> None:
    """All components that can be heard or asked: etcd, typhas, API servers, each node's felix and BGP speaker,
    the leader of kube-controllers; their versions, the revision each has reached, and how far it lags.

    Exit status 1 when one that is expected is missing, lags or fails: no typha, a node whose felix does not answer, is
    behind or could not program something, a speaker that does not work with its settings.
    """

    async def work() -> tuple[list[system.Row], system.Seen]:
        seen, version = system.Seen(), ""
        async with session.client(guarded=False, purpose="status") as client:
            nodes = sorted(one.metadata.name for one in (await client.list("Node")).items)
            try:
                information = await client.get("ClusterInformation", "default")
            except NotFound:
                pass
            else:
                if isinstance(information, ClusterInformation):
                    version = information.spec.calico_version
            await system.of_store(client.store, seen)
        try:
            async with session.bus() as bus:
                await system.of_bus(bus, nodes, seen, timeout_s)
        except (BusError, BusConfigError) as error:
            seen.bus = f"not reached: {error or type(error).__name__}"
        return system.rows(seen, nodes, version), seen

    found, seen = run(work())
    if output == "table":
        click.echo(system.text(found, seen), nl=False)
    else:
        told = system.document(found, seen)
        click.echo(json.dumps(told, indent=2) + "\n" if output == "json" else dump_yaml(told), nl=False)
    if not all(row.good for row in found):
        raise SystemExit(1)
