"""Which programs make up this node. Pure.

CALICO_NETWORKING_BACKEND decides on the BGP speaker (cni-typha-node-bgp-ctl.md section 3.1 of the facts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

BIRD = "bird"
RESTART_STATUS = 129
"""Exit status of a service that wants to be started again with a configuration that it cannot change live."""
AT_ONCE_AFTER_S = 10.0
"""A service that lives shorter is not trusted with that wish: it would spin. Loading one alone takes seconds."""
WELL_AFTER_S = 30.0
"""One that lived so long is well: its next end is the first of a new series."""


@dataclass(frozen=True, slots=True)
class Program:
    """arguments: of the Python interpreter. environment: over ours, since the settings that it comes from have taken
    ours into account. health: base of its /liveness and /readiness, "" when it has none.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = ""


def programs(
    node: str, *, backend: str, felix: bool, cni: bool, felix_health: tuple[str, int], bgp_health: tuple[str, int]
) -> list[Program]:
    """In the order of their start; an end is in no order, since none needs another to leave its work in place."""
    found = []
    if felix:
        found.append(_service("felix", "FELIX_", node, felix_health))
    if backend == BIRD:
        found.append(_service("bgp", "CALICO_BGP_", node, bgp_health))
    if cni:
        # Felix refuses a network list that names another node, and Kubernetes may call this host otherwise.
        environment = {"NODENAME": node, "KUBERNETES_NODE_NAME": node, "SLEEP": "true"}
        found.append(Program("cni", ("-m", "services.cni", "install", "--watch"), environment))
    return found


def _service(name: str, prefix: str, node: str, health: tuple[str, int]) -> Program:
    host, port = health
    environment = {"NODENAME": node, f"{prefix}HEALTHHOST": host, f"{prefix}HEALTHPORT": str(port)}
    at = f"[{host}]" if ":" in host else host
    return Program(name, ("-m", f"services.{name}"), environment, f"http://{at}:{port}")


def own_log(path: str, program: str) -> str:
    """Where a program writes when we write there: `/x/node.log` → `/x/node-felix.log`. Who rotates a file must be the
    only one that has it open.
    """
    whole = PurePath(path)
    return str(whole.with_name(f"{whole.stem}-{program}{whole.suffix}"))


def at_once(status: int, lived_s: float) -> bool:
    """It is started again without a pause."""
    return status == RESTART_STATUS and lived_s >= AT_ONCE_AFTER_S
