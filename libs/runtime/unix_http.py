"""HTTP to a service of this host, over its unix socket; blocking, for command lines and tests."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

TIMEOUT_S = 30


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
