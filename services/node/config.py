"""Settings of the node service. Names of the environment are those of Calico's node container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.nodename import node_name


@dataclass(frozen=True, kw_only=True)
class NodeConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "CALICO_NODE_"

    node: str = setting(
        "",
        "Name of this node; empty: /var/lib/calico/nodename, else the host name in lower case.",
        env=("NODENAME",),
    )
    use_pod_cidr: bool = setting(
        False, "Addresses come from the node's pod CIDR, so no tunnel address is allocated.", env=("USE_POD_CIDR",)
    )
    wireguard_host_encryption: bool | None = setting(
        None,
        "Traffic between hosts is encrypted too, which takes no WireGuard address; none: by FelixConfiguration.",
        env=("FELIX_WIREGUARDHOSTENCRYPTIONENABLED",),
    )
    tunnel_refresh_s: float = setting(
        600.0, "How often tunnel addresses are compared with pools although nothing changed.", unit="s", minimum=1
    )
    once_timeout_s: float = setting(
        60.0, "How long `allocate-tunnel-addresses` tries before it gives up.", unit="s", minimum=0.1
    )
    bgp_timeout_s: float = setting(
        5.0, "How long the BGP speaker of this node may take to tell its state.", unit="s", minimum=0.1
    )

    def node_name(self) -> str:
        return node_name(self.node)
