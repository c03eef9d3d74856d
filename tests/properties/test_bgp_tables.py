"""What typha calculates for speakers, step by step, against the plain calculation of everything (`bgp_oracle.py`)."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import model
from libs.model import keys
from libs.policy.calculator import Calculator
from tests.properties.bgp_oracle import Tables

NODES = ("n1", "n2", "n3")
RACKS = ("r1", "r2")
SERVICES = ("web", "dns")

Put = tuple[str, bytes | str | None]
"""Key and value; text: why it cannot be read; None: gone."""


def value(kind: str, name: str, spec: Any = None, namespace: str = "", labels: Any = None, **more: Any) -> Put:
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    document = {"kind": kind, "metadata": metadata, **({} if spec is None else {"spec": spec}), **more}
    return keys.resource_key(kind, name, namespace), msgspec.json.encode(document)


racks = st.sampled_from(RACKS)
nodes = st.builds(
    lambda name, labels, cluster, ref: value(
        "Node",
        name,
        {"bgp": {"routeReflectorClusterID": cluster}, "orchRefs": [{"orchestrator": "k8s", "nodeName": ref}]},
        labels=labels,
    ),
    st.sampled_from(NODES),
    st.dictionaries(st.sampled_from(("rack", "rr")), racks, max_size=2),
    st.sampled_from(("", "1.0.0.1")),
    st.sampled_from((*NODES, "other")),
)
where = st.one_of(
    st.just({}),
    st.builds(lambda node: {"node": node}, st.sampled_from((*NODES, "nowhere"))),
    st.builds(lambda rack: {"nodeSelector": f"rack == '{rack}'"}, racks),
    st.sampled_from(({"nodeSelector": "has(rr)"}, {"nodeSelector": "all()"}, {"nodeSelector": "!has(rr)"})),
)
whom = st.one_of(
    st.sampled_from(({"peerIP": "192.0.2.1", "asNumber": 1}, {"peerIP": "nonsense"}, {})),
    st.sampled_from(({"peerSelector": "has(rr)"}, {"peerSelector": "rack == 'r1'"}, {"peerSelector": "rack =="})),
    st.builds(lambda app: {"localWorkloadSelector": f"app == '{app}'", "asNumber": 65000}, st.sampled_from("ab")),
    st.just({"localWorkloadSelector": "has(inherited)", "asNumber": 65001}),
)
peers = st.builds(
    lambda name, a, b: value("BGPPeer", name, {**a, **b}), st.sampled_from(("p1", "p2", "p3")), where, whom
)
ranges = st.lists(
    st.sampled_from(("10.0.0.0/24", "10.0.1.0/24", "10.0.0.1/32", "fd00::/64", "fd00::1/128")), max_size=2
)


def configuration(name: str, cluster: list[str], external: list[str], balanced: list[str], aggregation: str) -> Put:
    ranges = {"serviceClusterIPs": cluster, "serviceExternalIPs": external, "serviceLoadBalancerIPs": balanced}
    spec: dict[str, Any] = {field: [{"cidr": one} for one in cidrs] for field, cidrs in ranges.items()}
    return value("BGPConfiguration", name, spec | {"serviceLoadBalancerAggregation": aggregation})


configurations = st.builds(
    configuration,
    st.sampled_from(("default", "default", "node.n1", "wrong")),
    ranges,
    ranges,
    ranges,
    st.sampled_from(("Enabled", "Disabled", "Perhaps")),
)
filters = st.builds(
    lambda name, action: value("BGPFilter", name, {"importV4": [{"action": action}]}),
    st.sampled_from(("f1", "f2")),
    st.sampled_from(("Accept", "Reject", "Perhaps")),
)


def workload(node: str, pod: str, app: str, profiles: list[str], host: int) -> Put:
    spec = {
        "orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0", "containerID": "c",
        "ipNetworks": [f"10.65.0.{host}/32", f"fd65::{host}/128"], "profiles": profiles, "interfaceName": f"cali{pod}",
    }  # fmt: skip
    labels = {"app": app, "projectcalico.org/namespace": "ns1", "projectcalico.org/orchestrator": "k8s"}
    return value("WorkloadEndpoint", f"{node}-k8s-{pod}-eth0", spec, "ns1", labels)


workloads = st.builds(
    workload,
    st.sampled_from(NODES),
    st.sampled_from(("v1", "v2")),
    st.sampled_from("abc"),
    st.sampled_from(([], ["kns.ns1"])),
    st.integers(1, 3),
)  # fmt: skip
profiles = st.builds(
    lambda labels: value("Profile", "kns.ns1", {"labelsToApply": labels}),
    st.sampled_from(({}, {"inherited": "yes"}, {"app": "a"})),
)
BLOCKS = ("10.65.1.0/30", "10.65.1.4/30")


def block(cidr: str, owner: str, users: list[str]) -> Put:
    attributes = [{"handle_id": "h", "secondary": {"node": user}} for user in users]
    body = {
        "cidr": cidr, "affinity": f"host:{owner}" if owner else None,
        "allocations": [*range(len(users)), *[None] * (4 - len(users))], "attributes": attributes,
    }  # fmt: skip
    return keys.BlockKey(ipaddress.ip_network(cidr)).path, msgspec.json.encode(body)


blocks = st.builds(
    block, st.sampled_from(BLOCKS), st.sampled_from((*NODES, "")), st.lists(st.sampled_from((*NODES, "")), max_size=2)
)


def affinity(node: str, cidr: str, state: str) -> Put:
    return keys.AffinityKey("host", node, ipaddress.ip_network(cidr)).path, msgspec.json.encode({"state": state})


affinities = st.builds(
    affinity,
    st.sampled_from(NODES),
    st.sampled_from(BLOCKS),
    st.sampled_from(("confirmed", "confirmed", "pending", "pendingDeletion")),
)
addresses = st.lists(st.sampled_from(("10.0.0.1", "10.0.1.9", "fd00::1", "192.0.2.9")), max_size=2)


def service(name: str, cluster: list[str], policy: str, external: list[str], balanced: list[str]) -> Put:
    spec = {
        "type": "LoadBalancer", "clusterIP": cluster[0], "clusterIPs": cluster,
        "externalTrafficPolicy": policy, "externalIPs": external,
    }  # fmt: skip
    status = {"loadBalancer": {"ingress": [{"ip": one} for one in balanced]}}
    return value("KubernetesService", name, spec, "ns1", status=status)


services = st.builds(
    service,
    st.sampled_from(SERVICES),
    st.sampled_from((["10.0.0.7"], ["10.0.0.7", "fd00::7"], ["fd00::7"], ["None"])),
    st.sampled_from(("Local", "Local", "Cluster")),
    addresses,
    addresses,
)  # fmt: skip


def slice_of(name: str, service: str, version: int, where: list[tuple[str | None, bool | None]]) -> Put:
    endpoints = [
        {
            "addresses": [f"10.65.0.{host}" if version == 4 else f"fd65::{host}"],
            "nodeName": node,
            "conditions": {"ready": ready},
        }
        for host, (node, ready) in enumerate(where, 1)
    ]
    labels = {"kubernetes.io/service-name": service}
    kind = "KubernetesEndpointSlice"
    return value(kind, name, None, "ns1", labels, addressType=f"IPv{version}", endpoints=endpoints)


slices = st.builds(
    slice_of,
    st.sampled_from(("s1", "s2", "s3")),
    st.sampled_from(SERVICES),
    st.sampled_from((4, 4, 6)),
    st.lists(st.tuples(st.sampled_from((None, *NODES)), st.sampled_from((None, True, False))), min_size=1, max_size=2),
)


def beginning() -> list[tuple[Put, bool]]:
    """Nodes, peers, workloads, blocks and services that use each other, so that every later change matters."""
    made: list[Put] = [
        *(
            value("Node", name, {"bgp": {}}, labels=labels)
            for name, labels in (("n1", {"rack": "r1"}), ("n2", {"rack": "r2"}), ("n3", {"rr": "r1"}))
        ),
        value("BGPPeer", "p1", {"nodeSelector": "rack == 'r1'", "peerSelector": "has(rr)"}),
        value("BGPPeer", "p2", {"nodeSelector": "has(rack)", "localWorkloadSelector": "app == 'a'", "asNumber": 65000}),
        value("BGPPeer", "p3", {"localWorkloadSelector": "has(inherited)", "asNumber": 65001}),
        value("Profile", "kns.ns1", {"labelsToApply": {"inherited": "yes"}}),
        *(workload(node, pod, "a", ["kns.ns1"], 1) for node in NODES for pod in ("v1", "v2")),
        *(block(cidr, "n1", []) for cidr in BLOCKS),
        *(affinity("n1", cidr, "confirmed") for cidr in BLOCKS),
        configuration("default", ["10.0.0.0/24"], ["10.0.1.0/24"], ["10.0.0.0/24", "fd00::/64"], "Enabled"),
        service("web", ["10.0.0.7", "fd00::7"], "Local", ["10.0.1.9"], ["10.0.0.1", "fd00::1"]),
        service("dns", ["10.0.0.8"], "Cluster", [], ["10.0.0.1"]),
        slice_of("s1", "web", 4, [("n1", True)]),
        slice_of("s2", "dns", 4, [("n2", True)]),
        slice_of("s3", "web", 6, [("n3", True)]),
    ]  # fmt: skip
    return [(put, False) for put in made]


def unreadable(put: Put) -> Put:
    return (put[0], "not JSON") if "/bgp" in put[0] else (put[0], None)


def scripts(*kinds: st.SearchStrategy[Put]) -> st.SearchStrategy[list[tuple[Put, bool]]]:
    """Changes, each with whether a flush follows. Of few kinds, so that changes meet."""
    puts = st.one_of(*kinds)
    # An index, as one_of takes strategies that occur twice for one.
    how = st.integers(0, 7)
    change = st.builds(lambda put, n: (put[0], None) if n == 6 else unreadable(put) if n == 7 else put, puts, how)
    return st.lists(st.tuples(change, st.booleans()), min_size=8, max_size=25)


THEMES = {
    "nodes": scripts(nodes, peers),
    "workloads": scripts(peers, workloads),
    "inheritance": scripts(nodes, peers, workloads, profiles),
    "blocks": scripts(blocks, affinities),
    "services": scripts(services, slices, slices),
    "ranges": scripts(configurations, services, slices),
    "all": scripts(nodes, peers, configurations, filters, workloads, profiles, blocks, affinities, services, slices),
}


class Reader:
    """Adds up what each flush tells."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.services: dict[str, Any] = {}
        self.local: dict[str, dict[str, Any]] = {}

    def read(self, calculator: Calculator) -> None:
        changes = calculator.flush()
        fold(self.entries, changes.bgp)
        fold(self.services, changes.services)
        for node, entries in changes.local.items():
            fold(self.local.setdefault(node, {}), entries)


