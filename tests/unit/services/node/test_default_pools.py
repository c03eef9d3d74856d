"""Default pools, by variables, by kubeadm, by what this host leaves free."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random
from typing import Any

import pytest

from libs.model import IPPool
from libs.model.base import ObjectMeta
from libs.model.pools import IPPoolSpec
from services.node.core.default_pools import PoolError, Variables, needed, pool, random_ula
from services.node.core.kubeadm import pod_subnets


def make(version: int = 4, *, kubeadm: tuple[str, ...] = (), host: tuple[str, ...] = (), **given: Any) -> IPPoolSpec:
    made = pool(
        version, Variables(**given), kubeadm=map(ip_network, kubeadm), host=map(ip_network, host), random=Random(1)
    )
    assert made.metadata.name == f"default-ipv{version}-ippool"
    return made.spec


def existing(cidr: str) -> IPPool:
    return IPPool(metadata=ObjectMeta(name="x"), spec=IPPoolSpec(cidr=cidr))


def test_defaults_of_each_family() -> None:
    four, six = make(), make(6)
    assert (four.cidr, four.block_size, four.nat_outgoing, four.ipip_mode, four.vxlan_mode, four.node_selector) == (
        "192.168.0.0/16", 26, True, "Never", "Never", "all()",
    )  # fmt: skip
    assert (six.block_size, six.nat_outgoing) == (122, False)
    assert ip_network(six.cidr).prefixlen == 48
    assert ip_network(six.cidr).subnet_of(ip_network("fd00::/8"))


def test_every_variable_is_used() -> None:
    spec = make(
        cidr="10.1.0.0/16", ipip="cross-subnet", nat_outgoing=False, block_size=24, node_selector="rack == 'a'",
        disable_bgp_export=True,
    )  # fmt: skip
    assert spec == IPPoolSpec(
        cidr="10.1.0.0/16", ipip_mode="CrossSubnet", vxlan_mode="Never", nat_outgoing=False, block_size=24,
        node_selector="rack == 'a'", disable_bgp_export=True,
    )  # fmt: skip
    assert make(6, cidr="fd00:1::/64", vxlan="Always").vxlan_mode == "Always"


@pytest.mark.parametrize(
    ("word", "mode"),
    [("", "Never"), ("off", "Never"), ("Never", "Never"), ("CrossSubnet", "CrossSubnet"), ("ALWAYS", "Always")],
)
def test_words_for_modes(word: str, mode: str) -> None:
    assert make(vxlan=word).vxlan_mode == mode


def test_kubeadm_decides_where_no_variable_does() -> None:
    subnets = ("10.244.0.0/16", "fd00:10:244::/56")
    assert make(kubeadm=subnets).cidr == "10.244.0.0/16"
    assert make(6, kubeadm=subnets).cidr == "fd00:10:244::/56"
    assert make(kubeadm=subnets, cidr="10.1.0.0/16").cidr == "10.1.0.0/16"


def test_the_first_network_that_is_free_on_this_host() -> None:
    assert make(host=("192.168.7.0/24", "172.16.0.0/12", "::/0", "0.0.0.0/0")[:1]).cidr == "172.16.0.0/16"
    assert make(host=("192.168.7.0/24", "172.16.5.0/24", "172.17.0.0/16")).cidr == "172.18.0.0/16"
    assert make(host=("10.0.0.0/8",)).cidr == "192.168.0.0/16"
    with pytest.raises(PoolError, match="CALICO_IPV4POOL_CIDR"):
        make(host=("192.168.7.0/24", "172.16.0.0/12"))


def test_two_clusters_are_unlikely_to_get_the_same_ipv6_pool() -> None:
    assert len({random_ula(Random(seed)) for seed in range(1000)}) == 1000


def test_a_family_with_a_pool_or_without_the_wish_gets_none() -> None:
    both = {4: Variables(), 6: Variables()}

    def families(
        variables: dict[int, Variables] = both, pools: tuple[str, ...] = (), *, ipv6: bool = True
    ) -> list[int]:
        return needed(variables, no_default_pools=False, existing=map(existing, pools), ipv6=ipv6)

    assert families() == [4, 6]
    assert families(ipv6=False) == [4]
    assert families(pools=("10.0.0.0/8",)) == [6]
    assert families(pools=("10.0.0.0/8", "fd00::/64")) == []
    assert families({4: Variables(cidr="none"), 6: Variables()}) == [6]
    assert needed(both, no_default_pools=True, existing=[], ipv6=True) == []


def test_contradictions_and_nonsense_are_told_with_the_variable() -> None:
    with pytest.raises(PoolError, match="NO_DEFAULT_POOLS"):
        needed({4: Variables(cidr="10.0.0.0/8")}, no_default_pools=True, existing=[], ipv6=True)
    for given, word in (
        ({"cidr": "10.0.0.1/8"}, "CALICO_IPV4POOL_CIDR"),
        ({"cidr": "fd00::/64"}, "CALICO_IPV4POOL_CIDR"),
        ({"ipip": "always", "vxlan": "always"}, "one encapsulation"),
        ({"ipip": "sometimes"}, "CALICO_IPV4POOL_IPIP"),
        ({"block_size": 19}, "CALICO_IPV4POOL_BLOCK_SIZE"),
        ({"block_size": 33}, "CALICO_IPV4POOL_BLOCK_SIZE"),
        ({"cidr": "10.0.0.0/28"}, "larger than the pool"),
    ):
        with pytest.raises(PoolError, match=word):
            make(**given)
    with pytest.raises(PoolError, match="IPv6"):
        make(6, ipip="always")


def config_map(text: str) -> dict[str, Any]:
    return {"data": {"ClusterConfiguration": text}}


def test_what_kubeadm_wrote_down() -> None:
    text = "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.244.0.0/16, fd00:10:244::/56\n"
    assert pod_subnets(config_map(text)) == [ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")]
    assert pod_subnets({}) == pod_subnets(config_map("networking: {}")) == pod_subnets(config_map("- x")) == []
    for bad in ("networking: {podSubnet: x}", "a: [", "networking: {podSubnet: 10.0.0.1/8}"):
        with pytest.raises(ValueError, match=r"podSubnet|YAML"):
            pod_subnets(config_map(bad))
