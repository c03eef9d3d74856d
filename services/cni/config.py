"""What the installer can be told; the names of the environment are those of Calico's install-cni container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.runtime.config import setting


@dataclass(frozen=True, kw_only=True)
class InstallConfig:
    bin_dir: tuple[Path, ...] = setting(
        (Path("/opt/cni/bin"),),
        "Directories that receive the programs; those that cannot be written are skipped.",
        env=("CNI_BIN_DIR",),
    )
    conf_dir: Path = setting(Path("/etc/cni/net.d"), "Where the runtime looks for networks.", env=("CNI_NET_DIR",))
    conf_name: str = setting("10-calico.conflist", "Name of the network configuration file.", env=("CNI_CONF_NAME",))
    network_config: str = setting(
        "", "The network configuration itself; __CNI_MTU__ and the like are replaced.", env=("CNI_NETWORK_CONFIG",)
    )
    network_config_file: Path | None = setting(
        None, "File with the network configuration; wins over the text.", env=("CNI_NETWORK_CONFIG_FILE",)
    )
    mtu_bytes: int = setting(
        0, "MTU of pods; 0 lets Felix find it.", env=("CNI_MTU",), unit="bytes", minimum=0, maximum=65535
    )
    node_name: str = setting("", "Name of this node.", env=("KUBERNETES_NODE_NAME", "NODENAME"))
    etcd_endpoints: str = setting("", "Fills __ETCD_ENDPOINTS__.", env=("ETCD_ENDPOINTS",))
    log_level: str = setting("info", "Fills __LOG_LEVEL__.", env=("LOG_LEVEL",))
    skip_binaries: tuple[str, ...] = setting((), "Programs that are left alone.", env=("SKIP_CNI_BINARIES",))
    update_binaries: bool = setting(True, "Replace programs that are there already.", env=("UPDATE_CNI_BINARIES",))
    binary: Path | None = setting(None, "A compiled plugin; without one, shim.c is compiled here.", env=("CNI_BINARY",))
    socket: str = setting("", "Felix's socket compiled into the plugin.", env=("CALICO_CNI_SOCKET",))
