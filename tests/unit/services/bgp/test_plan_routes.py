"""What a node announces, refuses and passes on, and the settings of the speaker itself."""

from __future__ import annotations

import base64
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from services.bgp.core.paths import Family, network
from services.bgp.core.plan_routes import EXCLUDE_LABEL
from services.bgp.core.settings import PoolExport, SpeakerSettings
from tests.unit.services.bgp.cluster import Cluster

KEYS = {number: base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3)}


def announced(made: SpeakerSettings) -> list[str]:
    """Blocks with `!`."""
    return [f"{network(one.family, one.prefix)}{'!' * one.block}" for one in made.originated]


# --- G11, G12 --------------------------------------------------------------------------------------------------------


def test_blocks_with_a_confirmed_affinity_are_announced_by_their_node_only() -> None:
    cluster = Cluster(2)
    cluster.block("10.65.0.64/26", "node1")
    cluster.block("10.65.0.0/26", "node1")
    cluster.block("fd65::/122", "node1")
    cluster.block("10.65.1.0/26", "node2")
    cluster.block("10.65.2.0/26", "node1", "pending")
    cluster.block("10.65.3.0/26", "node1", "pendingDeletion")
    assert announced(cluster.plan()) == ["10.65.0.0/26!", "10.65.0.64/26!", "fd65::/122!"]
    assert cluster.plan().own_blocks == tuple(map(ip_network, ("10.65.0.0/26", "10.65.0.64/26", "fd65::/122")))
    cluster.affinity("10.65.2.0/26", "node1", "confirmed")
    cluster.affinity("10.65.0.0/26", "node1", "pendingDeletion")
    assert announced(cluster.plan()) == ["10.65.0.64/26!", "10.65.2.0/26!", "fd65::/122!"]


def test_an_affinity_that_the_block_does_not_know_of_counts_for_nothing() -> None:
    cluster = Cluster(2)
    cluster.block("10.65.0.0/26", "node2")
    cluster.affinity("10.65.0.0/26", "node1", "confirmed")
    cluster.affinity("10.65.9.0/26", "node1", "confirmed")  # no such block
    assert announced(cluster.plan("node1")) == []
    assert announced(cluster.plan("node2")) == ["10.65.0.0/26!"]


def test_pools_with_their_overlay_and_whether_they_leave() -> None:
    cluster = Cluster(1)
    cluster.pool("b", "10.66.0.0/16", disableBGPExport=True, vxlanMode="CrossSubnet")
    cluster.pool("a", "10.65.0.0/16", ipipMode="Always")
    cluster.pool("c", "fd65::/64")
    assert cluster.plan().pools == (
        PoolExport(ip_network("10.65.0.0/16"), ipip_mode="Always"),
        PoolExport(ip_network("10.66.0.0/16"), export=False, vxlan=True),
        PoolExport(ip_network("fd65::/64")),
    )


# --- G13 -------------------------------------------------------------------------------------------------------------


def with_service(policy: str, **config: Any) -> Cluster:
    cluster = Cluster(3)
    cluster.config(
        **{
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd96::/112"}],
            "serviceExternalIPs": [{"cidr": "198.51.100.0/24"}],
            "serviceLoadBalancerIPs": [{"cidr": "203.0.113.0/24"}, {"cidr": "203.0.113.9/32"}],
        }
        | config
    )
    cluster.service(
        "web",
        ["10.96.0.7", "fd96::7"],
        policy=policy,
        external=["198.51.100.7", "192.0.2.7"],
        balanced=["203.0.113.7", "192.0.2.8"],
    )
    cluster.endpoints("web", ("node1", True), ("node2", False))
    return cluster


def test_ranges_of_the_environment_stand_for_cluster_addresses_while_there_are_none() -> None:
    """The variable that confd knew before BGPConfiguration had a field for it."""
    cluster = Cluster(2, cluster_ips=("10.96.0.1/12", " fd96::/112", "services"))
    cluster.service("web", ["10.96.0.7", "fd96::7"], policy="Local", external=["198.51.100.7"])
    cluster.endpoints("web", ("node1", True), ("node2", False))
    ranges = [ip_network("10.96.0.0/12"), ip_network("fd96::/112")]

    def told(node: str) -> list[str]:
        return announced(cluster.plan(node))

    for configure in ({}, {"listenPort": 1179}):
        if configure:
            cluster.config(**configure)
        assert told("node1") == ["10.96.0.0/12", "10.96.0.7/32", "fd96::/112"]
        assert told("node2") == ["10.96.0.0/12", "fd96::/112"]
        made = cluster.plan("node2")
        assert list(made.reject) == ranges
        assert list(made.problems) == ["environment(CALICO_ADVERTISE_CLUSTER_IPS)"]
        assert "'services' is no range" in made.problems["environment(CALICO_ADVERTISE_CLUSTER_IPS)"]
    cluster.config(serviceClusterIPs=[{"cidr": "10.112.0.0/12"}])
    assert told("node2") == ["10.112.0.0/12"]
    assert cluster.plan("node2").problems == {}
    cluster.config(serviceExternalIPs=[{"cidr": "198.51.100.0/24"}])
    assert told("node1") == ["10.96.0.0/12", "10.96.0.7/32", "198.51.100.0/24", "198.51.100.7/32", "fd96::/112"]


