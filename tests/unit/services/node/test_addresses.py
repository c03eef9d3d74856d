"""What IP and IP6 ask for, what is kept when nothing is found, and who has an address already."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from libs import model
from libs.model.base import ObjectMeta
from services.node.core.addresses import AddressError, Wanted, chosen, clashes, node_interfaces, wanted
from services.node.core.autodetect import HostInterface

HOST = [
    HostInterface("eth0", (ip_interface("192.0.2.5/24"), ip_interface("fe80::1/64"), ip_interface("2001:db8::5/64")))
]


def take(version: int, text: str, current: str = "", detected: str = "") -> tuple[str, str]:
    want = wanted(version, text, current)
    found = ip_interface(detected) if detected else None
    return chosen(version, want, current, found, HOST, "first-found")


def test_ipv4_is_detected_once_unless_said_otherwise_and_ipv6_only_when_asked() -> None:
    assert wanted(4, "", "") == Wanted(detect=True, needed=True)
    assert not wanted(4, "", "192.0.2.5/24").detect
    assert not wanted(6, "", "").detect
    assert wanted(6, "autodetect", "2001:db8::5/64").detect


def test_a_detected_address_replaces_the_old_one() -> None:
    assert take(4, "autodetect", "192.0.2.4/24", "192.0.2.5/24") == ("192.0.2.5/24", "")


def test_without_a_find_the_old_address_stays_with_a_warning() -> None:
    address, warning = take(4, "autodetect", "192.0.2.4/24")
    assert address == "192.0.2.4/24"
    assert "192.0.2.4/24 is kept" in warning


@pytest.mark.parametrize(("version", "text"), [(4, ""), (4, "autodetect"), (6, "autodetect")])
def test_without_a_find_and_an_old_address_there_is_no_start(version: int, text: str) -> None:
    with pytest.raises(AddressError, match=f"no IPv{version} address found by first-found"):
        take(version, text)


def test_none_keeps_what_is_stored() -> None:
    assert take(4, "none", "192.0.2.4/24", "192.0.2.5/24") == ("192.0.2.4/24", "")
    assert take(6, "none") == ("", "")


def test_a_given_address_gets_the_prefix_length_of_its_interface_unless_given() -> None:
    assert take(4, "192.0.2.5") == ("192.0.2.5/24", "")
    assert take(4, "192.0.2.5/28") == ("192.0.2.5/28", "")
    address, warning = take(6, "2001:db8::9")
    assert address == "2001:db8::9/128"
    assert "no interface of this host" in warning


@pytest.mark.parametrize(
    ("version", "text"),
    [(4, "192.0.2"), (4, "eth0"), (4, "2001:db8::5"), (6, "192.0.2.5"), (4, "127.0.0.1"), (4, "0.0.0.0"),
     (6, "fe80::1"), (4, "224.0.0.1")],
)  # fmt: skip
def test_what_can_be_no_address_of_a_node_is_refused(version: int, text: str) -> None:
    with pytest.raises(AddressError, match=text):
        wanted(version, text, "")


def node(name: str, ipv4: str = "", ipv6: str = "") -> model.Node:
    bgp = model.node.NodeBGPSpec(ipv4_address=ipv4, ipv6_address=ipv6)
    return model.Node(metadata=ObjectMeta(name=name), spec=model.node.NodeSpec(bgp=bgp))


def test_a_clash_is_one_of_addresses_whatever_their_prefix_lengths() -> None:
    others = [
        node("me", "192.0.2.5/24"),
        node("a", "192.0.2.6/24"),
        node("b", "192.0.2.5/32"),
        node("c", "", "nonsense"),
    ]
    others.append(model.Node(metadata=ObjectMeta(name="d")))
    assert clashes("me", {4: "192.0.2.5/24", 6: ""}, others) == {4: "b"}
    assert clashes("b", {4: "192.0.2.7/24", 6: "2001:db8::1/64"}, others) == {}


def test_interfaces_of_pods_and_addresses_that_nobody_reaches_are_not_told() -> None:
    told = node_interfaces([
        *HOST, HostInterface("cali1", (ip_interface("10.0.0.1/32"),)),
        HostInterface("lo", (ip_interface("127.0.0.1/8"),)),
        HostInterface("vxlan.calico", (ip_interface("10.0.0.2/32"),)), HostInterface("eth9", ()),
        HostInterface("kube-ipvs0", (ip_interface("10.96.0.1/32"),)),
    ])  # fmt: skip
    assert [(one.name, one.addresses) for one in told] == [("eth0", ["192.0.2.5", "2001:db8::5"])]
