"""/liveness, /readiness and /metrics of a service, on one port.

A good probe is 200 with a line for each reporter (204 when there are no reporters), a bad one 503 with the same table.
Metrics come from a registry that belongs to the service, so that two services in one test process do not meet.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterable
from types import TracebackType

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from libs.runtime.health import Aggregator, Summary


class _Part(Collector):
    """Collectors that are shown together or not at all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.shown = True

    def collect(self) -> Iterable[Metric]:
        return self.registry.collect() if self.shown else ()


class ServiceRegistry(CollectorRegistry):
    """A private registry. process: with what Prometheus's library knows of this process and of its Python."""

    def __init__(self, *, process: bool = True) -> None:
        super().__init__(auto_describe=True)
        self._process, self._runtime = _Part(), _Part()
        if process:
            ProcessCollector(registry=self._process.registry)
            PlatformCollector(registry=self._runtime.registry)
            GCCollector(registry=self._runtime.registry)
        self.register(self._process)
        self.register(self._runtime)

    def show(self, *, process: bool, runtime: bool) -> None:
        """process: memory, CPU, open files (process_…). runtime: version and garbage collection (python_…)."""
        self._process.shown, self._runtime.shown = process, runtime


def new_registry(*, process: bool = True) -> ServiceRegistry:
    """A private registry; `process` adds memory, CPU, open files and garbage collection of this process."""
    return ServiceRegistry(process=process)


class HttpServer:
    """`async with HttpServer(...) as server:` serves until the block ends; `server.port` is the port really bound.
    probes: /liveness and /readiness too.
    """

    def __init__(
        self,
        health: Aggregator,
        registry: CollectorRegistry,
        *,
        host: str = "localhost",
        port: int = 0,
        routes: Iterable[web.RouteDef] = (),
        tls: ssl.SSLContext | None = None,
        probes: bool = True,
    ) -> None:
        self._health, self._registry = health, registry
        self._host, self._wanted_port = host, port
        self._routes = list(routes)
        self._tls, self._probes = tls, probes
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> HttpServer:
        app = web.Application()
        if self._probes:
            app.router.add_get("/liveness", self._liveness)
            app.router.add_get("/readiness", self._readiness)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_routes(self._routes)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            for listener in bind_all(self._host, self._wanted_port):
                self.port = listener.getsockname()[1]
                await web.SockSite(runner, listener, ssl_context=self._tls).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _liveness(self, _: web.Request) -> web.Response:
        return _answer(self._health.liveness())

    async def _readiness(self, _: web.Request) -> web.Response:
        return _answer(self._health.readiness())

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def _answer(summary: Summary) -> web.Response:
    if not summary.rows:
        return web.Response(status=204)
    return web.Response(status=200 if summary.ok else 503, text=summary.table())


def bind_all(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host` ("" for all), on one port, the kernel's choice when `port` is 0.

    Raises OSError when a named address cannot be bound. An IPv6 address of "localhost" on a host without IPv6 is
    skipped.
    """
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    failure: OSError | None = None
    with contextlib.ExitStack() as undo:
        for family, kind, proto, _, address in sorted(infos, key=lambda i: i[0] != socket.AF_INET):
            try:
                one = socket.socket(family, kind, proto)
            except OSError as error:
                failure = error
                continue
            undo.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if bound:
                address = (address[0], bound[0].getsockname()[1], *address[2:])
            try:
                one.bind(address)
            except OSError as error:
                failure = OSError(error.errno, f"cannot listen on {host or '*'} port {port}: {error.strerror}")
                if bound and host == "localhost":
                    continue
                raise failure from error
            one.listen(128)
            one.setblocking(False)
            bound.append(one)
        if not bound:
            raise failure or OSError(f"{host} has no address")
        undo.pop_all()
    return bound
