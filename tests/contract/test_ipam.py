"""Address management on the store in memory and on a real etcd: what hosts, pods and commands are promised."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner, decode_affinity, encode_affinity
from libs.ipam.block import Block, ReleaseOption, problems
from libs.ipam.config import IpamConfig
from libs.ipam.errors import AddressInUse, BlockNotEmpty, HandleMissing, IpamError, Reason, StaleRelease
from libs.ipam.pools import Use
from libs.ipam.requests import AssignIpRequest
from libs.ipam.vm import holder
from libs.ipam.wire import Network
from tests.contract.ipam_stage import Cluster, pod

# --- one host --------------------------------------------------------------------------------------------------------


async def test_first_address_claims_a_block_and_both_families_share_the_handle(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/16", 26)
    await cluster.pool("six", "fd00:65::/48", 122)
    got = await cluster.client().auto_assign(pod("net.c1", num6=1))
    four, six = got.v4[0].network, got.v6[0].network
    assert (four.prefixlen, six.prefixlen) == (26, 122)
    assert await cluster.affinities() == {
        ("node1", four): AffinityState.CONFIRMED,
        ("node1", six): AffinityState.CONFIRMED,
    }
    assert await cluster.handle("net.c1") == {str(four): 1, str(six): 1}
    block = (await cluster.blocks())[four]
    assert block.owner == Owner.host("node1")
    assert block.unallocated[0] == 1
    assert block.sequence_for == {0: block.sequence - 1}
    assert got.sequences[got.v4[0].ip] == block.sequence - 1


async def test_known_block_costs_one_round_trip_and_one_revision(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/16", 26)
    client = cluster.client(max_age_s=60.0)
    await client.auto_assign(pod("h0"))
    before = (await cluster.store.status()).revision
    await client.auto_assign(pod("h1"))
    assert (await cluster.store.status()).revision == before + 1


async def test_fifty_at_once_get_fifty_addresses_in_a_few_writes(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/16", 26)
    client = cluster.client(max_age_s=60.0)
    await client.auto_assign(pod("first"))
    before = (await cluster.store.status()).revision
    got = await asyncio.gather(*(client.auto_assign(pod(f"h{n}")) for n in range(50)))
    assert len({result.v4[0] for result in got}) == 50
    assert (await cluster.store.status()).revision - before <= 5
    assert all(problems(block) == [] for block in (await cluster.blocks()).values())


async def test_requests_beyond_one_transaction_are_split(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/16", 24)
    client = cluster.client()
    got = await asyncio.gather(*(client.auto_assign(pod(f"h{n}")) for n in range(180)))
    assert len({result.v4[0] for result in got}) == 180
    freed = await asyncio.gather(*(client.release_by_handle(f"h{n}") for n in range(180)))
    assert sum(len(result.freed) for result in freed) == 180
    assert (await cluster.store.list(keys.HANDLES)).kvs == []


async def test_a_second_process_on_the_host_uses_the_same_block(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/16", 26)
    one, two = cluster.client(), cluster.client()
    first = await one.auto_assign(pod("h1"))
    second = await two.auto_assign(pod("h2"))
    third = await one.auto_assign(pod("h3"))
    assert first.v4[0].network == second.v4[0].network == third.v4[0].network
    assert len({first.v4[0], second.v4[0], third.v4[0]}) == 3


async def test_addresses_are_reused_longest_idle_first(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/30", 30)
    client = cluster.client()
    for n in range(4):
        await client.auto_assign(pod(f"h{n}"))
    for n in (2, 0, 3):
        await client.release_by_handle(f"h{n}")
    again = [(await client.auto_assign(pod(f"g{n}"))).v4[0].ip for n in range(3)]
    assert again == [IPv4Address("10.65.0.2"), IPv4Address("10.65.0.0"), IPv4Address("10.65.0.3")]


async def test_cooling_address_is_not_reused_before_its_time(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/31", 31)
    client = cluster.client()
    await client.set_config(cooldown_s=60)
    await client.auto_assign(pod("h0", num4=2))
    await client.release_by_handle("h0")
    early = await client.auto_assign(pod("h1"))
    assert early.v4 == []
    assert early.reasons == {4: Reason.NO_FREE_ADDRESSES}
    request = AssignIpRequest(address=IPv4Address("10.65.0.0"), handle="h2", node="node1")
    with pytest.raises(AddressInUse) as refused:
        await client.assign_ip(request)
    assert refused.value.reason is Reason.ADDRESS_COOLING
    cluster.ahead_ns += 62_000_000_000
    assert (await client.auto_assign(pod("h3"))).v4[0].ip == IPv4Address("10.65.0.0")


async def test_collect_frees_what_has_rested_in_blocks_nobody_writes(cluster: Cluster) -> None:
    await cluster.pool("four", "10.65.0.0/30", 30)
    client = cluster.client()
    await client.set_config(cooldown_s=10)
    await client.auto_assign(pod("h0"))
    await client.release_by_handle("h0")
    assert await client.collect_cooled() == []
    cluster.ahead_ns += 12_000_000_000
    assert await client.collect_cooled() == [IPv4Network("10.65.0.0/30")]
    assert (await cluster.blocks())[IPv4Network("10.65.0.0/30")].empty


# --- pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "cidr", "size"), [(4, "10.65.0.0/24", 26), (6, "fd00:65::/112", 122)])
async def test_disabled_pool_gives_nothing(cluster: Cluster, version: int, cidr: str, size: int) -> None:
    await cluster.pool("p", cidr, size, disabled=True)
    request = pod("h", num4=int(version == 4), num6=int(version == 6))
    with pytest.raises(IpamError) as refused:
        await cluster.client().auto_assign(request)
    assert refused.value.reason is Reason.NO_POOLS
    assert await cluster.blocks(version) == {}


@pytest.mark.parametrize(("version", "cidr", "size"), [(4, "10.65.0.0/24", 26), (6, "fd00:65::/112", 122)])
async def test_pool_disabled_a_moment_ago_gives_nothing_although_the_client_remembers_it_enabled(
    cluster: Cluster, version: int, cidr: str, size: int
) -> None:
    await cluster.pool("p", cidr, size)
    client = cluster.client(max_age_s=3600.0)
    await client.auto_assign(pod("h1", num4=int(version == 4), num6=int(version == 6)))
    await cluster.pool("p", cidr, size, disabled=True)
    with pytest.raises(IpamError) as refused:
        await client.auto_assign(pod("h2", num4=int(version == 4), num6=int(version == 6)))
    assert refused.value.reason is Reason.NO_POOLS
    assert await cluster.handle("h2") is None


async def test_pool_and_node_made_a_moment_ago_serve_a_client_that_remembers_none(cluster: Cluster) -> None:
    client = cluster.client(max_age_s=3600.0)
    for request in (pod("h1"), pod("h1", pools4=["p"]), pod("h1", "node9")):
        with pytest.raises(IpamError):
            await client.auto_assign(request)
    await cluster.pool("p", "10.65.0.0/24", 26)
    assert (await client.auto_assign(pod("h1", pools4=["p"]))).complete
    await cluster.node("node9")
    assert (await client.auto_assign(pod("h2", "node9"))).complete
    await cluster.pool("q", "10.66.0.0/24", 26)
    await client.assign_ip(AssignIpRequest(address=IPv4Address("10.66.0.7"), handle="h3", node="node1"))


async def test_settings_changed_a_moment_ago_hold(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    a, b = cluster.client(max_age_s=3600.0), cluster.client(max_age_s=3600.0)
    await a.auto_assign(pod("a", "node1", num4=4))
    await a.auto_assign(pod("b", "node2", num4=2))
    await b.auto_assign(pod("c", "node1", num4=1))  # borrows from node2
    await b.set_config(strict_affinity=True)
    got = await a.auto_assign(pod("d", "node1"))
    assert got.v4 == []


async def test_node_and_namespace_selectors_choose_the_pool(cluster: Cluster) -> None:
    await cluster.pool("zone-a", "10.65.0.0/24", 26, nodeSelector="zone == 'a'")
    await cluster.pool("team", "10.66.0.0/24", 26, nodeSelector="zone == 'b'", namespaceSelector="team == 'x'")
    client = cluster.client()
    assert (await client.auto_assign(pod("h1", "node1"))).v4[0].ip in IPv4Network("10.65.0.0/24")
    got = await client.auto_assign(pod("h2", "node2", namespace_labels={"team": "x"}))
    assert got.v4[0].ip in IPv4Network("10.66.0.0/24")
    with pytest.raises(IpamError) as refused:
        await client.auto_assign(pod("h3", "node2", namespace_labels={"team": "y"}))
    assert refused.value.reason is Reason.NO_POOLS


async def test_requested_pool_ignores_selectors_and_manual_mode_but_not_disabled(cluster: Cluster) -> None:
    await cluster.pool("auto", "10.65.0.0/24", 26)
    await cluster.pool("manual", "10.66.0.0/24", 26, assignmentMode="Manual", nodeSelector="zone == 'nowhere'")
    await cluster.pool("off", "10.67.0.0/24", 26, disabled=True)
    client = cluster.client()
    assert (await client.auto_assign(pod("h1"))).v4[0].ip in IPv4Network("10.65.0.0/24")
    for n, wish in enumerate(["manual", "10.66.0.0/24"]):
        got = await client.auto_assign(pod(f"g{n}", pools4=[wish]))
        assert got.v4[0].ip in IPv4Network("10.66.0.0/24")
    for wish in ("off", "absent", "10.99.0.0/24"):
        with pytest.raises(IpamError, match=wish) as refused:
            await client.auto_assign(pod("x", pools4=[wish]))
        assert refused.value.reason is Reason.UNKNOWN_POOL


async def test_allowed_uses_keep_pods_out_of_tunnel_pools(cluster: Cluster) -> None:
    await cluster.pool("tunnel", "10.65.0.0/24", 26, allowedUses=["Tunnel"])
    client = cluster.client()
    with pytest.raises(IpamError) as refused:
        await client.auto_assign(pod("h1"))
    assert refused.value.reason is Reason.USE_NOT_ALLOWED
    assert len((await client.auto_assign(pod("vxlan-tunnel-addr-node1", use=Use.TUNNEL))).v4) == 1


async def test_load_balancer_addresses_come_from_blocks_of_no_host(cluster: Cluster) -> None:
    await cluster.pool("lb", "10.65.0.0/24", 26, allowedUses=["LoadBalancer"])
    got = await cluster.client().auto_assign(pod("lb-x", "", use=Use.LOAD_BALANCER))
    assert (await cluster.blocks())[got.v4[0].network].owner == Owner.load_balancer()
    key = keys.affinity(Owner.load_balancer(), got.v4[0].network)
    assert key.startswith("/calico/ipam/v2/virtual/load-balancer/ipv4/block/")
    assert await cluster.store.get(key) is not None


async def test_unknown_node_is_refused(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 26)
    with pytest.raises(IpamError) as refused:
        await cluster.client().auto_assign(pod("h", "stranger"))
    assert refused.value.reason is Reason.NODE_MISSING


async def test_reserved_addresses_are_passed_over_but_can_be_asked_for(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    await cluster.put("IPReservation", "ipreservations", "r", {"reservedCIDRs": ["10.65.0.0/30", "10.65.0.5"]})
    client = cluster.client()
    got = await client.auto_assign(pod("h", num4=8))
    assert {str(interface.ip) for interface in got.v4} == {"10.65.0.4", "10.65.0.6", "10.65.0.7"}
    assert list(await cluster.blocks()) == [IPv4Network("10.65.0.4/30")]  # the fully reserved block was not claimed
    await client.assign_ip(AssignIpRequest(address=IPv4Address("10.65.0.5"), handle="fixed", node="node1"))
    row = (await client.usage())[0].row
    assert (row.total, row.in_use, row.reserved, row.free) == (8, 4, 5, 0)


# --- settings --------------------------------------------------------------------------------------------------------


async def test_full_pool_lends_addresses_of_other_hosts(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/30", 30)
    await cluster.client().auto_assign(pod("h1", "node1"))
    got = await cluster.client().auto_assign(pod("h2", "node2", num4=5))
    assert len(got.v4) == 3
    assert got.reasons == {4: Reason.NO_FREE_ADDRESSES}
    assert (await cluster.blocks())[IPv4Network("10.65.0.0/30")].owner == Owner.host("node1")


async def test_strict_affinity_lends_nothing(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/30", 30)
    client = cluster.client()
    await client.set_config(strict_affinity=True)
    await client.auto_assign(pod("h1", "node1"))
    assert (await client.auto_assign(pod("h2", "node2"))).v4 == []
    with pytest.raises(IpamError) as refused:
        await client.assign_ip(AssignIpRequest(address=IPv4Address("10.65.0.3"), handle="h3", node="node2"))
    assert refused.value.reason is Reason.STRICT_AFFINITY


async def test_block_limit_holds_for_cluster_and_request(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    client = cluster.client()
    await client.set_config(strict_affinity=True, max_blocks_per_host=3)
    got = await client.auto_assign(pod("h1", num4=20))
    assert len(got.v4) == 12
    assert got.reasons == {4: Reason.BLOCK_LIMIT}
    assert len((await client.auto_assign(pod("h2", "node2", num4=20, max_blocks_per_host=1))).v4) == 4


async def test_default_block_limit_is_twenty(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    client = cluster.client()
    await client.set_config(strict_affinity=True)
    assert len((await client.auto_assign(pod("h1", num4=100))).v4) == 80


async def test_without_automatic_blocks_only_claimed_ones_are_used(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    client = cluster.client()
    await client.set_config(strict_affinity=True, auto_allocate_blocks=False)
    assert (await client.auto_assign(pod("h1"))).reasons == {4: Reason.NO_AUTO_BLOCKS}
    await client.claim_affinity("node1", IPv4Network("10.65.0.8/30"))
    assert (await client.auto_assign(pod("h2"))).v4[0].ip == IPv4Address("10.65.0.8")


@pytest.mark.parametrize("changes", [{"auto_allocate_blocks": False}, {"max_blocks_per_host": 2}, {"cooldown_s": 1201}])
async def test_settings_that_cannot_work_are_refused(cluster: Cluster, changes: dict[str, int]) -> None:
    with pytest.raises(IpamError) as refused:
        await cluster.client().set_config(**changes)
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert await cluster.client().get_config() == IpamConfig()


# --- release ---------------------------------------------------------------------------------------------------------


async def test_release_with_an_old_sequence_number_is_refused(cluster: Cluster) -> None:
    """A DEL that comes late must not free what the address's next owner holds, even under the same handle."""
    await cluster.pool("p", "10.65.0.0/32", 32)
    client, late = cluster.client(), cluster.client()
    first = await client.auto_assign(pod("h"))
    address, old = first.v4[0].ip, first.sequences[first.v4[0].ip]
    await client.release_by_handle("h")
    second = await client.auto_assign(pod("h"))
    assert second.v4[0].ip == address
    result = await late.release_ips([ReleaseOption(address, "h", old)])
    assert result.freed == []
    assert isinstance(result.refused[address], StaleRelease)
    assert [a.address for a in await client.ips_by_handle("h")] == [address]
    result = await late.release_ips([ReleaseOption(address, "h", second.sequences[address])])
    assert result.freed == [(address, "h")]


