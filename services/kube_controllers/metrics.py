"""Metrics of the controllers. Calico has none for leadership and host endpoints, so these names are ours."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.kube_controllers.ipam_metrics import IpamMetrics


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.ipam = IpamMetrics(registry)
        self.leader = Gauge("kube_controllers_leader", "1 while this replica is the leader.", registry=registry)
        self.tenures = Counter("kube_controllers_tenures", "Times that this replica became leader.", registry=registry)
        self.running = Gauge(
            "kube_controllers_running", "1 while the controller runs here.", ("controller",), registry=registry
        )
        self.rounds = Counter(
            "kube_controllers_rounds", "Rounds made, failed ones included.", ("controller",), registry=registry
        )
        self.failures = Counter(
            "kube_controllers_failures", "Rounds in which something could not be done.", ("controller",),
            registry=registry,
        )  # fmt: skip
        self.writes = Counter(
            "kube_controllers_writes", "Objects written: created, updated, deleted.", ("controller", "operation"),
            registry=registry,
        )  # fmt: skip
        self.reconcile_s = Gauge(
            "kube_controllers_reconcile_seconds", "What the last look at everything took.", ("controller",),
            registry=registry,
        )  # fmt: skip
        self.problems = Gauge(
            "kube_controllers_problems", "Kubernetes objects of which something could not be used.", ("controller",),
            registry=registry,
        )  # fmt: skip
