"""The commands `calicoctl ipam …`: options, and what they print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from services.calicoctl import ipam, ipam_check, ipam_release, ipam_split
from services.calicoctl.options import common
from services.calicoctl.session import Session, fail, run


@click.group("ipam")
def ipam_group() -> None:
    """IP address management."""


@ipam_group.command()
@click.option("--ip", "address", metavar="IP", help="Whether this address is assigned, and to whom.")
@click.option("--show-blocks", is_flag=True, help="Blocks under each pool.")
@click.option("--show-borrowed", is_flag=True, help="Addresses in use on another node than their block's.")
@click.option("--show-configuration", is_flag=True, help="Settings of IPAM.")
@common
def show(
    address: str | None, show_blocks: bool, show_borrowed: bool, show_configuration: bool, session: Session,
) -> None:  # fmt: skip
    """How full the pools are."""

    async def work() -> tuple[str, list[str]]:
        async with session.client(purpose="ipam") as client:
            store = client.store
            if address is not None:
                return await ipam.show_address(store, ipam.parse_address(address)), []
            if show_borrowed:
                return await ipam.show_borrowed(store), []
            if show_configuration:
                return await ipam.show_configuration(store), []
            return await ipam.show_usage(store, with_blocks=show_blocks)

    try:
        shown, broken = run(work())
    except (ipam.AddressProblem, IpamError) as problem:
        fail(str(problem))
    click.echo(shown, nl=False)
    if broken:
        fail("Hit error(s):\n" + "\n".join(f"{key}: not a readable block; not counted" for key in broken))


@ipam_group.command()
@click.option("--show-all-ips", is_flag=True, help="Every address that is looked at.")
@click.option("--show-problem-ips", is_flag=True, help="Every address and handle that is leaked or not allocated.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write a report for `ipam release --from-report`.")  # fmt: skip
@click.option(
    "--kubeconfig", metavar="FILE", expose_value=False, help="Accepted; endpoints and nodes of etcd are compared."
)
@common
def check(show_all_ips: bool, show_problem_ips: bool, output: Path | None, session: Session) -> None:
    """Compare what is allocated with what is in use."""

    async def work() -> ipam_check.Checked:
        async with session.client(purpose="ipam") as client:
            return await ipam_check.check(client)

    try:
        checked = run(work())
    except IpamError as problem:
        fail(str(problem))
    click.echo(ipam_check.text(checked, every_ip=show_all_ips, problem_ips=show_problem_ips), nl=False)
    if output is not None:
        try:
            output.write_bytes(ipam_check.report(checked))
        except OSError as error:
            fail(f"cannot write report {output}: {error.strerror}")


@ipam_group.command()
@click.option("--ip", "address", metavar="IP", help="The address to release.")
@click.option(
    "--from-report", "reports", multiple=True, metavar="FILE",
    help="Release what this report of `ipam check` calls leaked; given several times, what all of them do.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also while the datastore is not locked, and by another version's report.")
@common
def release(address: str | None, reports: tuple[str, ...], force: bool, session: Session) -> None:
    """Make addresses free that nobody uses any more.

    An endpoint that still uses the address keeps it, and it is given to the next one all the same: only for what was
    not cleaned up.
    """
    if (address is None) == (not reports):
        raise click.UsageError("give either --ip or --from-report")

    async def work() -> tuple[list[str], list[str]]:
        async with session.client(purpose="ipam") as client:
            if address is not None:
                return [await ipam_release.release_address(client, ipam.parse_address(address))], []
            return await ipam_release.release_reported(client, reports, force=force)

    try:
        lines, failures = run(work())
    except (ipam.AddressProblem, IpamError, ipam_release.Refused) as problem:
        fail(str(problem))
    click.echo("\n".join(lines))
    if failures:
        fail("Not released, changed since the report:\n" + "\n".join(failures))


@ipam_group.command()
@click.option("--strictaffinity", type=bool, metavar="true|false", help="No addresses from other nodes' blocks.")
@click.option("--max-blocks-per-host", type=int, metavar="NUMBER", help="0: no limit of its own (20 holds then).")
@click.option("--kubevirt-ip-persistence", type=click.Choice(["Enabled", "Disabled"]),
              help="Virtual machines keep their addresses over restarts and migrations.")  # fmt: skip
@click.option("--ip-cooldown-seconds", type=int, metavar="SECONDS", help="How long a released address rests.")
@common
def configure(
    strictaffinity: bool | None, max_blocks_per_host: int | None, kubevirt_ip_persistence: str | None,
    ip_cooldown_seconds: int | None, session: Session
) -> None:  # fmt: skip
    """Change settings of IPAM. Combinations that cannot work are refused, and nothing is changed."""
    changes: dict[str, bool | int] = {}
    lines = []
    if strictaffinity is not None:
        changes["strict_affinity"] = strictaffinity
        lines.append(f"Successfully set StrictAffinity to: {str(strictaffinity).lower()}")
    if max_blocks_per_host is not None:
        changes["max_blocks_per_host"] = max_blocks_per_host
        lines.append(f"Successfully set MaxBlocksPerHost to: {max_blocks_per_host}")
    if kubevirt_ip_persistence is not None:
        changes["vm_address_persistence"] = kubevirt_ip_persistence == "Enabled"
        lines.append(f"Successfully set KubeVirtVMAddressPersistence to: {kubevirt_ip_persistence}")
    if ip_cooldown_seconds is not None:
        changes["cooldown_s"] = ip_cooldown_seconds
        lines.append(f"Successfully set IPCooldownSeconds to: {ip_cooldown_seconds}")
    if not changes:
        fail("at least one configuration option must be specified")

    async def work() -> None:
        async with session.client(purpose="ipam") as client:
            await IpamClient(client.store).set_config(**changes)

    try:
        run(work())
    except IpamError as problem:
        fail(f"Failed to configure IPAM: {problem}")
    click.echo("\n".join(lines))


@ipam_group.command()
@click.argument("number", type=int)
@click.option("--cidr", default="", metavar="CIDR", help="The pool to split, by its network.")
@click.option("--name", default="", metavar="POOL", help="The pool to split, by name.")
@common
def split(number: int, cidr: str, name: str, session: Session) -> None:
    """Make NUMBER pools of equal size out of one; NUMBER is a power of 2. Blocks and addresses stay.

    The datastore must be locked (`calicoctl datastore migrate lock`).
    """
    if bool(cidr) == bool(name):
        raise click.UsageError("give either --cidr or --name")
    uids = [str(uuid4()) for _ in range(max(0, min(number, ipam_split.MAX_PARTS)))]

    async def work() -> list[str]:
        async with session.client(purpose="ipam") as client:
            made = await ipam_split.split(client, name, cidr, number, uids, datetime.now(UTC))
            lines = [f"IP Pool {name or cidr} was successfully split into {len(made)} smaller pools."]
            return lines + [f"Created {pool.metadata.name} with CIDR {pool.spec.cidr}." for pool in made]

    try:
        click.echo("\n".join(run(work())))
    except ipam_split.SplitProblem as problem:
        fail(f"Failed to split IP pool: {problem}")
