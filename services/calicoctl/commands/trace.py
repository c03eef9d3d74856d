"""`calicoctl trace`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import click

from libs.bus import Bus, BusConfigError, BusError
from libs.model.yamltext import dump_yaml
from libs.policy.trace import Packet
from services.calicoctl.explain import backends, cluster, service_text, services, trace, trace_text
from services.calicoctl.explain.backends import ServiceTrace
from services.calicoctl.explain.ends import End, EndProblem, resolve
from services.calicoctl.explain.packet import PacketProblem, families, number_of, packet
from services.calicoctl.options import Duration, common, namespaced
from services.calicoctl.session import Session, fail, run

T = TypeVar("T")


@click.command("trace")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--port", default="", metavar="PORT", help="A number, or the name of one of TO's ports.")
@click.option("--source-port", type=click.IntRange(1, 65535), metavar="PORT", help="40000 when not given.")
@click.option("--protocol", default="", metavar="NAME|NUMBER", help="TCP when not given.")
@click.option("--icmp-type", type=click.IntRange(0, 255), metavar="N", help="Echo request when not given.")
@click.option("--icmp-code", type=click.IntRange(0, 255), metavar="N")
@click.option("--family", type=click.Choice(["4", "6"]), help="Of IPv4 or IPv6 only; both ends' families otherwise.")
@click.option("--staged", is_flag=True, help="The verdict as if staged policies were enforced.")
@click.option("--datastore-only", "alone", is_flag=True, help="Calculate from the datastore; ask no node.")
@click.option("--timeout", "timeout_s", type=Duration(), default="10s", show_default=True, metavar="DURATION",
              help="How long to wait for a node.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@namespaced
@common
def trace_(
    source: str, target: str, port: str, source_port: int | None, protocol: str, icmp_type: int | None,
    icmp_code: int | None, family: str | None, staged: bool, alone: bool, timeout_s: float, output: str,
    namespace: str, session: Session,
) -> None:  # fmt: skip
    """Which tier, policy and rule decide about a new connection FROM one end TO another, in each direction, on which
    node, and whether the nodes' kernels agree.

    An end is a pod (`ns1/web`, `web` with -n), a node, an address in or outside the cluster, or, with a prefix,
    `hep:NAME`, `netset:[NAMESPACE/]NAME`, `pod:…`, `node:…`. TO may be a Kubernetes service as well,
    `service:[NAMESPACE/]NAME`, one of its addresses, or a node with its node port: each backend of the port is traced.
    The nodes concerned are asked: each answers by its own calculation at the revision its kernel holds, and by walking
    the packet through the ruleset that it reads back from the kernel. Without a bus the datastore alone is asked.

    Exit status 0: traced, whatever the verdict. 1: a kernel disagrees, or the trace cannot be made, also for want of
    ready endpoints of a service in one of the families. 2: wrong usage.
    """
    wanted = None if family is None else int(family)

    def described(source: End, target: End, version: int, number: str) -> Packet:
        return packet(source, target, version, protocol=protocol, port=number, source_port=source_port or 0,
                      icmp_type=icmp_type, icmp_code=icmp_code)  # fmt: skip

    async def asked(ask: Callable[[Bus, Sequence[T], float], Awaitable[list[T]]], traces: list[T]) -> list[T]:
        if alone:
            return traces
        try:
            async with session.bus() as bus:
                return await ask(bus, traces, timeout_s)
        except (BusError, BusConfigError) as error:
            click.echo(f"The nodes were not asked: bus: {error or type(error).__name__}", err=True)
            return traces

    async def work() -> tuple[list[trace.Trace], list[ServiceTrace]]:
        async with session.client(guarded=False, purpose="trace") as client:
            known = await cluster.read(client)
        sender, number = resolve(source, known, namespace), number_of(protocol, icmp_type)
        receiver = services.target(target, known, namespace, port, number)
        if isinstance(receiver, End):
            packets = [described(sender, receiver, one, port) for one in families(sender, receiver, wanted)]
            plain = [trace.prepare(sender, receiver, one, known, staged=staged) for one in packets]
            return await asked(trace.ask, plain), []
        question = backends.Question(number, port, described, wanted, staged)
        found = await asked(backends.ask, backends.prepare(sender, receiver, question, known))
        return [one for service in found for one in service.traces], found

    try:
        traces, through = run(work())
    except (EndProblem, PacketProblem) as problem:
        fail(str(problem))
    if output == "text":
        texts = map(service_text.text, through) if through else (trace_text.text(one, staged=staged) for one in traces)
        click.echo("\n".join(texts), nl=False)
    else:
        told = service_text.document(through) if through else trace_text.document(traces)
        click.echo(json.dumps(told, indent=2) + "\n" if output == "json" else dump_yaml(told), nl=False)
    if any(one.contradicted for one in traces) or any(one.problem for one in through):
        raise SystemExit(1)
