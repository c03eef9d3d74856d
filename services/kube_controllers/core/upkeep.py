"""What is in force for the controllers that keep the datastore in order: garbage of IPAM, addresses of load balancers,
ends of pools and tiers, etcd's history. A part of `settings.Running`; pure.

Rules: facts/kubernetes-conversion.md section 9.1. Pools and tiers have no field in the resource: they run unless
ENABLED_CONTROLLERS names others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libs import model
from libs.model.scalars import Duration

AssignIPs = Literal["AllServices", "RequestedServicesOnly"]
EXTRA_CONTROLLERS = {"ippool": "ipPool", "tier": "tier"}
"""Names in ENABLED_CONTROLLERS that Calico's does not know."""
DEFAULT_METRICS_PORT = 9094
_DEFAULT_GRACE = Duration("15m")
_DEFAULT_COMPACTION = Duration("10m")


@dataclass(frozen=True, slots=True)
class Upkeep:
    """leak_grace_s: None when garbage of IPAM is not collected, 0 when nothing is released for its age.
    load_balancers: whose addresses are assigned, None when nobody's are. compaction_s: 0: never. metrics_port: 0: none.
    """

    leak_grace_s: float | None = None
    load_balancers: AssignIPs | None = None
    pools: bool = True
    tiers: bool = True
    compaction_s: float = 0.0
    metrics_port: int = DEFAULT_METRICS_PORT

    def report(self, config: model.KubeControllersConfigurationSpec) -> None:
        """Into the running configuration of the status."""
        config.etcdv3_compaction_period = _duration(self.compaction_s)
        config.prometheus_metrics_port = self.metrics_port
        if config.controllers.node is not None and self.leak_grace_s is not None:
            config.controllers.node.leak_grace_period = _duration(self.leak_grace_s)
        if self.load_balancers is not None:
            config.controllers.load_balancer = model.LoadBalancerControllerConfig(assign_ips=self.load_balancers)


def upkeep(
    spec: model.KubeControllersConfigurationSpec,
    *,
    enabled: tuple[str, ...] | None,
    compaction_s: float | None,
    metrics_port: int | None,
    kubernetes: bool,
    problems: list[str],
) -> Upkeep:
    """enabled: names of ENABLED_CONTROLLERS, None when it is not given; so with the other two. kubernetes: there is an
    API server. problems: gets what was ignored, and why.
    """
    controllers = spec.controllers

    def runs(name: str, present: bool) -> bool:
        return present if enabled is None else name in enabled

    node = controllers.node
    grace = node.leak_grace_period if node is not None and node.leak_grace_period is not None else _DEFAULT_GRACE
    period = spec.etcdv3_compaction_period if spec.etcdv3_compaction_period is not None else _DEFAULT_COMPACTION
    port = spec.prometheus_metrics_port if spec.prometheus_metrics_port is not None else DEFAULT_METRICS_PORT
    by_resource = controllers.load_balancer is not None and enabled is None
    assign = controllers.load_balancer.assign_ips if by_resource and controllers.load_balancer is not None else ""
    return Upkeep(
        leak_grace_s=_seconds("leakGracePeriod", grace, problems) if runs("node", node is not None) else None,
        load_balancers=(
            _assign(assign, problems)
            if kubernetes and runs("loadbalancer", controllers.load_balancer is not None)
            else None
        ),  # by the environment: all services
        pools=runs("ippool", True),
        tiers=runs("tier", True),
        compaction_s=(_seconds("etcdV3CompactionPeriod", period, problems) if compaction_s is None else compaction_s),
        metrics_port=port if metrics_port is None else metrics_port,
    )


def _assign(text: str | None, problems: list[str]) -> AssignIPs:
    if text in ("AllServices", "RequestedServicesOnly"):
        return text  # type: ignore[return-value]
    if text:
        problems.append(f"assignIPs {text!r} is not known: AllServices is taken")
    return "AllServices"


def _seconds(name: str, duration: Duration, problems: list[str]) -> float:
    found = duration.seconds
    if found < 0:
        problems.append(f"{name} {duration} is negative: 0 is taken")
        return 0.0
    return found


def _duration(seconds: float) -> Duration:
    return Duration.of_seconds(seconds)
