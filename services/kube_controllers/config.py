"""Settings of kube_controllers. Names of the environment are those of Calico's kube-controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from libs.runtime.config import RuntimeConfig, setting
from services.kube_controllers.core.settings import CONTROLLERS, Environment


def _controllers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in CONTROLLERS]:
        known = ", ".join(sorted(CONTROLLERS))
        raise ValueError(f"no such controller: {', '.join(unknown)}; there are: {known}")
    return names


@dataclass(frozen=True, kw_only=True)
class KubeControllersConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "KUBE_CONTROLLERS_"

    enabled_controllers: tuple[str, ...] | None = setting(
        None,
        "Controllers to run; none: those that the KubeControllersConfiguration has.",
        env=("ENABLED_CONTROLLERS",),
        parse=_controllers,
    )
    auto_host_endpoints: Literal["enabled", "disabled"] | None = setting(
        None,
        "A host endpoint of all interfaces for every node, no templates; none: by the KubeControllersConfiguration.",
        env=("AUTO_HOST_ENDPOINTS",),
    )
    health_enabled: bool | None = setting(
        None,
        "Readiness depends on the datastore; none: by the KubeControllersConfiguration.",
        env=("HEALTH_ENABLED",),
    )
    compaction_period_s: float | None = setting(
        None,
        "How often etcd's history is compacted, 0 for never; none: by the KubeControllersConfiguration.",
        env=("COMPACTION_PERIOD",),
        unit="s",
        minimum=0,
    )
    prometheus_metrics_port: int | None = setting(
        None,
        "Port of /metrics on all addresses, 0 for none; none: by the KubeControllersConfiguration.",
        env=("*PROMETHEUSMETRICSPORT",),
        minimum=0,
        maximum=65535,
    )
    lease_s: int = setting(
        10, "After so long without a sign of life from the leader another replica takes over.", unit="s", minimum=1,
        maximum=3600,
    )  # fmt: skip

    def environment(self, environ: Mapping[str, str]) -> Environment:
        """What was given here and so wins over the resource, with the text of the variables for its status."""
        return Environment(
            enabled=self.enabled_controllers,
            auto_host_endpoints=None if self.auto_host_endpoints is None else self.auto_host_endpoints == "enabled",
            health_checks=self.health_enabled,
            compaction_s=self.compaction_period_s,
            metrics_port=self.prometheus_metrics_port,
            log_level=self.log_level if environ.get("LOG_LEVEL") or self.log_level != RuntimeConfig.log_level else None,
            variables=environ,
        )