WHOLE = ["10.96.0.0/12", "198.51.100.0/24", "203.0.113.0/24", "fd96::/112"]
OWN = ["10.96.0.7/32", "198.51.100.7/32", "203.0.113.7/32"]


def test_ranges_are_announced_by_all_nodes_and_never_taken() -> None:
    cluster = with_service("Cluster")
    for node in ("node1", "node3"):
        assert announced(cluster.plan(node)) == WHOLE
    assert set(map(str, cluster.plan().reject)) == {*WHOLE, "203.0.113.9/32"}
    assert set(map(str, cluster.plan().reflect)) == {"198.51.100.0/24", "203.0.113.0/24", "203.0.113.9/32"}


def test_local_services_are_announced_where_an_endpoint_is_ready() -> None:
    cluster = with_service("Local")
    assert announced(cluster.plan("node1")) == sorted_prefixes(WHOLE + OWN)
    assert announced(cluster.plan("node2")) == announced(cluster.plan("node3")) == WHOLE
    cluster.endpoints("web", ("node1", False), ("node2", None))
    assert announced(cluster.plan("node1")) == WHOLE
    assert announced(cluster.plan("node2")) == sorted_prefixes(WHOLE + OWN)
    cluster.endpoints("web", ("node3", True), version=6)
    assert announced(cluster.plan("node3")) == [*WHOLE, "fd96::7/128"]
    cluster.put("KubernetesService", "web", None, "ns1")
    assert announced(cluster.plan("node2")) == WHOLE


def test_endpoints_know_nodes_by_their_kubernetes_names() -> None:
    cluster = with_service("Local")
    cluster.node("node1", ipv4="172.17.0.1/24", kubernetes="other")
    assert announced(cluster.plan("node1")) == WHOLE
    cluster.endpoints("web", ("other", True))
    assert announced(cluster.plan("node1")) == sorted_prefixes(WHOLE + OWN)


def test_without_aggregation_each_load_balancer_address_is_announced_by_all_nodes() -> None:
    cluster = with_service("Cluster", serviceLoadBalancerAggregation="Disabled")
    wanted = ["10.96.0.0/12", "198.51.100.0/24", "203.0.113.7/32", "fd96::/112"]
    assert announced(cluster.plan("node1")) == announced(cluster.plan("node3")) == wanted
    cluster.endpoints("web")
    assert announced(cluster.plan("node1")) == ["10.96.0.0/12", "198.51.100.0/24", "fd96::/112"]


def test_a_range_of_one_address_is_announced_when_a_service_has_it() -> None:
    cluster = with_service("Cluster")
    cluster.service("web", ["10.96.0.7"], balanced=["203.0.113.9"])
    assert announced(cluster.plan("node3")) == sorted_prefixes([*WHOLE, "203.0.113.9/32"])


def test_an_excluded_node_announces_no_service_and_still_refuses_their_ranges() -> None:
    cluster = with_service("Local")
    cluster.block("10.65.0.0/26", "node1")
    cluster.node("node1", ipv4="172.17.0.1/24", labels={EXCLUDE_LABEL: "true"})
    assert announced(cluster.plan("node1")) == ["10.65.0.0/26!"]
    assert len(cluster.plan("node1").reject) == 5
    cluster.node("node1", ipv4="172.17.0.1/24", labels={EXCLUDE_LABEL: "false"})
    assert len(announced(cluster.plan("node1"))) == 8


@pytest.mark.parametrize("cluster_ip", [["None"], [""]])
def test_services_without_an_address_are_passed_over(cluster_ip: list[str]) -> None:
    cluster = with_service("Local")
    cluster.service("web", cluster_ip, policy="Local", external=["198.51.100.7"])
    assert announced(cluster.plan("node1")) == WHOLE


def sorted_prefixes(texts: list[str]) -> list[str]:
    nets = map(ip_network, texts)
    return [str(one) for one in sorted(nets, key=lambda one: (one.version, int(one.network_address), one.prefixlen))]


# --- G10 -------------------------------------------------------------------------------------------------------------


