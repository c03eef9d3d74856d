"""Settings of felix. Environment names follow Calico's (FELIX_<FIELD WITHOUT UNDERSCORES>) where Calico has the
setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.nodename import node_name


@dataclass(frozen=True, kw_only=True)
class FelixConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "FELIX_"

    node: str = setting(
        "",
        "Name of this node; empty: /var/lib/calico/nodename, else the host name in lower case.",
        env=("FELIX_FELIXHOSTNAME", "NODENAME"),
    )
    felix_config: Path = setting(
        Path("/etc/calico/felix.cfg"), "Calico's configuration file: settings over those of the datastore."
    )
    cni_socket: Path = setting(
        Path("/var/run/calico/felix-cni.sock"),
        "Unix socket on which the CNI shim is served.",
        env=("CALICO_CNI_SOCKET",),
    )
    state_dir: Path = setting(
        Path("/var/lib/calico/felix"), "Directory of the CNI journal, kept across restarts.", env=("FELIX_STATE_DIR",)
    )
    interface_prefix: tuple[str, ...] = setting(
        ("cali",), "Names of workload interfaces begin with one of these; new ones with the first.",
        env=("FELIX_INTERFACEPREFIX",),
    )  # fmt: skip
    ipv6_support: bool = setting(True, "Program IPv6 as well.", env=("FELIX_IPV6SUPPORT",))
    default_endpoint_to_host_action: Literal["DROP", "ACCEPT", "RETURN"] = setting(
        "DROP",
        "What happens to packets from a workload to its own host once its egress policy allows them.",
        env=("FELIX_DEFAULTENDPOINTTOHOSTACTION",),
    )
    nftables_refresh_interval_s: float = setting(
        180.0, "How often the ruleset is compared with the kernel; 0: never.", unit="s", minimum=0,
        env=("FELIX_NFTABLESREFRESHINTERVAL",),
    )  # fmt: skip
    route_refresh_interval_s: float = setting(
        90.0, "How often routes are compared with the kernel; 0: never.", unit="s", minimum=0,
        env=("FELIX_ROUTEREFRESHINTERVAL",),
    )  # fmt: skip
    interface_refresh_interval_s: float = setting(
        90.0, "How often interfaces are compared with the kernel; 0: never.", unit="s", minimum=0,
        env=("FELIX_INTERFACEREFRESHINTERVAL",),
    )  # fmt: skip
    policy_setup_timeout_s: float = setting(
        20.0, "How long CNI ADD waits for the pod's policy to reach the kernel.", unit="s", minimum=0.1
    )
    mtu_bytes: int = setting(0, "MTU of pods; 0: found from interfaces and pools.", unit="bytes", minimum=0)
    mtu_file: Path = setting(Path("/var/lib/calico/mtu"), "File that receives the MTU of pods.")

    kubeconfig: Path | None = setting(
        None,
        "Kubernetes API that tells of pods; none: the pod's service account where there is one.",
        env=("FELIX_KUBECONFIG", "KUBECONFIG"),
    )

    wireguard_program: str = setting(
        "wireguard-go",
        "Makes WireGuard devices where the kernel cannot: name or path; empty: nobody does.",
        env=("FELIX_WIREGUARDPROGRAM",),
    )

    def node_name(self) -> str:
        return node_name(self.node)
