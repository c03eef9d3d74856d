"""Settings of the node service. Names of the environment are those of Calico's node container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.runtime.config import setting
from services.node.startup_config import StartupConfig


@dataclass(frozen=True, kw_only=True)
class NodeConfig(StartupConfig):
    supervise: bool = setting(
        False, "Start the node up and run felix, bgp and the CNI installer as well, as one service for all of a node."
    )
    take_over: bool = setting(
        True, "When felix is ready, rules, sets and routes that a real calico-node left on this host are removed."
    )
    disable_felix: bool = setting(False, "Do not run felix.", env=("CALICO_DISABLE_FELIX",))
    manage_cni: bool | None = setting(
        None, "Run the installer of the CNI plugin, which renews its token; none: where there is a Kubernetes API.",
        env=("CALICO_MANAGE_CNI",),
    )  # fmt: skip
    felix_health_host: str = setting("localhost", "Where felix answers probes.", env=("FELIX_HEALTHHOST",))
    felix_health_port: int = setting(
        9099, "Port of it.", minimum=1, maximum=65535, env=("FELIX_HEALTHPORT",)
    )  # fmt: skip
    bgp_health_host: str = setting("localhost", "Where bgp answers probes.", env=("CALICO_BGP_HEALTHHOST",))
    bgp_health_port: int = setting(
        9097, "Port of it.", minimum=1, maximum=65535, env=("CALICO_BGP_HEALTHPORT",)
    )  # fmt: skip
    bgp_socket: Path = setting(
        Path("/var/run/calico/bgp.sock"), "Control socket of bgp.", env=("CALICO_BGP_CONTROL_SOCKET",)
    )
    bgp_threshold_s: float = setting(
        30.0, "So long after start-up all BGP sessions must be up for readiness; later one will do.", unit="s",
        minimum=0,
    )  # fmt: skip
    ready_wait_s: float = setting(
        300.0, "How long felix and bgp may take before Kubernetes is told that this node has a network all the same.",
        unit="s", minimum=0,
    )  # fmt: skip
    probe_every_s: float = setting(
        2.0, "How often felix and bgp are asked for their health.", unit="s", minimum=0.05
    )  # fmt: skip

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

    def runs_cni(self) -> bool:
        return self.kubernetes() is not None if self.manage_cni is None else self.manage_cni
