"""kube-proxy's configuration on a node of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def configuration(name: str, address: str, mode: str, kubeconfig: Path) -> str:
    """name, address: of the node. mode: nftables, iptables or ipvs."""
    made: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": name,
        # Limits of the whole machine, which are not a node's to change.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "healthzBindAddress": f"{address}:10256",
        "metricsBindAddress": f"{address}:10249",
    }
    return yaml.safe_dump(made)
