"""Random objects of a small cluster, as JSON documents under their datastore keys: the vocabulary of `scenarios.py`.

Names, labels and addresses come from short lists, so that objects meet: one writes what another refers to. Every kind
that the calculation reads is here with every field of it, those that validation would refuse included, since a raw
write is not validated. `MAKERS` says how often each kind is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from libs.model import keys, names
from libs.model.endpoints import WorkloadEndpointSpec

Json = dict[str, Any]
Made = tuple[str, Json]

NODES = ("n1", "n2", "n3")
NAMESPACES = ("ns1", "ns2")
TIERS = ("default", "t1", "t2", "kube-admin", "kube-baseline", "gone")
LABELS = {"app": ("a", "b", "c"), "env": ("dev", "prod"), "role": ("db", "web")}
ADDRESSES4 = ("10.65.0.1", "10.65.0.2", "10.65.1.5", "10.65.1.6", "192.0.2.9")
ADDRESSES6 = ("fd00:65::1", "fd00:65::2", "fd00:65:1::1")
NETWORKS = (
    *("10.65.0.0/16", "10.65.1.0/24", "10.65.1.4/30", "10.65.0.1", "10.65.1.5/32", "198.51.100.7/24", "0.0.0.0/0"),
    *("fd00:65::/64", "FD00:65::/32", "fd00:65::1", "203.0.113.0/24"),
)
PROFILES = ("kns.ns1", "kns.ns2", "ksa.ns1.sa1", "ksa.ns2.sa1", "prof1", "prof2", "projectcalico-default-allow", "gone")
SERVICES = ("web", "dns")
PORT_NAMES = ("http", "dns")


def sometimes(random: Random, chance: float, document: Json, **fields: Callable[[], Any]) -> None:
    """Add each field with the chance given; its value is made only then."""
    for name, make in fields.items():
        if random.random() < chance:
            document[name.rstrip("_")] = make()


def some(random: Random, choices: tuple[Any, ...], most: int) -> list[Any]:
    return random.sample(choices, random.randint(0, min(most, len(choices))))


def resource(kind: str, name: str, spec: Json, *, namespace: str = "", **metadata: Any) -> Made:
    """The key and document of a v3 resource; metadata without empty fields."""
    meta = {"name": name, "namespace": namespace, **metadata}
    document = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {field: value for field, value in meta.items() if value},
        "spec": spec,
    }
    return keys.resource_key(kind, name, namespace), document


# --- labels and selectors ---------------------------------------------------------------------------------------------


def labels(random: Random, prefix: str = "", chance: float = 0.5) -> dict[str, str]:
    return {f"{prefix}{name}": random.choice(values) for name, values in LABELS.items() if random.random() < chance}


def selector(random: Random, depth: int = 2) -> str:
    if depth and random.random() < 0.35:
        left, right = selector(random, depth - 1), selector(random, depth - 1)
        return random.choice((f"{left} && {right}", f"({left} || {right})", f"!({left})", f"({left}) && !({right})"))
    label = random.choice(tuple(LABELS))
    value, other = random.choice(LABELS[label]), random.choice(LABELS[label])
    return random.choice(
        (
            *(f"{label} == '{value}'", f'{label} == "{value}"', f"{label} != '{value}'"),
            *(f"has({label})", f"! has( {label} )", f"{label} in {{'{value}', '{other}'}}"),
            *(f"{label} notin {{ '{value}', }}", f"{label} in {{}}", f"{label} contains '{value[0]}'"),
            *(f"{label} starts with '{value[:2]}'", f"{label} endswith '{value[-1]}'", "all()"),
            *("projectcalico.org/orchestrator == 'k8s'", "projectcalico.org/serviceaccount == 'sa1'"),
        )
    )


def namespace_selector(random: Random) -> str:
    return random.choice(
        (
            *("all()", "env == 'prod'", "has(env)", "env != 'dev' || app in {'a', 'b'}"),
            *("projectcalico.org/name == 'ns2'", "projectcalico.org/name in {'ns1', 'ns2'}"),
        )
    )


def account_selector(random: Random) -> str:
    return random.choice(("all()", "role == 'db'", "!has(role)", "projectcalico.org/name == 'sa1'"))


# --- rules ------------------------------------------------------------------------------------------------------------


def port(random: Random) -> int | str:
    return random.choice((80, 443, 53, "8000:8100", "1:10", "7:7", "443", *PORT_NAMES))


def ports(random: Random) -> list[int | str]:
    return [port(random) for _ in range(random.randint(1, 3))]


def service(random: Random, namespace: str) -> Json:
    match: Json = {"name": random.choice(SERVICES)}
    if not namespace or random.random() < 0.5:
        match["namespace"] = random.choice(NAMESPACES)
    return match


def accounts(random: Random) -> Json:
    match: Json = {}
    sometimes(
        random, 0.7, match, names=lambda: some(random, ("sa1", "sa2"), 2), selector=lambda: account_selector(random)
    )
    return match


def entity(random: Random, namespace: str) -> Json:
    """One side of a rule."""
    side: Json = {}
    if random.random() < 0.12:
        side["services"] = service(random, namespace)
        return side
    sometimes(
        random,
        0.3,
        side,
        selector=lambda: selector(random),
        notSelector=lambda: selector(random, 1),
        ports=lambda: ports(random),
    )
    sometimes(
        random,
        0.15,
        side,
        nets=lambda: some(random, NETWORKS, 2),
        notNets=lambda: some(random, NETWORKS, 2),
        notPorts=lambda: ports(random),
        serviceAccounts=lambda: accounts(random),
        namespaceSelector=lambda: random.choice(
            (namespace_selector(random), "global()", "global() || has(env)", "all() && env == 'prod'")
        ),
    )
    return side


def icmp(random: Random) -> Json:
    match: Json = {}
    sometimes(random, 0.8, match, type=lambda: random.choice((0, 8, 128)))
    sometimes(random, 0.4, match, code=lambda: random.choice((0, 3)))
    return match


def http(random: Random) -> Json:
    paths = ({"exact": "/a"}, {"prefix": "/b"}, {"prefix": "/c/"})
    return {"methods": some(random, ("GET", "PUT"), 2), "paths": some(random, paths, 2)}


def protocol(random: Random) -> int | str:
    return random.choice(("TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "UDPLite", 6, 17, 132, 47, 1, 58, "6", "132"))


def rule(random: Random, namespace: str) -> Json:
    made: Json = {"action": random.choice(("Allow", "Deny", "Log", "Pass"))}
    sometimes(random, 0.6, made, protocol=lambda: protocol(random))
    sometimes(
        random,
        0.1,
        made,
        notProtocol=lambda: protocol(random),
        ipVersion=lambda: random.choice((4, 6)),
        icmp=lambda: icmp(random),
        notICMP=lambda: icmp(random),
        http=lambda: http(random),
        metadata=lambda: {"annotations": {"why": random.choice("ab")}},
    )
    sometimes(
        random, 0.6, made, source=lambda: entity(random, namespace), destination=lambda: entity(random, namespace)
    )
    return made


def rules(random: Random, namespace: str, most: int = 3) -> list[Json]:
    return [rule(random, namespace) for _ in range(random.randint(0, most))]


# --- policies, tiers, profiles ----------------------------------------------------------------------------------------


def order(random: Random) -> float | int:
    return random.choice((1, 2.5, 10, 10, 100, -3))


def policy_spec(random: Random, namespace: str) -> Json:
    spec: Json = {}
    sometimes(random, 0.8, spec, tier=lambda: random.choice(TIERS), selector=lambda: selector(random))
    sometimes(
        random,
        0.7,
        spec,
        order=lambda: order(random),
        types=lambda: random.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Egress", "Ingress"], [])),
        ingress=lambda: rules(random, namespace),
        egress=lambda: rules(random, namespace),
    )
    sometimes(
        random,
        0.08,
        spec,
        serviceAccountSelector=lambda: account_selector(random),
        performanceHints=lambda: random.choice((["AssumeNeededOnEveryNode"], ["AssumeNeededOnEveryNode"], [])),
    )
    return spec


def policy(random: Random, kind: str, namespace: str, spec: Json) -> Made:
    """As Calico's client stores one; without the annotation when it is as old clients did, `default.` in the key."""
    name = random.choice("pqr")
    if kind.startswith("Staged"):
        sometimes(random, 0.8, spec, stagedAction=lambda: random.choice(("Set", "Set", "Learn", "Ignore", "Delete")))
    tier = {"projectcalico.org/tier": spec.get("tier", "default")}
    if random.random() < 0.1 and spec.get("tier", "default") == "default":
        return resource(kind, f"default.{name}", spec, namespace=namespace)
    note = {"projectcalico.org/metadata": f'{{"name":"{name}"}}'}
    return resource(kind, name, spec, namespace=namespace, labels=tier, annotations=note)


