"""What leaves the node when no filter decides (facts 4.4, 4.5), and what goes to the kernel (4.4, felix 5)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from services.bgp.core.kernel import KernelVerdict, by_tunnel, kernel_filter
from services.bgp.core.paths import Attributes
from services.bgp.core.prefixes import Regions, inside_any
from services.bgp.core.rib.outgoing import Withheld
from services.bgp.core.rib.path import NextHopState
from services.bgp.core.settings import Originated, PoolExport, SpeakerSettings
from tests.unit.services.bgp.speakers import AS, HOP, V4, V6, Speaker, external, internal, key, peer

BLOCK = ip_network("10.0.0.0/26")


def route(text: str, **changes: object) -> Originated:
    return replace(Originated(V4, key(text), Attributes(), interface="cali1"), **changes)  # type: ignore[arg-type]


def block(text: str) -> Originated:
    return Originated(V4, key(text), Attributes(), block=True)


def test_own_block_and_borrowed_addresses() -> None:
    """G11: the /26 and not what lies inside it, and a /32 whose block is another node's."""
    speaker = Speaker(peer(1), originated=(block("10.0.0.0/26"),), own_blocks=(BLOCK,))
    speaker.up()
    speaker.rib.originate([route("10.0.0.5/32"), route("10.0.7.1/32")])
    assert speaker.read("Global_1").keys() == {"10.0.0.0/26", "10.0.7.1/32"}
    inside = speaker.rib.explain(V4, key("10.0.0.5/32"))
    assert inside.advertised[0].withheld is Withheld.POLICY


def test_moved_here_is_told_from_inside_the_block() -> None:
    """A metric below the normal one: a virtual machine on its way; the peer sees it as LOCAL_PREF."""
    speaker = Speaker(peer(1), originated=(block("10.0.0.0/26"),), own_blocks=(BLOCK,))
    speaker.up()
    speaker.rib.originate([route("10.0.0.5/32", priority=512)])
    assert speaker.read("Global_1")["10.0.0.5/32"].local_pref == 2147483647 - 512
    speaker.rib.originate([route("10.0.0.5/32")])
    assert speaker.read("Global_1").keys() == {"10.0.0.0/26"}


def test_local_route_says_the_normal_metric() -> None:
    speaker = Speaker(peer(1), normal_priority={V4: 2000, V6: 1024})
    speaker.up()
    speaker.rib.originate([route("10.0.7.1/32")])
    assert speaker.read("Global_1")["10.0.7.1/32"].local_pref == 2147483647 - 2000
    speaker.rib.configure(replace(speaker.settings, normal_priority={V4: 1024, V6: 1024}))
    assert speaker.read("Global_1")["10.0.7.1/32"].local_pref == 2147483647 - 1024


def test_pool_that_is_not_to_leave() -> None:
    """G12, and changed while the session is up."""
    pools = (PoolExport(ip_network("10.1.0.0/16"), export=False), PoolExport(ip_network("10.2.0.0/16")))
    speaker = Speaker(peer(1), pools=pools, originated=(block("10.1.0.0/26"), block("10.2.0.0/26")))
    speaker.up()
    assert speaker.read("Global_1").keys() == {"10.2.0.0/26"}
    speaker.rib.configure(replace(speaker.settings, pools=(replace(pools[0], export=True), pools[1])))
    assert speaker.read("Global_1").keys() == {"10.1.0.0/26", "10.2.0.0/26"}
    speaker.rib.configure(replace(speaker.settings, pools=pools))
    assert speaker.read("Global_1").keys() == {"10.2.0.0/26"}


def test_nothing_outside_pools_and_never_the_default_route() -> None:
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001), "0.0.0.0/0", "8.0.0.0/5", "10.0.0.0/8", "172.16.0.0/12")
    speaker.tell("Global_1", external(65001, next_hop=bytes(15) + b"\1"), "::/0", "fd00:1::/64")
    speaker.rib.originate([route("192.168.1.1/32")])
    assert speaker.read("Global_2").keys() == {"10.0.0.0/8", "fd00:1::/64"}


def test_services() -> None:
    """G13: a service's range outside pools, and withdrawn with it."""
    service = Originated(V4, key("10.96.0.0/12"), Attributes(), service=True)
    single = Originated(V4, key("172.31.0.9/32"), Attributes(), service=True)
    speaker = Speaker(peer(1), pools=(), originated=(service, single))
    speaker.up()
    assert speaker.read("Global_1").keys() == {"10.96.0.0/12", "172.31.0.9/32"}
    speaker.rib.configure(replace(speaker.settings, originated=(service,)))
    assert speaker.read("Global_1").keys() == {"10.96.0.0/12"}