async def test_one_stale_option_refuses_its_block_and_no_other(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    client = cluster.client()
    got = await client.auto_assign(pod("h", num4=5))
    ordered = sorted(interface.ip for interface in got.v4)
    wrong = ordered[0]
    options = [ReleaseOption(ip, "h", 1 if ip == wrong else got.sequences[ip]) for ip in ordered]
    result = await client.release_ips(options)
    spoilt = next(interface.network for interface in got.v4 if interface.ip == wrong)
    assert set(result.refused) == {ip for ip in ordered if ip in spoilt}
    assert {address for address, _ in result.freed} == {ip for ip in ordered if ip not in spoilt}
    assert await cluster.handle("h") == {str(spoilt): len(result.refused)}


async def test_free_and_foreign_addresses_are_told_apart(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    client = cluster.client()
    got = (await client.auto_assign(pod("h"))).v4[0].ip
    free = next(ip for ip in IPv4Network("10.65.0.0/29") if ip != got)
    outside = ip_address("192.0.2.1")
    result = await client.release_ips([ReleaseOption(free), ReleaseOption(outside), ReleaseOption(got, "other")])
    assert set(result.unallocated) | set(result.refused) == {free, outside, got}
    assert got in result.refused


async def test_address_of_a_deleted_pool_can_be_released(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    client = cluster.client()
    got = (await client.auto_assign(pod("h"))).v4[0].ip
    await cluster.store.delete(keys.resource("ippools", "p"))
    assert (await cluster.client().release_ips([ReleaseOption(got)])).freed == [(got, "h")]


async def test_release_of_a_missing_handle_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(HandleMissing):
        await cluster.client().release_by_handle("nobody")
    with pytest.raises(HandleMissing):
        await cluster.client().ips_by_handle("nobody")


async def test_handle_that_counts_too_much_is_cleared(cluster: Cluster) -> None:
    """What a client leaves that writes handle and block separately and dies in between."""
    await cluster.pool("p", "10.65.0.0/30", 30)
    client = cluster.client()
    await client.auto_assign(pod("h"))
    await cluster.store.put(keys.handle("h"), b'{"block":{"10.65.0.0/30":2,"10.99.0.0/30":1},"deleted":false}')
    result = await cluster.client().release_by_handle("h")
    assert [str(address) for address, _ in result.freed] == ["10.65.0.0"]
    assert await cluster.handle("h") is None


async def test_handle_from_another_process_is_seen(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/30", 30)
    one, two = cluster.client(), cluster.client()
    await one.auto_assign(pod("h"))
    await two.auto_assign(pod("h"))
    assert len((await one.release_by_handle("h")).freed) == 2


async def test_assign_ip_takes_the_address_once(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 26)
    client = cluster.client()
    wanted = AssignIpRequest(address=IPv4Address("10.65.0.77"), handle="h", node="node1")
    await client.assign_ip(wanted)
    assert (await cluster.affinities()) == {("node1", IPv4Network("10.65.0.64/26")): AffinityState.CONFIRMED}
    with pytest.raises(AddressInUse):
        await cluster.client().assign_ip(wanted)
    await client.assign_ip(AssignIpRequest(address=wanted.address, handle="h", node="node1", max_per_handle=1))
    assert await cluster.handle("h") == {"10.65.0.64/26": 1}
    with pytest.raises(IpamError) as refused:
        await client.assign_ip(AssignIpRequest(address=IPv4Address("192.0.2.1"), handle="h", node="node1"))
    assert refused.value.reason is Reason.NOT_IN_POOL


async def test_virtual_machine_keeps_its_address(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 26)
    first = await cluster.client().auto_assign(pod("net.vmi.ns.vm", "node1", max_per_handle=1))
    again = await cluster.client().auto_assign(pod("net.vmi.ns.vm", "node2", max_per_handle=1))
    assert again.v4 == first.v4
    client, address = cluster.client(), first.v4[0].ip
    await client.set_attributes(address, "net.vmi.ns.vm", {"node": "node1"}, {"node": "node2"})
    held = await client.ips_by_handle("net.vmi.ns.vm")
    assert (held[0].attrs, held[0].alternate) == ({"node": "node1"}, {"node": "node2"})
    assert held[0].sequence == first.sequences[address]


async def test_virtual_machine_started_again_has_its_address_unless_the_setting_is_off(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 26)
    client = cluster.client()

    async def start(container: str, node: str) -> IPv4Address:
        who = holder((await client.inputs()).config, "net", container, namespace="ns", machine="vm")
        request = pod(who.handle, node, max_per_handle=who.max_per_handle)
        return (await client.auto_assign(request)).v4[0].ip

    first = await start("c1", "node1")
    assert await start("c2", "node2") == first
    assert sum((await cluster.handle("net.vmi.ns.vm") or {}).values()) == 1
    await client.set_config(vm_address_persistence=False)
    third = await start("c3", "node1")
    assert third != first
    assert await cluster.handle("net.c3") is not None


async def test_of_two_that_take_over_a_machine_at_once_one_is_told_so(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 26)
    first = await cluster.client().auto_assign(pod("net.vmi.ns.vm", "node1", max_per_handle=1))
    address, was = first.v4[0].ip, ({"node": "node1"}, {})

    async def take(target: str) -> str:
        try:
            await cluster.client().set_attributes(address, "net.vmi.ns.vm", {"pod": target}, {}, was=was)
        except StaleRelease:
            return ""
        return target

    winners = [won for won in await asyncio.gather(*(take(f"pod{n}") for n in range(5))) if won]
    assert len(winners) == 1
    (held,) = await cluster.client().ips_by_handle("net.vmi.ns.vm")
    assert held.attrs == {"pod": winners[0]}


# --- blocks ----------------------------------------------------------------------------------------------------------


async def test_fifty_hosts_claiming_at_once_never_share_a_block(cluster: Cluster) -> None:
    """Few blocks, so that all meet: whoever got a block, the block, its affinity and the addresses agree."""
    await cluster.pool("p", "10.65.0.0/24", 30)  # 64 blocks for 50 hosts
    names = [f"host{n}" for n in range(50)]
    for name in names:
        await cluster.node(name)
    clients = {name: cluster.client(max_age_s=60.0) for name in names}
    await clients["host0"].set_config(strict_affinity=True)
    got = await asyncio.gather(*(clients[name].auto_assign(pod(f"h-{name}", name, num4=3)) for name in names))
    blocks, affinities = await cluster.blocks(), await cluster.affinities()
    for name, result in zip(names, got, strict=True):
        assert len(result.v4) == 3
        for interface in result.v4:
            assert blocks[interface.network].owner == Owner.host(name)
            assert affinities[name, interface.network] is AffinityState.CONFIRMED
    assert len({interface.ip for result in got for interface in result.v4}) == 150
    claims = [cidr for (_, cidr), state in affinities.items() if state is AffinityState.CONFIRMED]
    assert len(claims) == len(set(claims)) == 50


async def test_fifty_hosts_want_the_same_last_blocks(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/28", 30)  # 4 blocks for 50 hosts
    names = [f"host{n}" for n in range(50)]
    for name in names:
        await cluster.node(name)
    clients = [cluster.client(max_age_s=60.0) for _ in names]
    await clients[0].set_config(strict_affinity=True)
    got = await asyncio.gather(*(c.auto_assign(pod(f"h-{n}", n)) for c, n in zip(clients, names, strict=True)))
    winners = [name for name, result in zip(names, got, strict=True) if result.v4]
    assert len(winners) == 4
    affinities = await cluster.affinities()
    assert sorted(name for name, _ in affinities) == sorted(winners)  # the losers left nothing behind


async def test_claim_goes_on_while_others_take_block_after_block(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the listing said is taken by the time it is tried, more than a hundred times; the last one is left."""
    await cluster.pool("p", "10.65.0.0/24", 32)
    thief, client = cluster.client(max_age_s=60.0), cluster.client()
    await thief.inputs()
    claim = client._engine.claims.claim
    stolen: list[Network] = []

    async def late(owner: Owner, cidr: Network, **more: bool) -> Block:
        if len(stolen) < 255:
            await thief.claim_affinity("node2", cidr)
            stolen.append(cidr)
        return await claim(owner, cidr, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(client._engine.claims, "claim", late)
    got = await client.auto_assign(pod("h"))
    assert len(stolen) == 255
    assert got.v4[0].network not in stolen
    assert len(await cluster.affinities()) == 256  # the losses left nothing behind


async def test_many_reserved_blocks_are_no_lost_claims(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 32)
    await cluster.put("IPReservation", "ipreservations", "r", {"reservedCIDRs": ["10.65.0.0/25", "10.65.0.128/26"]})
    client, nodes = cluster.client(), [f"host{n}" for n in range(64)]
    for node in nodes:
        await cluster.node(node)
    await client.set_config(strict_affinity=True)
    got = await asyncio.gather(*(cluster.client().auto_assign(pod(f"h-{node}", node)) for node in nodes))
    assert len({result.v4[0] for result in got}) == 64


async def test_two_phases_of_a_claim_are_seen_in_order(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/30", 30)
    start = (await cluster.store.status()).revision
    await cluster.client().auto_assign(pod("h"))
    end = (await cluster.store.status()).revision
    seen: list[tuple[str, str]] = []
    async for batch in cluster.store.watch(keys.PREFIX, revision=start + 1):
        for event in batch.events:
            value = event.kv.value if event.kv else b""
            kind = event.key.removeprefix(keys.PREFIX).split("/")[0]
            seen.append((kind, decode_affinity(value).value if kind == "host" else ""))
        if batch.revision >= end:
            break
    assert seen[0] == ("host", "pending")
    assert set(seen[1:3]) == {("assignment", ""), ("host", "confirmed")}
    assert set(seen[3:]) == {("handle", ""), ("assignment", "")}


@pytest.mark.parametrize("state", ["pending", "pendingDeletion"])
@pytest.mark.parametrize("with_block", [False, True])
async def test_claim_left_half_way_is_finished(cluster: Cluster, state: str, with_block: bool) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    client = cluster.client()
    cidr = IPv4Network("10.65.0.40/30")
    if with_block:
        await client.claim_affinity("node1", cidr)
    await cluster.store.put(keys.affinity(Owner.host("node1"), cidr), encode_affinity(AffinityState(state)))
    got = await cluster.client().auto_assign(pod("h"))
    assert got.v4[0].network == cidr
    assert await cluster.affinities() == {("node1", cidr): AffinityState.CONFIRMED}


async def test_affinity_of_a_block_that_belongs_to_another_is_removed(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    cidr = IPv4Network("10.65.0.40/30")
    await cluster.client().claim_affinity("node2", cidr)
    await cluster.store.put(keys.affinity(Owner.host("node1"), cidr), encode_affinity(AffinityState.CONFIRMED))
    got = await cluster.client().auto_assign(pod("h", "node1"))
    assert got.v4[0].network != cidr
    assert ("node1", cidr) not in await cluster.affinities()


async def test_lost_block_of_the_host_is_made_again(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/24", 30)
    cidr = IPv4Network("10.65.0.40/30")
    await cluster.store.put(keys.affinity(Owner.host("node1"), cidr), b"")  # old data: confirmed
    assert (await cluster.client().auto_assign(pod("h"))).v4[0].network == cidr


async def test_idle_block_of_another_host_is_taken_after_a_minute(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/30", 30)
    cidr = IPv4Network("10.65.0.0/30")
    client = cluster.client()
    await client.set_config(strict_affinity=True)
    await client.claim_affinity("node1", cidr)
    before = (await cluster.blocks())[cidr].sequence
    assert (await client.auto_assign(pod("h1", "node2"))).v4 == []
    cluster.ahead_ns += 61_000_000_000
    assert len((await client.auto_assign(pod("h2", "node2"))).v4) == 1
    block = (await cluster.blocks())[cidr]
    assert block.owner == Owner.host("node2")
    assert block.sequence > before
    assert await cluster.affinities() == {("node2", cidr): AffinityState.CONFIRMED}


async def test_released_block_is_deleted_when_empty_and_ownerless_when_not(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30)
    client = cluster.client()
    got = await client.auto_assign(pod("h"))
    full = got.v4[0].network
    idle = next(cidr for cidr in IPv4Network("10.65.0.0/29").subnets(new_prefix=30) if cidr != full)
    await client.claim_affinity("node1", idle)
    with pytest.raises(BlockNotEmpty):
        await client.release_affinity("node1", full, must_be_empty=True)
    assert await client.release_host_affinities("node1", must_be_empty=True) == [full]
    assert list(await cluster.blocks()) == [full]
    await client.release_host_affinities("node1")
    block = (await cluster.blocks())[full]
    assert (block.owner, block.claimed_at) == (None, "")
    assert await cluster.affinities() == {}
    await client.release_by_handle("h")
    assert await cluster.blocks() == {}


async def test_block_of_a_pool_that_no_longer_selects_the_node_goes_with_its_last_address(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/29", 30, nodeSelector="zone == 'a'")
    client = cluster.client()
    await client.auto_assign(pod("h"))
    await cluster.node("node1", zone="moved")
    await client.release_by_handle("h")
    assert await cluster.blocks() == {}
    assert await cluster.affinities() == {}


async def test_block_of_another_size_is_never_overlapped(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/27", 30)
    await cluster.client().claim_affinity("node2", IPv4Network("10.65.0.0/27"))
    for n in range(1, 8):
        await cluster.client().release_affinity("node2", IPv4Network(f"10.65.0.{4 * n}/30"))
    await cluster.pool("p", "10.65.0.0/27", 28)
    await cluster.client().set_config(strict_affinity=True)
    got = await cluster.client().auto_assign(pod("h", num4=32))
    assert {interface.network for interface in got.v4} == {IPv4Network("10.65.0.16/28")}


async def test_ensure_block_claims_once(cluster: Cluster) -> None:
    await cluster.pool("p", "fd00:65::/112", 122)
    client = cluster.client()
    first = await client.ensure_block("node1", 6)
    assert first in {cidr for _, cidr in await cluster.affinities()}
    assert await cluster.client().ensure_block("node1", 6) == first
    assert isinstance(first, IPv6Network)


async def test_unreadable_block_stops_nobody_else(cluster: Cluster) -> None:
    await cluster.pool("p", "10.65.0.0/28", 30)
    client = cluster.client()
    first = await client.auto_assign(pod("h1"))
    await cluster.store.put(keys.block(first.v4[0].network), b"{not json")
    second = await cluster.client().auto_assign(pod("h2"))
    assert second.v4[0].network != first.v4[0].network
    assert len(await client.blocks()) == 1
