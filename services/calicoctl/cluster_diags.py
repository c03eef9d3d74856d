"""`calicoctl cluster diags`: what the datastore, the bus and Kubernetes say of a cluster, as files of a bundle.

    resources/<plural>.yaml, .txt   every kind, as `get -o yaml` and `get -o wide` show it
    ipam/…                          usage, blocks, the check (with etcd)
    datastore/…                     etcd's state, statuses of felix and endpoints (with etcd)
    nodes/<node>/felix.json, …      what each node's kernel holds, its BGP sessions and routes, asked over the bus
    kubernetes/…                    objects and logs, by kubectl, where there is one that reaches a cluster

A part that cannot be had says why in its place, and the others are collected all the same.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from libs.bus import BusConfigError, BusError
from libs.ipam.errors import IpamError
from libs.model import kinds
from libs.resources.api import Resources
from libs.resources.client import ResourceClient
from libs.resources.errors import ResourceError
from libs.store.api import StoreError
from services.calicoctl import ipam, ipam_check, reading, version
from services.calicoctl import status as node_status
from services.calicoctl.columns import BY_KIND
from services.calicoctl.host.bundle import Bundle
from services.calicoctl.host.runner import output
from services.calicoctl.output import Format, render
from services.calicoctl.session import Session

BUS_S = 10.0
KUBECTL_S = 30.0
NAMESPACES = ("calico-system", "calico-apiserver", "tigera-operator", "kube-system")
STATUS_PREFIXES = ("/calico/felix/v1/", "/calico/felix/v2/")
KUBERNETES = (
    ("version.txt", "version"),
    ("nodes.txt", "get nodes -o wide"),
    ("nodes.yaml", "get nodes -o yaml"),
    ("namespaces.txt", "get namespaces --show-labels"),
    ("pods.txt", "get pods -A -o wide"),
    ("services.txt", "get services -A -o wide"),
    ("events.txt", "get events -A --sort-by=.lastTimestamp"),
    ("networkpolicies.yaml", "get networkpolicies.networking.k8s.io -A -o yaml"),
    ("clusternetworkpolicies.yaml", "get clusternetworkpolicies -o yaml"),
    ("adminnetworkpolicies.yaml", "get adminnetworkpolicies,baselineadminnetworkpolicies -o yaml"),
    ("networkattachments.yaml", "get network-attachment-definitions -A -o yaml"),
    ("webhooks.yaml", "get mutatingwebhookconfigurations,validatingwebhookconfigurations -o yaml"),
    ("apiservices.yaml", "get apiservices -o yaml"),
    ("installation.yaml", "get installations,tigerastatuses -o yaml"),
)
"""(file, arguments of kubectl). Secrets are never asked for."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """since: as kubectl takes it, "" for all. max_logs: pods of one owner. focus: nodes whose pods come first."""

    since: str = ""
    max_logs: int = 5
    at_once: int = 10
    focus: tuple[str, ...] = ()


async def collect(bundle: Bundle, session: Session, options: Options, progress: Progress) -> None:
    async with session.resources(guarded=False) as client:
        progress("resources")
        bundle.add("version.txt", "\n".join(version.client_lines()) + "\n")
        await _guarded(bundle, "version.txt", lambda: _cluster_version(bundle, client))
        limit = asyncio.Semaphore(options.at_once)
        await asyncio.gather(*(_kind(bundle, client, kind, limit) for kind in BY_KIND))
        if isinstance(client, ResourceClient):
            progress("IPAM and datastore")
            await _of_etcd(bundle, client)
        progress("nodes")
        nodes = await _node_names(client)
    await _guarded(bundle, "nodes/PROBLEM.txt", lambda: _nodes(bundle, session, nodes, options.focus))
    progress("kubernetes")
    await _kubernetes(bundle, options)


async def _guarded(bundle: Bundle, name: str, work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (ResourceError, StoreError, IpamError, BusError, BusConfigError) as error:
        bundle.add(name, f"{type(error).__name__}: {error}\n")


async def _cluster_version(bundle: Bundle, client: Resources) -> None:
    bundle.add("version.txt", "\n".join(await version.cluster_lines(client)) + "\n")


async def _kind(bundle: Bundle, client: Resources, kind: str, limit: asyncio.Semaphore) -> None:
    plural = kinds.kind(kind).plural

    async def work() -> None:
        async with limit:
            answer = await reading.listed(client, kind, "", everywhere=kinds.kind(kind).namespaced)
        for form, ending in (("yaml", "yaml"), ("wide", "txt")):
            text = render([answer], Format(form), namespace=True, as_number="")
            bundle.add(f"resources/{plural}.{ending}", text)

    await _guarded(bundle, f"resources/{plural}.txt", work)


async def _node_names(client: Resources) -> list[str]:
    """Through an API server nodes are not seen; the bus says then who is there."""
    try:
        return [item.metadata.name for item in (await client.list("Node")).items]
    except ResourceError:
        return []


# --- etcd ------------------------------------------------------------------------------------------------------------


async def _of_etcd(bundle: Bundle, client: ResourceClient) -> None:
    async def usage() -> None:
        text, broken = await ipam.show_usage(client.store, with_blocks=True)
        bundle.add("ipam/show.txt", text + "".join(f"not readable: {key}\n" for key in broken))
        bundle.add("ipam/borrowed.txt", await ipam.show_borrowed(client.store))
        bundle.add("ipam/configuration.txt", await ipam.show_configuration(client.store))

    async def check() -> None:
        checked = await ipam_check.check(client)
        bundle.add("ipam/check.txt", ipam_check.text(checked, every_ip=True, problem_ips=True))
        bundle.add("ipam/report.json", ipam_check.report(checked))

    async def state() -> None:
        found = await client.store.status()
        bundle.add("datastore/etcd.txt", "".join(f"{name}: {getattr(found, name)}\n" for name in found.__slots__))
        for prefix in STATUS_PREFIXES:
            for kv in (await client.store.list(prefix)).kvs:
                bundle.add("datastore/status.txt", f"{kv.key} {kv.value.decode(errors='replace')}\n")

    await _guarded(bundle, "ipam/PROBLEM.txt", usage)
    await _guarded(bundle, "ipam/PROBLEM.txt", check)
    await _guarded(bundle, "datastore/PROBLEM.txt", state)


# --- nodes, over the bus ---------------------------------------------------------------------------------------------


async def _nodes(bundle: Bundle, session: Session, nodes: Sequence[str], focus: Collection[str]) -> None:
    """Of the nodes in focus the routes of their speakers too."""
    if not nodes:
        bundle.add("nodes/PROBLEM.txt", "no nodes are known\n")
        return
    async with session.bus() as bus:
        reports, states = await asyncio.gather(
            node_status.gather(bus, nodes, BUS_S), node_status.gather_bgp(bus, nodes, BUS_S)
        )
        bundle.add("nodes/status.txt", node_status.show(nodes, reports)[0] + node_status.show_bgp(nodes, states)[0])
        for node in nodes:
            report, state = reports.get(node), states.get(node)
            text = msgspec.json.format(msgspec.json.encode(report), indent=2) if report else b"no report came in time\n"
            bundle.add(f"nodes/{node}/felix.json", text)
            text = msgspec.json.format(msgspec.json.encode(state), indent=2) if state else b"no speaker answered\n"
            bundle.add(f"nodes/{node}/bgp.json", text)
        for node in focus:
            if states.get(node) is not None:
                state = await node_status.ask_bgp(bus, node, BUS_S, routes=True)
                text = msgspec.json.format(msgspec.json.encode(state), indent=2) if state else b"no speaker answered\n"
                bundle.add(f"nodes/{node}/routes.json", text)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


async def _kubernetes(bundle: Bundle, options: Options) -> None:
    if shutil.which("kubectl") is None:
        bundle.add("kubernetes/MISSING.txt", "kubectl is not installed here\n")
        return
    status, text = await output(["kubectl", "version", "--request-timeout=5s"], deadline_s=KUBECTL_S)
    if status:
        bundle.add("kubernetes/MISSING.txt", b"kubectl does not reach a cluster:\n" + text)
        return
    limit = asyncio.Semaphore(options.at_once)

    async def ask(name: str, arguments: Sequence[str]) -> bytes:
        async with limit:
            _, found = await output(["kubectl", *arguments], deadline_s=KUBECTL_S)
        bundle.add(f"kubernetes/{name}", found)
        return found

    await asyncio.gather(*(ask(name, arguments.split()) for name, arguments in KUBERNETES))
    for namespace in NAMESPACES:
        await ask(f"{namespace}/objects.txt", ["get", "all,configmaps", "-n", namespace, "-o", "wide"])
        listing = await ask(f"{namespace}/pods.json", ["get", "pods", "-n", namespace, "-o", "json"])
        since = [f"--since={options.since}"] if options.since else []
        await asyncio.gather(
            *(
                ask(f"{namespace}/{pod}.log",
                    ["logs", "-n", namespace, pod, "--all-containers", "--prefix", *since])
                for pod in chosen_pods(listing, options.focus, options.max_logs, calico_only=namespace == "kube-system")
            )
        )  # fmt: skip


def chosen_pods(listing: bytes, focus: Collection[str], most: int, *, calico_only: bool) -> list[str]:
    """Names of at most `most` pods of each owner, those on nodes in focus first."""
    try:
        items = json.loads(listing)["items"]
    except (ValueError, KeyError, TypeError):
        return []
    by_owner: dict[str, list[tuple[bool, str]]] = {}
    for item in items:
        metadata = item.get("metadata", {})
        name = str(metadata.get("name", ""))
        if calico_only and not name.startswith(("calico", "tigera", "typha")):
            continue
        owner = "".join(str(one.get("uid")) for one in metadata.get("ownerReferences", [])) or name
        away = item.get("spec", {}).get("nodeName") not in focus
        by_owner.setdefault(owner, []).append((away, name))
    return [name for pods in by_owner.values() for _, name in sorted(pods)[:most]]
