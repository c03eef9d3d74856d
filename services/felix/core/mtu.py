"""How large a pod's packets may be (facts/felix.md section 3.10). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from libs.netlink.links import Link
from libs.policy.output import Pool
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6, OverlaySettings

PATTERN = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"  # MTUIfacePattern
DEFAULT_BYTES = 1460  # when no interface tells
OVERHEADS = {TUNL: 20, VXLAN: 50, VXLAN6: 70}  # bytes that an encapsulation adds


def host_mtu_bytes(links: Iterable[Link], pattern: str) -> int:
    """The smallest of the interfaces that can carry packets and whose name matches."""
    matches = re.compile(pattern)
    return min(
        (link.mtu_bytes for link in links if link.carries and matches.search(link.name)),
        default=DEFAULT_BYTES,
    )


def device_mtu_bytes(device: str, host_bytes: int, settings: OverlaySettings) -> int:
    """Of a tunnel device: as it is set, or what the host's leaves."""
    return settings.mtu_bytes(device) or host_bytes - OVERHEADS[device]


def pod_mtu_bytes(host_bytes: int, pools: Iterable[Pool], settings: OverlaySettings) -> int:
    """Small enough for every overlay in use."""
    devices = settings.enabled(pools)
    return min((device_mtu_bytes(device, host_bytes, settings) for device in devices), default=host_bytes)
