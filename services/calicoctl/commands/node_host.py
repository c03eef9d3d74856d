"""`calicoctl node run | diags | checksystem`: commands for the host that they run on."""

from __future__ import annotations

import asyncio
import gzip
import os
import shlex
import subprocess
from datetime import datetime
from pathlib import Path

import click

from libs.runtime.nodename import node_name
from services.calicoctl.config import ETCD, ConfigProblem, connection_variables
from services.calicoctl.host import checks
from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run
from services.calicoctl.terminal import echo
from services.calicoctl.version import client_version

RESULT_COLOURS = {checks.Result.OK: "green", checks.Result.SKIP: "yellow", checks.Result.FAIL: "red"}


# --- checksystem -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("-f", "--kernel-config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="The kernel's configuration, where it is in none of the usual places.")  # fmt: skip
def checksystem(kernel_config: Path | None) -> None:
    """Check that this host's kernel has what Calico needs. Exit status 1 when something is missing."""
    found = run(_read_system(kernel_config))
    kernel, features = checks.judge(found)
    click.echo("Checking kernel version...")
    _show(kernel)
    click.echo("Checking kernel modules...")
    for line in features:
        _show(line)
    if not checks.good([kernel, *features]):
        fail("system doesn't meet one or more minimum systems requirements to run Calico")
    click.echo("System meets minimum system requirements to run Calico!")


def _show(line: checks.Line) -> None:
    note = f"   {line.note}" if line.note else ""
    echo(f"\t\t{line.name:<20}\t\t\t\t\t{line.result}{note}", RESULT_COLOURS[line.result])


async def _read_system(kernel_config: Path | None) -> checks.Found:
    release = os.uname().release
    modules = Path("/lib/modules") / release
    return checks.Found(
        release,
        _text(modules / "modules.dep"),
        _text(modules / "modules.builtin"),
        _text(Path("/proc/modules")),
        _kernel_config(kernel_config, release),
        await _ask_kernel(),
    )


async def _ask_kernel() -> dict[str, bool]:
    """Nothing when we may not ask, or nft is not there: then files have to say."""
    from services.calicoctl.host.runner import output

    async def accepted(feature: checks.Feature) -> bool:
        status, _ = await output(["nft", "--check", "-f", "-"], stdin=checks.ruleset(feature).encode())
        return status == 0

    status, _ = await output(["nft", "list", "tables"])
    if status:
        return {}
    asked = [feature for feature in checks.FEATURES if feature.rule]
    return dict(zip([feature.name for feature in asked], await asyncio.gather(*map(accepted, asked)), strict=True))


def _kernel_config(given: Path | None, release: str) -> str:
    if given is not None:
        try:
            return given.read_text(errors="replace")
        except OSError as error:
            fail(f"cannot read kernel configuration {given}: {error.strerror or error}")
    for path in (
        f"/boot/config-{release}", "/usr/src/linux/.config", f"/usr/src/linux-{release}/.config",
        f"/usr/src/linux-headers-{release}/.config", f"/lib/modules/{release}/build/.config",
        f"/lib/modules/{release}/config",
    ):  # fmt: skip
        if text := _text(Path(path)):
            return text
    try:
        with gzip.open("/proc/config.gz", "rt", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- diags -----------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--log-dir", type=click.Path(file_okay=False, path_type=Path), default="/var/log/calico",
              show_default=True, help="Where Calico's logs are.")  # fmt: skip
def diags(log_dir: Path) -> None:
    """Collect what this node's kernel, services and logs say into one archive, without secrets."""
    from services.calicoctl.host.bundle import bundle, stamp
    from services.calicoctl.host.node_diags import collect

    if os.geteuid() != 0:
        fail("Need super user privileges: Operation not permitted; run it as root")
    click.echo("Collecting diagnostics")
    moment = stamp(datetime.now())
    with bundle("diagnostics") as made:
        run(collect(made, log_dir), "collect diagnostics")
        target = made.pack(_archive(f"diags-{moment}.tar.gz"))
    click.echo(f"\nDiags saved to {target}")
    click.echo("Keys, passwords and tokens are taken out. Look through it before you pass it on all the same.")


