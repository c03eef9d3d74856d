"""What a user says about an API server, by Calico's names. `remote_access` makes a connection of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """Calico's names in brackets. Those that are set win over what the kubeconfig says, as in Calico.

    endpoint: `https://host:port` (k8sAPIEndpoint); kubeconfig: path, or several with `:` between them; kubeconfig_text:
    kubeconfigInline; qps: requests a second on average, 0 for no limit (k8sClientQPS); burst: k8sClientBurst.
    """

    endpoint: str = ""
    kubeconfig: str = ""
    kubeconfig_text: str = field(default="", repr=False)
    context: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    token: str = field(default="", repr=False)
    insecure: bool = False
    qps: float = 0.0
    burst: int = 0