def test_reflector_passes_services_on() -> None:
    client = peer(1, rr_client_cluster=7)
    told = (ip_network("172.31.0.0/16"),)
    speaker = Speaker(client, peer(2, rr_client_cluster=7), pools=(), reflect=told, route_reflector=True, cluster_id=7)
    speaker.up()
    speaker.tell("Global_1", internal(), "172.31.0.9/32", "172.30.0.9/32")
    assert speaker.read("Global_2").keys() == {"172.31.0.9/32"}
    speaker.rib.configure(replace(speaker.settings, route_reflector=False))
    assert speaker.read("Global_2") == {}


def test_communities_of_prefix_advertisements() -> None:
    """G10: standard and large ones, of every range that a prefix lies in."""
    added = ((ip_network("10.0.0.0/8"), ((65000, 1),)), (ip_network("10.0.0.0/16"), ((65000, 2), (1, 2, 3))))
    speaker = Speaker(peer(1), advertisements=added, originated=(block("10.0.0.0/26"), block("10.7.0.0/26")))
    speaker.up()
    told = speaker.read("Global_1")
    assert told["10.0.0.0/26"].communities == (65000 << 16 | 1, 65000 << 16 | 2)
    assert told["10.0.0.0/26"].large == ((1, 2, 3),)
    assert told["10.7.0.0/26"].communities == (65000 << 16 | 1,)


@pytest.mark.parametrize(
    ("interface", "owner", "to_internal", "to_external"),
    [
        ("vxlan.calico", "Enabled", False, True),
        ("wireguard.cali", "Enabled", False, True),
        ("tunl0", "Enabled", True, True),
        ("tunl0", "EnabledNoEncapOnly", False, True),
        ("bpfin.cali", "Enabled", False, False),
        ("cali1", "Enabled", True, True),
    ],
)
def test_routes_by_overlay_devices(interface: str, owner: str, to_internal: bool, to_external: bool) -> None:
    speaker = Speaker(peer(1), peer(2, 65002), program_cluster_routes=owner)
    speaker.up()
    speaker.rib.originate([route("10.0.7.1/32", interface=interface)])
    assert bool(speaker.read("Global_1")) is to_internal
    assert bool(speaker.read("Global_2")) is to_external


def test_live_migration_preferences() -> None:
    """G17: normal local < learned < local and moved here < learned and moved on (facts 4.2)."""
    speaker = Speaker(peer(1))
    speaker.up()
    address = "10.0.7.1/32"
    speaker.rib.originate([route(address)])
    speaker.tell("Global_1", internal(local_pref=2147483647 - 1024), address)
    assert speaker.kernel() == {address: ["10.9.0.1"]}
    speaker.rib.originate([route(address, priority=512)])
    assert speaker.kernel() == {}
    speaker.tell("Global_1", internal(local_pref=2147483647 - 512), address)
    assert speaker.kernel() == {address: ["10.9.0.1"]}
    assert next(iter(speaker.rib.fib(V4).values())).metric == 512


def settings(owner: str, **changes: object) -> SpeakerSettings:
    pools = (
        PoolExport(ip_network("10.1.0.0/16"), ipip_mode="Always"),
        PoolExport(ip_network("10.2.0.0/16"), ipip_mode="CrossSubnet"),
        PoolExport(ip_network("10.3.0.0/16"), vxlan=True),
        PoolExport(ip_network("10.4.0.0/16")),
    )
    made = SpeakerSettings("n", 1, AS, pools=pools, program_cluster_routes=owner, reject=(ip_network("10.96.0.0/12"),))
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "ipip", "plain"),
    [
        ("Enabled", True, True),
        ("EnabledIPIPOnly", True, False),
        ("EnabledNoEncapOnly", False, True),
        ("Disabled", False, False),
    ],
)
def test_kernel_filter(owner: str, ipip: bool, plain: bool) -> None:
    """G22: VXLAN never, services never, outside pools always; the rest by `programClusterRoutes`."""
    judge = kernel_filter(settings(owner), V4).get
    reject = KernelVerdict.REJECT
    assert judge(key("10.1.0.0/26")) is (KernelVerdict.IPIP if ipip else reject)
    assert judge(key("10.2.0.0/26")) is (KernelVerdict.IPIP_CROSS_SUBNET if ipip else reject)
    assert judge(key("10.3.0.0/26")) is reject
    assert judge(key("10.4.0.0/26")) is (KernelVerdict.PLAIN if plain else reject)
    assert judge(key("10.96.0.10/32")) is reject
    assert judge(key("0.0.0.0/0")) is KernelVerdict.PLAIN
    assert judge(key("10.0.0.0/8")) is KernelVerdict.PLAIN


