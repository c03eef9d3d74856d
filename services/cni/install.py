"""Put the plugin and its configuration where a container runtime looks for them.

Programs first, then certificates and the kubeconfig, the network configuration last: a runtime that starts a pod
meanwhile finds the old file or the new one, and a network only once all that it names is there. What was written is
read back and compared. Doing it again writes only what differs.
"""

from __future__ import annotations

import logging
from pathlib import Path

from libs.runtime.compile_c import CompileError
from libs.runtime.files import write_atomically
from services.cni.build import build
from services.cni.config import InstallConfig
from services.cni.network import TLS_DIR, TLS_FILES, InstallError, kubeconfig, network_config

PROGRAMS = ("calico", "calico-ipam")  # one binary, which goes by its name
PRIVATE = 0o600  # they may hold a token or a key, and only the runtime and the plugin read them
log = logging.getLogger(__name__)


def install(config: InstallConfig, token: str = "") -> list[Path]:
    """Files written, in order; those already right are left untouched and not listed. Raises InstallError.

    token: the plugin's for the Kubernetes API; without one no kubeconfig is written.
    """
    text = network_config(config, has_portmap=any((d / "portmap").exists() for d in config.bin_dir), token=token)
    written = _install_programs(config)
    try:
        config.conf_dir.mkdir(parents=True, exist_ok=True)
        written += _install_certificates(config)
        if token:
            # Of an API without TLS, or whose certificate nobody checks, no authority is needed.
            needed = config.kubernetes_protocol == "https" and not config.skip_tls_verify
            ca = (config.account_dir / "ca.crt").read_bytes() if needed else b""
            if write_atomically(config.kubeconfig, kubeconfig(config, token, ca).encode(), mode=PRIVATE):
                written.append(config.kubeconfig)
        target = config.conf_dir / config.conf_name
        if write_atomically(target, text.encode(), mode=PRIVATE):
            written.append(target)
        if config.old_conf_name not in ("", config.conf_name):
            (config.conf_dir / config.old_conf_name).unlink(missing_ok=True)
    except OSError as error:
        raise InstallError(f"cannot write the configuration: {error}") from error
    return written


def inputs(config: InstallConfig) -> list[Path]:
    """Files whose change calls for another installation."""
    found = [config.tls_assets_dir / name for name in TLS_FILES]
    found += [config.account_dir / "ca.crt", config.account_dir / "token"]
    found += [path for path in (config.binary, config.network_config_file) if path is not None]
    return found


def outputs(config: InstallConfig) -> list[Path]:
    """What is there after an installation, and what decides what is written (portmap)."""
    found = [directory / name for directory in config.bin_dir for name in (*PROGRAMS, "portmap")]
    found += [config.conf_dir / TLS_DIR / name for name in TLS_FILES]
    return [*found, config.kubeconfig, config.conf_dir / config.conf_name]


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


def _install_certificates(config: InstallConfig) -> list[Path]:
    """Those of etcd, for plugins that speak to it themselves. What is missing is left out."""
    written = []
    for name in TLS_FILES:
        source, target = config.tls_assets_dir / name, config.conf_dir / TLS_DIR / name
        if source.is_file():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            if write_atomically(target, source.read_bytes(), mode=PRIVATE):
                written.append(target)
    return written
