"""Put the plugin and the network configuration where a container runtime looks for them.

Programs first, configuration last, each by write, fsync, rename, fsync of the directory: a runtime that starts a pod
meanwhile finds the old file or the new one, and a network only once its plugin is there. What was written is read back
and compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from libs.runtime.compile_c import CompileError
from services.cni.build import build
from services.cni.config import InstallConfig

PROGRAMS = ("calico", "calico-ipam")  # one binary, which goes by its name
_PLACEHOLDER = re.compile(r"__[A-Z][A-Z0-9_]*__")
log = logging.getLogger(__name__)


class InstallError(Exception):
    """The plugin is not usable on this host; the text says why."""


def install(config: InstallConfig) -> list[Path]:
    """Files written, in that order; those already right are left untouched and not listed. Raises InstallError."""
    written = _install_programs(config)
    text = network_config(config, has_portmap=any((d / "portmap").exists() for d in config.bin_dir))
    try:
        config.conf_dir.mkdir(parents=True, exist_ok=True)
        # 0600: a configuration may hold a token, and only the runtime reads it.
        if write_atomically(config.conf_dir / config.conf_name, text.encode(), mode=0o600):
            written.append(config.conf_dir / config.conf_name)
    except OSError as error:
        raise InstallError(f"cannot write the network configuration: {error}") from error
    return written


def _install_programs(config: InstallConfig) -> list[Path]:
    try:
        content = (config.binary or build(socket=config.socket or None)).read_bytes()
    except (OSError, CompileError) as error:
        raise InstallError(f"no plugin to install: {error}") from error
    written: list[Path] = []
    refused: list[str] = []
    usable = 0
    for directory in config.bin_dir:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in PROGRAMS:
                target = directory / name
                if name in config.skip_binaries or (target.exists() and not config.update_binaries):
                    log.info("program left as it is", extra={"path": str(target)})
                elif write_atomically(target, content, mode=0o755):
                    written.append(target)
            usable += 1
        except OSError as error:
            log.warning("directory skipped", extra={"directory": str(directory), "reason": str(error)})
            refused.append(f"{directory}: {error}")
    if not usable:
        raise InstallError("no directory for programs can be written: " + "; ".join(refused))
    return written


def network_config(config: InstallConfig, *, has_portmap: bool) -> str:
    """JSON text of the network list, placeholders replaced.

    has_portmap: whether the default list may name the portmap plugin (host ports); naming an absent one fails every
    pod. Raises InstallError for a text that no runtime would accept, before anything is written.
    """
    try:
        text = config.network_config_file.read_text() if config.network_config_file else config.network_config
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"cannot read the network configuration: {error}") from error
    values = {
        "__CNI_MTU__": str(config.mtu_bytes),
        "__KUBERNETES_NODE_NAME__": config.node_name,
        "__ETCD_ENDPOINTS__": config.etcd_endpoints,
        "__LOG_LEVEL__": config.log_level,
        "__KUBECONFIG_FILEPATH__": str(config.conf_dir / "calico-kubeconfig"),
    }
    text = text or json.dumps(_default_list(config, has_portmap))
    for name, value in values.items():
        text = text.replace(name, json.dumps(value)[1:-1])  # escaped: it lands inside a JSON string or is a number
    if left := sorted(set(_PLACEHOLDER.findall(text))):
        raise InstallError(f"the network configuration has placeholders that nothing fills: {', '.join(left)}")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InstallError(f"the network configuration is not JSON: {error}") from error
    plugins = document.get("plugins", [document]) if isinstance(document, dict) else []
    if not any(isinstance(p, dict) and p.get("type") == "calico" for p in plugins):
        raise InstallError('the network configuration has no plugin of type "calico"')
    return json.dumps(document, indent=2) + "\n"


def _default_list(config: InstallConfig, has_portmap: bool) -> dict[str, Any]:
    calico: dict[str, Any] = {
        "type": "calico",
        "log_level": config.log_level,
        "mtu": config.mtu_bytes,
        "ipam": {"type": "calico-ipam"},
        "policy": {"type": "k8s"},
    }
    if config.node_name:
        calico["nodename"] = config.node_name
    plugins = [calico]
    if has_portmap:
        plugins.append({"type": "portmap", "snat": True, "capabilities": {"portMappings": True}})
    return {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": plugins}


def write_atomically(path: Path, content: bytes, *, mode: int) -> bool:
    """False when the file had that content and mode already. Raises OSError, also when it reads back differently."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content and path.stat().st_mode & 0o7777 == mode:
            return False
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # no extension: no runtime reads it
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    if path.read_bytes() != content:
        raise OSError(f"{path} does not hold what was written to it")
    return True
