"""What the calculation says of endpoints, profiles and labels, and what a flush reports."""

from __future__ import annotations

import json

import msgspec
import pytest

from libs import model
from libs.policy.calculator import MISSING_PROFILE, Calculator
from libs.policy.changes import Encapsulation
from libs.policy.output import Action, Block, NodeInfo, PolicyKey, Pool, WorkloadKey
from tests.unit.libs.policy.build import (
    calculate,
    gnp,
    gnp_key,
    gns,
    hep,
    node,
    np,
    np_key,
    only_policy_sets,
    pool,
    profile,
    rule,
    tier,
    view_of,
    wep,
    workload,
)

ALLOW_FROM_A = [rule(source={"selector": "has(a)"})]


def test_policy_is_active_only_where_it_selects_an_endpoint() -> None:
    resources = (gnp("p", "has(a)"), wep("x", labels={"a": ""}), wep("y", node="n2", nets=("10.0.0.2/32",)))
    assert set(view_of(*resources, node="n1").policies) == {gnp_key("p")}
    assert not view_of(*resources, node="n2").policies
    assert workload(view_of(*resources), "x").tiers[0].ingress == (gnp_key("p"),)


def test_namespaced_policy_selects_only_its_namespace() -> None:
    view = view_of(np("p", "ns1"), wep("x"), wep("y", namespace="ns2", nets=("10.0.0.2/32",)))
    assert workload(view, "x").policy_keys() == {np_key("p")}
    assert workload(view, "y", "ns2").policy_keys() == set()


def test_missing_profile_denies_both_ways() -> None:
    view = view_of(wep("x", profiles=("gone",)))
    assert view.profiles == {"gone": MISSING_PROFILE}
    assert [one.action for one in (*MISSING_PROFILE.inbound, *MISSING_PROFILE.outbound)] == [Action.DENY, Action.DENY]


def test_built_in_profile_allows_without_being_stored() -> None:
    stored = view_of(hep("h", profiles=("projectcalico-default-allow",))).profiles["projectcalico-default-allow"]
    assert [one.action for one in (*stored.inbound, *stored.outbound)] == [Action.ALLOW, Action.ALLOW]


def test_profile_appears_and_goes_back_to_the_stand_in() -> None:
    calculator = calculate(wep("x", profiles=("p",)))
    calculator.update("p", profile("p", ingress=[rule("Allow")]))
    changes = calculator.flush()
    assert changes.nodes["n1"].profiles_changed == {"p"}
    assert calculator.view("n1").profiles["p"].inbound[0].action is Action.ALLOW
    calculator.update("p", None)
    calculator.flush()
    assert calculator.view("n1").profiles["p"] == MISSING_PROFILE


def test_labels_are_inherited_from_profiles_and_the_endpoints_own_win() -> None:
    profiles = (profile("p1", {"a": "1", "b": "1"}), profile("p2", {"a": "2", "c": "2"}))
    endpoint = wep("x", labels={"b": "own"}, profiles=("p1", "p2"))
    policy = gnp("p", "a == '1' && b == 'own' && c == '2'")
    assert view_of(*profiles, endpoint, policy).policies


def test_inherited_label_goes_when_the_profile_goes() -> None:
    calculator = calculate(profile("p1", {"a": "1"}), wep("x", profiles=("p1",)), gnp("p", "has(a)"))
    assert calculator.view("n1").policies
    calculator.update("Profile//p1", None)
    changes = calculator.flush()
    assert changes.nodes["n1"].policies_removed == {gnp_key("p")}
    assert changes.policies == {gnp_key("p"): None}


def test_workload_cannot_claim_labels_of_a_namespace_or_service_account() -> None:
    endpoint = wep("x", labels={"pcns.env": "prod", "pcsa.role": "admin", "projectcalico.org/namespace": "kube-system"})
    policies = (
        gnp("by-namespace", namespace_selector="env == 'prod'"),
        gnp("by-account", service_account_selector="role == 'admin'"),
        np("elsewhere", "kube-system"),
    )
    view = view_of(endpoint, *policies)
    assert not view.policies
    assert workload(view, "x").labels == {"projectcalico.org/namespace": "ns1"}


