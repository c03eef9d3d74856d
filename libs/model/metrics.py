"""Where a service's metrics are read, and by whom: Calico's settings PrometheusMetrics… (facts/datamodel.md, felix)."""

from __future__ import annotations

from dataclasses import dataclass

CLIENT_AUTHS = ("RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert")


@dataclass(frozen=True, slots=True)
class MetricsPlace:
    """host: "" for all addresses. port: 0 for nowhere. cert, key: with both, TLS alone. ca: whose certificates readers
    must have, as client_auth says, one of CLIENT_AUTHS.
    """

    host: str = ""
    port: int = 0
    ca: str = ""
    cert: str = ""
    key: str = ""
    client_auth: str = "NoClientCert"

    def problem(self) -> str:
        """What keeps it from meaning anything, else ""."""
        if bool(self.cert) != bool(self.key):
            return "the certificate of metrics and its key must be set together"
        if self.client_auth != "NoClientCert" and not self.cert:
            return f"{self.client_auth} needs a certificate and a key of the metrics' own"
        if self.client_auth != "NoClientCert" and not self.ca:
            return f"{self.client_auth} needs a CA file"
        return ""
