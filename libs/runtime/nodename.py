"""How a service of a node knows what its node is called."""

from __future__ import annotations

import socket
from pathlib import Path

NODENAME_FILE = Path("/var/lib/calico/nodename")
"""Written when the node starts up, read by everything on it, the CNI plugin included."""


def node_name(configured: str) -> str:
    """What was configured, else the file's word, else the host name in lower case."""
    if configured:
        return configured
    if NODENAME_FILE.is_file() and (name := NODENAME_FILE.read_text(encoding="utf-8").strip()):
        return name
    return socket.gethostname().lower()