def test_communities_by_name_and_value_and_the_nodes_in_the_place_of_the_clusters() -> None:
    cluster = Cluster(2)
    cluster.config(
        communities=[{"name": "std", "value": "64512:100"}],
        prefixAdvertisements=[
            {"cidr": "10.65.0.0/16", "communities": ["64512:300:100", "std"]},
            {"cidr": "fd65::/64", "communities": ["64512:1"]},
        ],
    )
    cluster.config("node.node2", prefixAdvertisements=[{"cidr": "10.66.0.0/16", "communities": ["64512:9"]}])
    assert cluster.plan("node1").advertisements == (
        (ip_network("10.65.0.0/16"), ((64512, 100), (64512, 300, 100))),
        (ip_network("fd65::/64"), ((64512, 1),)),
    )
    assert cluster.plan("node2").advertisements == ((ip_network("10.66.0.0/16"), ((64512, 9),)),)


# --- G15, G17, G22: the speaker --------------------------------------------------------------------------------------


def test_defaults() -> None:
    made = Cluster(1).plan()
    assert (made.listen_port, made.bind, made.log_level, made.program_cluster_routes) == (
        179, (), "", "EnabledNoEncapOnly",
    )  # fmt: skip
    assert made.normal_priority == {Family.IPV4: 1024, Family.IPV6: 1024}
    assert made.ignored_interfaces == ("cali*", "kube-ipvs*")
    assert made.subnets == (ip_network("172.17.0.0/24"),)
    assert made.problems == {}


def test_settings_of_the_node_before_the_clusters() -> None:
    cluster = Cluster()
    cluster.node("node1", ipv4="172.17.0.1/24", ipv6="fd00::1/64")
    cluster.node("node2", ipv4="172.17.0.2/24")
    cluster.config(
        listenPort=1179, bindMode="NodeIP", ignoredInterfaces=["eth9"], logSeverityScreen="Info",
        programClusterRoutes="EnabledNoEncapOnly", ipv4NormalRoutePriority=100, ipv6NormalRoutePriority=200,
    )  # fmt: skip
    cluster.config("node.node2", listenPort=2179, ignoredInterfaces=["eth8", "eth7"], logSeverityScreen="Debug")
    one, two = cluster.plan("node1"), cluster.plan("node2")
    assert (one.listen_port, one.log_level, one.ignored_interfaces[:-2]) == (1179, "Info", ("eth9",))
    assert (two.listen_port, two.log_level, two.ignored_interfaces[:-2]) == (2179, "Debug", ("eth8", "eth7"))
    assert one.bind == (ip_address("172.17.0.1"), ip_address("fd00::1"))
    assert two.normal_priority == {Family.IPV4: 100, Family.IPV6: 200}
    assert two.program_cluster_routes == "EnabledNoEncapOnly"


def test_g22_routes_that_felix_does_not_program() -> None:
    cluster = Cluster(2)
    cluster.put("FelixConfiguration", "default", {"programClusterRoutes": "Enabled"})
    cluster.put("FelixConfiguration", "node.node2", {"programClusterRoutes": "Disabled"})
    assert cluster.plan("node1").program_cluster_routes == "Disabled"
    assert cluster.plan("node2").program_cluster_routes == "Enabled"
    cluster.config(programClusterRoutes="EnabledNoEncapOnly")  # a raw write: done as it is said, and reported
    made = cluster.plan("node1")
    assert made.program_cluster_routes == "EnabledNoEncapOnly"
    assert "must be Disabled" in made.problems["BGPConfiguration(default)"]


def test_the_metric_of_workloads_routes_is_felixs_unless_it_is_said() -> None:
    cluster = Cluster(2)
    cluster.put("FelixConfiguration", "default", {"ipv4NormalRoutePriority": 2000})
    cluster.put("FelixConfiguration", "node.node2", {"ipv4NormalRoutePriority": 3000, "ipv6NormalRoutePriority": 4000})
    assert cluster.plan("node1").normal_priority == {Family.IPV4: 2000, Family.IPV6: 1024}
    assert cluster.plan("node2").normal_priority == {Family.IPV4: 3000, Family.IPV6: 4000}
    assert cluster.plan("node1").program_cluster_routes == "EnabledNoEncapOnly", "nothing is said of that"
    assert cluster.plan("node1").problems == {}
    cluster.config(ipv4NormalRoutePriority=2000)
    assert cluster.plan("node1").problems == {}
    other = cluster.plan("node2")
    assert other.normal_priority == {Family.IPV4: 2000, Family.IPV6: 4000}, "as it is said"
    assert (
        "ipv4NormalRoutePriority is 2000, and FelixConfiguration's 3000" in other.problems["BGPConfiguration(default)"]
    )
    cluster.put("FelixConfiguration", "default", {})
    cluster.put("FelixConfiguration", "node.node2", {})
    assert "FelixConfiguration's 1024" in cluster.plan("node1").problems["BGPConfiguration(default)"]


