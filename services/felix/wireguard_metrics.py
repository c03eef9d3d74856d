"""WireGuard's metrics: names, labels and types as Calico's collector has them.

Byte counts are of no type: this library would put `_total` behind the name of a counter, which Calico's have not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from libs.netlink.wireguard import format_key
from services.felix.drivers.wireguard_writer import DeviceState

_PEER = ("hostname", "public_key", "peer_key", "peer_endpoint")


class WireguardCollector(Collector):
    """states: of the devices, as last read; called at each scrape, so it must not wait."""

    def __init__(self, node: str, states: Callable[[], Sequence[DeviceState]]) -> None:
        self._node = node
        self._states = states

    def describe(self) -> Iterator[Metric]:
        return iter(())  # or the registry would collect to find out

    def collect(self) -> Iterator[Metric]:
        meta = GaugeMetricFamily(
            "wireguard_meta",
            "WireGuard devices of this node.",
            labels=("hostname", "public_key", "iface", "listen_port"),
        )
        handshake = GaugeMetricFamily(
            "wireguard_latest_handshake_seconds",
            "Unix time of the last handshake; 0: none.",
            labels=_PEER,
        )
        sent = UntypedMetricFamily("wireguard_bytes_sent", "Bytes sent to a peer.", labels=_PEER)
        received = UntypedMetricFamily("wireguard_bytes_rcvd", "Bytes received from a peer.", labels=_PEER)
        for state in self._states():
            device = state.device
            own = format_key(device.public_key) if device.public_key is not None else ""
            meta.add_metric((self._node, own, state.interface, str(device.listen_port)), 1)
            for key, peer in device.peers.items():
                counted = device.stats[key]
                labels = (self._node, own, format_key(key), _endpoint(peer.endpoint))
                handshake.add_metric(labels, counted.handshake_s)
                sent.add_metric(labels, counted.sent_bytes)
                received.add_metric(labels, counted.received_bytes)
        yield from (meta, handshake, sent, received)


def _endpoint(endpoint: tuple[object, int] | None) -> str:
    if endpoint is None:
        return ""
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
