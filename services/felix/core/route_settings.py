"""What of FelixConfiguration says how routes are written, and by what they are known again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.netlink.routes import PROTOCOL_BOOT

NORMAL_PRIORITY = 1024
MAX_PRIORITY = 2147483646


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """sync: no route is written or removed otherwise. sources: by family, the address that this host sends from on
    routes that are no tunnel's. protocol, priorities: of routes to local workloads, the latter by family.
    remove_external: what others wrote on workloads' interfaces goes.
    """

    sync: bool = True
    sources: Mapping[int, str] = field(default_factory=dict)
    protocol: int = PROTOCOL_BOOT
    priorities: Mapping[int, int] = field(default_factory=lambda: {4: NORMAL_PRIORITY, 6: NORMAL_PRIORITY})
    remove_external: bool = True
