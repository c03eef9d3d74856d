"""Garbage collection of addresses, on the store in memory and on a real etcd: leaks, idle blocks, gone nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Network

from libs.ipam import keys
from libs.ipam.affinity import Owner
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.collector import GarbageCollector
from libs.ipam.pools import Use
from libs.ipam.requests import AssignRequest
from libs.ipam.view import read_users
from libs.ipam.wire import Address
from tests.contract.ipam_stage import Cluster, of_pod

GRACE_S = 900.0


class Collector(GarbageCollector):
    """With a clock that the test moves."""

    def __init__(self, cluster: Cluster, grace_s: float = GRACE_S) -> None:
        self.now_s = 0.0

        def wall() -> datetime:
            return datetime.fromtimestamp(cluster.clock() / 1e9, UTC)

        super().__init__(cluster.store, cluster.client(), grace_s=grace_s, monotonic=lambda: self.now_s, wall=wall)


async def start(cluster: Cluster, name: str, node: str = "node1", *, num4: int = 1, num6: int = 0) -> list[Address]:
    """A pod that runs: its addresses, its endpoint."""
    got = await cluster.client().auto_assign(of_pod(name, node, num4, num6))
    addresses: list[Address] = [i.ip for i in (*got.v4, *got.v6)]
    await cluster.endpoint(node, name, *addresses)
    return addresses


async def held(ipam: IpamClient) -> set[Address]:
    return {a.address for block in await ipam.blocks() for a in block.allocated() if a.released_at is None}


async def test_address_of_a_pod_that_vanished_is_freed_after_the_grace_and_a_live_one_never(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    await cluster.pool("six", "fd00:65::/112", 124)
    lost = set(await start(cluster, "lost", num6=1))
    live = set(await start(cluster, "live", num6=1))
    await cluster.no_endpoint("node1", "lost")  # force-deleted: no DEL came
    collector = Collector(cluster)
    assert (await collector.round()).suspects == 2
    collector.now_s = GRACE_S - 1
    assert (await collector.round()).released == []
    collector.now_s = GRACE_S
    assert set((await collector.round()).released) == lost
    assert await held(cluster.client()) == live
    assert await cluster.handle("k8s-pod-network.lost") is None
    collector.now_s *= 100
    assert (await collector.round()).released == []


async def test_pod_that_comes_back_in_time_keeps_its_address(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    (address,) = await start(cluster, "p")
    collector = Collector(cluster)
    await cluster.no_endpoint("node1", "p")
    await collector.round()
    collector.now_s = GRACE_S - 1
    await cluster.endpoint("node1", "p", address)
    assert (await collector.round()).suspects == 0
    await cluster.no_endpoint("node1", "p")
    collector.now_s = GRACE_S + 1
    assert (await collector.round()).released == []  # its grace began anew


async def test_assignment_under_way_has_no_endpoint_yet_and_is_safe(cluster: Cluster) -> None:
    """An ADD assigns first and writes the endpoint after; also when the endpoint is there before its addresses are."""
    await cluster.pool("four", "10.65.0.0/24", 28)
    await cluster.client().auto_assign(of_pod("slow"))
    await cluster.endpoint("node1", "slow")
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S * 3
    assert (await collector.round()).released == []


async def test_all_addresses_of_a_handle_go_together_or_stay(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    await cluster.pool("six", "fd00:65::/112", 124)
    four, six = await start(cluster, "dual", num6=1)
    await cluster.endpoint("node1", "dual", four)  # one family is in use
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S * 2
    assert (await collector.round()).released == []
    await cluster.no_endpoint("node1", "dual")
    await collector.round()
    collector.now_s = GRACE_S * 4
    assert set((await collector.round()).released) == {four, six}


async def test_address_given_anew_between_decision_and_release_is_not_taken(cluster: Cluster) -> None:
    """The leak's address is released and given to another pod, under the same handle even, while the round works."""
    await cluster.pool("four", "10.65.0.0/32", 32)
    (address,) = await start(cluster, "p")
    await cluster.no_endpoint("node1", "p")
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S
    other, release = cluster.client(), collector._ipam.release_ips

    async def meanwhile(options: object) -> object:
        await other.release_by_handle("k8s-pod-network.p")
        assert (await other.auto_assign(of_pod("p"))).v4[0].ip == address
        return await release(options)  # type: ignore[arg-type]

    collector._ipam.release_ips = meanwhile  # type: ignore[method-assign, assignment]
    done = await collector.round()
    assert done.released == []
    assert list(done.refused) == [address]
    assert await held(cluster.client()) == {address}


