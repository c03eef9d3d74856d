"""Settings of typha. Names of the environment follow Calico's (TYPHA_…)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from libs.policy.bgp_services import ADVERTISE_CLUSTER_IPS
from libs.runtime.config import setting
from libs.runtime.metrics_config import MetricsConfig


@dataclass(frozen=True, kw_only=True)
class TyphaConfig(MetricsConfig):
    env_prefix: ClassVar[str] = "TYPHA_"

    shutdown_grace_s: float = setting(
        30.0,
        "How long an orderly stop may take. While other typhas run, most of it is for handing readers over to them.",
        env=("*SHUTDOWNTIMEOUTSECS",),
        unit="s",
        minimum=0,
    )
    instance: str = setting("", "Name of this instance on the bus; random when empty.")
    batch_s: float = setting(
        0.005, "How long changes are collected before they are published while more keep coming.", unit="s", minimum=0
    )
    connection_rebalancing_mode: Literal["even", "kubernetes", "none"] = setting(
        "even",
        "Move readers, one each second, until all typhas have as many; `kubernetes` is Calico's word for it.",
        env=("*CONNECTIONREBALANCINGMODE",),
    )
    advertise_cluster_ips: tuple[str, ...] = setting(
        (),
        "Ranges of services' cluster addresses while BGPConfiguration `default` has none: the same as bgp is given.",
        env=(ADVERTISE_CLUSTER_IPS,),
    )
    events: bool = setting(True, "Publish every resource change on calico.typha.<instance>.event.>, for people.")
    metrics_enabled: bool = setting(
        False, "Show metrics on a port for readers elsewhere.", env=("*PROMETHEUSMETRICSENABLED",)
    )
    metrics_port: int = setting(9093, "That port.", env=("*PROMETHEUSMETRICSPORT",), minimum=0, maximum=65535)