def test_namespace_and_service_account_are_selected_by_their_profiles_labels() -> None:
    resources = (
        profile("kns.ns1", {"pcns.env": "prod"}),
        profile("ksa.ns1.sa", {"pcsa.role": "admin"}),
        wep("x", profiles=("kns.ns1", "ksa.ns1.sa"), account="sa"),
        gnp("by-namespace", namespace_selector="env == 'prod'"),
        gnp("by-account", service_account_selector="role == 'admin'"),
        gnp("by-name", "projectcalico.org/serviceaccount == 'sa'"),
    )
    assert len(view_of(*resources).policies) == 3


def test_namespaces_and_service_accounts_are_told_without_prefix() -> None:
    calculator = calculate(
        profile("kns.ns1", {"pcns.env": "prod", "other": "x"}), profile("ksa.ns1.a.b", {"pcsa.role": "admin"})
    )
    assert calculator.namespaces == {"ns1": {"env": "prod"}}
    assert calculator.service_accounts == {("ns1", "a.b"): {"role": "admin"}}


def test_untracked_policy_is_active_for_a_workload_but_in_none_of_its_tiers() -> None:
    view = view_of(gnp("u", do_not_track=True, apply_on_forward=True), wep("x"), hep("h"))
    assert workload(view, "x").tiers == ()
    assert [tier.ingress for tier in view.hosts["h"].untracked_tiers] == [(gnp_key("u"),)]
    assert view.policies[gnp_key("u")].untracked


def test_host_endpoint_sees_forward_policies_in_both_lists() -> None:
    host = view_of(gnp("f", apply_on_forward=True), gnp("n"), hep("h")).hosts["h"]
    assert [[key.name for key in one.ingress] for one in host.tiers] == [["f", "n"]]
    assert [[key.name for key in one.ingress] for one in host.forward_tiers] == [["f"]]


def test_staged_policy_is_published_and_a_staged_deletion_is_not() -> None:
    view = view_of(gnp("set", staged="Set"), gnp("gone", staged="Delete"), wep("x"))
    assert [key.name for key in view.policies] == ["set"]
    assert next(iter(view.policies)).kind == "StagedGlobalNetworkPolicy"


def test_policy_of_an_unknown_tier_is_kept_and_moves_when_the_tier_appears() -> None:
    calculator = calculate(gnp("a", tier="late"), gnp("b"), tier("default", 1e6), wep("x"))
    assert [one.name for one in workload(calculator.view("n1"), "x").tiers] == ["default", "late"]
    calculator.update("Tier//late", tier("late", 1, "Pass"))
    changes = calculator.flush()
    assert list(changes.nodes["n1"].workloads) == [WorkloadKey("k8s", "ns1/x", "eth0")]
    tiers = workload(calculator.view("n1"), "x").tiers
    assert [(one.name, one.default_action) for one in tiers] == [("late", "Pass"), ("default", "Deny")]


def test_hint_makes_a_policy_active_on_every_known_node() -> None:
    policy = gnp("p", "has(nobody)", performance_hints=["AssumeNeededOnEveryNode"], ingress=ALLOW_FROM_A)
    calculator = calculate(policy, node("n1"), wep("x", node="n2"))
    assert calculator.nodes_of_policy(gnp_key("p")) == {"n1", "n2"}
    calculator.know_node("n3")
    changes = calculator.flush()
    assert changes.nodes["n3"].policies_added == {gnp_key("p")}
    assert len(changes.nodes["n3"].sets_added) == 1
    calculator.update("Node//n1", None)
    assert calculator.flush().nodes["n1"].policies_removed == {gnp_key("p")}


def test_change_of_rules_alone_concerns_the_nodes_but_republishes_no_endpoint() -> None:
    calculator = calculate(gnp("p"), wep("x"), wep("y", node="n2", nets=("10.0.0.2/32",), labels={"a": ""}))
    calculator.update("GlobalNetworkPolicy//p", gnp("p", ingress=ALLOW_FROM_A))
    changes = calculator.flush()
    assert changes.concerned() == {"n1", "n2"}
    assert all(not change.workloads and change.policies_changed for change in changes.nodes.values())
    assert not changes.concerns_all()


def test_node_that_loses_a_policy_is_concerned() -> None:
    calculator = calculate(gnp("p", "has(a)"), wep("x", labels={"a": ""}), wep("y", node="n2", nets=("10.0.0.2/32",)))
    calculator.update("GlobalNetworkPolicy//p", None)
    assert calculator.flush().concerned() == {"n1"}


