"""`calicoctl cluster diags`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from services.calicoctl.options import common
from services.calicoctl.session import Session, run
from services.calicoctl.terminal import stage


@click.group("cluster")
def cluster_group() -> None:
    """The cluster as a whole."""


@cluster_group.command()
@click.option("--since", default="", metavar="DURATION", help="Logs of pods not older than this, as 5s, 2m, 3h.")
@click.option(
    "--max-logs",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="NUMBER",
    help="Pods of one owner whose logs are taken.",
)
@click.option(
    "--max-parallelism",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="NUMBER",
    help="Requests at the same time.",
)
@click.option("--focus-nodes", default="", metavar="NODE,…", help="Nodes to look at first, and closer.")
@click.option("--skip-temp-dir-cleanup", is_flag=True, help="Leave the collected files where they were gathered.")
@common
def diags(
    since: str, max_logs: int, max_parallelism: int, focus_nodes: str, skip_temp_dir_cleanup: bool, session: Session,
) -> None:  # fmt: skip
    """Collect resources, IPAM, states of all nodes and Kubernetes' view into one archive, without secrets."""
    from services.calicoctl.cluster_diags import Options, collect
    from services.calicoctl.host.bundle import bundle, stamp

    options = Options(since, max_logs, max_parallelism, tuple(filter(None, focus_nodes.split(","))))
    moment = stamp(datetime.now())
    with bundle("calico-diagnostics", keep=skip_temp_dir_cleanup) as made:
        with stage("collecting") as show:
            run(collect(made, session, options, show), "collect diagnostics")
        target = made.pack(Path.cwd() / f"calico-diagnostics-{moment}.tar.gz")
        if skip_temp_dir_cleanup:
            click.echo(f"Collected files are left in {made.directory / made.top}")
    click.echo(f"Diagnostic bundle saved to {target}")
    click.echo("Keys, passwords and tokens are taken out. Look through it before you pass it on all the same.")
