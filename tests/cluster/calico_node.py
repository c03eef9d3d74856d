"""A node of a real Calico cluster: what calico-node, calico-cni and calico-ipam write into etcd and make in the kernel,
and BIRD configured as confd does. libs/testkit/calico/felix.py is the Felix that filters.
"""

from __future__ import annotations

import json
import subprocess
from hashlib import sha1
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any

from libs.testkit import bootstrap
from libs.testkit.cluster import Cluster, Node, Pod
from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.topology import Namespace
from tests.interop.calico_bird import CalicoBird

if TYPE_CHECKING:
    from libs.store.api import Store

AS = 64512
BLOCKS = {4: "10.65.202.64/26", 6: "fd00:65:0:7::40/122"}
POOLS = {4: bootstrap.POOL_V4, 6: bootstrap.POOL_V6}
VERSION = "v3.33.0"
GATEWAY = "169.254.1.1"
HOST_MAC, HOST_LINK_LOCAL = "ee:ee:ee:ee:ee:ee", "fe80::ecee:eeff:feee:eeee"
TUNNELS = {
    "vxlan": (4, "vxlanTunnelAddress", "ipv4VXLANTunnelAddr"),
    "vxlan-v6": (6, "vxlanV6TunnelAddress", "ipv6VXLANTunnelAddr"),
    "ipip": (4, "ipipTunnelAddress", "ipv4IPIPTunnelAddr"),
}
"""Family, type in IPAM's attributes, field of the Node, by the name in handles."""
_SIZE = 64  # of a block