def test_same_value_again_changes_nothing() -> None:
    resources = (gnp("p", ingress=ALLOW_FROM_A), wep("x", labels={"a": ""}), node("n1", "192.0.2.1/24"))
    calculator = calculate(*resources)
    for resource in (*resources, *resources):
        calculator.update(f"{resource.kind}/{resource.metadata.namespace}/{resource.metadata.name}", resource)
    assert calculator.flush().empty()


def test_endpoint_that_moves_leaves_the_old_node() -> None:
    calculator = calculate(gnp("p"), hep("h"))
    calculator.update("HostEndpoint//h", hep("h", node="n2"))
    changes = calculator.flush()
    assert changes.nodes["n1"].hosts == {"h": None}
    assert changes.nodes["n1"].policies_removed == {gnp_key("p")}
    assert changes.nodes["n2"].policies_added == {gnp_key("p")}
    assert calculator.nodes == {"n2"}


def test_workload_without_addresses_does_not_exist() -> None:
    assert not calculate(wep("x", nets=())).nodes


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"interface_name": ""}, "interfaceName: '' cannot be the name of an interface"),
        ({"interface_name": "cali0123456789ab"}, "interfaceName"),
        ({"interface_name": "cali/0"}, "interfaceName"),
        ({"ip_nats": [model.IPNAT(internal_ip="10.0.0.1", external_ip="oops")]}, "oops"),
        ({"ip_nats": [model.IPNAT(internal_ip="10.0.0.1", external_ip="fd00::1")]}, "two families"),
        ({"ip_nats": [model.IPNAT(internal_ip="fd00::1", external_ip="fe80::1%eth0")]}, "fe80::1%eth0"),
        ({"ip_networks": ["fe80::1%eth0/128"]}, "fe80::1%eth0/128"),
        ({"allow_spoofed_source_prefixes": ["10.0.0.0/255.0.0.0"]}, "255.0.0.0"),
        ({"ports": [model.WorkloadEndpointPort(name="a", protocol=model.Protocol("TCP"), port=70000)]}, "70000"),
    ],
)
def test_workload_that_no_node_could_program_is_absent_and_named(fields: dict[str, object], reason: str) -> None:
    calculator = calculate(wep("good", nets=("10.0.0.2/32",)))
    bad = wep("bad")
    calculator.update("bad", msgspec.structs.replace(bad, spec=msgspec.structs.replace(bad.spec, **fields)))
    changes = calculator.flush()
    assert not changes.nodes
    assert reason in changes.refused["bad"]


def test_host_endpoint_whose_interface_cannot_be_is_absent_and_named() -> None:
    calculator = calculate(
        *(hep(name, interface=interface) for name, interface in (("a", "*"), ("b", ""), ("c", "eth0")))
    )
    assert set(calculator.view("n1").hosts) == {"a", "b", "c"}
    calculator.update("bad", hep("d", interface="x" * 16))
    changes = calculator.flush()
    assert not changes.nodes
    assert "interfaceName" in changes.refused["bad"]


def test_resource_with_a_selector_that_does_not_parse_is_absent_and_named() -> None:
    calculator = calculate(wep("x"))
    calculator.update("bad", gnp("p", "a = 'b'"))
    calculator.update("worse", gnp("q", ingress=[rule(source={"selector": "oops"})]))
    calculator.update("unknown action", gnp("r", ingress=[rule("allow")]))
    changes = calculator.flush()
    assert not changes.policies
    assert set(changes.refused) == {"bad", "worse", "unknown action"}


@pytest.mark.parametrize(
    "bad",
    [
        rule(protocol="Allowed"),
        rule(not_protocol=model.Protocol("Allowed")),
        rule(ip_version=7),
        rule(icmp=model.ICMPFields(type=255)),
        rule(not_icmp=model.ICMPFields(type=8, code=256)),
        rule(source={"nets": ["10.0.0.0/255.0.0.0"]}),
        rule(destination={"not_nets": ["fe80::1%eth0/128"]}),
    ],
)
def test_policy_with_a_rule_that_no_dataplane_can_express_is_absent_and_named(bad: model.Rule) -> None:
    calculator = calculate(wep("x", profiles=("p",)), profile("p", egress=[bad]))
    assert calculator.view("n1").profiles == {"p": MISSING_PROFILE}
    calculator.update("bad", gnp("p", ingress=[bad]))
    changes = calculator.flush()
    assert not changes.policies
    assert set(changes.refused) == {"bad"}


