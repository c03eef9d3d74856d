"""`calicoctl what-if`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from libs.model.yamltext import dump_yaml
from libs.policy.whatif import Flow, Report, State, compare
from services.calicoctl.actions import Input, NamespaceProblem
from services.calicoctl.chosen import read
from services.calicoctl.explain import cluster, what_if
from services.calicoctl.explain.connections import live_packets
from services.calicoctl.explain.ends import EndProblem
from services.calicoctl.explain.what_if import WhatIfProblem
from services.calicoctl.options import Duration, common, namespaced, or_files
from services.calicoctl.session import Session, fail, run

CHANGES = 3


@click.command("what-if")
@or_files
@click.option("--delete", "gone", multiple=True, metavar="KIND/NAME", help="As if this were deleted; may be repeated.")
@click.option("--staged", is_flag=True, help="As if staged policies, those of the files too, were enforced.")
@click.option("--flows", "flow_file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE|-",
              help='Recorded flows, JSON lines: {"src": …, "dst": …, "proto": "tcp", "port": 80}.')  # fmt: skip
@click.option("--connections", is_flag=True, help="The nodes' live connections as well, as flows.")
@click.option("--in", "within", multiple=True, metavar="NAMESPACE", help="Pairs with an end in there; may be repeated.")
@click.option("--selector", "expression", default="", metavar="SELECTOR", help="Pairs with an end of such labels.")
@click.option("--with", "outside", multiple=True, metavar="ADDRESS", help="Pairs with this address outside as well.")
@click.option("--protocol", default="", metavar="NAME|NUMBER", help="Only this; all that rules tell apart otherwise.")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, metavar="PORT", help="Only these.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Groups of pairs, and flows, shown."
)
@click.option("--timeout", "timeout_s", type=Duration(), default="10s", show_default=True, metavar="DURATION",
              help="How long to wait for nodes' connections.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@namespaced
@common
def what_if_(
    files: tuple[str, ...], recursive: bool, skip_empty: bool, gone: tuple[str, ...], staged: bool,
    flow_file: str | None, connections: bool, within: tuple[str, ...], expression: str, outside: tuple[str, ...],
    protocol: str, ports: tuple[int, ...], limit: int, timeout_s: float, output: str, namespace: str, session: Session,
) -> None:  # fmt: skip
    """Which pairs of workload endpoints, and which recorded flows, would be treated otherwise if files were applied.

    Nothing is written. The files are applied, with defaults, checks and messages of `apply`, to a copy of what the
    datastore holds; then every pair of endpoints is judged with both, for every kind of packet that rules tell apart.
    Host endpoints' own policy is not judged, and source ports are not told apart.

    Exit status 0: nothing would change. 3: something would. 1: the files are refused, or the question cannot be
    answered. 2: wrong usage.
    """
    if not (files or gone or staged):
        raise click.UsageError("give --filename, --delete or --staged: otherwise nothing changes")

    recorded = ""
    if flow_file is not None:
        try:
            recorded = sys.stdin.read() if flow_file == "-" else Path(flow_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            fail(f"--flows: {problem}")

    async def work() -> tuple[Report, list[Flow], int, list[str]]:
        documents: list[Input] = read(files, recursive, skip_empty) if files else []
        async with session.client(guarded=False, purpose="what-if") as client:
            listing = await cluster.listing(client)
        now = cluster.of_listing(listing.kvs, listing.revision)
        then, notes = await what_if.applied(listing, documents, what_if.deletions(gone), namespace, staged=staged)
        states = State(now.calculator), State(then.calculator, staged=staged)
        everyone = what_if.peers(now, outside)
        chosen = what_if.selected(now, everyone, within, expression)
        report = compare(*states, everyone, asked=what_if.asked(protocol, ports), selected=chosen)
        if report.source_ports:
            notes.append("some rules name source ports: what is asked about has one that none of them names")
        if states[0].workloads.keys() != states[1].workloads.keys():
            notes.append("endpoints that would come or go are not compared")
        notes += what_if.host_notes(now, then)
        flows: list[Flow] = []
        if recorded:
            flows += what_if.flows(recorded, now, states)
        if connections:
            async with session.bus() as bus:
                packets, silent = await live_packets(bus, sorted(now.calculator.node_infos), timeout_s)
            notes += [f"no connections of {node}: {reason}" for node, reason in silent.items()]
            flows += [what_if.flow(now, states, one) for one in packets]
        changed = [one for one in flows if one.allowed[0] is not one.allowed[1]]
        return report, changed, len(flows), notes

    try:
        report, changed, total, notes = run(work())
    except (WhatIfProblem, EndProblem, NamespaceProblem) as problem:
        fail(str(problem))
    if output == "text":
        click.echo(what_if.text(report, changed, total, notes, limit), nl=False)
    else:
        told = what_if.document(report, changed, total, notes, limit)
        click.echo(json.dumps(told, indent=2) + "\n" if output == "json" else dump_yaml(told), nl=False)
    if report.changes or changed:
        raise SystemExit(CHANGES)
