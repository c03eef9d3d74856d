"""What of a Node goes to all others."""

from __future__ import annotations

import pytest

from libs import model
from libs.netlink.links import parse_mac
from libs.policy import nets
from libs.policy.inputs import NodeInput, reduce
from libs.policy.output import NodeInfo


def node(spec: model.NodeSpec) -> NodeInfo:
    made = reduce("", model.Node(metadata=model.ObjectMeta(name="n"), spec=spec))
    assert isinstance(made, NodeInput)
    return made.info


MACS = [
    ("66:aa:bb:cc:dd:ee", "66:aa:bb:cc:dd:ee"),
    ("66-AA-bb-CC-dd-ee", "66:aa:bb:cc:dd:ee"),
    ("66aa.bbcc.ddee", "66:aa:bb:cc:dd:ee"),
    ("01:00:5e:00:00:01", ""),  # of a group
    ("ff:ff:ff:ff:ff:ff", ""),
    ("00:00:00:00:00:00", ""),
    ("66:aa:bb:cc:dd:ee:00:11", ""),  # EUI-64
    ("66:aa:bb:cc:dd", ""),
    ("66:aa:bb:cc:dd:eg", ""),
    ("garbage", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "mac"), MACS)
def test_a_tunnels_mac_is_one_that_every_node_can_write_or_the_generated_one(text: str, mac: str) -> None:
    assert nets.valid_mac(text) == mac
    info = node(model.NodeSpec(vxlan_tunnel_mac_addr=text, vxlan_tunnel_mac_addr_v6=text))
    assert (info.vxlan_mac, info.vxlan_mac6) == (mac, mac)
    if mac:
        assert len(parse_mac(mac)) == 6


def test_an_address_of_the_wrong_family_is_not_there() -> None:
    four, six = "192.0.2.1", "2001:db8::1"
    swapped = model.NodeSpec(
        bgp=model.NodeBGPSpec(ipv4_address=f"{six}/64", ipv6_address=f"{four}/24", ipv4_ipip_tunnel_addr=six),
        ipv4_vxlan_tunnel_addr=six,
        ipv6_vxlan_tunnel_addr=four,
        wireguard=model.NodeWireguardSpec(interface_ipv4_address=six, interface_ipv6_address=four),
    )
    assert node(swapped) == NodeInfo()
    right = model.NodeSpec(
        bgp=model.NodeBGPSpec(ipv4_address=f"{four}/24", ipv6_address=f"{six}/64", ipv4_ipip_tunnel_addr=four),
        ipv4_vxlan_tunnel_addr=four,
        ipv6_vxlan_tunnel_addr=six,
        wireguard=model.NodeWireguardSpec(interface_ipv4_address=four, interface_ipv6_address=six),
    )
    assert node(right) == NodeInfo(
        ipv4=f"{four}/24", ipv6=f"{six}/64", ipip_ipv4=four, vxlan_ipv4=four, vxlan_ipv6=six,
        wireguard_ipv4=four, wireguard_ipv6=six,
    )  # fmt: skip
