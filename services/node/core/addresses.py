"""The node's addresses and what others have: what IP and IP6 ask for, what is kept, which nodes clash. Pure.

Rules of cni-typha-node-bgp-ctl.md section 3.3 of the facts, steps 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from libs.model import Node
from libs.model.node import NodeInterface
from services.node.core.autodetect import AddressIn, HostInterface, reachable

AUTODETECT, NONE = "autodetect", "none"
VARIABLES = {4: "IP", 6: "IP6"}


class AddressError(ValueError):
    """This node can have no address in that way."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a variable asks for. detect: find it on the host. address: take this one; without a prefix length when
    `whole` says so. Neither: what the node has stays.
    """

    detect: bool = False
    address: AddressIn | None = None
    whole: bool = False
    needed: bool = False


def wanted(version: int, text: str, current: str) -> Wanted:
    """text: of the variable, "" when it is not set; current: of the Node resource. Raises AddressError.

    IPv4 is detected unless somebody said something else, IPv6 only when asked for.
    """
    text = text.strip()
    if text == AUTODETECT:
        return Wanted(detect=True, needed=True)
    if not text:
        return Wanted(detect=version == 4 and not current, needed=version == 4)
    if text == NONE:
        return Wanted()
    try:
        address = ip_interface(text)
    except ValueError as error:
        raise AddressError(
            f"{VARIABLES[version]}={text}: neither an address, with or without a prefix length, nor autodetect or none:"
            f" {error}"
        ) from None
    if address.version != version:
        raise AddressError(f"{VARIABLES[version]}={text}: that is an IPv{address.version} address")
    if not reachable(address):
        raise AddressError(f"{VARIABLES[version]}={text}: other nodes cannot reach that address")
    return Wanted(address=address, whole="/" not in text)


def chosen(
    version: int, want: Wanted, current: str, detected: AddressIn | None, interfaces: Iterable[HostInterface], how: str
) -> tuple[str, str]:
    """(address with prefix length or "", a warning or ""). how: the method, for messages. Raises AddressError when the
    node must have an address and none can be had.
    """
    if want.address is not None:
        held = next((a for one in interfaces for a in one.addresses if a.ip == want.address.ip), None)
        warning = "" if held is not None else f"no interface of this host has the address {want.address.ip}"
        return str(held if want.whole and held is not None else want.address), warning
    if not want.detect:
        return current, ""
    if detected is not None:
        return str(detected), ""
    if current:
        return current, f"autodetection of the IPv{version} address by {how} found nothing, {current} is kept"
    if want.needed:
        raise AddressError(
            f"no IPv{version} address found by {how}: choose another {VARIABLES[version]}_AUTODETECTION_METHOD, or give"
            f" the address by {VARIABLES[version]}"
        )
    return "", ""


def clashes(name: str, addresses: Mapping[int, str], others: Iterable[Node]) -> dict[int, str]:
    """Family -> the other node that has this node's address already. addresses: family -> text, "" for none."""
    mine = {version: ip_interface(text).ip for version, text in addresses.items() if text}
    found: dict[int, str] = {}
    for node in others:
        bgp = node.spec.bgp
        if node.metadata.name == name or bgp is None:
            continue
        for version, text in ((4, bgp.ipv4_address), (6, bgp.ipv6_address)):
            if version in mine and text and _ip(text) == mine[version]:
                found.setdefault(version, node.metadata.name)
    return found


def _ip(text: str) -> object:
    try:
        return ip_interface(text).ip
    except ValueError:
        return None


def node_interfaces(interfaces: Iterable[HostInterface], *, ours: Iterable[str] = ("cali",)) -> list[NodeInterface]:
    """What is told of this host's interfaces in its Node, for templates of host endpoints: those with an address that
    others can reach, and none that exists for pods, services (kube-ipvs0 holds the address of each) or overlays.
    """
    left_out = (
        *ours, "tunl", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali", "bpf", "kube-ipvs"
    )  # fmt: skip
    told = []
    for one in interfaces:
        addresses = [str(a.ip) for a in one.addresses if reachable(a)]
        if addresses and not one.name.startswith(left_out):
            told.append(NodeInterface(name=one.name, addresses=addresses))
    return sorted(told, key=lambda one: one.name)
