"""/metrics on a port of its own, for readers elsewhere, beside the port of the probes, which is for this host.

Whatever is wrong with the settings or the files is told, and then metrics are served nowhere: what was to be behind TLS
is never shown without. Files that change are taken by listening anew; connections with the old ones end. What the
system refused (a port that another process has still, a file that is not there yet) is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from random import Random

from libs.model.metrics import MetricsPlace
from libs.runtime.backoff import Backoff
from libs.runtime.files import signature
from libs.runtime.http import HttpServer
from libs.runtime.service import Service

log = logging.getLogger(__name__)
LOOK_S = 5.0
RETRY_S, RETRY_CAP_S = 1.0, 30.0


def context(place: MetricsPlace) -> ssl.SSLContext | None:
    """None: without TLS. Raises ValueError for settings that contradict each other, OSError (ssl.SSLError is one) for
    files that cannot be used. RequireAnyClientCert verifies too: OpenSSL asks for nothing that it does not look at.
    """
    if said := place.problem():
        raise ValueError(said)
    if not place.cert:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(place.cert, place.key)
    if place.client_auth != "NoClientCert":
        made.load_verify_locations(place.ca)
        made.verify_mode = ssl.CERT_OPTIONAL if place.client_auth == "VerifyClientCertIfGiven" else ssl.CERT_REQUIRED
    return made


class MetricsServer:
    """`serve_at` may be called at any time; `run` follows."""

    def __init__(
        self, service: Service, place: MetricsPlace, *, look_s: float = LOOK_S, retry_s: float = RETRY_S
    ) -> None:
        self._service = service
        self._look_s = look_s
        self._retry = Backoff(Random(), first_s=retry_s, cap_s=max(retry_s, RETRY_CAP_S))
        self._told = ""
        self._moved = asyncio.Event()
        self.place = place
        self.port = 0  # where it is served now, 0 for nowhere

    def serve_at(self, place: MetricsPlace) -> None:
        if place != self.place:
            self.place = place
            self._retry.reset()
            self._moved.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._moved.clear()
            await self._serve(self.place)

    async def _serve(self, place: MetricsPlace) -> None:
        """Until the place, or a file, is another one."""
        files = [Path(name) for name in (place.ca, place.cert, place.key) if name]
        seen = signature(files)
        if not place.port:
            await self._moved.wait()
            return
        where = {"host": place.host or "all addresses", "port": place.port}
        try:
            made = context(place)
            async with HttpServer(
                self._service.health, self._service.registry, host=place.host, port=place.port, tls=made, probes=False
            ) as server:
                self.port = server.port
                self._told = ""
                self._retry.reset()
                clients = place.client_auth if made else "anybody"
                log.info("metrics are served", extra={**where, "tls": made is not None, "clients": clients})
                await self._changed(files, seen)
        except ValueError as error:
            self._refused(where, error)
            await self._changed(files, seen)
        except OSError as error:
            self._refused(where, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry.next_s()):
                    await self._changed(files, seen)
        finally:
            self.port = 0

    def _refused(self, where: Mapping[str, object], error: Exception) -> None:
        """Each reason once, however often it is tried."""
        if (told := f"{where}: {error}") != self._told:
            self._told = told
            log.warning("metrics are not served", extra={**where, "error": str(error)})

    async def _changed(self, files: list[Path], seen: object) -> None:
        while not self._moved.is_set() and signature(files) == seen:
            try:
                async with asyncio.timeout(self._look_s if files else None):
                    await self._moved.wait()
            except TimeoutError:
                continue
