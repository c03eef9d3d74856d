"""G20: a bad resource never replaces a good one; and the last good input survives on disk."""

from __future__ import annotations

import pytest

from services.bgp.core.hold import hold
from services.bgp.core.plan import plan
from services.bgp.core.saved import Saved, SavedError, decode, encode
from services.bgp.core.settings import PeerKind
from tests.unit.services.bgp.cluster import Cluster


def good_cluster() -> Cluster:
    cluster = Cluster()
    cluster.node("node1", ipv4="172.17.0.1/24", labels={"rack": "a"})
    cluster.node("node2", ipv4="172.17.0.2/24", labels={"rr": "yes"})
    cluster.config(
        nodeToNodeMeshEnabled=False, asNumber=65000, serviceLoadBalancerIPs=[{"cidr": "203.0.113.0/24"}],
        serviceLoadBalancerAggregation="Disabled",
    )  # fmt: skip
    cluster.peer("rack", nodeSelector="rack == 'a'", peerIP="192.0.2.1", asNumber=65001, filters=["f"])
    cluster.peer("rr", nodeSelector="rack == 'a'", peerSelector="has(rr)")
    cluster.peer("vm", localWorkloadSelector="all()", asNumber=65002)
    cluster.filter("f", importV4=[{"action": "Accept"}])
    cluster.workload("node1", "v1", "10.65.0.1")
    cluster.service("web", ["10.96.0.7"], balanced=["203.0.113.7"])
    cluster.endpoints("web", ("node2", True))
    return cluster


def break_all(cluster: Cluster) -> None:
    cluster.config(nodeToNodeMeshEnabled=False, listenPort=99999)
    cluster.peer("rack", nodeSelector="rack ==", peerIP="192.0.2.1", asNumber=65001)
    cluster.peer("rr", nodeSelector="rack == 'a'", peerSelector="has(")
    cluster.raw("/calico/resources/v3/projectcalico.org/bgppeers/vm", b"nonsense")
    cluster.filter("f", importV4=[{"action": "Perhaps"}])


def test_everything_stays_in_effect_and_is_reported() -> None:
    cluster = good_cluster()
    good = cluster.tables("node1")
    before = plan("node1", good)
    assert {peer.resource for peer in before.peers} == {"rack", "rr", "vm"}
    break_all(cluster)
    now = cluster.tables("node1")
    held, problems = hold(now, good)
    after = plan("node1", held)
    assert (after.peers, after.filters, after.originated, after.local_as) == (
        before.peers, before.filters, before.originated, 65000,
    )  # fmt: skip
    assert set(problems) == {
        "BGPConfiguration(default)", "BGPPeer(rack)", "BGPPeer(rr)", "BGPPeer(vm)", "BGPFilter(f)",
    }  # fmt: skip
    assert all(text.endswith("; the version before stays in effect") for text in problems.values())
    assert hold(now, held)[0] == held  # again and again
    assert now == cluster.tables("node1")  # and what was given is as it was


def test_the_other_end_of_a_held_peer_stays_too() -> None:
    cluster = good_cluster()
    good = cluster.tables("node2")
    assert [peer.resource for peer in plan("node2", good).peers] == ["rr"]
    break_all(cluster)
    held, _ = hold(cluster.tables("node2"), good)
    assert [peer.resource for peer in plan("node2", held).peers] == ["rr"]


def test_what_is_deleted_goes() -> None:
    cluster = good_cluster()
    good = cluster.tables("node1")
    break_all(cluster)
    held, _ = hold(cluster.tables("node1"), good)
    cluster.put("BGPPeer", "rack", None)
    cluster.put("BGPPeer", "vm", None)
    cluster.put("BGPFilter", "f", None)
    after, problems = hold(cluster.tables("node1"), held)
    assert {peer.resource for peer in plan("node1", after).peers} == {"rr"}
    assert set(problems) == {"BGPConfiguration(default)", "BGPPeer(rr)"}


def test_what_is_good_again_counts_at_once() -> None:
    cluster = good_cluster()
    held, _ = hold(cluster.tables("node1"), None)
    break_all(cluster)
    held, _ = hold(cluster.tables("node1"), held)
    cluster.peer("rack", nodeSelector="all()", peerIP="192.0.2.5", asNumber=65001)
    held, problems = hold(cluster.tables("node1"), held)
    assert "Node_192_0_2_5" in {peer.name for peer in plan("node1", held).peers}
    assert "BGPPeer(rack)" not in problems


def test_nodes_and_workloads_that_are_gone_are_not_kept() -> None:
    cluster = good_cluster()
    good = cluster.tables("node1")
    break_all(cluster)
    cluster.put("Node", "node2", None)
    held, _ = hold(cluster.tables("node1"), good)
    assert {peer.resource for peer in plan("node1", held).peers} == {"rack", "vm"}


def test_with_nothing_good_before_a_bad_peer_is_no_peer() -> None:
    cluster = good_cluster()
    break_all(cluster)
    now = cluster.tables("node1")
    held, problems = hold(now, None)
    assert (held, problems) == (now, {})
    assert {peer.kind for peer in plan("node1", held).peers} == {PeerKind.MESH}  # as without a configuration


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back() -> None:
    cluster = good_cluster()
    cluster.block("10.65.0.0/26", "node1")
    cluster.config("node.node1", prefixAdvertisements=[{"cidr": "10.65.0.0/16", "communities": ["1:2"]}])
    cluster.pool("p", "10.65.0.0/16", ipipMode="Always")
    tables = cluster.tables("node1")
    saved = Saved(node="node1", rev=42, cluster=2**64 - 1, tables=tables)
    data = encode(saved)
    assert decode("node1", data) == saved
    assert plan("node1", decode("node1", data).tables) == plan("node1", tables)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"version": 2, "node": "node1"}', "version 2, not 1"),
        (b"{}", "version 0"),
        (b'{"version": 1, "node": "node9", "rev": 1, "tables": {}}', "of node 'node9'"),
        (b'{"version": 1, "node": "node1", "rev": "x", "tables": {}}', "cannot be read"),
        (
            b'{"version": 1, "node": "node1", "rev": 1, "tables": {"bgp": {"peer/p": {"kind": "new"}}}}',
            "cannot be read",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SavedError, match=reason):
        decode("node1", data)


@pytest.mark.parametrize("length", [1, 100, 400, -1])
def test_a_file_that_was_cut_short_is_refused(length: int) -> None:
    with pytest.raises(SavedError):
        decode("node1", encode(Saved(node="node1", rev=42, tables=good_cluster().tables("node1")))[:length])
