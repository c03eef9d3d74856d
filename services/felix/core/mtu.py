"""How large a pod's packets may be (facts/felix.md section 3.10). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from libs.netlink.links import Link
from libs.policy.output import Pool

PATTERN = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"  # MTUIfacePattern
DEFAULT_BYTES = 1460  # when no interface tells
IPIP, VXLAN, VXLAN6 = 20, 50, 70  # what an encapsulation adds


def host_mtu_bytes(links: Iterable[Link], pattern: str) -> int:
    """The smallest of the interfaces that can carry packets and whose name matches."""
    matches = re.compile(pattern)
    return min(
        (link.mtu_bytes for link in links if link.operstate == "up" and matches.search(link.name)),
        default=DEFAULT_BYTES,
    )


def pod_mtu_bytes(host_bytes: int, pools: Iterable[Pool]) -> int:
    """Small enough for every encapsulation that some pool uses."""
    overheads = [0]
    for pool in pools:
        if pool.vxlan_mode != "Never":
            overheads.append(VXLAN6 if ":" in pool.cidr else VXLAN)
        if pool.ipip_mode != "Never":
            overheads.append(IPIP)
    return host_bytes - max(overheads)
