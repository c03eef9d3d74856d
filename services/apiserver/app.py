"""apiserver: the front (TLS, who asks, what may be, limits, audit), and behind it the verbs over the datastore.

`api_routes` is the one place where what is served plugs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from aiohttp import web

from libs.kube.api import KubeApi
from libs.model import keys
from libs.resources import version_guard
from libs.resources.client import ResourceClient
from libs.resources.guarded import GuardedStore
from libs.resources.release import IpamRelease
from libs.runtime import contact, release
from libs.runtime.backends import open_bus, open_store
from libs.runtime.config import ConfigError
from libs.runtime.exits import ServiceExit
from libs.runtime.health import Reporter
from libs.runtime.http import bind_all
from libs.runtime.service import Service
from libs.store.api import Store, StoreError
from services.apiserver.config import LOOPBACK, ApiserverConfig, is_loopback
from services.apiserver.core.bounded import Buckets
from services.apiserver.core.identity import HeaderNames
from services.apiserver.core.ports import TierAccess
from services.apiserver.metrics import Metrics
from services.apiserver.shell.audit import BusAudit
from services.apiserver.shell.authn import Authenticator, TokenFile, TokenSource, Trust, new_key
from services.apiserver.shell.authz import Authorization, BuiltIn, Tiered
from services.apiserver.shell.beat import Heart
from services.apiserver.shell.cache import EtcdCache
from services.apiserver.shell.certificates import Bundle
from services.apiserver.shell.delegated import AccessReviews, ClusterTrust, TokenReviews
from services.apiserver.shell.documents import Documents
from services.apiserver.shell.front import Bounds, Front, install
from services.apiserver.shell.limits import InFlight, Runner
from services.apiserver.shell.probes import PATHS as PROBES
from services.apiserver.shell.probes import Probes
from services.apiserver.shell.reload import Followed, follow
from services.apiserver.shell.rolefile import RoleFile
from services.apiserver.shell.self_reviews import SelfReviews
from services.apiserver.shell.server import Listener
from services.apiserver.shell.tls import ServerTls, read_pair, self_signed
from services.apiserver.shell.verbs import Api

log = logging.getLogger(__name__)


def application(
    front: Front, routes: Iterable[web.AbstractRouteDef], probes: Probes, *, max_body_bytes: int = 3 * 1024 * 1024
) -> web.Application:
    """What is served, whole: the front as middleware, the probes, and `routes` behind them."""
    app = web.Application(client_max_size=max_body_bytes)
    install(app, front)
    app.router.add_routes(probes.routes())
    app.router.add_routes(routes)
    return app


@contextlib.asynccontextmanager
async def api_routes(
    service: Service,
    store: Store,
    access: TierAccess,
    authorization: Authorization,
    metrics: Metrics,
    random: Random,
    heart: Heart,
) -> AsyncIterator[Sequence[web.AbstractRouteDef]]:
    """Cache, verbs, watches and documents: what runs while the block is open, and their routes."""
    cache = EtcdCache(store, random, metrics=metrics)
    resources = ResourceClient(store, release=IpamRelease(store))
    heart.revision = lambda: cache.revision
    service.spawn(cache.run(), name="cache")
    api = Api(store, resources, cache, access, authorization, random=random)
    documents = Documents(release.version().removeprefix("v"), other_paths=PROBES)
    try:
        yield [*documents.routes(), *SelfReviews(authorization).routes(), *api.routes()]
    finally:
        cache.close()


@dataclass(slots=True)
class Parts:
    """What `build` made. files: to be looked at for changes."""

    front: Front
    authorization: Authorization
    tls: ServerTls | None
    files: list[Followed]
    trust: Trust


class Counted:
    """`server.Counts` over the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def refused(self) -> None:
        self._metrics.refused_connections.inc()

    def handshake_failed(self) -> None:
        self._metrics.tls_errors.inc()


