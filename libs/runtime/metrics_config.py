"""Where metrics are shown, of services whose environment says it."""

from __future__ import annotations

from dataclasses import dataclass

from libs.model.metrics import ClientAuth, MetricsPlace
from libs.runtime.config import RuntimeConfig, setting


@dataclass(frozen=True, kw_only=True)
class MetricsConfig(RuntimeConfig):
    metrics_host: str = setting("", "Address of /metrics; empty: all.", env=("*PROMETHEUSMETRICSHOST",))
    metrics_ca: str = setting(
        "", "File: who signed the certificates of readers of metrics.", env=("*PROMETHEUSMETRICSCAFILE",)
    )
    metrics_cert: str = setting(
        "", "File: certificate of the metrics' port; with a key, TLS alone.", env=("*PROMETHEUSMETRICSCERTFILE",)
    )
    metrics_key: str = setting("", "File: its key.", env=("*PROMETHEUSMETRICSKEYFILE",))
    metrics_client_auth: ClientAuth = setting(
        "NoClientCert", "Certificates of readers of metrics.", env=("*PROMETHEUSMETRICSCLIENTAUTH",)
    )

    def metrics_place(self, port: int) -> MetricsPlace:
        """port: 0 for nowhere."""
        return MetricsPlace(
            self.metrics_host, port, self.metrics_ca, self.metrics_cert, self.metrics_key, self.metrics_client_auth
        )
