"""/metrics on the port that the KubeControllersConfiguration names, on all addresses, beside the service's own port.

A replica that stands by shows them where the environment says, or at the usual port; a leader follows the resource.
"""

from __future__ import annotations

import asyncio
import logging

from libs.runtime.http import HttpServer
from libs.runtime.service import Service

log = logging.getLogger(__name__)


class MetricsPort:
    """port 0: nowhere. One that is taken is said in the log, and is no reason to stop."""

    def __init__(self, service: Service, port: int) -> None:
        self._service = service
        self._port = port
        self._moved = asyncio.Event()

    def serve_at(self, port: int) -> None:
        if port != self._port:
            self._port = port
            self._moved.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._moved.clear()
            port = self._port
            if not port:
                await self._moved.wait()
                continue
            try:
                async with HttpServer(self._service.health, self._service.registry, host="", port=port):
                    log.info("metrics are served", extra={"port": port})
                    await self._moved.wait()
            except OSError as error:
                log.warning("metrics are not served", extra={"port": port, "error": str(error)})
                await self._moved.wait()
