"""Tunnel addresses of nodes, on the store in memory and on a real etcd."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from libs.ipam import keys
from libs.ipam.requests import AssignIpRequest
from libs.ipam.tunnels import Tunnel
from libs.ipam.wire import Address
from libs.model.node import Node
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from libs.resources.release import IpamRelease
from libs.resources.tunnel_addresses import Tunnels, ensure_tunnel_addresses
from tests.contract.ipam_stage import Cluster, of_pod


async def ensure(cluster: Cluster, node: str = "node1", **more: bool) -> Tunnels:
    return await ensure_tunnel_addresses(ResourceClient(cluster.store), cluster.client(), node, **more)


async def node(cluster: Cluster, name: str = "node1") -> Node:
    found = await ResourceClient(cluster.store).get("Node", name)
    assert isinstance(found, Node)
    return found


async def publish_keys(cluster: Cluster) -> None:
    present = await node(cluster)
    present.status.wireguard_public_key = present.status.wireguard_public_key_v6 = "A" * 43 + "="
    await ResourceClient(cluster.store).update(present)


async def held(cluster: Cluster) -> dict[Address, str | None]:
    return {a.address: a.handle for block in await cluster.client().blocks() for a in block.allocated()}


async def test_each_tunnel_gets_an_address_of_its_pools_and_the_node_says_so(cluster: Cluster) -> None:
    await cluster.pool("ipip", "10.65.0.0/24", 28, ipipMode="CrossSubnet")
    await cluster.pool("vxlan", "10.66.0.0/24", 28, vxlanMode="Always")
    await cluster.pool("vxlan6", "fd00:66::/112", 124, vxlanMode="Always")
    await publish_keys(cluster)
    done = await ensure(cluster)
    assert list(done.addresses) == list(Tunnel)
    assert done.failures == {}
    assert done.addresses[Tunnel.IPIP] in IPv4Network("10.65.0.0/24")
    assert done.addresses[Tunnel.VXLAN] in IPv4Network("10.66.0.0/24")
    assert done.addresses[Tunnel.VXLAN_V6] in IPv6Network("fd00:66::/112")
    spec = (await node(cluster)).spec
    assert spec.bgp is not None
    assert spec.wireguard is not None
    told = [
        spec.wireguard.interface_ipv4_address, spec.wireguard.interface_ipv6_address, spec.bgp.ipv4_ipip_tunnel_addr,
        spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr,
    ]  # fmt: skip
    assert told == [str(address) for address in done.addresses.values()]
    allocation = (await cluster.client().address_info(done.addresses[Tunnel.IPIP])).allocation
    assert allocation is not None
    assert allocation.handle == "ipip-tunnel-addr-node1"
    assert allocation.attrs == {"node": "node1", "type": "ipipTunnelAddress"}
    before = (await cluster.store.status()).revision
    assert (await ensure(cluster)).addresses == done.addresses  # a second start keeps all and writes nothing
    assert (await cluster.store.status()).revision == before


async def test_only_fitting_pools_are_used(cluster: Cluster) -> None:
    await cluster.pool("off", "10.60.0.0/24", 28, vxlanMode="Always", disabled=True)
    await cluster.pool("pods", "10.61.0.0/24", 28, vxlanMode="Always", allowedUses=["Workload"])
    await cluster.pool("elsewhere", "10.62.0.0/24", 28, vxlanMode="Always", nodeSelector="zone == 'b'")
    await cluster.pool("manual", "10.63.0.0/24", 28, vxlanMode="Always", assignmentMode="Manual")
    await cluster.pool("plain", "10.64.0.0/24", 28)
    assert (await ensure(cluster)).addresses == {}
    assert await held(cluster) == {}
    got = (await ensure(cluster, "node2")).addresses
    assert list(got) == [Tunnel.VXLAN]
    assert got[Tunnel.VXLAN] in IPv4Network("10.62.0.0/24")


async def test_wireguard_needs_a_key_and_no_host_encryption(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 28)
    assert (await ensure(cluster)).addresses == {}
    await publish_keys(cluster)
    assert list((await ensure(cluster)).addresses) == [Tunnel.WIREGUARD]
    assert (await ensure(cluster, host_encryption=True)).addresses == {}
    assert await held(cluster) == {}
    assert (await node(cluster)).spec.wireguard is None


async def test_tunnel_switched_off_gives_its_address_back(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 28, vxlanMode="Always", ipipMode="Never")
    address = (await ensure(cluster)).addresses[Tunnel.VXLAN]
    await cluster.pool("p", "10.65.0.0/24", 28, ipipMode="Always")
    done = await ensure(cluster)
    assert done.released == [address]
    assert list(done.addresses) == [Tunnel.IPIP]
    assert (await node(cluster)).spec.ipv4_vxlan_tunnel_addr == ""


async def test_address_moves_when_its_pool_is_closed(cluster: Cluster) -> None:
    await cluster.pool("old", "10.65.0.0/24", 28, vxlanMode="Always")
    old = (await ensure(cluster)).addresses[Tunnel.VXLAN]
    await cluster.pool("old", "10.65.0.0/24", 28, vxlanMode="Always", disabled=True)
    await cluster.pool("new", "10.66.0.0/24", 28, vxlanMode="Always")
    done = await ensure(cluster)
    assert done.released == [old]
    new = done.addresses[Tunnel.VXLAN]
    assert new in IPv4Network("10.66.0.0/24")
    assert await held(cluster) == {new: "vxlan-tunnel-addr-node1"}


async def test_assigned_and_then_killed_uses_the_same_address_at_the_next_start(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 28, vxlanMode="Always")
    address = (await ensure(cluster)).addresses[Tunnel.VXLAN]
    present = await node(cluster)
    present.spec.ipv4_vxlan_tunnel_addr = ""  # the process ended before it wrote the node
    await ResourceClient(cluster.store).update(present)
    assert (await ensure(cluster)).addresses == {Tunnel.VXLAN: address}
    assert len(await held(cluster)) == 1


async def test_address_of_somebody_else_is_replaced_and_stays_theirs(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 28, vxlanMode="Always")
    theirs = ip_address("10.65.0.5")
    await cluster.client().assign_ip(AssignIpRequest(address=theirs, handle="pod", node="node1", attrs={"pod": "p"}))
    present = await node(cluster)
    present.spec.ipv4_vxlan_tunnel_addr = str(theirs)
    await ResourceClient(cluster.store).update(present)
    done = await ensure(cluster)
    assert done.addresses[Tunnel.VXLAN] != theirs
    assert (await held(cluster))[theirs] == "pod"


async def test_address_that_the_node_is_known_by_is_asked_for_again(cluster: Cluster) -> None:
    """Address management lost it (a restored backup, a cleaner's mistake), and nobody has it yet."""
    await cluster.pool("p", "10.65.0.0/24", 28, vxlanMode="Always")
    address = (await ensure(cluster)).addresses[Tunnel.VXLAN]
    for kv in (await cluster.store.list(keys.PREFIX)).kvs:
        await cluster.store.delete(kv.key)
    await cluster.client().auto_assign(of_pod("first"))
    if address in await held(cluster):
        await cluster.client().release_by_handle("k8s-pod-network.first")
    assert (await ensure(cluster)).addresses == {Tunnel.VXLAN: address}


async def test_surplus_addresses_of_a_handle_are_released(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 28, vxlanMode="Always")
    address = (await ensure(cluster)).addresses[Tunnel.VXLAN]
    more = AssignIpRequest(
        address=ip_address("10.65.0.99"), handle="vxlan-tunnel-addr-node1", node="node1",
        attrs={"node": "node1", "type": "vxlanTunnelAddress"},
    )  # fmt: skip
    await cluster.client().assign_ip(more)
    done = await ensure(cluster)
    assert (done.addresses, done.released) == ({Tunnel.VXLAN: address}, [more.address])


async def test_full_pool_is_told_and_the_other_tunnels_are_served(cluster: Cluster) -> None:
    await cluster.pool("full", "10.65.0.0/32", 32, ipipMode="Always")
    await cluster.pool("p", "10.66.0.0/24", 28, vxlanMode="Always")
    await cluster.client().auto_assign(of_pod("p", pools4=["full"]))
    done = await ensure(cluster)
    assert list(done.addresses) == [Tunnel.VXLAN]
    assert list(done.failures) == [Tunnel.IPIP]


async def test_deleted_node_gives_all_back(cluster: Cluster) -> None:
    await cluster.pool("ipip", "10.65.0.0/24", 28, ipipMode="Always")
    await cluster.pool("vxlan6", "fd00:66::/112", 124, vxlanMode="Always")
    await publish_keys(cluster)
    assert len((await ensure(cluster)).addresses) == 4
    await ResourceClient(cluster.store, release=IpamRelease(cluster.store)).delete("Node", "node1")
    assert (await cluster.store.list(keys.PREFIX)).kvs == []
    with pytest.raises(NotFound):
        await ensure(cluster)
