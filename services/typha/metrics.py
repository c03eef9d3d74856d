"""Typha's metrics under Calico's names (facts/cni-typha-node-bgp-ctl.md section 2.7), each with what it means here.

A breadcrumb is one flush: the changes of one or more etcd revisions, published together. A connection is a reader that
follows us, `syncer` its role: felix or bgp.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SYNCER = "felix"
MOVES = ("balance", "shutdown")


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        label = ("syncer",)

        def counter(name: str, text: str) -> Counter | Gauge:
            # prometheus_client would append _total to the names of counters that Calico exposes without it.
            kind = Counter if name.endswith("_total") else Gauge
            made = kind(name, text, label, registry=registry)
            made.labels(SYNCER)
            return made

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(name, text, label, registry=registry)
            made.labels(SYNCER)
            return made

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(name, text, label, registry=registry)
            made.labels(SYNCER)
            return made

        self.breadcrumb_seq = gauge("typha_breadcrumb_seq_number", "Flushes since start.")
        self.breadcrumb_size = histogram("typha_breadcrumb_size", "Messages published by one flush.")
        self.breadcrumb_block = counter("typha_breadcrumb_block", "Flushes that had to wait for more changes (load).")
        self.breadcrumb_non_block = counter("typha_breadcrumb_non_block", "Flushes that went out at once (idle).")
        self.next_breadcrumb = histogram(
            "typha_next_breadcrumb_latency_secs", "Seconds to compute and publish a flush."
        )
        self.cache_size = gauge("typha_cache_size", "Keys read from the datastore.")
        self.client_latency = histogram("typha_client_latency_secs", "Seconds from a flush to a reader's report of it.")
        self.client_snapshot = histogram("typha_client_snapshot_send_secs", "Seconds to make a snapshot for a reader.")
        self.client_write = histogram("typha_client_write_latency_secs", "Seconds to hand a flush to the bus.")
        self.accepted = counter("typha_connections_accepted", "Readers that registered.")
        self.active = gauge("typha_connections_active", "Readers registered now.")
        self.dropped = counter("typha_connections_dropped", "Readers forgotten because they fell silent.")
        self.grace_used = counter("typha_connections_grace_used", "Readers that were late after their snapshot.")
        self.streaming = gauge("typha_connections_streaming", "Readers that have confirmed all they were sent.")
        self.kvs_per_msg = histogram("typha_kvs_per_msg", "Changed keys read from the datastore in one batch.")
        self.ping = histogram("typha_ping_latency", "Seconds of a round trip through the bus.")
        self.snapshots = counter("typha_snapshots_generated", "Snapshots made.")
        self.snapshots_reused = counter("typha_snapshots_reused", "Stream contents served from the encoded cache.")
        self.snapshot_raw = gauge("typha_snapshot_raw_bytes", "Bytes of the last snapshot before compression.")
        self.snapshot_packed = gauge("typha_snapshot_compressed_bytes", "Bytes of the last snapshot on the wire.")
        self.updates = counter("typha_updates_total", "Changed keys read from the datastore.")
        self.skipped = counter("typha_updates_skipped", "Of them, those that changed nothing for any node.")
        self.log_errors = counter("typha_log_errors", "Values that could not be decoded.")
        self.logs_dropped = counter("typha_logs_dropped", "Log lines that could not be written.")
        self.readers = Gauge(
            "typha_readers", "Readers by the typha that they follow, as this one hears it.", ("instance",),
            registry=registry,
        )  # fmt: skip
        self.moves = Counter(
            "typha_readers_moved_total", "Readers asked to follow another typha.", ("reason",), registry=registry
        )
        for reason in MOVES:
            self.moves.labels(reason)
