"""Sessions of a node, case by case: what Calico renders for the same resources (facts sections 4.2, 4.3 and 11)."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from services.bgp.core.plan import hashed_router_id
from services.bgp.core.settings import NextHopMode, PeerKind, SecretRef
from tests.unit.services.bgp.cluster import Cluster

OUTSIDE = {"peerIP": "192.0.2.9", "asNumber": 65009}


# --- G19, G05: the speaker itself ------------------------------------------------------------------------------------


def test_router_id_is_the_nodes_address() -> None:
    assert Cluster(1).plan().router_id == int(IPv4Address("172.17.0.1"))


@pytest.mark.parametrize(
    ("wanted", "router_id"),
    [
        ("10.9.8.7", "10.9.8.7"),
        ("hash", "202.18.243.27"),
        ("nonsense", "172.17.0.1"),
    ],
)
def test_router_id_of_the_environment(wanted: str, router_id: str) -> None:
    cluster = Cluster()
    cluster.node("node1", ipv4="172.17.0.1/24")
    made = cluster.plan(router_id=wanted)
    assert str(IPv4Address(made.router_id)) == router_id
    assert ("environment(CALICO_ROUTER_ID)" in made.problems) is (wanted == "nonsense")


def test_a_node_without_ipv4_gets_a_hash_that_is_a_legal_router_id() -> None:
    cluster = Cluster()
    cluster.node("node1", ipv6="fd00::1/64")
    made = cluster.plan()
    assert made.router_id == hashed_router_id("node1")
    assert {hashed_router_id(f"n{number}") >> 24 for number in range(2000)} <= set(range(224))
    assert made.addresses == (ip_address("fd00::1"),)


@pytest.mark.parametrize(
    ("node", "cluster_wide", "wanted"), [(None, None, 64512), (None, 65000, 65000), (4200000001, 65000, 4200000001)]
)
def test_as_number_of_the_node_before_the_clusters(node: int | None, cluster_wide: int | None, wanted: int) -> None:
    cluster = Cluster()
    cluster.node("node1", ipv4="172.17.0.1/24", as_number=node)
    cluster.config(**({} if cluster_wide is None else {"asNumber": cluster_wide}))
    assert cluster.plan().local_as == wanted


# --- G01: mesh -------------------------------------------------------------------------------------------------------


def test_mesh_connects_every_pair_once() -> None:
    cluster = Cluster(3)
    made = cluster.peers("node2")
    assert list(made) == ["Mesh_172_17_0_1", "Mesh_172_17_0_3"]
    low, high = made.values()
    assert (low.passive, high.passive) == (False, True)
    assert (low.kind, low.remote_as, low.local_as, low.port) == (PeerKind.MESH, 64512, 64512, 179)
    assert low.source == ip_address("172.17.0.2")
    assert (low.restart_time_s, low.ttl_security, low.password, low.resource) == (120, None, None, "")


def test_the_active_side_is_chosen_by_text_as_calico_does() -> None:
    cluster = Cluster()
    cluster.node("a", ipv4="172.17.0.9/24")
    cluster.node("b", ipv4="172.17.0.10/24")
    assert cluster.peer_of("b", "Mesh_172_17_0_9").passive
    assert not cluster.peer_of("a", "Mesh_172_17_0_10").passive


def test_mesh_of_each_family_among_nodes_that_have_it() -> None:
    cluster = Cluster()
    cluster.node("node1", ipv4="172.17.0.1/24", ipv6="fd00::1/64")
    cluster.node("node2", ipv6="fd00::2/64")
    cluster.node("node3", ipv4="172.17.0.3/24")
    assert list(cluster.peers("node1")) == ["Mesh_172_17_0_3", "Mesh_fd00__2"]
    assert list(cluster.peers("node2")) == ["Mesh_fd00__1"]
    assert list(cluster.peers("node3")) == ["Mesh_172_17_0_1"]


def test_mesh_password_restart_time_and_ports() -> None:
    cluster = Cluster(3)
    cluster.config(
        nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "mesh"}}, nodeMeshMaxRestartTime="10m", listenPort=178
    )
    cluster.config("node.node3", listenPort=1790)
    made = cluster.peers()
    assert [peer.port for peer in made.values()] == [178, 1790]
    assert {peer.password for peer in made.values()} == {SecretRef("bgp", "mesh")}
    assert {peer.restart_time_s for peer in made.values()} == {600}
    assert list(made) == ["Mesh_172_17_0_2", "Mesh_172_17_0_3"]  # the port is in no name of the mesh
    assert cluster.plan("node3").listen_port == 1790


def test_as_number_of_mesh_peers_is_theirs_or_the_clusters_never_ours() -> None:
    cluster = Cluster(2)
    cluster.node("node1", ipv4="172.17.0.1/24", as_number=65001)
    cluster.config(asNumber=65000)
    made = cluster.peer_of("node1", "Mesh_172_17_0_2")
    assert (made.local_as, made.remote_as) == (65001, 65000)
    assert cluster.peer_of("node2", "Mesh_172_17_0_1").remote_as == 65001


def test_no_mesh_when_disabled_and_none_with_route_reflectors() -> None:
    cluster = Cluster(3)
    cluster.node("node3", ipv4="172.17.0.3/24", cluster_id="244.0.0.1")
    assert list(cluster.peers("node1")) == ["Mesh_172_17_0_2"]
    assert cluster.peers("node3") == {}
    cluster.config(nodeToNodeMeshEnabled=False)
    assert cluster.peers("node1") == {}
    cluster.put("BGPConfiguration", "default", None)
    assert list(cluster.peers("node1")) == ["Mesh_172_17_0_2"]


def test_a_node_that_does_not_exist_has_no_sessions_and_says_so() -> None:
    made = Cluster(2).plan("nowhere")
    assert made.peers == ()
    assert "Node(nowhere)" in made.problems
    assert made.router_id


# --- G02: explicit peers ---------------------------------------------------------------------------------------------


def test_global_node_and_selector_peers_reach_exactly_the_selected_nodes() -> None:
    cluster = Cluster()
    for number, rack in enumerate(("a", "a", "b"), 1):
        cluster.node(f"node{number}", ipv4=f"172.17.0.{number}/24", labels={"rack": rack})
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.peer("everywhere", peerIP="192.0.2.1", asNumber=65001)
    cluster.peer("one", peerIP="192.0.2.2", asNumber=65002, node="node3")
    cluster.peer("rack", peerIP="192.0.2.3", asNumber=65003, nodeSelector="rack == 'a'")
    assert [list(cluster.peers(f"node{number}")) for number in (1, 2, 3)] == [
        ["Global_192_0_2_1", "Node_192_0_2_3"],
        ["Global_192_0_2_1", "Node_192_0_2_3"],
        ["Global_192_0_2_1", "Node_192_0_2_2"],
    ]
    cluster.node("node2", ipv4="172.17.0.2/24", labels={"rack": "b"})
    assert list(cluster.peers("node2")) == ["Global_192_0_2_1"]


def test_of_one_address_and_port_the_peer_of_all_nodes_counts() -> None:
    cluster = Cluster(1)
    cluster.peer("a-node", **OUTSIDE, node="node1", maxRestartTime="10s")
    cluster.peer("z-global", **OUTSIDE)
    cluster.peer("other-port", peerIP="192.0.2.9:1790", asNumber=65009, node="node1")
    assert {name: peer.resource for name, peer in cluster.peers().items()} == {
        "Global_192_0_2_9": "z-global",
        "Node_192_0_2_9_port_1790": "other-port",
    }


def test_of_equals_the_first_by_name_counts() -> None:
    cluster = Cluster(1)
    for name in ("b", "a", "c"):
        cluster.peer(name, **OUTSIDE)
    assert [peer.resource for peer in cluster.peers().values()] == ["a"]


@pytest.mark.parametrize(
    ("peer_ip", "name", "address", "port"),
    [
        ("192.0.2.9", "Global_192_0_2_9", "192.0.2.9", 179),
        ("192.0.2.9:500", "Global_192_0_2_9_port_500", "192.0.2.9", 500),
        ("2001:db8::9", "Global_2001_db8__9", "2001:db8::9", 179),
        ("[2001:db8::9]:500", "Global_2001_db8__9_port_500", "2001:db8::9", 500),
    ],
)
def test_addresses_ports_and_names(peer_ip: str, name: str, address: str, port: int) -> None:
    cluster = Cluster(1)
    cluster.peer("p", peerIP=peer_ip, asNumber=65009)
    made = cluster.peers()[name]
    assert (made.address, made.port, made.kind) == (ip_address(address), port, PeerKind.GLOBAL)


def test_never_to_itself() -> None:
    cluster = Cluster(1)
    cluster.peer("self", peerIP="172.17.0.1", asNumber=64512)
    cluster.peer("all", nodeSelector="all()", peerSelector="all()")
    assert cluster.peers() == {}


def test_explicit_peers_stand_in_the_place_of_the_mesh() -> None:
    cluster = Cluster(2)
    cluster.peer("p", node="node1", peerIP="172.17.0.2", asNumber=64512)
    assert list(cluster.peers("node1")) == ["Node_172_17_0_2"]
    assert list(cluster.peers("node2")) == ["Node_172_17_0_1"]


def test_a_peer_without_as_number_is_one_of_the_cluster_or_reported() -> None:
    cluster = Cluster(2)
    cluster.peer("inside", node="node1", peerIP="172.17.0.2")
    cluster.peer("outside", peerIP="192.0.2.9")
    made = cluster.plan("node1")
    assert [(peer.resource, peer.remote_as) for peer in made.peers] == [("inside", 64512)]
    assert made.problems == {"BGPPeer(outside)": "spec.asNumber: must be set, as 192.0.2.9 is no node of this cluster"}


# --- G04: peerSelector and the reverse -------------------------------------------------------------------------------


def reflectors(**peer: Any) -> Cluster:
    cluster = Cluster()
    cluster.config(nodeToNodeMeshEnabled=False)
    for number in (1, 2, 3, 4):
        rr = {"labels": {"rr": "yes"}, "cluster_id": "244.0.0.1"} if number > 2 else {}
        cluster.node(f"node{number}", ipv4=f"172.17.0.{number}/24", ipv6=f"fd00::{number}/64", **rr)
    cluster.peer("to-rr", nodeSelector="!has(rr)", peerSelector="has(rr)", **peer)
    return cluster


def test_one_peer_by_selector_gives_both_ends_in_both_families() -> None:
    cluster = reflectors(password={"secretKeyRef": {"name": "s", "key": "k"}}, ttlSecurity=1, keepaliveTime="20s")
    clients = ["Node_172_17_0_3", "Node_172_17_0_4", "Node_fd00__3", "Node_fd00__4"]
    assert list(cluster.peers("node1")) == list(cluster.peers("node2")) == clients
    mirrored = cluster.peers("node3")
    assert list(mirrored) == ["Node_172_17_0_1", "Node_172_17_0_2", "Node_fd00__1", "Node_fd00__2"]
    for made in (*mirrored.values(), *cluster.peers("node1").values()):
        assert (made.password, made.ttl_security, made.keepalive_time_s) == (SecretRef("s", "k"), 1, 20)
        assert (made.resource, made.remote_as) == ("to-rr", 64512)


def test_manual_gives_one_end() -> None:
    cluster = reflectors(reversePeering="Manual")
    assert len(cluster.peers("node1")) == 4
    assert cluster.peers("node3") == {}


def test_reverse_of_an_address_is_of_its_family_and_for_the_node_that_has_it() -> None:
    cluster = Cluster()
    cluster.config(nodeToNodeMeshEnabled=False)
    for number in (1, 2, 3):
        cluster.node(f"node{number}", ipv4=f"172.17.0.{number}/24", ipv6=f"fd00::{number}/64")
    cluster.peer("p", nodeSelector="all()", peerIP="172.17.0.3", asNumber=64512)
    assert list(cluster.peers("node1")) == ["Node_172_17_0_3"]
    assert list(cluster.peers("node3")) == ["Node_172_17_0_1", "Node_172_17_0_2"]
    cluster.peer("p", nodeSelector="all()", peerIP="172.17.0.3", asNumber=65009)  # not that node's AS number
    assert cluster.peers("node3") == {}


def test_explicit_beats_reverse() -> None:
    cluster = Cluster(2)
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.peer("a", node="node1", peerSelector="all()", maxRestartTime="1s")
    cluster.peer("b", node="node2", peerSelector="all()", maxRestartTime="2s")
    assert [peer.restart_time_s for peer in cluster.peers("node1").values()] == [1]
    assert [peer.restart_time_s for peer in cluster.peers("node2").values()] == [2]


def test_reverse_expects_the_local_as_of_the_other_end() -> None:
    cluster = Cluster(2)
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.peer("p", node="node1", peerIP="172.17.0.2", asNumber=64512, localASNumber=65100)
    forward, back = cluster.peer_of("node1", "Node_172_17_0_2"), cluster.peer_of("node2", "Node_172_17_0_1")
    assert (forward.local_as, forward.remote_as) == (65100, 64512)
    assert (back.local_as, back.remote_as) == (64512, 65100)


def test_a_global_peer_to_a_node_is_passive_on_one_side_only_when_the_other_connects() -> None:
    cluster = Cluster(3)
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.peer("p", peerIP="172.17.0.2", asNumber=64512)
    assert cluster.peer_of("node1", "Global_172_17_0_2").passive
    assert not cluster.peer_of("node3", "Global_172_17_0_2").passive
    assert not cluster.peer_of("node2", "Node_172_17_0_1").passive
    cluster.peer("p", peerIP="172.17.0.2", asNumber=64512, reversePeering="Manual")
    assert not cluster.peer_of("node1", "Global_172_17_0_2").passive


def test_ports_of_peers_that_are_nodes_are_their_listen_ports() -> None:
    cluster = reflectors()
    cluster.config(nodeToNodeMeshEnabled=False, listenPort=178)
    cluster.config("node.node3", listenPort=1790)
    cluster.peer("by-address", node="node2", peerIP="172.17.0.4", asNumber=64512)
    assert cluster.peers("node1")["Node_172_17_0_3_port_1790"].port == 1790
    assert cluster.peers("node2")["Node_172_17_0_4_port_178"].port == 178


# --- G03: route reflectors -------------------------------------------------------------------------------------------


def test_clients_of_a_reflector_and_its_equals() -> None:
    cluster = reflectors()
    cluster.peer("rr-mesh", nodeSelector="has(rr)", peerSelector="has(rr)")
    cluster.peer("up", nodeSelector="has(rr)", **OUTSIDE)
    cluster.peer("flat", nodeSelector="has(rr)", peerIP="192.0.2.8", asNumber=64512)
    made = cluster.plan("node3")
    cluster_id = int(IPv4Address("244.0.0.1"))
    assert (made.route_reflector, made.cluster_id) == (True, cluster_id)
    assert {peer.name: peer.rr_client_cluster for peer in made.peers} == {
        "Node_172_17_0_1": cluster_id,
        "Node_172_17_0_2": cluster_id,
        "Node_172_17_0_4": None,  # the same cluster
        "Node_192_0_2_8": cluster_id,  # the same AS, and no node: nothing says that it reflects
        "Node_192_0_2_9": None,  # another AS
        "Node_fd00__1": cluster_id,
        "Node_fd00__2": cluster_id,
        "Node_fd00__4": None,
    }
    assert all(peer.rr_client_cluster is None for peer in cluster.plan("node1").peers)


def test_a_reflector_of_another_cluster_is_a_client() -> None:
    cluster = reflectors()
    cluster.node("node4", ipv4="172.17.0.4/24", labels={"rr": "yes"}, cluster_id="244.0.0.2")
    cluster.peer("rr-mesh", nodeSelector="has(rr)", peerSelector="has(rr)")
    assert cluster.peer_of("node3", "Node_172_17_0_4").rr_client_cluster == int(IPv4Address("244.0.0.1"))


def test_same_as_is_judged_with_the_local_as_of_the_session() -> None:
    cluster = reflectors()
    cluster.peer("a", nodeSelector="has(rr)", peerIP="192.0.2.8", asNumber=65008, localASNumber=65008)
    cluster.peer("b", nodeSelector="has(rr)", peerIP="192.0.2.7", asNumber=64512, localASNumber=65008)
    made = cluster.peers("node3")
    assert made["Node_192_0_2_8"].rr_client_cluster is not None
    assert made["Node_192_0_2_7"].rr_client_cluster is None


def test_a_malformed_cluster_id_is_reported() -> None:
    cluster = Cluster(2)
    cluster.node("node1", ipv4="172.17.0.1/24", cluster_id="rack-1")
    made = cluster.plan("node1")
    assert made.cluster_id == 0
    assert "routeReflectorClusterID" in made.problems["Node(node1)"]


# --- G05 to G08, G15: fields of a session ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, {"source": ip_address("172.17.0.1"), "ttl_security": None, "restart_time_s": 120, "gateway": None}),
        ({"sourceAddress": "UseNodeIP"}, {"source": ip_address("172.17.0.1")}),
        ({"sourceAddress": "None"}, {"source": None}),
        ({"ttlSecurity": 5}, {"ttl_security": 5}),
        ({"ttlSecurity": 0}, {"ttl_security": None}),
        ({"maxRestartTime": "1m30s"}, {"restart_time_s": 90}),
        ({"maxRestartTime": "1500ms"}, {"restart_time_s": 2}),
        ({"keepaliveTime": "7s"}, {"keepalive_time_s": 7}),
        ({"reachableBy": "172.17.0.254"}, {"gateway": ip_address("172.17.0.254")}),
        ({"localASNumber": 65123}, {"local_as": 65123, "remote_as": 65009}),
        ({"asNumber": "1.10"}, {"remote_as": 65546}),
        ({"numAllowedLocalASNumbers": 3}, {"allowed_local_as": 3}),
        ({"nextHopMode": "Self"}, {"next_hop_mode": NextHopMode.SELF}),
        ({"nextHopMode": "Keep"}, {"next_hop_mode": NextHopMode.KEEP}),
        ({"nextHopMode": "Auto"}, {"next_hop_mode": NextHopMode.AUTO, "keep_ebgp_next_hop": False}),
        ({"keepOriginalNextHop": True}, {"keep_ebgp_next_hop": True, "next_hop_mode": NextHopMode.AUTO}),
        ({"keepOriginalNextHop": True, "asNumber": 64512}, {"keep_ebgp_next_hop": False}),
        ({"filters": ["b", "a"]}, {"filters": ("b", "a")}),
        ({"password": {"secretKeyRef": {"name": "n", "key": "k"}}}, {"password": SecretRef("n", "k")}),
        ({"password": {}}, {"password": None}),
    ],
)
def test_fields(spec: dict[str, Any], wanted: dict[str, Any]) -> None:
    cluster = Cluster(1)
    cluster.peer("p", **(OUTSIDE | spec))
    (made,) = cluster.plan().peers
    assert {name: getattr(made, name) for name in wanted} == wanted


def test_a_gateway_is_for_the_one_end() -> None:
    cluster = Cluster(2)
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.peer("p", node="node1", peerIP="172.17.0.2", asNumber=64512, reachableBy="172.17.0.254", nextHopMode="Self")
    back = cluster.peer_of("node2", "Node_172_17_0_1")
    assert (back.gateway, back.next_hop_mode) == (None, NextHopMode.AUTO)


# --- G16: local workloads --------------------------------------------------------------------------------------------


def test_workloads_of_the_node_peer_with_it() -> None:
    cluster = Cluster(2)
    cluster.config(localWorkloadPeeringIPV4="169.254.1.179", localWorkloadPeeringIPV6="fe80::179")
    cluster.peer("vms", localWorkloadSelector="app == 'router'", asNumber=65401, filters=["f"])
    cluster.filter("f", importV4=[{"action": "Accept"}])
    cluster.workload("node1", "v1", "10.65.0.1", "fd65::1", app="router")
    cluster.workload("node1", "v2", "10.65.0.2", app="web")
    cluster.workload("node2", "v3", "10.65.0.3", app="router")
    found = cluster.plan("node1")
    made = [peer for peer in found.peers if peer.kind is PeerKind.LOCAL_WORKLOAD]
    assert [peer.name for peer in made] == ["Local_Workload_10_65_0_1", "Local_Workload_fd65__1"]
    for peer in made:
        assert (peer.passive, peer.source, peer.remote_as, peer.interface) == (True, None, 65401, "caliv1")
        assert (peer.resource, peer.filters) == ("vms", ("f",))
    assert found.local_peering == (ip_address("169.254.1.179"), ip_address("fe80::179"))
    assert "Local_Workload_10_65_0_3" in cluster.peers("node2")


def test_local_peers_of_selected_nodes_only_and_the_first_by_name() -> None:
    cluster = Cluster()
    cluster.config(nodeToNodeMeshEnabled=False)
    cluster.node("node1", ipv4="172.17.0.1/24", labels={"rack": "a"})
    cluster.node("node2", ipv4="172.17.0.2/24")
    cluster.peer("a", localWorkloadSelector="all()", nodeSelector="rack == 'a'", asNumber=65001)
    cluster.peer("b", localWorkloadSelector="all()", node="node1", asNumber=65002)
    cluster.workload("node1", "v1", "10.65.0.1")
    cluster.workload("node2", "v2", "10.65.0.2")
    assert [peer.remote_as for peer in cluster.plan("node1").peers] == [65001]
    assert cluster.plan("node2").peers == ()
    cluster.node("node1", ipv4="172.17.0.1/24")
    assert [peer.remote_as for peer in cluster.plan("node1").peers] == [65002]


# --- G20: one bad resource -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"peerIP": "192.0.2.300", "asNumber": 1}, "spec.peerIP"),
        ({"peerIP": "192.0.2.1:99999", "asNumber": 1}, "spec.peerIP"),
        ({"peerSelector": "rack =="}, "spec.peerSelector"),
        ({"nodeSelector": "((", **OUTSIDE}, "spec.nodeSelector"),
        ({"peerIP": "192.0.2.1", "peerSelector": "all()"}, "spec.peerSelector"),
        ({}, "must have one of peerIP, peerSelector and localWorkloadSelector"),
        ({"localWorkloadSelector": "all()"}, "spec.asNumber"),
        ({**OUTSIDE, "reachableBy": "fd00::1"}, "spec.reachableBy"),
    ],
)
def test_a_peer_that_means_nothing_is_reported_and_takes_no_other_down(spec: dict[str, Any], part: str) -> None:
    cluster = Cluster(2)
    cluster.peer("good", peerIP="192.0.2.7", asNumber=65007)
    cluster.peer("bad", **spec)
    made = cluster.plan()
    assert [peer.name for peer in made.peers] == ["Global_192_0_2_7", "Mesh_172_17_0_2"]
    assert part in made.problems["BGPPeer(bad)"]


def test_plans_do_not_depend_on_the_order_of_resources() -> None:
    one, other = Cluster(3), Cluster(3)
    made = [("a", OUTSIDE), ("b", {"peerIP": "192.0.2.8", "asNumber": 1}), ("c", {"peerSelector": "all()"})]
    for name, spec in made:
        one.peer(name, **spec)
    for name, spec in reversed(made):
        other.peer(name, **spec)
    assert one.plan() == other.plan()