async def test_endpoint_that_appears_between_decision_and_release_saves_its_address(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    (address,) = await start(cluster, "p")
    await cluster.no_endpoint("node1", "p")
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S
    inputs = collector._ipam.inputs

    async def meanwhile() -> object:  # called between the first look at the users and the release
        await cluster.endpoint("node1", "p", address)
        return await inputs()

    collector._ipam.inputs = meanwhile  # type: ignore[method-assign, assignment]
    assert (await collector.round()).released == []
    assert await held(cluster.client()) == {address}


async def test_unreadable_endpoint_protects_its_namespace(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    await start(cluster, "p")
    await cluster.no_endpoint("node1", "p")
    await cluster.store.put(keys.resource("workloadendpoints/ns", "node1-k8s-x-eth0"), b'{"spec":{"ipNetworks":[5]}}')
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S * 2
    assert (await collector.round()).released == []
    assert (await read_users(cluster.store)).blind == {"ns"}


async def test_without_grace_only_a_missing_node_confirms(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 28)
    (here,) = await start(cluster, "here")
    (gone,) = await start(cluster, "gone", "node2")
    await cluster.no_endpoint("node1", "here")
    await cluster.no_endpoint("node2", "gone")
    await cluster.store.delete(keys.resource("nodes", "node2"))
    collector = Collector(cluster, grace_s=0)
    assert (await collector.round()).released == [gone]
    collector.now_s = 1e9
    assert (await collector.round()).released == []
    assert await held(cluster.client()) == {here}


async def test_load_balancer_and_unknown_addresses_are_left_alone(cluster: Cluster) -> None:
    await cluster.pool("lb", "10.66.0.0/24", 28, allowedUses=["LoadBalancer"])
    await cluster.pool("four", "10.65.0.0/24", 28)
    attrs = {"service": "s", "namespace": "ns", "type": "LoadBalancer"}
    await cluster.client().auto_assign(
        AssignRequest(handle="lb-x", node="", num4=1, use=Use.LOAD_BALANCER, attrs=attrs)
    )
    await cluster.client().auto_assign(AssignRequest(handle="by-hand", node="node2", num4=1, attrs={}))
    await cluster.store.delete(keys.resource("nodes", "node2"))
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S * 9
    done = await collector.round()
    assert (done.released, done.nodes) == ([], [])  # whose it is nobody knows, so its node is not cleaned up either
    assert len(await held(cluster.client())) == 2


# --- blocks and nodes ------------------------------------------------------------------------------------------------


async def test_scaled_to_nothing_a_node_keeps_one_block(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 30)
    for n in range(9):
        await start(cluster, f"p{n}")
    assert len(await cluster.blocks()) == 3
    for n in range(9):
        await cluster.no_endpoint("node1", f"p{n}")
        await cluster.client().release_by_handle(f"k8s-pod-network.p{n}")
    collector = Collector(cluster)
    assert (await collector.round()).idle_blocks == []
    collector.now_s = GRACE_S
    assert len((await collector.round()).idle_blocks) == 2
    assert len(await cluster.blocks()) == 1
    assert len(await cluster.affinities()) == 1
    collector.now_s = GRACE_S * 9
    assert (await collector.round()).idle_blocks == []


async def test_block_that_is_used_again_just_before_is_kept(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 30)
    client = cluster.client()
    for cidr in ("10.65.0.0/30", "10.65.0.4/30"):
        await client.claim_affinity("node1", IPv4Network(cidr))
    collector = Collector(cluster)
    await collector.round()
    collector.now_s = GRACE_S
    inputs = collector._ipam.inputs

    async def meanwhile() -> object:
        await client.auto_assign(of_pod("quick", num4=5))
        return await inputs()

    collector._ipam.inputs = meanwhile  # type: ignore[method-assign, assignment]
    assert (await collector.round()).idle_blocks == []
    assert len(await cluster.blocks()) == 2


async def test_gone_node_leaves_nothing_behind(cluster: Cluster) -> None:
    """Its object is deleted and nobody cleaned up: pods, tunnel, blocks, marker go at once."""
    await cluster.pool("four", "10.65.0.0/24", 30)
    for n in range(5):
        await start(cluster, f"p{n}", "node2")
    tunnel = AssignRequest(
        handle="vxlan-tunnel-addr-node2", node="node2", num4=1, use=Use.TUNNEL,
        attrs={"node": "node2", "type": "vxlanTunnelAddress"},
    )  # fmt: skip
    await cluster.client().auto_assign(tunnel)
    await cluster.store.put(keys.host("node2"), b"{}")
    collector = Collector(cluster)
    await cluster.store.delete(keys.resource("nodes", "node2"))
    assert (await collector.round()).released == []  # endpoints are still there
    for n in range(5):
        await cluster.no_endpoint("node2", f"p{n}")
    done = await collector.round()
    assert (len(done.released), done.nodes) == (6, ["node2"])
    assert (await cluster.store.list(keys.PREFIX)).kvs == []


async def test_tunnel_of_a_gone_node_stays_while_a_pod_of_it_runs(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/24", 30)
    await start(cluster, "p", "node2")
    attrs = {"node": "node2", "type": "ipipTunnelAddress"}
    await cluster.client().auto_assign(
        AssignRequest(handle="ipip-tunnel-addr-node2", node="node2", num4=1, use=Use.TUNNEL, attrs=attrs)
    )
    await cluster.store.delete(keys.resource("nodes", "node2"))
    collector = Collector(cluster)
    assert (await collector.round()).released == []
    await cluster.no_endpoint("node2", "p")
    assert len((await collector.round()).released) == 2


async def test_block_of_a_gone_node_stays_for_those_who_borrow_from_it(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/30", 30)
    await start(cluster, "owner", "node2")
    (lent,) = await start(cluster, "borrower", "node1")
    await cluster.store.delete(keys.resource("nodes", "node2"))
    await cluster.no_endpoint("node2", "owner")
    collector = Collector(cluster)
    done = await collector.round()
    assert len(done.released) == 1
    assert (done.nodes, done.kept_blocks) == ([], [IPv4Network("10.65.0.0/30")])
    assert await held(cluster.client()) == {lent}
    await cluster.client().release_ips([ReleaseOption(lent)])
    await cluster.no_endpoint("node1", "borrower")
    assert (await collector.round()).nodes == ["node2"]
    assert await cluster.blocks() == {}


async def test_cold_addresses_of_blocks_that_nobody_writes_are_freed(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/30", 30)
    await cluster.client().set_config(cooldown_s=30)
    await start(cluster, "p")
    await cluster.no_endpoint("node1", "p")
    await cluster.client().release_by_handle("k8s-pod-network.p")
    collector = Collector(cluster)
    assert (await collector.round()).cold_blocks == []
    cluster.ahead_ns += 32_000_000_000
    assert (await collector.round()).cold_blocks == [IPv4Network("10.65.0.0/30")]
    block = (await cluster.blocks())[IPv4Network("10.65.0.0/30")]
    assert block.empty
    assert block.owner == Owner.host("node1")
    assert block.unallocated == (1, 2, 3, 0)
