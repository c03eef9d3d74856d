"""Felix's metrics; Calico's names where we have the thing (facts/felix.md section 11)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from libs.nftables.reconcile import Applied


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.local_endpoints = Gauge(
            "felix_active_local_endpoints", "Workload endpoints of this node.", registry=registry
        )
        self.local_policies = Gauge("felix_active_local_policies", "Policies active on this node.", registry=registry)
        self.ipsets = Gauge("felix_ipsets_calico", "IP sets active on this node.", registry=registry)
        self.resync_state = Gauge(
            "felix_resync_state", "1: waiting for typha, 2: waiting for its snapshot, 3: following.", registry=registry
        )
        self.resyncs = Gauge("felix_resyncs_started", "Snapshots taken since start.", registry=registry)
        self.apply_time = Histogram(
            "felix_int_dataplane_apply_time_seconds", "Time of one pass over the kernel.", registry=registry
        )
        self.failures = Counter(
            "felix_int_dataplane_failures", "Objects that the kernel refused, each time.", registry=registry
        )
        self.revision = Gauge("felix_applied_revision", "Revision of etcd that the kernel holds.", registry=registry)
        self.feed_bytes = Gauge("felix_feed_received_bytes", "Bytes received from typha.", registry=registry)
        self.feed_messages = Gauge("felix_feed_received_messages", "Messages received from typha.", registry=registry)
        self.nft_rules = Counter("felix_nft_rules_written", "Rules written to the kernel.", registry=registry)
        self.nft_elements = Counter("felix_nft_elements_written", "Set and map elements written.", registry=registry)
        self.nft_transactions = Counter("felix_nft_calls", "nftables transactions.", registry=registry)
        self.cni = Histogram(
            "felix_cni_step_seconds", "Time of the steps of CNI requests.", ("step",), registry=registry
        )

    def observe_pass(self, seconds: float, failures: int) -> None:
        self.apply_time.observe(seconds)
        self.failures.inc(failures)

    def count_written(self, applied: Applied) -> None:
        self.nft_rules.inc(applied.changed_rules)
        self.nft_elements.inc(applied.changed_elements)
        self.nft_transactions.inc(applied.transactions)
