"""Settings of bgp. What peers there are comes from the cluster's resources, or from a file for a speaker by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from libs.kube.api import credentials
from libs.policy.bgp_services import ADVERTISE_CLUSTER_IPS
from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.nodename import node_name

SOCKET = Path("/var/run/calico/bgp.sock")


@dataclass(frozen=True, kw_only=True)
class BgpConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "CALICO_BGP_"

    node: str = setting(
        "",
        "Name of this node; empty: /var/lib/calico/nodename, else the host name in lower case.",
        env=("CALICO_BGP_NODE", "NODENAME"),
    )
    router_id: str = setting(
        "",
        "Router ID as an IPv4 address, or `hash` for one made from the node's name; empty: the node's IPv4 address.",
        env=("CALICO_ROUTER_ID",),
    )
    advertise_cluster_ips: tuple[str, ...] = setting(
        (),
        "Ranges of services' cluster addresses that are announced while BGPConfiguration `default` has none.",
        env=(ADVERTISE_CLUSTER_IPS,),
    )
    state_dir: Path = setting(
        Path("/var/lib/calico/bgp"),
        "Directory of the last good input: a start without NATS goes on from there.",
    )
    secrets_dir: Path | None = setting(
        None,
        "Directory of the peers' passwords, mounted from secrets: <name>/<key>, or <key> of a single secret; none: they"
        " are read from the Kubernetes API where there is one.",
    )
    secrets_namespace: str = setting("", "Namespace of those secrets in Kubernetes; empty: that of our pod.")
    kubeconfig: Path | None = setting(
        None,
        "Kubernetes API that has the secrets; none: the pod's service account where there is one.",
        env=("CALICO_BGP_KUBECONFIG", "KUBECONFIG"),
    )
    control_socket: Path = setting(SOCKET, "Unix socket on which `calico-bgp peers`, `rib` and `explain` are answered.")
    settings: Path | None = setting(
        None, "Run by this file (JSON) instead of the cluster's resources; read again on SIGHUP. No NATS is needed."
    )
    interface_prefix: tuple[str, ...] = setting(
        ("cali",), "Names of workload interfaces begin with one of these.", env=("FELIX_INTERFACEPREFIX",)
    )

    def kubernetes(self) -> Path | None:
        """Credentials for the Kubernetes API; None: passwords come from a directory, or from nowhere."""
        return None if self.secrets_dir is not None else credentials(self.kubeconfig, os.environ)

    def node_name(self) -> str:
        return node_name(self.node)
