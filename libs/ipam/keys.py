"""Where the objects of address management live in etcd.

A CIDR in a key has its `/` replaced by `-` (`10.0.0.0-26`, `fd00::-122`); host names and handles are written as they
are.
"""

from __future__ import annotations

from ipaddress import ip_network

from libs.ipam.affinity import Owner
from libs.ipam.handles import clean_handle
from libs.ipam.wire import Network

PREFIX = "/calico/ipam/v2/"
CONFIG = PREFIX + "config"
HANDLES = PREFIX + "handle/"
HOSTS = PREFIX + "host/"
VIRTUAL = PREFIX + "virtual/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"


def blocks(version: int) -> str:
    """Prefix of all blocks of IP version 4 or 6."""
    return f"{PREFIX}assignment/ipv{version}/block/"


def block(cidr: Network) -> str:
    return blocks(cidr.version) + _cidr(cidr)


def affinities(owner: Owner, version: int) -> str:
    """Prefix of the blocks an owner lists as its own."""
    return f"{PREFIX}{owner.kind}/{owner.name}/ipv{version}/block/"


def affinity(owner: Owner, cidr: Network) -> str:
    return affinities(owner, cidr.version) + _cidr(cidr)


def handle(identity: str) -> str:
    return HANDLES + clean_handle(identity)


def host(node: str) -> str:
    """A legacy marker per host; no block's list, only removed when the node goes."""
    return HOSTS + node


def resource(plural: str, name: str = "") -> str:
    """Key of a resource without namespace, or the prefix of all of its kind."""
    return f"{RESOURCES}{plural}/{name}"


def cidr_of(key: str) -> Network | None:
    """The CIDR at the end of a block's or affinity's key; None for a key that has none."""
    try:
        address, _, length = key.rsplit("/", 1)[1].rpartition("-")
        return ip_network(f"{address}/{length}", strict=False)
    except (ValueError, IndexError):
        return None


def parse_affinity(key: str) -> tuple[Owner, Network] | None:
    """Owner and block of `…/host/<node>/ipv4/block/<cidr>`; None for any other key."""
    parts = key.removeprefix(PREFIX).split("/")
    cidr = cidr_of(key)
    if len(parts) != 5 or parts[3] != "block" or cidr is None or parts[2] != f"ipv{cidr.version}":
        return None
    if parts[0] == "host":
        return Owner("host", parts[1]), cidr
    return (Owner("virtual", parts[1]), cidr) if parts[0] == "virtual" else None


def _cidr(cidr: Network) -> str:
    return f"{cidr.network_address}-{cidr.prefixlen}"
