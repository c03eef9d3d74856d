"""`calicoctl node routes`, `calicoctl node connections` and `calicoctl node config`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from libs.bus.explain import (
    CONNECTIONS_LIMIT,
    ROUTES_LIMIT,
    ConnectionsRequest,
    RoutesRequest,
    State,
    StateRequest,
    Verb,
)
from libs.model.yamltext import dump_yaml
from libs.policy.trace import protocol_number
from services.calicoctl.documents import Json
from services.calicoctl.explain import asking, connections, routes, settings
from services.calicoctl.options import Duration, common, namespaced
from services.calicoctl.session import Session, fail, run

_nodes = click.argument("nodes", nargs=-1, metavar="[NODE]...")
_output = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table",
                       show_default=True, help="For people, or for programs.")  # fmt: skip
_timeout = click.option("--timeout", "timeout_s", metavar="DURATION", type=Duration(), default="10s", show_default=True,
                        help="How long to wait for a node.")  # fmt: skip


async def _chosen(session: Session, nodes: Sequence[str]) -> list[str]:
    async with session.client(guarded=False, purpose="the list of nodes") as client:
        known = [one.metadata.name for one in (await client.list("Node")).items]
    if unknown := sorted(set(nodes) - set(known)):
        fail(f"no such node: {', '.join(unknown)}")
    if not known:
        fail("there are no nodes")
    return sorted(set(nodes)) or known


def _tell(text: str, document: Json, output: str, *, silent: bool) -> None:
    if output != "table":
        text = json.dumps(document, indent=2) + "\n" if output == "json" else dump_yaml(document)
    click.echo(text, nl=False)
    if silent:
        raise SystemExit(1)


@click.command("routes")
@_nodes
@click.option("--family", type=click.Choice(["4", "6"]), help="IPv4 or IPv6 only.")
@click.option("--local", is_flag=True, help="With the kernel's own table of local addresses.")
@click.option("--limit", type=click.IntRange(1, ROUTES_LIMIT), default=ROUTES_LIMIT, show_default=True,
              help="Routes shown of each node.")  # fmt: skip
@_timeout
@_output
@common
def routes_(
    nodes: tuple[str, ...], family: str | None, local: bool, limit: int, timeout_s: float, output: str,
    session: Session,
) -> None:  # fmt: skip
    """Routes of nodes, of every table, with who owns them (felix, bgp, the kernel, others by their protocol) and why
    they are there: a workload, a block, a tunnel, a BGP peer.

    All nodes, or the ones named. Exit status 1 when one of them does not answer.
    """
    request = RoutesRequest(families=(4, 6) if family is None else (int(family),), local=local, limit=limit)

    async def work() -> tuple[str, Json, bool]:
        chosen = await _chosen(session, nodes)
        async with session.bus() as bus:
            answers, silent = await routes.gather(bus, chosen, request, timeout_s)
        return routes.text(answers, silent), routes.document(answers, silent), bool(silent)

    text, document, silent = run(work())
    _tell(text, document, output, silent=silent)


@click.command("connections")
@_nodes
@click.option("--pod", default="", metavar="[NAMESPACE/]NAME", help="Only those of this pod.")
@click.option("--address", default="", metavar="ADDRESS", help="Only those from or to this address.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Only those from or to this port.")
@click.option("--protocol", default="", metavar="NAME|NUMBER")
@click.option("--limit", type=click.IntRange(1, CONNECTIONS_LIMIT), default=CONNECTIONS_LIMIT, show_default=True,
              help="Connections shown of each node.")  # fmt: skip
@_timeout
@_output
@namespaced
@common
def connections_(
    nodes: tuple[str, ...], pod: str, address: str, port: int | None, protocol: str, limit: int, timeout_s: float,
    output: str, namespace: str, session: Session,
) -> None:  # fmt: skip
    """Live connections of nodes' workloads, with the policy that admits such a connection.

    The kernel does not keep which rule let a connection in; told is what decides about it by today's policy. DENIED is
    a connection that was let in by an earlier one: policy decides about new connections only.
    Exit status 1 when a node does not answer.
    """
    try:
        number = "" if not protocol else str(protocol_number(int(protocol) if protocol.isdecimal() else protocol))
    except ValueError as problem:
        fail(f"--protocol: {problem}")
    workload = pod if "/" in pod or not pod else f"{namespace or 'default'}/{pod}"
    request = ConnectionsRequest(workload=workload, address=address, port=port or 0, protocol=number, limit=limit)

    async def work() -> tuple[str, Json, bool]:
        chosen = await _chosen(session, nodes)
        async with session.bus() as bus:
            answers, silent = await connections.gather(bus, chosen, request, timeout_s)
        return connections.text(answers, silent), connections.document(answers, silent), bool(silent)

    text, document, silent = run(work())
    _tell(text, document, output, silent=silent)


@click.command("config")
@_nodes
@_timeout
@_output
@common
def config_(nodes: tuple[str, ...], timeout_s: float, output: str, session: Session) -> None:
    """Felix's settings on nodes, each with where it comes from: the FelixConfiguration `default`, one whose
    nodeSelector matches, `node.<name>`, the configuration file, the environment; later ones win. What is not shown is
    at its default.

    All nodes, or the ones named. Exit status 1 when one of them does not answer.
    """

    async def work() -> tuple[list[State], dict[str, str]]:
        names = await _chosen(session, nodes)
        async with session.bus() as bus:

            async def one(node: str) -> State | str:
                state = await asking.ask(bus, node, Verb.STATE, StateRequest(), State, timeout_s)
                return state.error or state

            return await asking.gather(names, one)

    states, silent = run(work())
    _tell(settings.text(states, silent), settings.document(states, silent), output, silent=bool(silent))
