"""Metrics of the node service. Calico has none for this, so these names are ours."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from libs.ipam.tunnels import Tunnel
from libs.resources.tunnel_addresses import Tunnels


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.rounds = Counter("node_tunnel_rounds", "Comparisons of tunnel addresses with pools.", registry=registry)
        self.addresses = Gauge(
            "node_tunnel_address", "1 for each tunnel that has an address.", ("tunnel",), registry=registry
        )
        self.missing = Gauge(
            "node_tunnel_address_missing", "1 for each tunnel that should have an address and got none.", ("tunnel",),
            registry=registry,
        )  # fmt: skip

    def observe_tunnels(self, tunnels: Tunnels) -> None:
        self.rounds.inc()
        for tunnel in Tunnel:
            self.addresses.labels(tunnel.value[0]).set(tunnel in tunnels.addresses)
            self.missing.labels(tunnel.value[0]).set(tunnel in tunnels.failures)