async def build(
    config: ApiserverConfig,
    service: Service,
    stack: AsyncExitStack,
    metrics: Metrics,
    audit: BusAudit | None,
    *,
    random: Random,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Parts:
    """The front, from its settings. Raises OSError and ValueError for files that cannot be used."""
    names = HeaderNames(
        config.requestheader_username_headers,
        config.requestheader_group_headers,
        config.requestheader_extra_headers_prefix,
        config.requestheader_uid_headers,
        config.requestheader_allowed_names,
    )
    trust = Trust(names=names)
    files: list[Followed] = []
    tls = _tls(config, files)
    if config.client_ca_file is not None:
        files.append(_clients(trust, tls, config.client_ca_file))
    if config.requestheader_client_ca_file is not None:
        files.append(_proxy(trust, tls, config.requestheader_client_ca_file))

    key = new_key()
    tokens: list[TokenSource] = []
    if config.token_auth_file is not None:
        token_file = TokenFile(config.token_auth_file, key)
        files.append(token_file.file)
        tokens.append(token_file)
    apis: dict[Path, KubeApi] = {}

    async def api(kubeconfig: Path) -> KubeApi:
        if kubeconfig not in apis:
            apis[kubeconfig] = await stack.enter_async_context(await KubeApi.open(kubeconfig))
        return apis[kubeconfig]

    if config.identity_api is not None:
        identity = await api(config.identity_api)

        def count_authn(code: str) -> None:
            metrics.delegated_authn.labels(code).inc()

        keep_s = config.authentication_token_webhook_cache_ttl
        tokens.append(TokenReviews(identity, key, keep_s=keep_s, random=random, count=count_authn))
        if not config.authentication_skip_lookup:
            _follow_cluster(config, service, identity, trust, tls, random)

    judges: list[RoleFile | AccessReviews | BuiltIn] = []
    if config.authorization_role_file is not None:
        roles = RoleFile(config.authorization_role_file)
        files.append(roles.file)
        judges.append(roles)
    if config.access_api is not None:

        def count_authz(code: str) -> None:
            metrics.delegated_authz.labels(code).inc()

        judges.append(
            AccessReviews(
                await api(config.access_api),
                allowed_s=config.authorization_webhook_cache_authorized_ttl,
                denied_s=config.authorization_webhook_cache_unauthorized_ttl,
                random=random,
                count=count_authz,
            )
        )
    if not judges:
        judges.append(BuiltIn())
    always = config.authorization_always_allow_paths
    authorization = Authorization(judges, always_allowed=always)

    def is_open(path: str) -> bool:
        return config.anonymous_auth and (authorization.is_open(path) or path.startswith(("/readyz", "/version")))

    front = Front(
        Authenticator(trust, tokens, open_paths=is_open, development=config.development, now=now),
        authorization,
        bounds=Bounds(config.max_request_body_bytes, config.body_timeout_s, config.request_timeout),
        inflight=InFlight(config.max_requests_inflight, config.max_mutating_requests_inflight),
        rates=Buckets(config.user_rate_per_s, config.user_burst) if config.user_rate_per_s else None,
        sink=audit,
        metrics=metrics,
        now=now,
    )
    return Parts(front, authorization, tls, files, trust)


def _tls(config: ApiserverConfig, files: list[Followed]) -> ServerTls | None:
    if config.secure_port is None:
        return None
    asks = bool(config.client_ca_file or config.requestheader_client_ca_file or config.identity_api)
    tls = ServerTls(min_version=config.tls_min_version, suites=config.tls_cipher_suites, asks_clients=asks)
    certificate, key = config.tls_cert_file, config.tls_private_key_file
    if certificate is None or key is None:
        log.warning("a self-signed certificate was made in memory, for development; clients cannot verify it")
        tls.take_pair(self_signed((*LOOPBACK, socket.gethostname())))
        return tls
    files.append(Followed("certificate", [certificate, key], lambda: tls.take_pair(read_pair(certificate, key))))
    return tls


def _clients(trust: Trust, tls: ServerTls | None, path: Path) -> Followed:
    def load() -> None:
        bundle = Bundle(path.read_bytes())
        if tls is not None:
            tls.take_bundle("clients", bundle)
        trust.clients["file"] = bundle

    return Followed("client authorities", [path], load)


def _proxy(trust: Trust, tls: ServerTls | None, path: Path) -> Followed:
    def load() -> None:
        bundle = Bundle(path.read_bytes())
        if tls is not None:
            tls.take_bundle("proxy", bundle)
        trust.proxy = bundle

    return Followed("front proxy's authorities", [path], load)


def _follow_cluster(
    config: ApiserverConfig, service: Service, api: KubeApi, trust: Trust, tls: ServerTls | None, random: Random
) -> None:
    """Until the ConfigMap was read once, the server is not ready: it would refuse everybody who comes by the proxy."""
    reporter = service.health.register("Cluster Authentication")
    read = False

    def take(clients: Bundle | None, proxy: Bundle | None, names: HeaderNames) -> None:
        if tls is not None:
            tls.take_bundle("cluster", clients)
        if clients is None:
            trust.clients.pop("cluster", None)
        else:
            trust.clients["cluster"] = clients
        if config.requestheader_client_ca_file is None:
            if tls is not None:
                tls.take_bundle("proxy", proxy)
            trust.proxy, trust.names = proxy, names

    def report(problem: str) -> None:
        nonlocal read
        read = read or not problem
        reporter.report(ready=read, detail=problem)

    cluster = ClusterTrust(api, take)
    service.spawn(cluster.follow(config.trust_refresh_s, random, report), name="cluster trust")


async def run(config: ApiserverConfig, service: Service) -> None:
    try:
        config.check({})
    except ConfigError as error:
        raise ServiceExit(2, str(error)) from error
    instance = config.instance or f"{socket.gethostname()}-{secrets.token_hex(3)}"
    async with AsyncExitStack() as stack:
        store = GuardedStore(await stack.enter_async_context(open_store()))
        bus = await stack.enter_async_context(open_bus(f"apiserver-{instance}", inbox="apiserver"))
        metrics = Metrics(service.registry)
        audit = BusAudit(bus, instance, metrics.audit_errors.labels("bus").inc)
        random = Random()
        try:
            parts = await build(config, service, stack, metrics, audit, random=random)
        except (OSError, ValueError) as error:
            raise ServiceExit(2, str(error)) from error
        datastore = service.health.register("Datastore", timeout_s=contact.STALE_S)
        service.spawn(_contact_forever(store, datastore), name="contact")
        service.spawn(follow(parts.files, config.reload_interval_s), name="files")
        heart = Heart(instance, service.health)
        service.spawn(heart.run(bus, random), name="beat")

        async def all_tiers() -> list[str]:
            return await tier_names(store)

        access = Tiered(parts.authorization, all_tiers)
        routes = await stack.enter_async_context(
            api_routes(service, store, access, parts.authorization, metrics, random, heart)
        )
        async with serving(config, service, parts, routes, metrics) as listeners:
            _say_hello(config, listeners, instance)
            service.ready()
            await service.stop.wait()
        audit.flush()


@contextlib.asynccontextmanager
async def serving(
    config: ApiserverConfig,
    service: Service,
    parts: Parts,
    routes: Iterable[web.AbstractRouteDef],
    metrics: Metrics,
) -> AsyncIterator[Sequence[Listener]]:
    """Serves while the block is open; leaving it ends in order (`_stop`). Raises ServiceExit for an address that cannot
    be listened on.
    """
    probes = Probes(service.health, lambda: parts.front.stopping or service.stop.is_set())
    app = application(parts.front, routes, probes, max_body_bytes=config.max_request_body_bytes)
    runner = Runner(app, head_timeout_s=config.head_timeout_s, idle_timeout_s=config.idle_timeout_s)
    await runner.setup()
    try:
        listeners = _listeners(config, parts, runner, metrics)
        tasks = [service.spawn(one.serve(), name=f"listen {one.ports}") for one in listeners]
        metrics.connections.set_function(lambda: listeners[0].connections)
        yield listeners
        await _stop(config, parts.front, tasks)
    finally:
        await runner.cleanup()


def _listeners(config: ApiserverConfig, parts: Parts, runner: Runner, metrics: Metrics) -> list[Listener]:
    counts = Counted(metrics)
    listeners = []
    try:
        if config.secure_port is not None and parts.tls is not None:
            tls = parts.tls
            sockets = bind_all(config.listens_on, config.secure_port)
            listeners.append(
                Listener(
                    runner, sockets, context=lambda: tls.context, max_connections=config.max_connections, counts=counts
                )
            )
        if config.insecure_port is not None:
            host = config.listens_on if is_loopback(config.listens_on) else "localhost"
            sockets = bind_all(host, config.insecure_port)
            listeners.append(
                Listener(runner, sockets, context=None, max_connections=config.max_connections, counts=counts)
            )
    except OSError as error:
        raise ServiceExit(2, str(error)) from error
    return listeners


def _say_hello(config: ApiserverConfig, listeners: Sequence[Listener], instance: str) -> None:
    if config.development:
        log.warning("development: everybody on this host who shows no credentials is system:admin")
    if config.insecure_port is not None:
        log.warning("plain HTTP on loopback: tokens that are sent there can be read by who may capture on it")
    extra = {"address": config.listens_on or "all", "ports": [one.ports for one in listeners], "instance": instance}
    log.info("serving", extra=extra)


async def _stop(config: ApiserverConfig, front: Front, tasks: Sequence[asyncio.Task[None]]) -> None:
    """/readyz fails already; then no new connections, watches end, and what is under way may finish."""
    if config.shutdown_delay_duration:
        await asyncio.sleep(config.shutdown_delay_duration)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    front.end_watches()
    until = time.monotonic() + max(0.5, config.shutdown_grace_s - config.shutdown_delay_duration - 2)
    while front.running and time.monotonic() < until:  # noqa: ASYNC110 - a counter of the middleware has no event
        await asyncio.sleep(0.02)
    if front.running:
        log.warning("requests cut off", extra={"requests": front.running})


async def _contact_forever(store: Store, reporter: Reporter) -> None:
    """Not ready before the datastore has what every cluster begins with (tiers, ClusterInformation)."""
    initialized = False

    async def ask() -> None:
        nonlocal initialized
        if not initialized:
            await version_guard.check(store)
            await ResourceClient(store).ensure_initialized()
            initialized = True
        await store.status()

    while True:
        why = await contact.trouble(ask(), StoreError)
        reporter.report(ready=not why, detail=why)
        await asyncio.sleep(contact.EVERY_S)


async def tier_names(store: Store) -> list[str]:
    """Asked of etcd each time: who has just made a tier finds its policies in the next list."""
    prefix = keys.resource_prefix("Tier")
    listing = await store.list(prefix, keys_only=True)
    return [one.key.removeprefix(prefix) for one in listing.kvs]