@pytest.mark.parametrize("bad", ["fe80::1%eth0", "fe80::1%eth0/64", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255"])
def test_network_set_with_a_zone_or_a_netmask_is_absent_and_named(bad: str) -> None:
    calculator = calculate(wep("x"))
    calculator.update("bad", gns("s", {}, ("10.0.0.0/8", bad)))
    assert set(calculator.flush().refused) == {"bad"}


def test_named_port_of_a_protocol_without_ports_is_in_no_set() -> None:
    to = rule("Allow", None, None, {"ports": ["http"]})
    ports = (("http", "UDPLite", 80), ("http", "ICMP", 81), ("http", 0, 82), ("http", 132, 83), ("http", "", 84))
    (found,) = only_policy_sets(view_of(wep("x", ports=ports), gnp("p", egress=[to])), "p")
    assert found == {"10.0.0.1,tcp:82", "10.0.0.1,sctp:83"}


def test_profile_with_a_rule_that_means_nothing_denies() -> None:
    view = view_of(wep("x", profiles=("p",)), profile("p", ingress=[rule("Perhaps")]))
    assert view.profiles == {"p": MISSING_PROFILE}


def test_address_of_a_node_with_a_zone_or_a_netmask_is_left_out() -> None:
    assert calculate(node("n1", "192.0.2.1/255.255.255.0", "fe80::1%eth0/64")).node_infos["n1"] == NodeInfo()


def test_address_of_a_node_that_is_none_is_left_out() -> None:
    assert calculate(node("n1", "192.0.2.1/24", "nonsense")).node_infos["n1"] == NodeInfo(ipv4="192.0.2.1/24")


def test_of_two_keys_with_one_identity_the_smaller_counts_whatever_the_order() -> None:
    first, second = gnp("p", "has(a)"), gnp("p", "has(b)")
    for order in (("k1", "k2"), ("k2", "k1")):
        calculator = calculate(wep("x", labels={"b": ""}))
        for key in order:
            calculator.update(key, first if key == "k1" else second)
            calculator.flush()
        assert not calculator.policies
        calculator.update("k1", None)
        calculator.flush()
        assert set(calculator.policies) == {PolicyKey("GlobalNetworkPolicy", "p")}


def test_shared_tables_follow_pools_blocks_and_nodes() -> None:
    block = model.IPAMBlock(
        spec=model.IPAMBlockSpec(
            cidr="10.0.0.0/30",
            affinity="host:n1",
            allocations=[0, 1, 2, None],
            attributes=[
                model.AllocationAttribute(handle_id="h", secondary={"node": "n1"}),
                model.AllocationAttribute(handle_id="h", secondary={"node": "n2"}),
                model.AllocationAttribute(handle_id=None),
            ],
        )
    )
    calculator = Calculator()
    calculator.update("pool", pool("p", "10.0.0.0/16", vxlan_mode="Always", nat_outgoing=True))
    calculator.update("block", block)
    calculator.update("node", node("n1", "192.0.2.1/24"))
    changes = calculator.flush()
    assert changes.pools == {"10.0.0.0/16": Pool(cidr="10.0.0.0/16", nat_outgoing=True, vxlan_mode="Always")}
    assert changes.blocks == {"10.0.0.0/30": Block(cidr="10.0.0.0/30", node="n1", borrowed={"10.0.0.1": "n2"})}
    assert changes.node_infos == {"n1": NodeInfo(ipv4="192.0.2.1/24")}
    assert changes.encapsulation == Encapsulation(vxlan=True)
    assert changes.concerns_all()


def test_allocation_on_the_blocks_own_node_republishes_nothing() -> None:
    own = model.AllocationAttribute(handle_id="h", secondary={"node": "n1"})
    spec = model.IPAMBlockSpec(cidr="10.0.0.0/30", affinity="host:n1", allocations=[None] * 4)
    calculator = calculate(model.IPAMBlock(metadata=model.ObjectMeta(name="b"), spec=spec))
    spec = model.IPAMBlockSpec(
        cidr="10.0.0.0/30", affinity="host:n1", allocations=[0, None, None, None], attributes=[own]
    )
    calculator.update("IPAMBlock//b", model.IPAMBlock(metadata=model.ObjectMeta(name="b"), spec=spec))
    assert calculator.flush().empty()


@pytest.mark.parametrize("index", [-2, -1, 1, 2])
def test_allocation_of_an_attribute_that_is_not_there_is_nobodys(index: int) -> None:
    other = model.AllocationAttribute(handle_id="h", secondary={"node": "n2"})
    spec = model.IPAMBlockSpec(
        cidr="10.0.0.0/30", affinity="host:n1", allocations=[index, None, None, None], attributes=[other]
    )
    calculator = calculate(model.IPAMBlock(metadata=model.ObjectMeta(name="b"), spec=spec))
    assert calculator.blocks == {"10.0.0.0/30": Block(cidr="10.0.0.0/30", node="n1")}


def test_configuration_and_bgp_kinds_pass_through_and_others_do_not() -> None:
    calculator = Calculator()
    felix = model.FelixConfiguration(metadata=model.ObjectMeta(name="default"))
    calculator.update("felix", felix)
    calculator.update("reservation", model.IPReservation(metadata=model.ObjectMeta(name="r")))
    assert calculator.flush().passthrough == {"felix": felix}
    calculator.update("felix", None)
    assert calculator.flush().passthrough == {"felix": None}


def test_global_network_set_has_only_its_own_labels() -> None:
    calculator = calculate(
        gns("s", {"a": "1"}, ("198.51.100.0/24",)),
        wep("x"),
        gnp("p", ingress=[rule(source={"selector": "a == '1'", "namespace_selector": "global()"})]),
    )
    (ipset,) = calculator.view("n1").ipsets.values()
    assert ipset.members == {"198.51.100.0/24"}


def test_what_only_a_trace_reads_of_services_and_slices_changes_nothing() -> None:
    """A node port, a traffic policy inside, an endpoint that stops to serve: no node and no speaker hears of it."""
    meta = {"name": "web", "namespace": "ns1"}
    spec = {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local"}
    labels = {"kubernetes.io/service-name": "web"}

    def service(port: int, node_port: int, inside: str) -> dict[str, object]:
        ports = [{"name": "http", "protocol": "TCP", "port": port, "targetPort": "web", "nodePort": node_port}]
        return {"kind": "Service", "metadata": meta, "spec": spec | {"internalTrafficPolicy": inside, "ports": ports}}

    def piece(**conditions: bool) -> dict[str, object]:
        return {
            "kind": "EndpointSlice", "metadata": meta | {"labels": labels}, "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": False, **conditions}, "nodeName": "n1"},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": True}, "nodeName": "n2"},
            ],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        }  # fmt: skip

    to_service = rule(destination={"services": model.ServiceMatch(name="web", namespace="ns1")})
    announced = model.BGPConfiguration(
        metadata=model.ObjectMeta(name="default"),
        spec=model.BGPConfigurationSpec(service_cluster_ips=[model.ServiceClusterIPBlock(cidr="10.96.0.0/12")]),
    )
    calculator = calculate(node("n1", "192.0.2.1/24"), wep("x"), np("p", "ns1", egress=[to_service]), announced)

    def stored(kind: str, value: dict[str, object]) -> bool:
        key = model.keys.resource_key(kind, "web", "ns1")
        calculator.update(key, model.from_storage(key, json.dumps(value).encode(), 1))
        return calculator.flush().empty()

    assert not stored("KubernetesEndpointSlice", piece(serving=True, terminating=True))
    assert not stored("KubernetesService", service(80, 30080, "Cluster")), "speakers announce it"
    for port, node_port, inside in ((81, 30080, "Cluster"), (81, 30081, "Cluster"), (81, 30081, "Local")):
        assert stored("KubernetesService", service(port, node_port, inside))
    for conditions in ({"serving": False, "terminating": True}, {"serving": True}, {}):
        assert stored("KubernetesEndpointSlice", piece(**conditions))
    assert not stored("KubernetesEndpointSlice", piece() | {"endpoints": []})
