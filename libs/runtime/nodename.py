"""How a service of a node knows what its node is called."""

from __future__ import annotations

import os
import socket
from pathlib import Path

NODENAME_FILE = Path(os.environ.get("CALICO_NODENAME_FILE") or "/var/lib/calico/nodename")
"""Written when the node starts up, read by everything on it, the CNI plugin included."""


def node_name(configured: str, file: Path | None = None) -> str:
    """What was configured, else the file's word, else the host name in lower case (HOSTNAME, then the kernel's).

    So a node keeps its name when its host is called otherwise some day. Raises OSError when the file cannot be read.
    """
    if configured.strip():
        return configured.strip()
    file = file or NODENAME_FILE
    if file.is_file() and (name := file.read_text(encoding="utf-8").strip()):
        return name
    return (os.environ.get("HOSTNAME", "").strip() or socket.gethostname()).lower()
