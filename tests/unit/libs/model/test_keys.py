from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from libs import model
from libs.model import keys

RESOURCES = "/calico/resources/v3/projectcalico.org/"


@pytest.mark.parametrize(
    ("kind", "name", "namespace", "path"),
    [
        ("Tier", "default", "", "tiers/default"),
        ("NetworkPolicy", "np1", "ns1", "networkpolicies/ns1/np1"),
        ("FelixConfiguration", "node.node1", "", "felixconfigurations/node.node1"),
        ("WorkloadEndpoint", "n--1-k8s-web--0-eth0", "ns1", "workloadendpoints/ns1/n--1-k8s-web--0-eth0"),
        ("IPAMConfiguration", "default", "", "ipamconfigurations/default"),
    ],
)
def test_resource_keys_go_both_ways(kind: str, name: str, namespace: str, path: str) -> None:
    assert keys.resource_key(kind, name, namespace) == RESOURCES + path
    parsed = keys.parse_key(RESOURCES + path)
    assert parsed == keys.ResourceKey(kind, name, namespace)
    assert parsed.path == RESOURCES + path
    assert keys.describe(parsed) == (kind, namespace, name)


def test_escaped_names_are_decoded_once() -> None:
    assert keys.parse_key(RESOURCES + "profiles/a%2fb%252f") == keys.ResourceKey("Profile", "a/b%2f")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/calico/",
        RESOURCES,
        RESOURCES + "tiers",
        RESOURCES + "tiers/",
        RESOURCES + "tiers/ns/name",
        RESOURCES + "networkpolicies/name",
        RESOURCES + "networkpolicies/ns/",
        RESOURCES + "unknowns/name",
        "/calico/resources/v3/projectcalico.org",
        "/calico/ipam/v2/host/node1",
        "/calico/ipam/v2/assignment/ipv4/block/fd00::-122",
        "/calico/ipam/v2/assignment/ipv4/block/nonsense",
        "/calico/ipam/v2/handle/",
        "/calico/felix/v2/no-region/host/h/status",
        "/other/tiers/default",
    ],
)
def test_other_keys_are_nobody(key: str) -> None:
    assert keys.parse_key(key) is None


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("assignment/ipv4/block/10.0.0.0-26", keys.BlockKey(ip_network("10.0.0.0/26"))),
        ("assignment/ipv6/block/fd00:0:0:1::-122", keys.BlockKey(ip_network("fd00:0:0:1::/122"))),
        ("host/node-1/ipv4/block/10.0.0.64-26", keys.AffinityKey("host", "node-1", ip_network("10.0.0.64/26"))),
        ("virtual/lb/ipv4/block/10.0.0.0-26", keys.AffinityKey("virtual", "lb", ip_network("10.0.0.0/26"))),
        ("handle/k8s-pod-network.abc", keys.HandleKey("k8s-pod-network.abc")),
        ("config", keys.IPAMConfigKey()),
    ],
)
def test_ipam_keys_are_recognised(path: str, key: keys.Key) -> None:
    assert keys.parse_key("/calico/ipam/v2/" + path) == key
    if ":" not in path:
        assert key.path == "/calico/ipam/v2/" + path


@pytest.mark.parametrize(("kind", "namespace"), [("Tier", "ns"), ("NetworkPolicy", "")])
def test_namespace_must_fit_the_kind(kind: str, namespace: str) -> None:
    with pytest.raises(ValueError):
        keys.resource_key(kind, "name", namespace)


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        (keys.felix_status_key("h"), keys.StatusKey("h")),
        (keys.felix_last_status_key("h", "r1"), keys.StatusKey("h", "r1", last_reported=True)),
        (keys.workload_status_key("h", "k8s", "ns/pod", "eth0"), keys.StatusKey("h", "", "k8s", "ns/pod", "eth0")),
        (keys.host_endpoint_status_key("h", "a/b%"), keys.StatusKey("h", endpoint="a/b%")),
    ],
)
def test_status_keys_go_both_ways(key: str, parsed: keys.StatusKey) -> None:
    assert keys.parse_status_key(key) == parsed


def test_status_keys_are_laid_out_as_felix_does() -> None:
    assert keys.felix_status_key("h") == "/calico/felix/v2/no-region/host/h/status"
    assert keys.felix_last_status_key("h", "east") == "/calico/felix/v2/region-east/host/h/last_reported_status"
    assert keys.workload_status_key("h", "k8s", "ns/pod", "eth0") == (
        "/calico/felix/v2/no-region/host/h/workload/k8s/ns%2fpod/endpoint/eth0"
    )
    assert keys.host_endpoint_status_key("h", "ep") == "/calico/felix/v1/host/h/endpoint/ep"
    assert keys.parse_status_key("/calico/felix/v2/elsewhere/host/h/status") is None


# --- names of workload endpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"orchestrator": "k8s", "node": "node-1", "pod": "web-0", "endpoint": "eth0"}, "node--1-k8s-web--0-eth0"),
        ({"orchestrator": "cni", "node": "n", "container_id": "c2", "endpoint": "eth0"}, "n-cni-c2-eth0"),
        ({"orchestrator": "libnetwork", "node": "n", "endpoint": "e"}, "n-libnetwork-libnetwork-e"),
        ({"orchestrator": "openstack", "node": "n", "workload": "vm", "endpoint": "p"}, "n-openstack-vm-p"),
    ],
)
def test_workload_endpoint_names_are_made_of_the_spec(spec: dict[str, Any], name: str) -> None:
    made = model.WorkloadEndpointSpec(**spec)
    assert model.workload_endpoint_name(made) == name
    parsed = model.parse_workload_endpoint_name(name)
    assert (parsed.node, parsed.orchestrator, parsed.endpoint) == (made.node, made.orchestrator, made.endpoint)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"orchestrator": "k8s", "node": "n", "endpoint": "e"}, "pod"),
        ({"orchestrator": "k8s", "node": "n-", "pod": "p", "endpoint": "e"}, "node"),
        ({"orchestrator": "cni", "node": "n", "endpoint": "e"}, "containerID"),
        ({"node": "n", "workload": "w", "endpoint": "e"}, "orchestrator"),
    ],
)
def test_missing_or_dashed_parts_are_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(model.NamePartError) as caught:
        model.workload_endpoint_name(model.WorkloadEndpointSpec(**spec))
    assert caught.value.field == field


def test_prefix_of_a_nodes_endpoints_ends_with_a_lone_dash() -> None:
    assert model.workload_endpoint_prefix("node-1") == "node--1-"
    assert model.workload_endpoint_prefix("n", "k8s") == "n-k8s-"


@pytest.mark.parametrize("name", ["", "a", "a-b-c", "a-b-c-d-e", "a---b"])
def test_names_of_other_than_four_parts_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        model.parse_workload_endpoint_name(name)
