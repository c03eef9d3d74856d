"""`calico-node take-over` and `calico-node uninstall`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from libs.netlink.routes import IPNetwork
from libs.resources.errors import ResourceError
from libs.runtime.backends import open_store
from libs.runtime.exits import ServiceExit
from libs.store.api import StoreError
from services.node.shell import probes
from services.node.shell.takeover import Outcome, pools_of, take_over
from services.node.shell.uninstall import STATE, Places, uninstall

ANSWER_S = 10.0
_dry_run = click.option("--dry-run", is_flag=True, help="Tell what would go, and leave it.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cleaning() -> None:
    """Commands of calico-node that remove things from this host."""


@cleaning.command("take-over")
@click.option("--felix-host", envvar="FELIX_HEALTHHOST", default="localhost", show_default=True,
              help="Where our felix answers probes.")  # fmt: skip
@click.option("--felix-port", envvar="FELIX_HEALTHPORT", type=click.IntRange(1, 65535), default=9099,
              show_default=True, help="Port of it.")  # fmt: skip
@_dry_run
def take_over_command(felix_host: str, felix_port: int, dry_run: bool) -> None:
    """Remove what a real calico-node left on this host: its iptables rules, IP sets and routes.

    Stop it first. Nothing goes before our felix is ready: there is no moment without rules. `calico-node run
    --supervise` does this by itself.
    """
    _as_root()
    felix = f"http://{f'[{felix_host}]' if ':' in felix_host else felix_host}:{felix_port}"
    if (said := probes.http_problem(felix, "readiness")) and not dry_run:
        raise click.ClickException(f"our felix is not ready, so nothing was removed: {said}")

    async def ask() -> list[IPNetwork]:
        async with open_store() as store, asyncio.timeout(ANSWER_S):
            return await pools_of(store)

    try:
        pools = asyncio.run(ask())
    except (StoreError, ResourceError, ServiceExit, TimeoutError) as error:
        raise click.ClickException(f"the pools are not known: {error or 'no answer from the datastore'}") from error
    _tell(take_over(pools, dry_run=dry_run), dry_run=dry_run)


def _paths(context: click.Context, parameter: click.Parameter, text: str) -> tuple[Path, ...]:
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())


@cleaning.command("uninstall")
@click.option("--conf-dir", envvar="CNI_NET_DIR", type=click.Path(path_type=Path), default=Path("/etc/cni/net.d"),
              show_default=True, help="Where the runtime looks for networks.")  # fmt: skip
@click.option("--conf-name", envvar="CNI_CONF_NAME", default="10-calico.conflist", show_default=True,
              help="Our network's file there.")  # fmt: skip
@click.option("--bin-dir", "bin_dirs", envvar="CNI_BIN_DIR", default="/opt/cni/bin", show_default=True,
              callback=_paths, help="Directories of the plugin, separated by commas.")  # fmt: skip
@click.option("--state-dir", "state", default=",".join(map(str, STATE)), show_default=True, callback=_paths,
              help="Directories of state, separated by commas.")  # fmt: skip
@click.option("--interface-prefix", "prefixes", envvar="FELIX_INTERFACEPREFIX", default="cali", show_default=True,
              help="Names of pods' interfaces begin with one of these, separated by commas.")  # fmt: skip
@click.option("--keep-state", is_flag=True, help="Leave the directories of state: the node will come back.")
@click.option("--force", is_flag=True, help="Also while felix or bgp runs, which would make it all again.")
@click.option("--felix-host", envvar="FELIX_HEALTHHOST", default="localhost", show_default=True,
              help="Where felix answers probes.")  # fmt: skip
@click.option("--felix-port", envvar="FELIX_HEALTHPORT", type=click.IntRange(1, 65535), default=9099,
              show_default=True, help="Port of it.")  # fmt: skip
@click.option("--bgp-socket", type=click.Path(path_type=Path), envvar="CALICO_BGP_CONTROL_SOCKET",
              default=Path("/var/run/calico/bgp.sock"), show_default=True, help="Control socket of bgp.")  # fmt: skip
@_dry_run
def uninstall_command(
    conf_dir: Path, conf_name: str, bin_dirs: tuple[Path, ...], state: tuple[Path, ...], prefixes: str,
    keep_state: bool, force: bool, felix_host: str, felix_port: int, bgp_socket: Path, dry_run: bool,
) -> None:  # fmt: skip
    """Remove everything of ours from this host: rules, routes, interfaces, the CNI plugin, state.

    Pods that still run here lose their network. What others made stays, and so does the node's record in the datastore
    (`calicoctl delete node NAME`). Can be run again.
    """
    _as_root()
    if not force and not dry_run:
        felix = f"http://{f'[{felix_host}]' if ':' in felix_host else felix_host}:{felix_port}"
        running = [
            name for name, said in (
                ("felix", probes.http_problem(felix, "liveness")), ("bgp", probes.bgp_live_problem(bgp_socket)),
            ) if probes.answered(said)
        ]  # fmt: skip
        if running:
            raise click.ClickException(f"{' and '.join(running)} still runs here: stop it first, or give --force")
    names = tuple(part.strip() for part in prefixes.split(",") if part.strip())
    places = Places(conf_dir, conf_name, bin_dirs, state, names)
    _tell(uninstall(places, keep_state=keep_state, dry_run=dry_run), dry_run=dry_run)


def _as_root() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("this is for root")


def _tell(outcome: Outcome, *, dry_run: bool) -> None:
    for line in outcome.removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {line}")
    for line in outcome.left:
        click.echo(f"left: {line}", err=True)
    if not outcome.removed and not outcome.left:
        click.echo("nothing to remove")
    if outcome.left:
        raise click.exceptions.Exit(1)
