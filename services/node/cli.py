"""The verbs of calico-node that are commands: health, status show, init, hostpath-init, version."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import click

from libs.runtime.nodename import NODENAME_FILE
from libs.runtime.release import version as release
from services.node.core.bgp_health import of_family
from services.node.shell import probes
from services.node.shell.host_paths import PathProblem, mount_for_ebpf, prepare_paths

BGP_SOCKET = Path("/var/run/calico/bgp.sock")
_socket = click.option(
    "--bgp-socket", type=click.Path(path_type=Path), envvar="CALICO_BGP_CONTROL_SOCKET", default=BGP_SOCKET,
    show_default=True, help="Control socket of the BGP speaker.",
)  # fmt: skip


class Duration(click.ParamType[float]):
    """Seconds, or Go's way: 30s, 1m30s."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
        if parts and "".join(n + u for n, u in parts) == text:
            return float(sum(float(n) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[u] for n, u in parts))
        try:
            return float(text)
        except ValueError:
            self.fail(f"{text!r} is no duration: 30s, 1m30s", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Commands of calico-node."""


def _fail(message: str) -> NoReturn:
    click.echo(f"calico-node: {message}", err=True)
    raise click.exceptions.Exit(1)


@cli.command()
@click.option("--felix-live", is_flag=True, help="Felix is alive.")
@click.option("--felix-ready", is_flag=True, help="Felix holds in the kernel what it should.")
@click.option("--bird-live", is_flag=True, help="The BGP speaker answers.")
@click.option("--bird6-live", is_flag=True, help="The same: one speaker serves both families.")
@click.option("--bird-ready", is_flag=True, help="IPv4 sessions: all are up, or one once the threshold is over.")
@click.option("--bird6-ready", is_flag=True, help="The same for sessions over IPv6.")
@click.option("--threshold-time", type=Duration(), default="30s", show_default=True,
              help="So long after start-up all sessions have to be up.")  # fmt: skip
@click.option("--felix-host", envvar="FELIX_HEALTHHOST", default="localhost", show_default=True,
              help="Where felix answers probes.")  # fmt: skip
@click.option("--felix-port", envvar="FELIX_HEALTHPORT", type=click.IntRange(1, 65535), default=9099,
              show_default=True, help="Port of it.")  # fmt: skip
@click.option("--nodename-file", envvar="CALICO_NODENAME_FILE", type=click.Path(path_type=Path),
              default=NODENAME_FILE, show_default=True, help="Its age is the time since start-up.")  # fmt: skip
@_socket
def health(
    felix_live: bool, felix_ready: bool, bird_live: bool, bird6_live: bool, bird_ready: bool, bird6_ready: bool,
    threshold_time: float, felix_host: str, felix_port: int, nodename_file: Path, bgp_socket: Path,
) -> None:  # fmt: skip
    """Probe felix and the BGP speaker of this node. Exit status 1, and a line for each thing that is not well."""
    felix = f"http://{f'[{felix_host}]' if ':' in felix_host else felix_host}:{felix_port}"
    versions = tuple(v for v, asked in ((4, bird_ready), (6, bird6_ready)) if asked)
    asked = felix_live or felix_ready or bird_live or bird6_live or versions
    if not asked:
        raise click.UsageError("nothing to check: give --felix-live, --felix-ready, --bird-live, --bird-ready …")
    found = []
    if felix_live:
        found.append(probes.http_problem(felix, "liveness"))
    if felix_ready:
        found.append(probes.http_problem(felix, "readiness"))
    if bird_live or bird6_live:
        found.append(probes.bgp_live_problem(bgp_socket))
    if versions:
        found.append(probes.bgp_ready_problem(bgp_socket, nodename_file, threshold_time, versions))
    problems = [one for one in found if one]
    for one in problems:
        click.echo(f"calico-node: {one}", err=True)
    if problems:
        raise click.exceptions.Exit(1)


@cli.group()
def status() -> None:
    """What this node tells of itself: show; report is a service."""


@status.command()
@_socket
def show(bgp_socket: Path) -> None:
    """The BGP sessions of this node."""
    try:
        peers = probes.bgp_peers(bgp_socket)
    except OSError as error:
        _fail(f"no BGP speaker answers at {bgp_socket}: {error.strerror or error}")
    except ValueError as error:
        _fail(str(error))
    for family in (4, 6):
        rows = sorted(of_family(peers, family), key=lambda peer: peer.name)
        click.echo(f"IPv{family} BGP status" if rows else f"No IPv{family} peers found.")
        for peer in rows:
            click.echo(f"  {peer.address:<39} {peer.kind.value:<14} {peer.state.value:<12} {peer.since} {peer.detail}")


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(release())


@cli.command()
@click.option("--best-effort", is_flag=True, help="What cannot be mounted is told, and no failure.")
@click.option("--cgroup", type=click.Path(path_type=Path), default=Path("/run/calico/cgroup"), show_default=True,
              envvar="CALICO_CGROUP_PATH", help="Where the cgroup2 hierarchy is mounted.")  # fmt: skip
def init(best_effort: bool, cgroup: Path) -> None:
    """Mount what eBPF needs: bpffs at /sys/fs/bpf, and cgroup2."""
    for problem in mount_for_ebpf(cgroup):
        click.echo(f"calico-node: {problem}", err=True)
        if not best_effort:
            raise click.exceptions.Exit(1)


@cli.command("hostpath-init")
@click.option("--user", type=click.IntRange(0), default=999, show_default=True, envvar="NODE_USER_ID",
              help="Numeric id of the user that calico-node runs as.")  # fmt: skip
def hostpath_init(user: int) -> None:
    """Make the host's directories for a calico-node that does not run as root, and give them to its user."""
    if os.geteuid() != 0:
        _fail("directories of the host can be given away by root alone")
    try:
        for path in prepare_paths(user):
            click.echo(path)
    except PathProblem as error:
        _fail(str(error))
