"""A server that is up when its `/readyz` says so."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from abc import ABC
from functools import cached_property
from pathlib import Path

from libs.netlink.netns import in_netns
from libs.testkit.pki import KeyPair
from libs.testkit.servers import Server

_POLL_S = 0.05


class HttpsServer(Server, ABC):
    """trusted: the CA of its certificate, which must be for its address. client: whom `/readyz` answers, where it does
    not answer everybody.
    """

    ready_line = b""
    trusted: Path
    client: KeyPair | None = None

    @property
    def url(self) -> str:
        return f"https://{self.host_port}"

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.trusted))
        if self.client is not None:
            context.load_cert_chain(self.client.cert, self.client.key)
        return context

    def _serves(self) -> bool:
        with in_netns(f"/run/netns/{self.netns}" if self.netns else None):
            connection = http.client.HTTPSConnection(self.address, self.port, timeout=5, context=self._tls)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return True
        time.sleep(_POLL_S)
        return False
