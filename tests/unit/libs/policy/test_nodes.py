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
