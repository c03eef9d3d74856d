"""The `ipam_*` metrics of Calico's kube-controllers, names and labels as there.

Of no type is the one that only grows: this library would put `_total` behind a counter's name, which Calico's has not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from services.kube_controllers.core.ipam_usage import Figures, PerNode, by_node

_BY_POOL = ("ippool", "node")


class IpamMetrics(Collector):
    """Shows what it was given last; nothing while nobody collects garbage here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.figures: Figures | None = None
        self.reclaimed: Counter[tuple[str, str]] = Counter()  # pool, node
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        shown = self.figures
        if shown is None:
            return
        yield _gauge("ipam_allocations_in_use", "Addresses assigned to a workload or a tunnel.", shown.in_use)
        yield _gauge("ipam_allocations_borrowed", "Addresses assigned from another node's block.", shown.borrowed)
        yield _gauge("ipam_allocations_gc_candidates", "Addresses that look leaked and wait out the grace period.",
                     shown.candidates)  # fmt: skip
        yield _gauge("ipam_blocks", "Blocks.", shown.blocks)
        reclaimed = UntypedMetricFamily(
            "ipam_allocations_gc_reclamations", "Leaked addresses released since this process started.",
            labels=_BY_POOL,
        )  # fmt: skip
        for key, count in sorted(self.reclaimed.items()):
            reclaimed.add_metric(key, count)
        yield reclaimed
        size = GaugeMetricFamily("ipam_ippool_size", "Addresses of the pool.", labels=("ippool",))
        reserved = GaugeMetricFamily("ipam_ippool_reserved", "Of them in an IPReservation.", labels=("ippool",))
        for family, values in ((size, shown.sizes), (reserved, shown.reserved)):
            for pool, count in sorted(values.items()):
                family.add_metric((pool,), count)
            yield family
        for name, what, found in (
            ("ipam_allocations_per_node", "Addresses assigned, by node.", shown.in_use),
            ("ipam_allocations_borrowed_per_node", "Addresses borrowed, by node.", shown.borrowed),
            ("ipam_blocks_per_node", "Blocks, by node.", shown.blocks),
        ):
            family = GaugeMetricFamily(name, what, labels=("node",))
            for node, count in sorted(by_node(found).items()):
                family.add_metric((node,), count)
            yield family

    def clear(self) -> None:
        self.figures = None


def _gauge(name: str, what: str, found: PerNode) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=_BY_POOL)
    for key, count in sorted(found.items()):
        family.add_metric(key, count)
    return family
