from __future__ import annotations

from typing import Any

import pytest

from libs import model
from libs.model.defaults import apply_defaults


def filled(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    resource = model.from_dict({"kind": kind, "metadata": {"name": "x"}, "spec": spec})
    before = model.encode(resource)
    result = apply_defaults(resource)
    assert model.encode(resource) == before, "the caller's object stays as it is"
    assert apply_defaults(result) == result, "a second time changes nothing"
    spec_after: dict[str, Any] = model.to_dict(result).get("spec", {})
    return spec_after


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        ("Tier", {}, {"order": 1000000, "defaultAction": "Deny"}),
        ("Tier", {"order": 5, "defaultAction": "Pass"}, {"order": 5, "defaultAction": "Pass"}),
        ("NetworkPolicy", {}, {"tier": "default", "types": ["Ingress"]}),
        ("GlobalNetworkPolicy", {"tier": "sec"}, {"tier": "sec", "types": ["Ingress"]}),
        ("StagedNetworkPolicy", {}, {"stagedAction": "Set", "tier": "default", "types": ["Ingress"]}),
        ("StagedGlobalNetworkPolicy", {"stagedAction": "Delete"}, {"stagedAction": "Delete", "tier": "default"}),
        ("StagedKubernetesNetworkPolicy", {}, {"stagedAction": "Set", "podSelector": {}}),
        (
            "IPPool",
            {"cidr": "10.0.0.0/16"},
            {
                "cidr": "10.0.0.0/16",
                "vxlanMode": "Never",
                "ipipMode": "Never",
                "blockSize": 26,
                "nodeSelector": "all()",
                "allowedUses": ["Workload", "Tunnel"],
                "assignmentMode": "Automatic",
            },
        ),
        (
            "FelixConfiguration",
            {},
            {
                "nftablesMode": "Auto",
                "nftablesFlowTableOffload": "Disabled",
                "bpfLogLevel": "",
                "bpfConnectTimeLoadBalancing": "TCP",
                "bpfHostNetworkedNATWithoutCTLB": "Enabled",
                "floatingIPs": "Disabled",
            },
        ),
        ("BGPConfiguration", {}, {"logSeverityScreen": "Info", "serviceLoadBalancerAggregation": "Enabled"}),
        ("IPAMConfiguration", {}, {"strictAffinity": False, "autoAllocateBlocks": True}),
        (
            "KubeControllersConfiguration",
            {"controllers": {"loadBalancer": {}, "migration": {}}},
            {
                "healthChecks": "Enabled",
                "controllers": {
                    "loadBalancer": {"assignIPs": "AllServices"},
                    "migration": {"policyNameMigrator": "Enabled"},
                },
            },
        ),
    ],
)
def test_defaults_are_those_that_calico_stores(kind: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert filled(kind, given) == wanted


@pytest.mark.parametrize(
    ("ingress", "egress", "types"),
    [(0, 0, ["Ingress"]), (1, 0, ["Ingress"]), (0, 1, ["Egress"]), (1, 1, ["Ingress", "Egress"])],
)
def test_types_follow_the_rules(ingress: int, egress: int, types: list[str]) -> None:
    spec = {"ingress": [{"action": "Allow"}] * ingress, "egress": [{"action": "Deny"}] * egress}
    assert filled("NetworkPolicy", spec)["types"] == types


def test_ipv6_pools_get_larger_prefixes_as_blocks() -> None:
    assert filled("IPPool", {"cidr": "fd00::/48"})["blockSize"] == 122


@pytest.mark.parametrize(("legacy", "balancing"), [(True, "Enabled"), (False, "Disabled")])
def test_the_old_load_balancing_switch_decides_the_new_fields(legacy: bool, balancing: str) -> None:
    spec = filled("FelixConfiguration", {"bpfConnectTimeLoadBalancingEnabled": legacy})
    assert spec["bpfConnectTimeLoadBalancing"] == balancing
    assert spec["bpfHostNetworkedNATWithoutCTLB"] == "Disabled"
