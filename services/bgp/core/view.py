"""The tables as one node sees them, looked up once: settings, nodes, peers, filters; and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network

import msgspec

from libs.policy.bgp_output import (
    BgpFilter,
    BgpNode,
    BgpPeer,
    BgpSettings,
    FelixPart,
    felix_key,
    node_key,
    settings_key,
)
from libs.policy.bgp_services import ADVERTISE_CLUSTER_IPS, cluster_ranges
from libs.policy.output import NodeInfo
from services.bgp.core.paths import Family, IPAddress, IPNetwork
from services.bgp.core.tables import Tables

DEFAULT_AS = 64512
BGP_PORT = 179
FAMILIES = (Family.IPV4, Family.IPV6)


@dataclass(slots=True)
class View:
    """problems: by resource, as `BGPPeer(name)`. cluster_ips: of the environment, as `cluster_ranges` takes them."""

    node: str
    tables: Tables
    cluster_ips: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    cluster: BgpSettings = field(init=False)
    own: BgpSettings = field(init=False)
    peers: dict[str, BgpPeer] = field(init=False)
    filters: dict[str, BgpFilter] = field(init=False)
    addresses: dict[Family, IPAddress] = field(init=False)
    as_number: int = field(init=False)

    def __post_init__(self) -> None:
        bgp = self.tables.bgp
        self.cluster = self._settings("default")
        if not self.cluster.cluster_ips:
            ranges, wrong = cluster_ranges(self.cluster_ips)
            self.cluster = msgspec.structs.replace(self.cluster, cluster_ips=ranges)
            for problem in wrong:
                self.report("environment", ADVERTISE_CLUSTER_IPS, problem)
        self.own = self._settings(f"node.{self.node}")
        self.peers = {key.partition("/")[2]: entry for key, entry in sorted(bgp.items()) if isinstance(entry, BgpPeer)}
        self.filters = {
            key.partition("/")[2]: entry for key, entry in sorted(bgp.items()) if isinstance(entry, BgpFilter)
        }
        self.addresses = self.addresses_of(self.node)
        self.as_number = self.as_of(self.node)

    def _settings(self, name: str) -> BgpSettings:
        entry = self.tables.bgp.get(settings_key(name))
        if not isinstance(entry, BgpSettings):
            return BgpSettings()
        if entry.problem:
            self.report("BGPConfiguration", name, entry.problem)
        return entry

    def report(self, kind: str, name: str, problem: str) -> None:
        key = f"{kind}({name})"
        known = self.problems.get(key)
        if known is None:
            self.problems[key] = problem
        elif problem not in known.split("; "):
            self.problems[key] = f"{known}; {problem}"

    def felix_part(self, name: str) -> FelixPart:
        """What a FelixConfiguration says of felix's routes."""
        entry = self.tables.bgp.get(felix_key(name))
        return entry if isinstance(entry, FelixPart) else FelixPart(program_cluster_routes="")

    # --- nodes ---

    def part_of(self, node: str) -> BgpNode:
        entry = self.tables.bgp.get(node_key(node))
        return entry if isinstance(entry, BgpNode) else BgpNode()

    def addresses_of(self, node: str) -> dict[Family, IPAddress]:
        """By family, without those that it does not have."""
        return addresses_of(self.tables.nodes.get(node) or NodeInfo())

    def as_of(self, node: str) -> int:
        info = self.tables.nodes.get(node)
        if info is not None and info.as_number:
            return int(info.as_number)
        return self.cluster.as_number or DEFAULT_AS

    def listen_port_of(self, node: str) -> int:
        """0: nothing is said, so the usual one."""
        entry = self.tables.bgp.get(settings_key(f"node.{node}"))
        own = entry.listen_port if isinstance(entry, BgpSettings) else None
        return own or self.cluster.listen_port or 0


def addresses_of(info: NodeInfo) -> dict[Family, IPAddress]:
    texts = {Family.IPV4: info.ipv4, Family.IPV6: info.ipv6}
    return {family: parse_address(text.partition("/")[0]) for family, text in texts.items() if text}


@lru_cache(maxsize=65536)
def parse_address(text: str) -> IPAddress:
    return ip_address(text)


def family_of(address: IPAddress) -> Family:
    return Family.IPV4 if isinstance(address, IPv4Address) else Family.IPV6


@lru_cache(maxsize=65536)
def parse_network(text: str) -> IPNetwork:
    """Of an address with a prefix length, the network that it is in."""
    return ip_network(text, strict=False)