def test_tunnel_across_subnets_only() -> None:
    subnets = (ip_network("10.9.0.0/24"),)
    near, far = ip_address("10.9.0.1").packed, ip_address("10.8.0.1").packed
    assert not by_tunnel(KernelVerdict.IPIP_CROSS_SUBNET, near, subnets, V4)
    assert by_tunnel(KernelVerdict.IPIP_CROSS_SUBNET, far, subnets, V4)
    assert by_tunnel(KernelVerdict.IPIP, near, subnets, V4)
    assert not by_tunnel(KernelVerdict.PLAIN, far, subnets, V4)


def test_next_hop_that_wireguard_serves_is_not_for_the_kernel() -> None:
    speaker = Speaker(peer(1), encrypted=(ip_address("10.9.0.1"),))
    speaker.up()
    speaker.tell("Global_1", internal(), "10.5.0.0/16")
    assert speaker.kernel() == {}
    speaker.rib.configure(replace(speaker.settings, encrypted=()))
    assert speaker.kernel() == {"10.5.0.0/16": ["10.9.0.1"]}


def test_routes_change_owner_live() -> None:
    speaker = Speaker(peer(1), program_cluster_routes="Disabled")
    speaker.up()
    speaker.tell("Global_1", internal(), "10.5.0.0/16", "192.168.0.0/24")
    assert speaker.kernel() == {"192.168.0.0/24": ["10.9.0.1"]}
    speaker.rib.configure(replace(speaker.settings, program_cluster_routes="Enabled"))
    assert speaker.kernel().keys() == {"10.5.0.0/16", "192.168.0.0/24"}


def test_interface_of_a_next_hop_counts_and_changes() -> None:
    """A route whose next hop goes out by an overlay's device stays here, as long as it does."""
    speaker = Speaker(peer(1, rr_client_cluster=7), peer(2, rr_client_cluster=7), cluster_id=7)
    speaker.up()
    speaker.tell("Global_1", internal(), "10.5.0.0/16")
    assert speaker.read("Global_2").keys() == {"10.5.0.0/16"}
    speaker.rib.next_hops_changed({HOP: NextHopState(True, interface="vxlan.calico")})
    assert speaker.read("Global_2") == {}
    speaker.rib.next_hops_changed({HOP: NextHopState(True, interface="eth0")})
    assert speaker.read("Global_2").keys() == {"10.5.0.0/16"}


def test_inside_any_of_nested_and_neighbouring_networks() -> None:
    networks = ("10.0.0.0/9", "10.0.0.0/16", "10.128.0.0/25", "10.128.0.128/25", "fd00::/8")
    test = inside_any(map(ip_network, networks), V4)
    within = ("10.0.0.0/9", "10.0.0.0/16", "10.5.0.0/24", "10.127.255.255/32", "10.128.0.0/25", "10.128.0.200/32")
    outside = ("0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/24", "10.128.1.0/32", "9.255.255.255/32", "11.0.0.0/16")
    assert all(test(key(text)) for text in within)
    assert not any(test(key(text)) for text in outside)
    assert inside_any([ip_network("fd00::/8")], V6)(key("fd00:1::/64"))
    assert inside_any([ip_network("0.0.0.0/0")], V4)(key("0.0.0.0/0"))


def test_regions_know_all_networks_around_a_prefix() -> None:
    networks = [(ip_network("10.0.0.0/8"), "a"), (ip_network("10.0.0.0/16"), "b"), (ip_network("10.0.0.0/16"), "c")]
    regions: Regions[str, str] = Regions(networks, V4, "".join)
    asked = [key(text) for text in ("10.0.3.0/24", "10.1.0.0/24", "11.0.0.0/8", "10.0.0.0/12")]
    assert regions.many(asked) == ["abc", "a", "", "a"]
