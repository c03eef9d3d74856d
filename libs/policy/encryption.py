"""Whether a node's WireGuard key can be used, in one family: the rule of those who lead packets into the tunnel, and of
those who leave them to it.

A key counts when it can be read, its node has an address of the family, and no other node says the same one: two that
do cannot be told apart, so neither is a peer of anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_interface

from libs.netlink.wireguard import parse_key
from libs.policy.output import NodeInfo


def key_text(info: NodeInfo, version: int) -> str:
    return info.wireguard_key if version == 4 else info.wireguard_key6


def told_key(info: NodeInfo, version: int) -> tuple[bytes | None, str]:
    """The 32 octets, None for none; and why it cannot be used, empty for no reason here."""
    return _judge(key_text(info, version), info.ipv4 if version == 4 else info.ipv6, version)


@lru_cache(maxsize=65536)
def _judge(key: str, address: str, version: int) -> tuple[bytes | None, str]:
    if not key:
        return None, ""
    try:
        raw = parse_key(key)
    except ValueError as error:
        return None, f"its key {key!r} cannot be used: {error}"
    return raw, "" if address_of(address) is not None else f"it has a key and no IPv{version} address"


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Of an address or interface; None for none, and for what is neither: that node is then one without."""
    try:
        return ip_interface(text).ip if text else None
    except ValueError:
        return None


def holders(keys: Iterable[tuple[str, bytes]]) -> dict[bytes, set[str]]:
    """(node, key) → who says each key."""
    found: dict[bytes, set[str]] = {}
    for name, key in keys:
        found.setdefault(key, set()).add(name)
    return found


def encrypting(nodes: Mapping[str, NodeInfo], version: int) -> frozenset[str]:
    """Nodes whose key can be used."""
    told = {name: told_key(info, version) for name, info in nodes.items()}
    who = holders((name, key) for name, (key, _) in told.items() if key is not None)
    return frozenset(name for names in who.values() if len(names) == 1 for name in names if not told[name][1])
