"""The pools that the first node of a cluster makes. Pure.

Variables, names and defaults: cni-typha-node-bgp-ctl.md section 3.3 of the facts. A family that has any pool gets none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from random import Random
from typing import Any

from libs.model import IPPool
from libs.model.base import ObjectMeta
from libs.model.pools import IPPoolSpec
from services.node.core.autodetect import Network

NAMES = {4: "default-ipv4-ippool", 6: "default-ipv6-ippool"}
BLOCK_SIZES = {4: (20, 32, 26), 6: (116, 128, 122)}
"""Smallest, largest and default prefix length of a block."""
FIRST_CHOICE = ip_network("192.168.0.0/16")
OTHERS = tuple(ip_network(f"172.{second}.0.0/16") for second in range(16, 32))
MODES = {
    "": "Never", "off": "Never", "never": "Never", "cross-subnet": "CrossSubnet", "crosssubnet": "CrossSubnet",
    "always": "Always",
}  # fmt: skip


class PoolError(ValueError):
    """A variable that describes no pool."""


@dataclass(frozen=True, slots=True)
class Variables:
    """Of one family, as text; "" for what is not set. nat_outgoing None: the family's default."""

    cidr: str = ""
    ipip: str = ""
    vxlan: str = ""
    nat_outgoing: bool | None = None
    block_size: int | None = None
    node_selector: str = ""
    disable_bgp_export: bool = False


def needed(
    variables: dict[int, Variables], *, no_default_pools: bool, existing: Iterable[IPPool], ipv6: bool
) -> list[int]:
    """The families that get a pool. Raises PoolError when two settings contradict each other."""
    given = [version for version, one in variables.items() if one.cidr and one.cidr != "none"]
    if no_default_pools:
        if given:
            names = " and ".join(f"CALICO_IPV{version}POOL_CIDR" for version in given)
            raise PoolError(f"NO_DEFAULT_POOLS is true, and {names} asks for a pool: give one of the two")
        return []
    have = {ip_network(pool.spec.cidr, strict=False).version for pool in existing}
    return [
        version for version, one in variables.items()
        if version not in have and one.cidr != "none" and (version == 4 or ipv6)
    ]  # fmt: skip


def pool(
    version: int, given: Variables, *, kubeadm: Iterable[Network], host: Iterable[Network], random: Random
) -> IPPool:
    """kubeadm: pod subnets of the cluster's ConfigMap. host: networks on this host. Raises PoolError."""
    prefix = f"CALICO_IPV{version}POOL"
    cidr = _cidr(version, given.cidr, kubeadm, host, random)
    ipip, vxlan = (_mode(f"{prefix}_{name}", text) for name, text in (("IPIP", given.ipip), ("VXLAN", given.vxlan)))
    if version == 6 and ipip != "Never":
        raise PoolError(f"{prefix}_IPIP: there is no IP in IP between IPv6 hosts")
    if ipip != "Never" and vxlan != "Never":
        raise PoolError(f"{prefix}_IPIP={given.ipip} and {prefix}_VXLAN={given.vxlan}: a pool has one encapsulation")
    low, high, usual = BLOCK_SIZES[version]
    size = usual if given.block_size is None else given.block_size
    if not low <= size <= high:
        raise PoolError(f"{prefix}_BLOCK_SIZE={size}: a block is /{low} to /{high}")
    if size < cidr.prefixlen:
        raise PoolError(f"{prefix}_BLOCK_SIZE={size}: larger than the pool {cidr}")
    fields: dict[str, Any] = {"nat_outgoing": version == 4 if given.nat_outgoing is None else given.nat_outgoing}
    if given.disable_bgp_export:
        fields["disable_bgp_export"] = True
    spec = IPPoolSpec(
        cidr=str(cidr), ipip_mode=ipip, vxlan_mode=vxlan, block_size=size,
        node_selector=given.node_selector or "all()", **fields,
    )  # fmt: skip
    return IPPool(metadata=ObjectMeta(name=NAMES[version]), spec=spec)


def _cidr(version: int, text: str, kubeadm: Iterable[Network], host: Iterable[Network], random: Random) -> Network:
    if text:
        try:
            found = ip_network(text)
        except ValueError as error:
            raise PoolError(f"CALICO_IPV{version}POOL_CIDR={text}: no CIDR: {error}") from None
        if found.version != version:
            raise PoolError(f"CALICO_IPV{version}POOL_CIDR={text}: that is an IPv{found.version} CIDR")
        return found
    by_kubeadm = next((one for one in kubeadm if one.version == version), None)
    if by_kubeadm is not None:
        return by_kubeadm
    if version == 6:
        return random_ula(random)
    taken = [one for one in host if one.version == 4 and one.prefixlen > 0]
    free = (one for one in (FIRST_CHOICE, *OTHERS) if not any(one.overlaps(other) for other in taken))
    chosen = next(free, None)
    if chosen is None:
        raise PoolError(
            f"{FIRST_CHOICE} and all of 172.16.0.0/12 overlap networks of this host: give CALICO_IPV4POOL_CIDR"
        )
    return chosen


def random_ula(random: Random) -> IPv6Network:
    """A /48 of fd00::/8 whose 40 bits nobody else is likely to have (RFC 4193 section 3.2.2)."""
    return IPv6Network(((0xFD << 120) | (random.getrandbits(40) << 80), 48))


def _mode(variable: str, text: str) -> str:
    try:
        return MODES[text.strip().lower()]
    except KeyError:
        raise PoolError(f"{variable}={text}: it is one of always, cross-subnet, never") from None