def _archive(name: str) -> Path:
    """In a directory that only its owner can enter, as Calico's are."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="calico")) / name


# --- run -------------------------------------------------------------------------------------------------------------


@click.command("run")
@click.option("--ip", default="", metavar="IP", help="IPv4 address of this node, or `autodetect` at each start.")
@click.option("--ip6", default="", metavar="IP6", help="IPv6 address of this node, or `autodetect` at each start.")
@click.option("--as", "as_number", default="", metavar="AS_NUM", help="AS number of this node.")
@click.option("--name", default="", metavar="NAME", help="Name of this node; else the host name.")
@click.option(
    "--ip-autodetection-method",
    "ip_method",
    default="first-found",
    show_default=True,
    metavar="METHOD",
    help="first-found, can-reach=HOST, interface=REGEX,…, skip-interface=REGEX,… or cidr=CIDR,….",
)
@click.option(
    "--ip6-autodetection-method",
    "ip6_method",
    default="first-found",
    show_default=True,
    metavar="METHOD",
    help="The same for IPv6.",
)
@click.option("--log-dir", default="/var/log/calico", show_default=True, metavar="DIR", help="Where logs go.")
@click.option(
    "--node-image",
    "image",
    default="",
    metavar="IMAGE",
    help="Image of the node's container; else the one of this version.",
)
@click.option(
    "--backend",
    type=click.Choice(["bird", "none"]),
    default="bird",
    show_default=True,
    help="bird: routes are exchanged by BGP (with our own speaker). none: policy only.",
)
@click.option("--dryrun", is_flag=True, help="Print the command, start nothing.")
@click.option("--init-system", is_flag=True, help="For an init system: stay attached, leave restarts to it.")
@click.option("--no-default-ippools", "no_pools", is_flag=True, help="Make no pools when there are none.")
@click.option("--felix-config", default="", metavar="FILE", help="Felix' configuration file.")
@common
def run_node(
    ip: str, ip6: str, as_number: str, name: str, ip_method: str, ip6_method: str, log_dir: str, image: str,
    backend: str, dryrun: bool, init_system: bool, no_pools: bool, felix_config: str, session: Session,
) -> None:  # fmt: skip
    """Start the node's container on this host, with docker."""
    from services.calicoctl.host import node_run

    try:
        settings = session.settings()
        if settings.datastore != ETCD:
            fail("Error executing command: unsupported backend specified in config: a container that is started by "
                 "hand works with etcd; in Kubernetes the daemon set starts it")  # fmt: skip
        options = node_run.Options(
            name=name or node_name(""), image=image or f"calico-py/node:{client_version()}", log_dir=log_dir, ip=ip,
            ip6=ip6, as_number=as_number, ip_method=ip_method, ip6_method=ip6_method, backend=backend,
            felix_config=felix_config, no_default_pools=no_pools, init_system=init_system,
        )  # fmt: skip
        variables = connection_variables(session.config, session.environment.variables)
        variables["ETCD_ENDPOINTS"] = ",".join(settings.store.endpoints)  # "" with ETCD_DISCOVERY_SRV
        command = node_run.command(options, variables)
    except ConfigProblem as problem:
        fail(f"Error executing command: invalid config file: {problem}")
    except node_run.RunProblem as problem:
        fail(str(problem))
    if dryrun:
        _tell_command(command, init_system=init_system)
        return
    if os.geteuid() != 0:
        fail("Need super user privileges: Operation not permitted; run it as root")
    click.echo("Removing old calico-node container (if running).")
    _docker(["docker", "rm", "-f", node_run.CONTAINER], allowed=True)
    click.echo("Running the following command to start calico-node:")
    click.echo(f"\n{_shown(command)}\n")
    _docker(command)
    if not init_system:
        click.echo(f"Container started; its log: docker logs --follow {node_run.CONTAINER}")


def _tell_command(command: list[str], *, init_system: bool) -> None:
    click.echo("Use the following command to start the calico/node container:")
    click.echo(f"\n{_shown(command)}\n")
    if init_system:
        click.echo("Use the following command to stop the calico/node container:")
        click.echo("\ndocker stop calico-node\n")
    else:
        click.echo("If you are running calico/node in an init system, use the --init-system flag")
        click.echo("to display the appropriate start and stop commands.")


def _shown(command: list[str]) -> str:
    """To be pasted into a shell, so the password is in it when there is one."""
    return shlex.join(command)


def _docker(command: list[str], *, allowed: bool = False) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=allowed)
    except FileNotFoundError:
        fail("Error executing command: docker is not installed here; --dryrun prints the command for elsewhere")
    if done.returncode and not allowed:
        fail(f"Error executing command: docker ended with exit status {done.returncode}")