def network_policy(random: Random) -> Made:
    namespace = random.choice(NAMESPACES)
    kind = random.choice(("NetworkPolicy", "NetworkPolicy", "StagedNetworkPolicy"))
    return policy(random, kind, namespace, policy_spec(random, namespace))


def global_policy(random: Random) -> Made:
    spec = policy_spec(random, "")
    sometimes(random, 0.2, spec, namespaceSelector=lambda: namespace_selector(random))
    sometimes(
        random,
        0.15,
        spec,
        applyOnForward=lambda: random.random() < 0.9,
        doNotTrack=lambda: random.random() < 0.9,
        preDNAT=lambda: random.random() < 0.9,
    )
    kind = random.choice(("GlobalNetworkPolicy", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"))
    return policy(random, kind, "", spec)


def tier(random: Random) -> Made:
    spec: Json = {}
    sometimes(
        random,
        0.8,
        spec,
        order=lambda: random.choice((1, 1, 5.5, 1000, 1000000)),
        defaultAction=lambda: random.choice(("Deny", "Pass")),
    )
    return resource("Tier", random.choice(TIERS[:-1]), spec)


def profile(random: Random) -> Made:
    name = random.choice(PROFILES[:6])
    spec: Json = {}
    prefixes = {"kns": "pcns.", "ksa": "pcsa."}
    carried = labels(random, prefixes.get(name.split(".")[0], ""))
    if name.startswith("kns.") and random.random() < 0.8:
        carried["pcns.projectcalico.org/name"] = name.removeprefix("kns.")
    if random.random() < 0.2:
        carried |= labels(random)
    spec["labelsToApply"] = carried
    sometimes(random, 0.5, spec, ingress=lambda: rules(random, "", 2), egress=lambda: rules(random, "", 2))
    return resource("Profile", name, spec)


# --- endpoints and sets -----------------------------------------------------------------------------------------------


def named_ports(random: Random) -> list[Json]:
    """Of a workload or host endpoint; one may lack a name, as a port with a host port does."""
    return [
        {
            "name": random.choice((*PORT_NAMES, "http", "")),
            "protocol": random.choice(("TCP", "UDP", "SCTP", 6, 17)),
            "port": random.choice((80, 8080, 53)),
        }
        for _ in range(random.randint(1, 3))
    ]


def networks_of_workload(random: Random) -> list[str]:
    return [
        *(f"{one}/32" for one in some(random, ADDRESSES4, 2)),
        *(f"{one}/128" for one in some(random, ADDRESSES6, 1)),
    ]


def qos(random: Random) -> Json:
    limits: Json = {}
    sometimes(
        random,
        0.5,
        limits,
        ingressBandwidth=lambda: 1_000_000,
        egressPacketRate=lambda: 500,
        egressMaxConnections=lambda: 10,
        dscp=lambda: random.choice(("EF", 20, "AF11")),
    )
    return limits


def nat(random: Random) -> list[Json]:
    return random.choice(
        (
            [{"internalIP": ADDRESSES4[0], "externalIP": "192.0.2.77"}],
            [{"internalIP": ADDRESSES6[0], "externalIP": "2001:DB8::77"}],
        )
    )


def workload(random: Random) -> Made:
    namespace = random.choice(NAMESPACES)
    pod = random.choice(("w", "x", "y-1", "z"))
    spec: Json = {
        "orchestrator": random.choice(("k8s", "k8s", "k8s", "cni", "openstack")),
        "node": random.choice(NODES),
        "pod": pod,
        "containerID": f"c{pod[0]}",
        "workload": f"vm{pod[0]}",
        "endpoint": "eth0",
        "ipNetworks": networks_of_workload(random),
        "profiles": some(random, PROFILES, 3),
        "interfaceName": f"cali{namespace}{pod}",
    }
    sometimes(
        random,
        0.3,
        spec,
        serviceAccountName=lambda: random.choice(("sa1", "sa2")),
        ports=lambda: named_ports(random),
        mac=lambda: random.choice(("ee:ee:ee:ee:ee:ee", "ee:ee:ee:ee:ee:01")),
    )
    sometimes(
        random,
        0.1,
        spec,
        ipNATs=lambda: nat(random),
        allowSpoofedSourcePrefixes=lambda: some(random, NETWORKS, 2),
        qosControls=lambda: qos(random),
    )
    own = labels(random) | {
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": spec["orchestrator"],
    }
    if random.random() < 0.1:  # a pod that claims what only its namespace can have
        own |= labels(random, "pcns.") | {"projectcalico.org/serviceaccount": "sa1"}
    fields = {name: spec[name] for name in ("orchestrator", "node", "pod", "workload", "endpoint")}
    full = names.workload_endpoint_name(WorkloadEndpointSpec(**fields, container_id=spec["containerID"]))
    return resource("WorkloadEndpoint", full, spec, namespace=namespace, labels=own)


def host(random: Random) -> Made:
    """May move to another node under one name, as no workload endpoint does."""
    spec: Json = {"node": random.choice(NODES)}
    sometimes(
        random,
        0.7,
        spec,
        interfaceName=lambda: random.choice(("eth0", "*")),
        expectedIPs=lambda: [*some(random, ADDRESSES4, 1), *some(random, ADDRESSES6, 1)],
        profiles=lambda: some(random, PROFILES, 2),
    )
    sometimes(random, 0.3, spec, ports=lambda: named_ports(random))
    return resource("HostEndpoint", random.choice("gh"), spec, labels=labels(random, chance=0.7))


def network_set(random: Random) -> Made:
    spec = {"nets": some(random, NETWORKS, 4)}
    if random.random() < 0.5:
        return resource("GlobalNetworkSet", random.choice("st"), spec, labels=labels(random))
    namespace = random.choice(NAMESPACES)
    return resource("NetworkSet", random.choice("st"), spec, namespace=namespace, labels=labels(random))
