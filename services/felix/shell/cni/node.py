"""What the configuration says of this node: its name and the MTU of its pods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.felix.core.cni.config import MAX_MTU_BYTES, NetConfig
from services.felix.core.cni.errors import CniError, Code


def check_name(config: NetConfig, node: str) -> None:
    """Does it mean this node? Named in `nodename`, else in a file, else in `hostname`. Raises CniError."""
    where, said = "nodename", config.nodename
    if not said and config.nodename_file:
        where, said = f"nodename_file {config.nodename_file}", _name_in_file(config)
    if not said:
        where, said = "hostname", config.hostname
    if said and said.lower() != node.lower():
        text = f"network configuration: {where} names node {said!r}, and the agent here is that of node {node!r}"
        raise CniError(Code.INVALID_CONFIG, text)


def _name_in_file(config: NetConfig) -> str:
    try:
        return Path(config.nodename_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if config.nodename_file_optional:
            return ""
        text = f"nodename_file {config.nodename_file} cannot be read: {error}; has calico-node started on this host?"
        raise CniError(Code.TRY_AGAIN, text) from error


def mtu_bytes(config: NetConfig, file: Path, found: Callable[[], int]) -> int:
    """Of a pod: the configuration's, else the file's, else what the agent finds. Raises CniError.

    found: brings the file up to date, where it is the agent's.
    """
    ours = found()
    written = _mtu_in_file(file, required=config.require_mtu_file)
    return config.mtu or written or ours


def _mtu_in_file(file: Path, *, required: bool) -> int:
    """0 when there is none."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError as error:
        if required:
            raise CniError(Code.TRY_AGAIN, f"require_mtu_file: {file} is not there (yet)") from error
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise CniError(Code.IO_FAILURE, f"MTU file {file} cannot be read: {error}") from error
    if not text.isascii() or not text.isdigit() or int(text) > MAX_MTU_BYTES:
        raise CniError(Code.INVALID_CONFIG, f"MTU file {file} holds {text[:20]!r}, no number of bytes")
    return int(text)
