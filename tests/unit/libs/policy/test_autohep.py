"""Worked examples of automatic host endpoints (facts/kubernetes-conversion.md section 9.4)."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest

from libs import model
from libs.model.node import NodeAddress, NodeBGPSpec, NodeInterface, NodeSpec, NodeWireguardSpec
from libs.policy import autohep
from libs.policy.autohep import CREATED_BY, Changes, Desired, changes, desired, endpoint_name

OURS = {CREATED_BY: "calico-kube-controllers"}
NODE = model.Node(
    metadata=model.ObjectMeta(name="n1", labels={"zone": "a", "role": "edge"}),
    spec=NodeSpec(
        bgp=NodeBGPSpec(
            ipv4_address="192.0.2.1/24", ipv6_address="2001:db8::0001/64", ipv4_ipip_tunnel_addr="10.65.0.1"
        ),
        ipv4_vxlan_tunnel_addr="10.65.0.2",
        ipv6_vxlan_tunnel_addr="fd00:65::2",
        wireguard=NodeWireguardSpec(interface_ipv4_address="10.65.0.3", interface_ipv6_address="fd00:65::3"),
        addresses=[
            NodeAddress(address="192.0.2.1", type="InternalIP"),
            NodeAddress(address="198.51.100.1", type="InternalIP"),
            NodeAddress(address="203.0.113.1", type="ExternalIP"),
        ],
        interfaces=[
            NodeInterface(name="eth0", addresses=["192.0.2.1", "2001:db8::1", "fe80::1"]),
            NodeInterface(name="eth1", addresses=["10.1.0.1", "fd01::1"]),
            NodeInterface(name="wlan0", addresses=[]),
        ],
    ),
)
OTHER = model.Node(
    metadata=model.ObjectMeta(name="n2", labels={"zone": "b"}),
    spec=NodeSpec(bgp=NodeBGPSpec(ipv6_address="2001:db8::2/64")),
)
ALL_OF_N1 = [
    "192.0.2.1", "2001:db8::1", "10.65.0.1", "10.65.0.2", "fd00:65::2", "10.65.0.3", "fd00:65::3", "198.51.100.1",
    "10.1.0.1", "fd01::1",
]  # fmt: skip


def config(*templates: model.HostEndpointTemplate, default: str = "", auto: str = "Enabled"):
    return model.AutoHostEndpointConfig(
        auto_create=auto, create_default_host_endpoint=default, templates=list(templates)
    )


def template(name: str = "t", **fields: object) -> model.HostEndpointTemplate:
    return model.HostEndpointTemplate(generate_name=name, **fields)  # type: ignore[arg-type]


def specs(found: Desired) -> dict[str, tuple[str, list[str]]]:
    return {name: (one.spec.interface_name, one.spec.expected_ips) for name, one in found.endpoints.items()}


def test_default_host_endpoint_has_the_node_s_labels_all_its_addresses_and_the_open_profile() -> None:
    found = desired([NODE, OTHER], config())
    assert specs(found) == {"n1-auto-hep": ("*", ALL_OF_N1), "n2-auto-hep": ("*", ["2001:db8::2"])}
    one = found.endpoints["n1-auto-hep"]
    assert one.metadata.labels == {"zone": "a", "role": "edge"} | OURS
    assert (one.spec.node, one.spec.profiles) == ("n1", ["projectcalico-default-allow"])
    assert found.problems == ()


@pytest.mark.parametrize(
    "off", [None, config(auto="Disabled"), config(template(), auto=""), config(default="Disabled")]
)
def test_nothing_when_it_is_off(off) -> None:
    assert desired([NODE], off) == Desired()


def test_template_by_addresses_makes_one_without_an_interface_for_the_nodes_it_selects() -> None:
    by_address = template("lan", interface_cidrs=["10.1.0.0/16", "fd01::/16"], node_selector="zone == 'a'")
    found = desired([NODE, OTHER], config(by_address, default="Disabled"))
    assert specs(found) == {"n1-lan-auto-hep": ("", ["10.1.0.1", "fd01::1"])}
    nobody = template("lan", interface_cidrs=["172.16.0.0/12"])
    assert desired([NODE, OTHER], config(nobody, default="Disabled")) == Desired()


def test_template_by_pattern_makes_one_for_each_interface_with_its_addresses() -> None:
    by_name = template("up", interface_pattern="^eth|lan0$", interface_cidrs=["198.51.100.0/24"])
    assert specs(desired([NODE, OTHER], config(by_name, default="Disabled"))) == {
        "n1-up-eth0-auto-hep": ("eth0", ["198.51.100.1", "192.0.2.1", "2001:db8::1"]),
        "n1-up-eth1-auto-hep": ("eth1", ["198.51.100.1", "10.1.0.1", "fd01::1"]),
        "n1-up-wlan0-auto-hep": ("wlan0", ["198.51.100.1"]),
    }
    without = template("up", interface_pattern="wlan")
    assert specs(desired([NODE], config(without, default="Disabled"))) == {"n1-up-wlan0-auto-hep": ("wlan0", [])}


def test_labels_of_the_template_win_over_the_node_s_and_ours_over_both() -> None:
    one = template("t", interface_pattern="eth1", labels={"zone": "x", CREATED_BY: "me"}, annotations={"note": "hello"})
    (found,) = desired([NODE], config(one, default="Disabled")).endpoints.values()
    assert found.metadata.labels == {"zone": "x", "role": "edge"} | OURS
    assert found.metadata.annotations == {"note": "hello"}


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (template("", interface_pattern="eth0"), "generateName"),
        (template("t", interface_pattern="("), "t:"),
        (template("t", interface_pattern="eth0", node_selector="zone =="), "t:"),
        (template("t", interface_pattern="eth0", interface_cidrs=["10.0.0.0/33"]), "t:"),
    ],
)
def test_a_template_that_means_nothing_is_left_out_and_named(bad, word: str) -> None:
    found = desired([NODE], config(bad, template("good", interface_pattern="eth0")))
    assert found.endpoints.keys() == {"n1-auto-hep", "n1-good-eth0-auto-hep"}
    (problem,) = found.problems
    assert word in problem


def test_an_address_that_is_none_is_left_out_and_named() -> None:
    node = model.Node(
        metadata=model.ObjectMeta(name="n"),
        spec=NodeSpec(addresses=[NodeAddress(address="what", type="InternalIP"),
                                 NodeAddress(address="192.0.2.9", type="InternalIP")]),
    )  # fmt: skip
    found = desired([node], config())
    assert specs(found) == {"n-auto-hep": ("*", ["192.0.2.9"])}
    assert len(found.problems) == 1


def test_names_that_are_too_long_or_no_dns_names_become_digests() -> None:
    assert endpoint_name("n", "t", "eth0.100") == "n-t-eth0.100-auto-hep"
    longest = "n" * (253 - len("-auto-hep"))
    assert endpoint_name(longest) == f"{longest}-auto-hep"
    for parts in ((longest + "n",), (longest, "t"), ("n", "t", "eth_0"), ("n", "t", "ETH0"), ("n", "t", "a.")):
        name = endpoint_name(*parts)
        assert name.endswith("-auto-hep")
        assert 40 < len(name) <= 43 + len("-auto-hep")
        assert name.removesuffix("-auto-hep").isalnum()
        assert name == name.lower()
    # SHA-256 of the name that did not fit, as Calico makes it.
    digest = base64.b64encode(hashlib.sha256(f"{longest}n-auto-hep".encode()).digest(), altchars=b"--").decode()
    assert endpoint_name(longest + "n") == digest.replace("-", "").replace("=", "").lower() + "-auto-hep"


def test_two_that_come_to_one_name_both_exist() -> None:
    nodes = [model.Node(metadata=model.ObjectMeta(name=name), spec=NODE.spec) for name in ("a-b", "a")]
    two = config(template("b-c", interface_pattern="eth0"), template("c", interface_pattern="eth0"), default="Disabled")
    found = desired(nodes, two)
    assert len(found.endpoints) == 4
    assert found.endpoints["a-b-c-eth0-auto-hep"].spec.node == "a"


def stored(endpoint: model.HostEndpoint, **metadata: object) -> model.HostEndpoint:
    return msgspec.structs.replace(
        endpoint,
        metadata=msgspec.structs.replace(
            endpoint.metadata, uid="u", resource_version="7", creation_timestamp="2026-01-01T00:00:00Z", **metadata
        ),
    )


def test_changes_bring_what_is_stored_to_what_is_wanted() -> None:
    wanted = desired([NODE, OTHER], config()).endpoints
    assert changes([], wanted) == Changes(create=(wanted["n1-auto-hep"], wanted["n2-auto-hep"]))
    have = [stored(one) for one in wanted.values()]
    assert not changes(have, wanted)
    assert changes(have, {}) == Changes(delete=("n1-auto-hep", "n2-auto-hep"))
    moved = msgspec.structs.replace(NODE, metadata=model.ObjectMeta(name="n1", labels={"zone": "c"}))
    new = desired([moved, OTHER], config()).endpoints
    noted = [stored(one, annotations={"mine": "1"}) for one in wanted.values()]
    (update,) = changes(noted, new).update
    assert update.metadata.labels == {"zone": "c"} | OURS
    assert (update.metadata.uid, update.metadata.resource_version) == ("u", "7")
    assert update.metadata.annotations == {"mine": "1"}


def test_a_user_s_own_host_endpoint_is_left_alone_whatever_its_name() -> None:
    wanted = desired([NODE], config()).endpoints
    spec = model.HostEndpointSpec(node="n1", interface_name="eth0")
    users = [
        model.HostEndpoint(metadata=model.ObjectMeta(name="n1-auto-hep"), spec=spec),
        model.HostEndpoint(metadata=model.ObjectMeta(name="mine", labels={CREATED_BY: "me"}), spec=spec),
    ]
    found = changes(users, wanted)
    assert not found
    assert "n1-auto-hep" in found.problems[0]
    assert not changes(users, {})
    assert autohep.is_ours(wanted["n1-auto-hep"])
