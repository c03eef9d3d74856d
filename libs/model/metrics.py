"""Where a service's metrics are read, and by whom: Calico's settings PrometheusMetrics… (facts/datamodel.md, felix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ClientAuth = Literal["RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert"]
CLIENT_AUTHS: tuple[str, ...] = get_args(ClientAuth)


@dataclass(frozen=True, slots=True)
class MetricsPlace:
    """host: "" for all addresses. port: 0 for nowhere. cert, key: with both, TLS alone. ca: whose certificates readers
    must have, as client_auth says, one of CLIENT_AUTHS. wrong: what of the settings cannot be read; then what was meant
    is not known, and metrics are served nowhere.
    """

    host: str = ""
    port: int = 0
    ca: str = ""
    cert: str = ""
    key: str = ""
    client_auth: str = "NoClientCert"
    wrong: str = ""

    def problem(self) -> str:
        """What keeps it from meaning anything, else ""."""
        if self.wrong:
            return self.wrong
        if self.client_auth not in CLIENT_AUTHS:
            return f"{self.client_auth!r} is not one of {', '.join(CLIENT_AUTHS)}"
        if bool(self.cert) != bool(self.key):
            return "the certificate of metrics and its key must be set together"
        if self.client_auth != "NoClientCert" and not self.cert:
            return f"{self.client_auth} needs a certificate and a key of the metrics' own"
        if self.client_auth != "NoClientCert" and not self.ca:
            return f"{self.client_auth} needs a CA file"
        return ""
