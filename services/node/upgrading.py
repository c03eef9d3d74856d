"""`calico-node upgrade-ipam`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from libs.resources.errors import ResourceError
from libs.runtime.backends import open_store
from libs.runtime.exits import ServiceExit
from libs.runtime.nodename import NODENAME_FILE, node_name
from libs.store.api import StoreError
from services.node.shell.host_local import DIRECTORY, Busy, Outcome, move


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def upgrading() -> None:
    """Commands of calico-node that move what other plugins keep."""


@upgrading.command("upgrade-ipam")
@click.option("--node", envvar=["KUBERNETES_NODE_NAME", "NODENAME"], default="",
              help="Name of this node; by default that of its start-up.")  # fmt: skip
@click.option("--nodename-file", envvar="CALICO_NODENAME_FILE", type=click.Path(path_type=Path),
              default=NODENAME_FILE, show_default=True, help="Where start-up wrote it.")  # fmt: skip
@click.option("--network", envvar="CNI_NETWORK_NAME", default="k8s-pod-network", show_default=True,
              help="Name of the network in its list.")  # fmt: skip
@click.option("--directory", type=click.Path(path_type=Path), default=DIRECTORY, show_default=True,
              help="Where host-local keeps its networks.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Tell what would move, and change nothing.")
def upgrade_ipam(node: str, nodename_file: Path, network: str, directory: Path, dry_run: bool) -> None:
    """Take over the addresses that the plugin host-local gave to pods of this node.

    First lock the datastore, so that no pod starts, and put calico-ipam into the network list; unlock it when all nodes
    are done. Can be run again.
    """

    async def work() -> Outcome:
        async with open_store() as store:
            return await move(
                store, node_name(node, nodename_file), network, directory=directory, dry_run=dry_run
            )  # fmt: skip

    try:
        outcome = asyncio.run(work())
    except (StoreError, ResourceError, ServiceExit, Busy, OSError) as error:
        raise click.ClickException(str(error)) from error
    for line in outcome.moved:
        click.echo(f"{'would move' if dry_run else 'moved'} {line}")
    for line in outcome.left:
        click.echo(f"left: {line}", err=True)
    if not outcome.moved and not outcome.left:
        click.echo("nothing to move")
    if outcome.left:
        raise click.exceptions.Exit(1)