def fold(table: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, entry in changes.items():
        assert table.get(key) != entry, "told without a change"
        if entry is None:
            del table[key]
        else:
            table[key] = entry


def run(script: list[tuple[Put, bool]]) -> tuple[Calculator, Reader]:
    calculator, reader = Calculator(), Reader()
    for (key, data), flush in script:
        readable = isinstance(data, bytes)
        resource = model.from_storage(key, data, 1) if isinstance(data, bytes) else None
        calculator.update(key, resource, "" if readable or data is None else str(data))
        if flush:
            reader.read(calculator)
    reader.read(calculator)
    return calculator, reader


def final(script: list[tuple[Put, bool]]) -> Tables:
    last = {key: data for (key, data), _ in script}
    resources = {key: model.from_storage(key, data, 1) for key, data in last.items() if isinstance(data, bytes)}
    return Tables(resources, {key: data for key, data in last.items() if isinstance(data, str)})


@pytest.mark.parametrize("theme", THEMES)
@given(data=st.data(), begun=st.booleans())
@settings(max_examples=max(80, settings().max_examples))
def test_tables_are_what_the_plain_calculation_says(theme: str, data: st.DataObject, begun: bool) -> None:
    script = [*(beginning() if begun else ()), *data.draw(THEMES[theme])]
    calculator, reader = run(script)
    wanted = final(script)
    assert calculator.bgp.entries == wanted.entries
    assert calculator.bgp.services == wanted.services
    assert calculator.bgp.local == wanted.local
    assert reader.entries == wanted.entries
    assert reader.services == wanted.services
    assert {node: entries for node, entries in reader.local.items() if entries} == wanted.local


@given(THEMES["all"])
def test_nothing_is_left_when_everything_goes(script: list[tuple[Put, bool]]) -> None:
    script = [*beginning(), *script]
    gone: list[tuple[Put, bool]] = [((key, None), False) for (key, _), _ in script]
    calculator, _ = run([*script, *gone])
    assert (calculator.bgp.entries, calculator.bgp.services, calculator.bgp.local) == ({}, {}, {})