class CalicoNode:
    """node: the pretend host. pods: plugged so far, by name; their n-th address in each block is n."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.cluster, self.node = cluster, node
        self.pods: dict[str, Pod] = {}
        others = [other for other in cluster.nodes if other is not node]
        neighbours = [Neighbour(str(one.ip), AS) for other in others for one in (other.ipv4, other.ipv6)]
        router = Router(
            AS, str(node.ipv4.ip), tuple(neighbours), tuple(Route(block) for block in BLOCKS.values()),
            addresses=(str(node.ipv4.ip), str(node.ipv6.ip)),
        )  # fmt: skip
        self.bird = CalicoBird(node.name, node.namespace, router, node.directory / "bird")
        self.bird.pools = {"ipv4": POOLS[4], "ipv6": POOLS[6]}
        self._tunnels: tuple[str, ...] = ()

    async def write(self, store: Store) -> None:
        """Its Node, and its blocks without addresses of pods."""
        spec = bootstrap.node_spec(self.node) | {"orchRefs": [{"nodeName": self.node.name, "orchestrator": "k8s"}]}
        for kind in self._tunnels:
            version, _, field = TUNNELS[kind]
            (spec["bgp"] if kind == "ipip" else spec)[field] = str(ip_network(BLOCKS[version])[_SIZE - 1])
        node = bootstrap.resource("Node", self.node.name, spec, labels={"kubernetes.io/hostname": self.node.name})
        await store.put(bootstrap.key("nodes", self.node.name), node)
        await self._write_blocks(store)

    async def tunnels(self, store: Store, *kinds: str) -> None:
        """Gives it tunnel addresses of these kinds (`TUNNELS`), as `allocate-tunnel-addrs` does: the last addresses of
        its blocks. Those of other kinds go.
        """
        for kind in set(self._tunnels) - set(kinds):
            await store.delete(f"/calico/ipam/v2/handle/{kind}-tunnel-addr-{self.node.name}")
        self._tunnels = kinds
        await self.write(store)

    async def _write_blocks(self, store: Store) -> None:
        """As calico-ipam leaves them after so many ADDs: order of fields, nulls and sequence numbers of its dump."""
        for version, cidr in BLOCKS.items():
            first = 1795438075886646678
            given = [(ordinal, *_of_pod(pod, self.node.name)) for ordinal, pod in enumerate(self.pods.values())]
            given += [
                (_SIZE - 1, f"{kind}-tunnel-addr-{self.node.name}", {"node": self.node.name, "type": TUNNELS[kind][1]})
                for kind in self._tunnels if TUNNELS[kind][0] == version
            ]  # fmt: skip
            index = {ordinal: number for number, (ordinal, *_) in enumerate(given)}
            block = {
                "cidr": cidr, "affinity": f"host:{self.node.name}", "affinity_claim_time": "2026-11-23T12:47:55Z",
                "allocations": [index.get(n) for n in range(_SIZE)],
                "unallocated": [n for n in range(_SIZE) if n not in index],
                "attributes": [{"handle_id": handle, "secondary": secondary} for _, handle, secondary in given],
                "sequenceNumber": first + len(given),
                "sequenceNumberForAllocation": {str(n): first + number for n, number in index.items()},
                "deleted": False,
            }  # fmt: skip
            place = f"ipv{version}/block/{cidr.replace('/', '-')}"
            await store.put(f"/calico/ipam/v2/assignment/{place}", _json(block))
            affinity = {"state": "confirmed", "deleted": False}
            await store.put(f"/calico/ipam/v2/host/{self.node.name}/{place}", _json(affinity))
            for _, name, _ in given:
                blocks = [cidr] if "-tunnel-addr-" in name else BLOCKS.values()
                handle = {"block": dict.fromkeys(blocks, 1), "deleted": False}
                await store.put(f"/calico/ipam/v2/handle/{name}", _json(handle))

    async def plug(self, store: Store, name: str, labels: dict[str, str]) -> Pod:
        """What calico-cni does in Kubernetes."""
        number = len(self.pods)
        v4, v6 = (ip_network(cidr)[number] for cidr in BLOCKS.values())
        space = Namespace(f"cal-{self.cluster.id}-{self.node.name}-default-{name}-pod")
        pod = Pod(name, "default", self.node.name, space, labels)
        space.create()
        device = "cali" + sha1(f"default.{name}".encode()).hexdigest()[:11]
        _wire(self.node.namespace, space, device, v4, v6)
        pod.result = {"cniVersion": "1.0.0", "ips": [{"address": f"{v4}/32"}, {"address": f"{v6}/128"}]}
        self.pods[name] = pod
        self.cluster.adopt(pod)
        await self._write_blocks(store)
        escaped = name.replace("-", "--")
        endpoint = f"{self.node.name}-k8s-{escaped}-eth0"
        forced = {"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s",
                  "projectcalico.org/serviceaccount": "default"}  # fmt: skip
        value = bootstrap.resource(
            "WorkloadEndpoint", endpoint,
            {
                "orchestrator": "k8s", "node": self.node.name, "containerID": pod.container_id, "pod": name,
                "endpoint": "eth0", "serviceAccountName": "default", "ipNetworks": [f"{v4}/32", f"{v6}/128"],
                "profiles": ["kns.default", "ksa.default.default"], "interfaceName": device,
            },
            namespace="default", labels=labels | forced,
        )  # fmt: skip
        await store.put(f"{bootstrap.key('workloadendpoints', 'default')}/{endpoint}", value)
        return pod


def _of_pod(pod: Pod, node: str) -> tuple[str, dict[str, str]]:
    """Handle and attributes of its addresses."""
    return f"k8s-pod-network.{pod.container_id}", {
        "namespace": pod.namespace, "node": node, "pod": pod.name,
        "timestamp": "2026-11-23 12:47:55.77212135 +0000 UTC",
    }  # fmt: skip


def _wire(host: Namespace, pod: Namespace, device: str, v4: Any, v6: Any) -> None:
    assert isinstance(v4, IPv4Address)
    assert isinstance(v6, IPv6Address)
    pod.sysctl({"ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0})
    host.ip([
        f"link add {device} address {HOST_MAC} type veth peer name eth0 netns {pod.name}",
        f"link set {device} up",
    ])  # fmt: skip
    host.sysctl({f"ipv4/conf/{device}/proxy_arp": 1, f"ipv4/neigh/{device}/proxy_delay": 0,
                 f"ipv4/conf/{device}/forwarding": 1, f"ipv6/conf/{device}/forwarding": 1})  # fmt: skip
    host.ip([f"route add {v4}/32 dev {device} scope link proto boot", f"route add {v6}/128 dev {device} proto boot"])
    pod.ip([
        "link set eth0 up", f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad",
        f"route add {GATEWAY} dev eth0 scope link", f"route add default via {GATEWAY} dev eth0",
        f"route add default via {HOST_LINK_LOCAL} dev eth0",
    ])  # fmt: skip


async def write_cluster(store: Store, cluster: Cluster) -> None:
    """What a running Calico has beside its nodes; node2 is one of its, node1 is not there yet."""
    put = {
        bootstrap.key("clusterinformations", "default"): bootstrap.resource(
            "ClusterInformation", "default",
            {"clusterGUID": "fb5e28d3b9f240ca90f4d305412a0b65", "clusterType": "k8s,bgp,kdd", "calicoVersion": VERSION,
             "datastoreReady": True},
        ),
        bootstrap.key("felixconfigurations", "default"): bootstrap.resource(
            "FelixConfiguration", "default", {"logSeverityScreen": "Info", "reportingInterval": "0s"}
        ),
        bootstrap.key("ippools", "default-ipv4-ippool"): bootstrap.resource(
            "IPPool", "default-ipv4-ippool", bootstrap.pool_spec(POOLS[4], block_size=26)
        ),
        bootstrap.key("ippools", "default-ipv6-ippool"): bootstrap.resource(
            "IPPool", "default-ipv6-ippool", bootstrap.pool_spec(POOLS[6], block_size=122)
        ),
    }  # fmt: skip
    for name, order, action in (
        ("default", 1_000_000, "Deny"), ("kube-admin", 1_000, "Pass"), ("kube-baseline", 10_000_000, "Pass"),
    ):  # fmt: skip
        put[bootstrap.key("tiers", name)] = bootstrap.resource("Tier", name, {"order": order, "defaultAction": action})
    put |= bootstrap.namespace_profiles("default", {"kubernetes.io/metadata.name": "default"}, ["default"])
    for key, value in put.items():
        await store.put(key, value)


def hand_back(node: Node) -> None:
    """docs/install/migration.md: routes of our speaker become BIRD's, in place."""
    script = (
        "for f in -4 -6; do ip $f -o route show proto 81 | tr -d '\\\\' |"
        " sed 's/^/route replace /; s/$/ proto 12/' | ip $f -batch -; done"
    )
    command = ["ip", "netns", "exec", node.namespace.name, "sh", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