def test_next_hops_that_wireguard_serves_on_both_ends() -> None:
    cluster = Cluster(3)
    for node, key in (("node1", KEYS[1]), ("node2", KEYS[2])):
        cluster.node(node, ipv4=f"172.17.0.{node[-1]}/24", key=key)
    assert cluster.plan("node1").encrypted == (ip_address("172.17.0.2"),)
    assert cluster.plan("node3").encrypted == ()


@pytest.mark.parametrize(
    ("own", "theirs", "address", "third"),
    [
        (KEYS[1], "rubbish", "172.17.0.2/24", KEYS[3]),
        ("rubbish", KEYS[2], "172.17.0.2/24", ""),
        (KEYS[1], KEYS[3], "172.17.0.2/24", KEYS[3]),
        (KEYS[1], KEYS[1], "172.17.0.2/24", ""),
        (KEYS[1], KEYS[2], "", ""),
    ],
)
def test_what_felix_does_not_encrypt_is_left_to_no_tunnel(own: str, theirs: str, address: str, third: str) -> None:
    cluster = Cluster(3)
    cluster.node("node1", ipv4="172.17.0.1/24", key=own)
    cluster.node("node2", ipv4=address, ipv6="fd00::2/64", key=theirs)
    cluster.node("node3", ipv4="172.17.0.3/24", key=third)
    assert ip_address("172.17.0.2") not in cluster.plan("node1").encrypted


def test_a_node_without_an_address_has_no_use_for_its_own_key() -> None:
    cluster = Cluster(2)
    cluster.node("node1", ipv6="fd00::1/64", key=KEYS[1])
    cluster.node("node2", ipv4="172.17.0.2/24", key=KEYS[2])
    assert cluster.plan("node1").encrypted == ()


# --- filters, and what is wrong --------------------------------------------------------------------------------------


def test_filters_in_use_are_parsed() -> None:
    cluster = Cluster(1)
    cluster.peer("p", peerIP="192.0.2.9", asNumber=65009, filters=["f", "missing"])
    cluster.filter("unused", importV4=[{"action": "Reject"}])
    cluster.filter(
        "f",
        importV4=[
            {"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 24, "max": 28}, "action": "Reject"}
        ],
        exportV6=[
            {
                "source": "RemotePeers", "interface": "*.cali", "peerType": "eBGP", "communities": {"values": ["1:2"]},
                "asPathPrefix": [65001], "priority": 7, "action": "Accept",
                "operations": [
                    {"addCommunity": {"value": "1:2:3"}}, {"prependASPath": {"prefix": [1, 2]}},
                    {"setPriority": {"value": 9}},
                ],
            },
        ],
    )  # fmt: skip
    made = cluster.plan()
    assert list(made.filters) == ["f", "missing"]
    (rule,) = made.filters["f"].imports[Family.IPV4]
    assert (rule.network, rule.match_operator, rule.min_length, rule.max_length, rule.action) == (
        ip_network("10.0.0.0/8"), "In", 24, 28, "Reject",
    )  # fmt: skip
    (rule,) = made.filters["f"].exports[Family.IPV6]
    assert (rule.source, rule.interface, rule.peer_type, rule.communities) == (
        "RemotePeers", "*.cali", "eBGP", ((1, 2),),
    )  # fmt: skip
    assert (rule.as_path_prefix, rule.priority, rule.add_communities) == ((65001,), 7, ((1, 2, 3),))
    assert (rule.prepend, rule.set_priority) == ((1, 2), 9)
    assert made.problems == {"BGPFilter(missing)": "does not exist, so peers go on without it"}


def test_a_filter_never_understood_lets_nothing_pass() -> None:
    cluster = Cluster(1)
    cluster.peer("p", peerIP="192.0.2.9", asNumber=65009, filters=["f"])
    cluster.filter("f", importV4=[{"action": "Perhaps"}])
    made = cluster.plan()
    assert [rule.action for family in Family for rule in made.filters["f"].imports[family]] == ["Reject", "Reject"]
    assert [rule.action for family in Family for rule in made.filters["f"].exports[family]] == ["Reject", "Reject"]
    assert "importV4[0].action" in made.problems["BGPFilter(f)"]


def test_a_configuration_that_cannot_be_read_is_reported() -> None:
    cluster = Cluster(1)
    cluster.raw("/calico/resources/v3/projectcalico.org/bgpconfigurations/default", b"{")
    cluster.config("node.node1", listenPort=99999)
    made = cluster.plan()
    assert set(made.problems) == {"BGPConfiguration(default)", "BGPConfiguration(node.node1)"}
    assert made.listen_port == 179
