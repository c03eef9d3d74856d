"""Metrics of the speaker, per peer and per family."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.bgp.core.paths import Family
from services.bgp.core.session.states import State
from services.bgp.shell.speaker import Speaker


class SpeakerCollector(Collector):
    """Read when asked for; nothing is counted twice."""

    def __init__(self, speaker: Callable[[], Speaker | None], registry: CollectorRegistry) -> None:
        self._speaker = speaker
        registry.register(self)

    def describe(self) -> list[Metric]:
        return []  # made at each scrape: no peer is known yet when it is registered

    def collect(self) -> Iterator[Metric]:
        speaker = self._speaker()
        if speaker is None:
            return
        up = GaugeMetricFamily("bgp_peer_up", "1: the session is established.", labels=("peer",))
        established = CounterMetricFamily("bgp_peer_established", "Times it was established.", labels=("peer",))
        messages = CounterMetricFamily(
            "bgp_peer_messages", "Messages by type and direction.", labels=("peer", "direction", "type")
        )
        prefixes = GaugeMetricFamily(
            "bgp_peer_prefixes", "Prefixes received and advertised.", labels=("peer", "family", "direction")
        )
        treated = CounterMetricFamily(
            "bgp_peer_updates_treated_as_withdraw", "UPDATEs with an error (RFC 7606).", labels=("peer",)
        )
        for peer in speaker.all_peers():
            status = peer.session.status
            up.add_metric([peer.name], float(status.state is State.ESTABLISHED))
            established.add_metric([peer.name], status.counters.established)
            treated.add_metric([peer.name], status.withdrawn_updates)
            for direction, counts in (("in", status.counters.received), ("out", status.counters.sent)):
                for kind, count in counts.items():
                    messages.add_metric([peer.name, direction, kind.lower()], count)
            for family in Family:
                count_of = speaker.rib.counts(peer.name, family)
                prefixes.add_metric([peer.name, family.name.lower(), "in"], count_of.received)
                prefixes.add_metric([peer.name, family.name.lower(), "out"], count_of.advertised)
        yield from (up, established, messages, prefixes, treated)
        kernel = GaugeMetricFamily("bgp_kernel_routes", "Routes of ours in the kernel.", labels=("family",))
        for family in Family:
            kernel.add_metric([family.name.lower()], len(speaker.kernel.fib.held[family]))
        yield kernel
        yield GaugeMetricFamily("bgp_kernel_routes_blocked", "Routes not installed.", len(speaker.kernel.fib.blocked))
        yield CounterMetricFamily("bgp_kernel_writes", "Routes written to the kernel.", speaker.kernel.fib.writes)
        problems = len(speaker.settings.problems) + len(speaker.failures)
        yield GaugeMetricFamily("bgp_configuration_problems", "Parts of the settings that are not in force.", problems)
