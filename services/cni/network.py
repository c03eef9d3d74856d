"""Text of the two files that say how the plugin works: the network list and the kubeconfig. Facts:
cni-typha-node-bgp-ctl.md section 1.7.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from services.cni.config import InstallConfig

PLACEHOLDER = re.compile(r"__[A-Z][A-Z0-9_]*__")
TLS_DIR = "calico-tls"
TLS_FILES = ("etcd-ca", "etcd-cert", "etcd-key")


class InstallError(Exception):
    """The plugin is not usable on this host; the text says why."""


def network_config(config: InstallConfig, *, has_portmap: bool, token: str = "") -> str:
    """JSON text of the network list, placeholders replaced.

    has_portmap: whether the default list may name the portmap plugin (host ports); naming an absent one fails every
    pod. token: the plugin's, for lists that hold it themselves. Raises InstallError for a text that no runtime would
    accept, before anything is written.
    """
    try:
        text = config.network_config_file.read_text() if config.network_config_file else config.network_config
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"cannot read the network configuration: {error}") from error
    text = text or json.dumps(_default_list(config, has_portmap))
    for name, value in _placeholders(config, token).items():
        text = text.replace(name, json.dumps(value)[1:-1])  # escaped: it lands inside a JSON string or is a number
    if left := sorted(set(PLACEHOLDER.findall(text))):
        raise InstallError(f"the network configuration has placeholders that nothing fills: {', '.join(left)}")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InstallError(f"the network configuration is not JSON: {error}") from error
    plugins = document.get("plugins", [document]) if isinstance(document, dict) else []
    ours = [plugin for plugin in plugins if isinstance(plugin, dict) and plugin.get("type") == "calico"]
    if not ours:
        raise InstallError('the network configuration has no plugin of type "calico"')
    if config.require_mtu_file:
        for plugin in ours:
            plugin["require_mtu_file"] = True
    return json.dumps(document, indent=2) + "\n"


def _placeholders(config: InstallConfig, token: str) -> dict[str, str]:
    tls = {name: config.on_host(config.conf_dir / TLS_DIR / name) for name in TLS_FILES}
    have = {name: str(path) if (config.tls_assets_dir / name).is_file() else "" for name, path in tls.items()}
    filled = {
        "__CNI_MTU__": str(config.mtu_bytes),
        "__KUBERNETES_NODE_NAME__": config.node_name,
        "__DATASTORE_TYPE__": config.datastore_type,
        "__ETCD_ENDPOINTS__": config.etcd_endpoints,
        "__ETCD_DISCOVERY_SRV__": config.etcd_discovery_srv,
        "__ETCD_CA_CERT_FILE__": have["etcd-ca"],
        "__ETCD_CERT_FILE__": have["etcd-cert"],
        "__ETCD_KEY_FILE__": have["etcd-key"],
        "__LOG_LEVEL__": config.log_level,
        "__LOG_FILE_PATH__": config.plugin_log_file,
        "__LOG_FILE_MAX_SIZE__": str(config.plugin_log_max_mb),
        "__LOG_FILE_MAX_AGE__": str(config.plugin_log_max_days),
        "__LOG_FILE_MAX_COUNT__": str(config.plugin_log_max_count),
        "__KUBECONFIG_FILEPATH__": str(config.on_host(config.kubeconfig)),
        "__KUBERNETES_SERVICE_HOST__": config.kubernetes_host,
        "__KUBERNETES_SERVICE_PORT__": str(config.kubernetes_port) if config.kubernetes_host else "",
    }
    # Without a token the placeholder stays, and is refused: an empty one would fail each pod, and not here.
    return filled | ({"__SERVICEACCOUNT_TOKEN__": token} if token else {})


def _default_list(config: InstallConfig, has_portmap: bool) -> dict[str, Any]:
    calico: dict[str, Any] = {
        "type": "calico",
        "log_level": config.log_level,
        "log_file_path": config.plugin_log_file,
        "log_file_max_size": config.plugin_log_max_mb,
        "log_file_max_age": config.plugin_log_max_days,
        "log_file_max_count": config.plugin_log_max_count,
        "mtu": config.mtu_bytes,
        "ipam": {"type": "calico-ipam"},
        "policy": {"type": "k8s"},
    }
    if config.node_name:
        calico["nodename"] = config.node_name
    if config.in_cluster:
        calico["kubernetes"] = {"kubeconfig": str(config.on_host(config.kubeconfig))}
    plugins = [calico]
    if has_portmap:
        plugins.append({"type": "portmap", "snat": True, "capabilities": {"portMappings": True}})
    return {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": plugins}


def server(config: InstallConfig) -> str:
    """URL of the Kubernetes API."""
    host = config.kubernetes_host.strip("[]")
    return f"{config.kubernetes_protocol}://{f'[{host}]' if ':' in host else host}:{config.kubernetes_port}"


def kubeconfig(config: InstallConfig, token: str, ca: bytes) -> str:
    """ca: PEM of the authority that signed the API's certificate. JSON, which is YAML too."""
    cluster: dict[str, Any] = {"server": server(config)}
    if config.skip_tls_verify:
        cluster["insecure-skip-tls-verify"] = True
    elif config.kubernetes_protocol == "https":
        cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": "calico", "user": {"token": token}}],
        "contexts": [{"name": "calico-context", "context": {"cluster": "local", "user": "calico"}}],
        "current-context": "calico-context",
    }
    return json.dumps(document, indent=2) + "\n"
