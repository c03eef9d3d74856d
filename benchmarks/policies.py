"""Synthetic policies and endpoints, the same for every benchmark: namespaces, apps, and policies that use both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, ip_network

from libs.model import keys
from libs.store.api import Put, Store

CREATED = "2026-01-01T00:00:00Z"
TXN_PUTS = 120  # etcd allows 128 operations
Entry = tuple[str, bytes]  # key and value as they lie in etcd


def resource(kind: str, name: str, spec: dict[str, object], namespace: str = "", **metadata: object) -> Entry:
    meta: dict[str, object] = {
        "name": name, "uid": "00000000-0000-4000-8000-000000000000", "creationTimestamp": CREATED,
    }  # fmt: skip
    if namespace:
        meta["namespace"] = namespace
    value = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": meta | metadata, "spec": spec}
    return keys.resource_key(kind, name, namespace), json.dumps(value, separators=(",", ":")).encode()


def endpoint(number: int, node: str, namespace: str, app: str) -> Entry:
    """A workload endpoint with one address and two labels that policies look at."""
    pod = f"p{number}"
    address = IPv4Address("10.0.0.0") + number
    spec: dict[str, object] = {
        "orchestrator": "k8s", "node": node, "containerID": f"c{number}", "pod": pod, "endpoint": "eth0",
        "ipNetworks": [f"{address}/32"], "profiles": [f"kns.{namespace}"], "interfaceName": f"cali{number:08x}",
    }  # fmt: skip
    labels = {"app": app, "projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s"}
    return resource("WorkloadEndpoint", f"{node}-k8s-{pod}-eth0", spec, namespace, labels=labels)


def policy(name: str, namespace: str, app: str, peers: Sequence[str], port: int) -> Entry:
    """Allow each of `peers` of the same namespace to reach `app`, on a port of its own."""
    rules = [
        {
            "action": "Allow", "protocol": "TCP", "source": {"selector": f"app == '{peer}'"},
            "destination": {"ports": [port + number]},
        }
        for number, peer in enumerate(peers)
    ]  # fmt: skip
    spec: dict[str, object] = {
        "tier": "default",
        "order": 100,
        "selector": f"app == '{app}'",
        "types": ["Ingress"],
        "ingress": rules,
    }
    return resource("NetworkPolicy", name, spec, namespace)


def with_network_set(number: int, app: str) -> Iterator[Entry]:
    """A global policy on `app` that allows what a network set of its own holds, and that set (ten networks)."""
    rule: dict[str, object] = {"action": "Allow", "source": {"selector": f"set == 's{number}'"}}
    spec: dict[str, object] = {
        "tier": "default",
        "order": 100,
        "selector": f"app == '{app}'",
        "types": ["Ingress"],
        "ingress": [rule],
    }
    yield resource("GlobalNetworkPolicy", f"with-set{number}", spec)
    first = int(IPv4Address("192.0.0.0")) + number * 640
    nets = [str(ip_network((first + at * 64, 26))) for at in range(10)]
    yield resource("GlobalNetworkSet", f"set{number}", {"nets": nets}, labels={"set": f"s{number}"})


def profile(namespace: str) -> Entry:
    allow = [{"action": "Allow"}]
    return resource("Profile", f"kns.{namespace}", {"ingress": allow, "egress": allow, "labelsToApply": {}})


def cluster(
    endpoints: int, policies: int, nodes: int, namespaces: int, apps: int, *, rules: int = 1
) -> Iterator[Entry]:
    """Endpoints spread evenly over nodes, namespaces and apps; policies over namespaces and groups of apps."""
    for number in range(namespaces):
        yield profile(f"ns{number}")
    for number in range(policies):
        app = number // namespaces % apps
        peers = [f"app{(app + at + 1) % apps}" for at in range(rules)]
        yield policy(f"pol{number}", f"ns{number % namespaces}", f"app{app}", peers, 1024 + number % 50_000)
    for number in range(endpoints):
        yield endpoint(number, f"node{number % nodes}", f"ns{number // nodes % namespaces}", f"app{number % apps}")


async def store_all(store: Store, data: Sequence[Entry]) -> None:
    for start in range(0, len(data), TXN_PUTS):
        await store.txn([], [Put(key, value) for key, value in data[start : start + TXN_PUTS]])
