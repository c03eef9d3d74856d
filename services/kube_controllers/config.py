"""Settings of kube_controllers. Names of the environment are those of Calico's kube-controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from libs.kube.api import credentials
from libs.model.scalars import Duration
from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.metrics_config import MetricsConfig
from services.kube_controllers.core.settings import CONTROLLERS, SERVICE, Environment


def _controllers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in CONTROLLERS]:
        known = ", ".join(sorted(CONTROLLERS))
        raise ValueError(f"no such controller: {', '.join(unknown)}; there are: {known}")
    return names


def _switch(text: str) -> bool:
    """Calico's own documents have both pairs of words."""
    words = {"enabled": True, "true": True, "disabled": False, "false": False}
    if (found := words.get(text.lower())) is None:
        raise ValueError(f"expected enabled or disabled, not {text!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class KubeControllersConfig(MetricsConfig):
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
        "Port of /metrics, 0 for none; none: by the KubeControllersConfiguration.",
        env=("*PROMETHEUSMETRICSPORT",),
        minimum=0,
        maximum=65535,
    )
    kubeconfig: Path | None = setting(
        None,
        "Access to the Kubernetes API; none: the pod's service account, outside a pod no Kubernetes.",
        env=("KUBECONFIG",),
    )
    reconciler_period: Duration | None = setting(
        None,
        "After so long everything is looked at again (5m); 0 for never; none: by the KubeControllersConfiguration.",
        env=("RECONCILER_PERIOD",),
        parse=Duration,
    )
    sync_node_labels: bool | None = setting(
        None,
        "Labels of Kubernetes' nodes on Calico's; none: by the KubeControllersConfiguration.",
        env=("SYNC_NODE_LABELS",),
        parse=_switch,
    )
    sync_services: bool = setting(
        True,
        "Services and EndpointSlices are stored: for rules that name services, and for BGP. ENABLED_CONTROLLERS wins.",
        env=("SYNC_SERVICES",),
    )
    policy_workers: int = setting(
        4, "Network policies brought at a time.", env=("POLICY_WORKERS",), minimum=1, maximum=1000
    )
    profile_workers: int = setting(
        4, "Namespaces brought at a time, and service accounts.", env=("PROFILE_WORKERS",), minimum=1, maximum=1000
    )
    workload_endpoint_workers: int = setting(
        4, "Pods brought at a time.", env=("WORKLOAD_ENDPOINT_WORKERS",), minimum=1, maximum=1000
    )
    node_workers: int = setting(4, "Nodes brought at a time.", env=("NODE_WORKERS",), minimum=1, maximum=1000)
    service_workers: int = setting(
        4, "Services brought at a time, and slices.", env=("SERVICE_WORKERS",), minimum=1, maximum=1000
    )
    lease_s: int = setting(
        10, "After so long without a sign of life from the leader another replica takes over.", unit="s", minimum=1,
        maximum=3600,
    )  # fmt: skip

    def kubernetes(self, environ: Mapping[str, str]) -> Path | None:
        """The kubeconfig, or IN_CLUSTER; None when there is no Kubernetes to be seen."""
        return credentials(self.kubeconfig, environ)

    def environment(self, environ: Mapping[str, str]) -> Environment:
        """What was given here and so wins over the resource, with the text of the variables for its status."""
        return Environment(
            enabled=self.enabled_controllers,
            auto_host_endpoints=None if self.auto_host_endpoints is None else self.auto_host_endpoints == "enabled",
            health_checks=self.health_enabled,
            compaction_s=self.compaction_period_s,
            metrics_port=self.prometheus_metrics_port,
            log_level=self.log_level if environ.get("LOG_LEVEL") or self.log_level != RuntimeConfig.log_level else None,
            reconciler_period=self.reconciler_period,
            sync_labels=self.sync_node_labels,
            sync_services=self.sync_services,
            workers={
                "policy": self.policy_workers,
                "namespace": self.profile_workers,
                "serviceAccount": self.profile_workers,
                "workloadEndpoint": self.workload_endpoint_workers,
                "node": self.node_workers,
                SERVICE: self.service_workers,
            },
            kubernetes=self.kubernetes(environ) is not None,
            variables=environ,
        )
