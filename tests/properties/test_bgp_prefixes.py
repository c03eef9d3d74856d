"""Regions: which networks a prefix lies in, as `ipaddress` says, however they nest."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from services.bgp.core.paths import Family, IPNetwork, nlri
from services.bgp.core.prefixes import Regions
from tests.properties.bgp_rib_oracle import subnet

LENGTHS = {Family.IPV4: (0, 1, 7, 8, 9, 15, 16, 17, 24, 31, 32), Family.IPV6: (0, 1, 8, 9, 63, 64, 65, 127, 128)}


def draw(random: Random, family: Family) -> IPNetwork:
    """Of few octets, and those at their ends, so that many nest and many just miss."""
    packed = bytes(random.choice((0, 1, 10, 127, 128, 255)) for _ in range(family.octets))
    length = random.choice(LENGTHS[family])
    if family is Family.IPV4:
        return IPv4Network((packed, length), strict=False)
    return IPv6Network((packed, length), strict=False)


@given(st.integers(0, 2**32), st.sampled_from(Family))
def test_regions_are_those_of_ipaddress(seed: int, family: Family) -> None:
    random = Random(seed)
    outer = draw(random, family)
    networks = [(draw(random, random.choice((family, family, Family.IPV4))), n) for n in range(random.randint(0, 8))]
    regions: Regions[int, frozenset[int]] = Regions([(outer, -1), *networks], family, frozenset)
    asked = [outer, *(network for network, _ in networks), *(draw(random, family) for _ in range(20))]
    asked = [network for network in asked if network.max_prefixlen == 8 * family.octets]
    wanted = [
        frozenset(label for network, label in [(outer, -1), *networks] if subnet(prefix, network)) for prefix in asked
    ]
    assert regions.many([nlri(prefix) for prefix in asked]) == wanted
