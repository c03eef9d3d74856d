"""What a speaker knows of the cluster: the tables that typha publishes for it, whole, at one revision."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.policy.bgp_output import BgpEntry, LocalEntry, ServiceRoutes
from libs.policy.output import NodeInfo, Pool


@dataclass(slots=True)
class Tables:
    """nodes by name, pools by CIDR, the others as `libs/policy/bgp_output.py` says. Those of a feed change
    in place with its next step: whoever keeps them copies.
    """

    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    bgp: dict[str, BgpEntry] = field(default_factory=dict)
    services: dict[str, ServiceRoutes] = field(default_factory=dict)
    local: dict[str, LocalEntry] = field(default_factory=dict)
