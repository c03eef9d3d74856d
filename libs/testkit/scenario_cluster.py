"""Random objects in Kubernetes' shapes (policies, endpoint slices) and of the network itself (nodes, pools, blocks)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from random import Random

from libs.model import keys
from libs.testkit import scenario_objects as objects
from libs.testkit.scenario_objects import (
    ADDRESSES4,
    ADDRESSES6,
    LABELS,
    NAMESPACES,
    NETWORKS,
    NODES,
    SERVICES,
    Json,
    Made,
    resource,
    some,
    sometimes,
)

# --- Kubernetes policies ----------------------------------------------------------------------------------------------


def label_selector(random: Random) -> Json:
    made: Json = {}
    sometimes(random, 0.5, made, matchLabels=lambda: objects.labels(random))
    sometimes(random, 0.3, made, matchExpressions=lambda: [expression(random) for _ in range(random.randint(1, 2))])
    return made


def expression(random: Random) -> Json:
    label = random.choice(tuple(LABELS))
    operator = random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
    made: Json = {"key": label, "operator": operator}
    if operator in ("In", "NotIn"):
        made["values"] = some(random, LABELS[label], 2)
    return made


def kubernetes_peer(random: Random) -> Json:
    if random.random() < 0.25:
        block: Json = {"cidr": random.choice(("10.65.0.0/16", "10.65.1.77/24", "fd00:65::/48"))}
        sometimes(random, 0.5, block, **{"except": lambda: ["10.65.1.0/28"]})
        return {"ipBlock": block}
    peer: Json = {}
    sometimes(
        random,
        0.6,
        peer,
        podSelector=lambda: label_selector(random),
        namespaceSelector=lambda: label_selector(random),
    )
    return peer


def kubernetes_port(random: Random) -> Json:
    entry: Json = {}
    sometimes(random, 0.7, entry, protocol=lambda: random.choice(("TCP", "UDP", "SCTP")))
    sometimes(random, 0.9, entry, port=lambda: random.choice((80, 81, 82, 443, 8000, "http", "dns")))
    if isinstance(entry.get("port"), int):
        sometimes(random, 0.3, entry, endPort=lambda: entry["port"] + random.choice((0, 1, 10)))
    return entry


def kubernetes_rule(random: Random, peers: str) -> Json:
    made: Json = {}
    if random.random() < 0.6:
        made["ports"] = [kubernetes_port(random) for _ in range(random.randint(0, 4))]
    if random.random() < 0.7:
        made[peers] = [kubernetes_peer(random) for _ in range(random.randint(0, 2))]
    return made


def staged_kubernetes_policy(random: Random) -> Made:
    spec: Json = {"podSelector": label_selector(random)}
    sometimes(
        random,
        0.7,
        spec,
        stagedAction=lambda: random.choice(("Set", "Set", "Delete")),
        policyTypes=lambda: random.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"])),
        ingress=lambda: [kubernetes_rule(random, "from") for _ in range(random.randint(0, 2))],
        egress=lambda: [kubernetes_rule(random, "to") for _ in range(random.randint(0, 2))],
    )
    return resource("StagedKubernetesNetworkPolicy", random.choice("pk"), spec, namespace=random.choice(NAMESPACES))


def cluster_peer(random: Random, direction: str) -> Json:
    if direction == "egress" and random.random() < 0.3:
        return {"networks": some(random, NETWORKS, 2)}
    if random.random() < 0.4:
        return {"namespaces": label_selector(random)}
    return {"pods": {"namespaceSelector": label_selector(random), "podSelector": label_selector(random)}}


def cluster_protocol(random: Random) -> Json:
    if random.random() < 0.25:
        return {"destinationNamedPort": random.choice(objects.PORT_NAMES)}
    number: Json = {"number": random.choice((80, 443))}
    span: Json = {"range": {"start": 8000, "end": random.choice((8000, 8100))}}
    transport: Json = random.choice(
        ({}, {"destinationPort": number}, {"destinationPort": span}, {"destinationPort": {}})
    )
    return {random.choice(("tcp", "udp", "sctp")): transport}


def cluster_rule(random: Random, direction: str) -> Json:
    made: Json = {"action": random.choice(("Accept", "Deny", "Pass", "Pass", "Never"))}
    sometimes(random, 0.3, made, name=lambda: random.choice(("first", "second")))
    peers = [cluster_peer(random, direction) for _ in range(random.choice((0, 1, 1, 1, 2)))]
    made["from" if direction == "ingress" else "to"] = peers
    sometimes(random, 0.5, made, protocols=lambda: [cluster_protocol(random) for _ in range(random.randint(0, 2))])
    return made


def cluster_policy(random: Random) -> Made:
    subject = cluster_peer(random, "ingress")
    if random.random() < 0.05:
        subject = {}
    spec: Json = {
        "tier": random.choice(("Admin", "Admin", "Baseline", "Other")),
        "priority": random.choice((1, 1, 50, 1000)),
        "subject": subject,
    }
    sometimes(
        random,
        0.7,
        spec,
        ingress=lambda: [cluster_rule(random, "ingress") for _ in range(random.randint(0, 2))],
        egress=lambda: [cluster_rule(random, "egress") for _ in range(random.randint(0, 2))],
    )
    key, document = resource("KubernetesClusterNetworkPolicy", random.choice("pk"), spec)
    return key, document | {"apiVersion": "policy.networking.k8s.io/v1alpha2"}


def endpoint_slice(random: Random) -> Made:
    """Addresses overlap those of other slices; a slice can change its service, or have none."""
    family = random.choice(("IPv4", "IPv4", "IPv6", "FQDN"))
    addresses = {"IPv4": ADDRESSES4, "IPv6": ADDRESSES6, "FQDN": ("example.org",)}[family]
    made: Json = {
        "kind": "KubernetesEndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": random.choice(("e1", "e2")), "namespace": random.choice(NAMESPACES)},
        "addressType": family,
        "endpoints": [
            {"addresses": some(random, addresses, 2), "conditions": {"ready": random.random() < 0.5}}
            for _ in range(random.randint(0, 2))
        ],
        "ports": [slice_port(random) for _ in range(random.randint(0, 2))],
    }
    if random.random() < 0.9:
        made["metadata"]["labels"] = {"kubernetes.io/service-name": random.choice(SERVICES)}
    meta = made["metadata"]
    return keys.resource_key("KubernetesEndpointSlice", meta["name"], meta["namespace"]), made


def slice_port(random: Random) -> Json:
    entry: Json = {"name": random.choice(("", "http"))}
    sometimes(random, 0.8, entry, protocol=lambda: random.choice(("TCP", "UDP", "SCTP")))
    sometimes(random, 0.9, entry, port=lambda: random.choice((80, 53)))
    return entry


# --- the network ------------------------------------------------------------------------------------------------------


def node(random: Random) -> Made:
    name = random.choice(NODES)
    number = int(name[1:])
    spec: Json = {}
    bgp: Json = {}
    sometimes(
        random,
        0.7,
        bgp,
        ipv4Address=lambda: random.choice((f"192.0.2.{number}/24", f"198.51.100.{number}/24", "10.65.0.1/16")),
    )
    sometimes(
        random,
        0.4,
        bgp,
        ipv6Address=lambda: f"2001:db8::{number}/64",
        ipv4IPIPTunnelAddr=lambda: random.choice(("10.65.1.1", "10.66.0.1")),
        asNumber=lambda: random.choice((64512, "1.10")),
    )
    if bgp:
        spec["bgp"] = bgp
    sometimes(
        random,
        0.3,
        spec,
        ipv4VXLANTunnelAddr=lambda: random.choice((f"10.65.{number}.0", "10.65.1.0")),
        vxlanTunnelMACAddr=lambda: f"66:00:00:00:00:0{number}",
        ipv6VXLANTunnelAddr=lambda: f"fd00:65:1::{number}",
        vxlanTunnelMACAddrV6=lambda: f"66:00:00:00:06:0{number}",
        wireguard=lambda: {"interfaceIPv4Address": f"10.65.{number}.2", "interfaceIPv6Address": f"fd00:65:2::{number}"},
    )
    key, document = resource("Node", name, spec, labels=objects.labels(random))
    status: Json = {}
    sometimes(random, 0.2, status, wireguardPublicKey=lambda: "key=")
    return key, document | {"status": status}


def pool(random: Random) -> Made:
    """Two names may have one CIDR, and one CIDR may lie in another: the API refuses both."""
    modes = ("Never", "Always", "CrossSubnet", "Never")
    spec: Json = {"cidr": random.choice(("10.65.0.0/16", "10.65.0.0/16", "10.65.1.0/24", "fd00:65::/32"))}
    sometimes(
        random,
        0.6,
        spec,
        ipipMode=lambda: random.choice(modes),
        vxlanMode=lambda: random.choice(modes),
        natOutgoing=lambda: random.random() < 0.8,
        disabled=lambda: random.random() < 0.8,
        allowedUses=lambda: some(random, ("Workload", "Tunnel", "LoadBalancer"), 2),
        nodeSelector=lambda: "all()",
    )
    return resource("IPPool", random.choice(("pool-a", "pool-b")), spec)


def block(random: Random) -> Made:
    cidr = random.choice(("10.65.0.0/26", "10.65.1.0/26", "10.65.1.0/30", "fd00:65::/122"))
    size = 4
    users = some(random, NODES, 3)
    made: Json = {
        "cidr": cidr,
        "allocations": [random.choice((None, *range(len(users) + 1))) for _ in range(size)],
        "unallocated": [],
        "attributes": [
            {"handle_id": f"h{index}", "secondary": {"node": user, "pod": f"x{index}"}}
            for index, user in enumerate(users)
        ],
        "sequenceNumber": random.randint(0, 9),
        "deleted": False,
    }
    sometimes(
        random,
        0.85,
        made,
        affinity=lambda: random.choice((*(f"host:{name}" for name in NODES), "virtual:load-balancer")),
    )
    return keys.BlockKey(ip_network(cidr)).path, made


def passthrough(random: Random) -> Made:
    kind, name, spec = random.choice(
        (
            ("FelixConfiguration", "default", {"logSeverityScreen": random.choice(("Info", "Debug"))}),
            ("FelixConfiguration", "node.n1", {"ipv6Support": random.random() < 0.5}),
            ("BGPConfiguration", "default", {"asNumber": 64512}),
            ("BGPPeer", "peer", {"peerIP": "192.0.2.254", "asNumber": random.choice((64512, 64513))}),
            ("BGPFilter", "filter", {"exportV4": [{"action": random.choice(("Accept", "Reject"))}]}),
            ("ClusterInformation", "default", {"datastoreReady": random.random() < 0.5}),
        )
    )
    return resource(kind, name, spec)


# Kind by kind, how often it is drawn.
MAKERS: tuple[tuple[Callable[[Random], Made], int], ...] = (
    (objects.workload, 24),
    (objects.host, 6),
    (objects.network_policy, 12),
    (objects.global_policy, 12),
    (objects.tier, 5),
    (objects.profile, 9),
    (objects.network_set, 8),
    (staged_kubernetes_policy, 4),
    (cluster_policy, 4),
    (endpoint_slice, 6),
    (node, 4),
    (pool, 3),
    (block, 3),
    (passthrough, 2),
)
