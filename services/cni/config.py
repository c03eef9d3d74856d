"""What the installer can be told; the names of the environment are those of Calico's install-cni container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from libs.runtime.config import RuntimeConfig, setting

ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, kw_only=True)
class InstallConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "CALICO_CNI_"

    # LOG_LEVEL and LOG_FILE_PATH mean the plugin's own log in Calico's manifests; the installer's level follows.
    log_file: Path | None = setting(None, "File that also receives the installer's logs, as JSON lines.")
    watch: bool = setting(
        False,
        "Stay: put back what is removed or changed, refresh the plugin's token before it ends. (Calico's SLEEP, which"
        " is true by default there.)",
        env=("SLEEP",),
    )
    watch_interval_s: float = setting(1.0, "How often the files are looked at.", unit="s", minimum=0.05)
    bin_dir: tuple[Path, ...] = setting(
        (Path("/opt/cni/bin"),),
        "Directories that receive the programs; those that cannot be written are skipped.",
        env=("CNI_BIN_DIR",),
    )
    conf_dir: Path = setting(Path("/etc/cni/net.d"), "Where the runtime looks for networks.", env=("CNI_NET_DIR",))
    host_conf_dir: Path | None = setting(
        None, "The same directory as the host names it, where it is mounted elsewhere here; for paths in the files."
    )
    conf_name: str = setting("10-calico.conflist", "Name of the network configuration file.", env=("CNI_CONF_NAME",))
    old_conf_name: str = setting(
        "", "Name of an earlier one, which is removed once CNI_CONF_NAME is written.", env=("CNI_OLD_CONF_NAME",)
    )
    network_config: str = setting(
        "", "The network configuration itself; __CNI_MTU__ and the like are replaced.", env=("CNI_NETWORK_CONFIG",)
    )
    network_config_file: Path | None = setting(
        None, "File with the network configuration; wins over the text.", env=("CNI_NETWORK_CONFIG_FILE",)
    )
    mtu_bytes: int = setting(
        0, "MTU of pods; 0 lets Felix find it.", env=("CNI_MTU",), unit="bytes", minimum=0, maximum=65535
    )
    require_mtu_file: bool = setting(
        False, "The plugin fails while /var/lib/calico/mtu is missing.", env=("REQUIRE_MTU_FILE",)
    )
    node_name: str = setting("", "Name of this node.", env=("KUBERNETES_NODE_NAME", "NODENAME"))
    datastore_type: str = setting("etcdv3", "Fills __DATASTORE_TYPE__.", env=("DATASTORE_TYPE",))
    etcd_endpoints: str = setting("", "Fills __ETCD_ENDPOINTS__.", env=("ETCD_ENDPOINTS",))
    etcd_discovery_srv: str = setting("", "Fills __ETCD_DISCOVERY_SRV__.", env=("ETCD_DISCOVERY_SRV",))
    tls_assets_dir: Path = setting(
        Path("/calico-secrets"), "etcd-ca, etcd-cert and etcd-key found here are put beside the configuration.",
        env=("TLS_ASSETS_DIR",),
    )  # fmt: skip
    plugin_log_file: str = setting(
        "/var/log/calico/cni/cni.log", "Log of the plugin; fills __LOG_FILE_PATH__.", env=("LOG_FILE_PATH",)
    )
    plugin_log_max_mb: int = setting(
        100, "The log is rotated at this size.", unit="MB", minimum=1, env=("LOG_FILE_MAX_SIZE",)
    )
    plugin_log_max_days: int = setting(
        30, "Rotated logs are removed after.", unit="days", minimum=0, env=("LOG_FILE_MAX_AGE",)
    )
    plugin_log_max_count: int = setting(
        10, "Rotated logs that are kept.", minimum=0, env=("LOG_FILE_MAX_COUNT",)
    )  # fmt: skip
    skip_binaries: tuple[str, ...] = setting((), "Programs that are left alone.", env=("SKIP_CNI_BINARIES",))
    update_binaries: bool = setting(True, "Replace programs that are there already.", env=("UPDATE_CNI_BINARIES",))
    binary: Path | None = setting(None, "A compiled plugin; without one, shim.c is compiled here.", env=("CNI_BINARY",))
    socket: str = setting("", "Felix's socket compiled into the plugin.", env=("CALICO_CNI_SOCKET",))
    kubernetes_host: str = setting(
        "", "Address of the Kubernetes API; without it no kubeconfig is written.", env=("KUBERNETES_SERVICE_HOST",)
    )
    kubernetes_port: int = setting(
        443, "Port of it.", minimum=1, maximum=65535, env=("KUBERNETES_SERVICE_PORT",)
    )  # fmt: skip
    kubernetes_protocol: Literal["https", "http"] = setting(
        "https", "How it is spoken to.", env=("KUBERNETES_SERVICE_PROTOCOL",)
    )
    skip_tls_verify: bool = setting(
        False, "The API's certificate is not checked, here and by the plugin.", env=("SKIP_TLS_VERIFY",)
    )
    account_dir: Path = setting(
        ACCOUNT_DIR, "Our own service account: token, ca.crt and namespace. Without a token no kubeconfig is written."
    )
    plugin_account: str = setting(
        "calico-cni-plugin",
        "Service account for which the plugin's token is asked.",
        env=("CALICO_CNI_SERVICE_ACCOUNT",),
    )
    token_refresh_s: float | None = setting(
        None, "Between two tokens; none: a quarter of what is left of its life, with jitter.", unit="s", minimum=1,
        env=("CNI_TOKEN_REFRESH_INTERVAL",),
    )  # fmt: skip

    @property
    def kubeconfig(self) -> Path:
        return self.conf_dir / "calico-kubeconfig"

    @property
    def in_cluster(self) -> bool:
        """There is a Kubernetes API to reach, and an account to reach it with."""
        return bool(self.kubernetes_host) and (self.account_dir / "token").exists()

    def on_host(self, path: Path) -> Path:
        """What programs of the host call a file below conf_dir."""
        return path if self.host_conf_dir is None else self.host_conf_dir / path.relative_to(self.conf_dir)
