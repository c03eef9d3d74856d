"""The small cluster that everybody fights over: pools of few and tiny blocks, four nodes, and time that runs fast.

Everything here is what a user would have stored, as plain JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ipaddress import ip_network

from tests.jepsen.history import Instance

NODES = ("n0", "n1", "n2", "n3")
POOL4, POOL6, POOL_LB = "10.77.0.0/25", "fd77::/121", "10.78.0.0/27"
POOL_SPARE = "10.79.0.0/28"  # only on request: two blocks, mostly idle, which four nodes take from each other
BLOCK_LENGTHS = {POOL4: 29, POOL6: 125, POOL_LB: 29, POOL_SPARE: 29}
# Blocks that are claimed and given up on purpose, so that claims meet.
HOT = (
    *list(ip_network(POOL4).subnets(new_prefix=29))[:3],
    *list(ip_network(POOL6).subnets(new_prefix=125))[:2],
    *ip_network(POOL_SPARE).subnets(new_prefix=29),
)
COOLDOWN_S = 60  # one second of real time
CLOCK_SPEED = 60
RESOURCES = "/calico/resources/v3/projectcalico.org/"


def fast_clock(origin_ns: int) -> Callable[[], int]:
    """Nanoseconds since the epoch that pass 60 times as fast since `origin_ns` of CLOCK_MONOTONIC: an idle block may be
    taken over after one second instead of one minute. The same in every process with the same origin.
    """
    base = time.time_ns() - time.monotonic_ns()  # the same in every process but for clock adjustments
    base -= base % 1_000_000_000
    return lambda: base + origin_ns + (time.monotonic_ns() - origin_ns) * CLOCK_SPEED


def resources() -> dict[str, bytes]:
    """Key and value of everything a cluster needs before the first address."""
    found = {}
    for name, cidr, uses in (
        ("four", POOL4, ["Workload", "Tunnel"]),
        ("six", POOL6, ["Workload", "Tunnel"]),
        ("balancers", POOL_LB, ["LoadBalancer"]),
        ("spare", POOL_SPARE, ["Workload"]),
    ):
        spec = {"cidr": cidr, "blockSize": BLOCK_LENGTHS[cidr], "nodeSelector": "all()", "allowedUses": uses}
        spec["assignmentMode"] = "Manual" if cidr == POOL_SPARE else "Automatic"
        found[f"{RESOURCES}ippools/{name}"] = _document("IPPool", name, spec)
    for node in NODES:
        found[f"{RESOURCES}nodes/{node}"] = _document("Node", node, {})
    spec = {"clusterGUID": "jepsen", "datastoreReady": True}
    found[f"{RESOURCES}clusterinformations/default"] = _document("ClusterInformation", "default", spec)
    return found


def endpoint(instance: Instance) -> tuple[str, bytes]:
    """Key and value of a workload endpoint that uses the address."""
    name = f"p-{instance.address.replace('.', '-').replace(':', '-')}"
    length = 128 if ":" in instance.address else 32
    spec = {"node": NODES[0], "pod": name, "ipNetworks": [f"{instance.address}/{length}"]}
    return f"{RESOURCES}workloadendpoints/jepsen/{name}", _document("WorkloadEndpoint", name, spec)


def _document(kind: str, name: str, spec: dict[str, object]) -> bytes:
    metadata = {"name": name, "labels": {}}
    return json.dumps({"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}).encode()
