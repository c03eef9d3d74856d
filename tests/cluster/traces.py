"""What there is of a node's attachments, wherever somebody could hold a trace of one."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence

from libs.ipam.client import IpamClient
from libs.testkit.cluster import Node, Pod
from services.felix.shell.journal import read_journal
from tests.cluster.conftest import World

WEPS = "/calico/resources/v3/projectcalico.org/workloadendpoints/"


async def traces(world: World, node: Node, *pods: Pod) -> list[str]:
    """Sorted lines "where what": journal, status files, etcd, addresses of IPAM, links, routes, nftables.

    pods: also every key or value in etcd that names them, and what is in their network namespaces.
    """
    found = [f"journal {container}" for container in journal(node)]
    found += [f"status {path.name}" for path in (node.directory / "endpoint-status").glob("*")]
    names = [text for pod in pods for text in (pod.name, pod.container_id)]
    for kv in (await world.store.list("/calico/")).kvs:
        ours = kv.key.startswith(WEPS) and f"/{node.name}-" in kv.key
        if ours or any(text in f"{kv.key} {kv.value.decode()}" for text in names):
            found.append(f"etcd {kv.key}")
    for block in await IpamClient(world.store).blocks():
        for one in block.allocated():
            if one.attrs.get("node") == node.name and not one.released_at:
                found.append(f"address {one.address} of {one.handle}")
    return sorted(found + await asyncio.to_thread(_kernel, node, pods))


def journal(node: Node) -> list[str]:
    """Containers whose ADD or DEL is not finished."""
    return [entry.container for entry in read_journal(node.directory / "state" / "cni-journal")[0].values()]


def _kernel(node: Node, pods: Sequence[Pod]) -> list[str]:
    inside, found = node.namespace.name, []
    found += [f"link {link}" for link in links(inside) if link not in ("lo", "eth0")]
    for family in ("-4", "-6"):
        shown = _run(inside, "ip", family, "route", "show", "table", "all")
        found += [f"route {line}" for line in shown.splitlines() if "dev cali" in line]
    for line in _run(inside, "nft", "list", "ruleset").splitlines():
        if '"cali' in line and '"cali*"' not in line:
            found.append(f"nftables {line.strip()}")
    for pod in pods:
        if pod.netns.exists():
            found += [f"{link} in {pod.name}" for link in links(pod.netns.name) if link != "lo"]
    return found


def links(namespace: str) -> list[str]:
    return [link["ifname"] for link in json.loads(_run(namespace, "ip", "-j", "link") or "[]")]


def _run(namespace: str, *command: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *command], check=True, capture_output=True, text=True, timeout=30
    ).stdout
