"""How large a pod's packets may be."""

from __future__ import annotations

import pytest

from libs.netlink.links import Link
from libs.policy.output import Pool
from services.felix.core.mtu import PATTERN, host_mtu_bytes, pod_mtu_bytes
from services.felix.core.overlay import OverlaySettings


def link(name: str, mtu_bytes: int, *, up: bool = True, lower_up: bool = True) -> Link:
    return Link(1, name, "", "", mtu_bytes, up, lower_up, 0, 0)


def test_the_host_has_the_smallest_of_those_that_match_and_are_up() -> None:
    links = [
        link("eth0", 1500),
        link("ens3", 9000),
        link("eth1", 1300, lower_up=False),
        link("eth2", 1300, up=False, lower_up=False),
        link("cali1", 1200),
        link("lo", 65536),
    ]
    assert host_mtu_bytes(links, PATTERN) == 1500
    assert host_mtu_bytes(links, "^ens") == 9000
    assert host_mtu_bytes(links, "^bond") == 1460


@pytest.mark.parametrize(
    ("pools", "mtu_bytes"),
    [
        ((), 1500),
        ((Pool(cidr="10.0.0.0/16"),), 1500),
        ((Pool(cidr="10.0.0.0/16", ipip_mode="Always"),), 1480),
        ((Pool(cidr="10.0.0.0/16", vxlan_mode="CrossSubnet"), Pool(cidr="10.1.0.0/16", ipip_mode="Always")), 1450),
        ((Pool(cidr="10.0.0.0/16", vxlan_mode="Always"), Pool(cidr="fd00::/64", vxlan_mode="Always")), 1430),
    ],
)
def test_pods_leave_room_for_the_largest_encapsulation_in_use(pools: tuple[Pool, ...], mtu_bytes: int) -> None:
    assert pod_mtu_bytes(1500, pools, OverlaySettings()) == mtu_bytes


@pytest.mark.parametrize(
    ("settings", "mtu_bytes"),
    [
        (OverlaySettings(vxlan_mtu_bytes=1400), 1400),
        (OverlaySettings(vxlan6_mtu_bytes=1200), 1450),  # no pool needs it
        (OverlaySettings(vxlan=False), 1500),
        (OverlaySettings(vxlan=False, ipip=True, ipip_mtu_bytes=1440), 1440),
        (OverlaySettings(ipip=True), 1450),  # the smaller counts
    ],
)
def test_the_configuration_may_say_otherwise(settings: OverlaySettings, mtu_bytes: int) -> None:
    assert pod_mtu_bytes(1500, [Pool(cidr="10.0.0.0/16", vxlan_mode="Always")], settings) == mtu_bytes
