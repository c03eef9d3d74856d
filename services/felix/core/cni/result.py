"""The success result in the form of each version (CNI specification, section 5). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from services.felix.core.cni.request import Request


def result(
    request: Request, host_interface: str, mac: str, addresses: Sequence[IPv4Address | IPv6Address]
) -> dict[str, Any]:
    """The success result in the form of the request's version: both interfaces, each address on the container's."""
    ips: list[dict[str, Any]] = []
    for address in addresses:
        entry: dict[str, Any] = {"address": f"{address}/{address.max_prefixlen}", "interface": 1}
        if request.version.startswith("0."):
            entry = {"version": str(address.version), **entry}
        ips.append(entry)
    return {
        "cniVersion": request.version,
        "interfaces": [{"name": host_interface, "mac": mac}, {"name": request.ifname, "sandbox": request.netns}],
        "ips": ips,
        "dns": {},
    }
