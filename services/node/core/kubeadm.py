"""What kubeadm wrote down about the cluster: the pods' subnets. Pure.

The ConfigMap `kubeadm-config` of `kube-system` holds under `ClusterConfiguration` a YAML text of
kubeadm.k8s.io/v1beta3 or later: {networking: {podSubnet: "10.244.0.0/16,fd00:10:244::/56"}}.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import yaml

from services.node.core.autodetect import Network


def pod_subnets(config_map: dict[str, Any]) -> list[Network]:
    """None for a cluster without. Raises ValueError for what is there and cannot be read."""
    text = (config_map.get("data") or {}).get("ClusterConfiguration")
    if not text:
        return []
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"ClusterConfiguration of kubeadm-config is no YAML: {error}") from error
    networking = document.get("networking") if isinstance(document, dict) else None
    subnets = networking.get("podSubnet") if isinstance(networking, dict) else None
    if not subnets:
        return []
    try:
        return [ip_network(item.strip()) for item in str(subnets).split(",") if item.strip()]
    except ValueError as error:
        raise ValueError(f"podSubnet of kubeadm-config: {error}") from error
