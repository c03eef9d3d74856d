"""Methods of autodetection on a host with several interfaces."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from services.node.core.autodetect import EXCLUDED, HostInterface, MethodError, Surroundings, detect, parse_method


def interface(name: str, *addresses: str, up: bool = True) -> HostInterface:
    return HostInterface(name, tuple(map(ip_interface, addresses)), up)


HOST = (
    interface("lo", "127.0.0.1/8", "::1/128"),
    interface("docker0", "172.17.0.1/16"),
    interface("cali123", "10.0.9.9/32"),
    interface("eno1", "10.0.0.9/24", up=False),
    interface("eth0", "fe80::1/64", "192.0.2.5/24", "2001:db8::5/64", "192.0.2.6/24"),
    interface("eth1", "198.51.100.7/25", "2001:db8:1::7/80"),
    interface("bond0.5", "203.0.113.9/28"),
)


def found(method: str, version: int = 4, **around: Any) -> str:
    address = detect(parse_method(method), version, Surroundings(HOST, **around))
    return "" if address is None else str(address)


@pytest.mark.parametrize(
    ("method", "v4", "v6"),
    [
        ("", "192.0.2.5/24", "2001:db8::5/64"),
        ("first-found", "192.0.2.5/24", "2001:db8::5/64"),
        ("interface=eth1", "198.51.100.7/25", "2001:db8:1::7/80"),
        ("interface=bond.*,eth1", "198.51.100.7/25", "2001:db8:1::7/80"),
        ("interface=docker0", "172.17.0.1/16", ""),
        ("interface=eno1", "", ""),
        ("skip-interface=eth0", "198.51.100.7/25", "2001:db8:1::7/80"),
        ("skip-interface=eth.*", "203.0.113.9/28", ""),
        ("skip-interface=eth,bond", "", ""),
        ("cidr=198.51.100.0/24", "198.51.100.7/25", ""),
        ("cidr=10.0.0.0/8,203.0.113.0/24", "10.0.9.9/32", ""),
        ("cidr=203.0.113.0/24, 2001:db8:1::/48", "203.0.113.9/28", "2001:db8:1::7/80"),
        ("cidr=192.0.2.6/32", "192.0.2.6/24", ""),
    ],
)
def test_each_method_on_a_multi_homed_host(method: str, v4: str, v6: str) -> None:
    assert (found(method), found(method, 6)) == (v4, v6)


def test_can_reach_takes_the_source_address_with_its_prefix_length() -> None:
    assert found("can-reach=www.example.org", source=ip_address("198.51.100.7")) == "198.51.100.7/25"
    assert found("can-reach=2001:db8::1", 6, source=ip_address("2001:db8:1::7")) == "2001:db8:1::7/80"
    assert found("can-reach=192.0.2.1", 6, source=ip_address("192.0.2.5")) == ""
    assert found("can-reach=192.0.2.1") == ""


def test_kubernetes_internal_ip_has_to_be_on_this_host() -> None:
    internal = [ip_address("192.0.2.99"), ip_address("2001:db8:1::7"), ip_address("203.0.113.9")]
    assert found("kubernetes-internal-ip", internal=internal) == "203.0.113.9/28"
    assert found("kubernetes-internal-ip", 6, internal=internal) == "2001:db8:1::7/80"
    assert found("kubernetes-internal-ip") == ""


@pytest.mark.parametrize(
    "name",
    ["docker0", "cbr0", "dummy1", "podman0", "virbr0", "lxcbr0", "vethab12", "lo", "br-1f2e", "cali1", "tunl0",
     "flannel.1", "kube-ipvs0", "cni0", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali",
     "nodelocaldns"],
)  # fmt: skip
def test_interfaces_of_containers_and_overlays_are_not_first_found(name: str) -> None:
    around = Surroundings((interface(name, "192.0.2.5/24"),))
    assert EXCLUDED.fullmatch(name)
    assert detect(parse_method("first-found"), 4, around) is None


@pytest.mark.parametrize("name", ["lo1", "eth-docker", "br0", "enp1s0", "wlan0", "vxlan0"])
def test_names_that_only_resemble_them_are(name: str) -> None:
    around = Surroundings((interface(name, "192.0.2.5/24"),))
    assert detect(parse_method("first-found"), 4, around) == ip_interface("192.0.2.5/24")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("second-found", "no autodetection method"),
        ("interface", "no autodetection method"),
        ("first-found=eth0", "no autodetection method"),
        ("interface=", "nothing stands"),
        ("interface=,", "nothing stands"),
        ("can-reach=", "nothing stands"),
        ("interface=eth0,[", "no regular expression"),
        ("cidr=192.0.2.0/33", "no CIDR"),
        ("cidr=eth0", "no CIDR"),
        ("can-reach=www..example", "neither an address nor the name of a host"),
        (f"can-reach={'x' * 64}.example", "neither an address nor the name of a host"),
    ],
)
def test_what_is_no_method_is_told_so(text: str, word: str) -> None:
    with pytest.raises(MethodError, match=word):
        parse_method(text)
