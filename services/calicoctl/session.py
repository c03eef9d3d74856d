"""What a command works with: connections that are opened when needed and closed at its end, and where its text goes.

Tests put their own `Environment` in: an in-memory store, a bus without NATS. Clients are imported when they are opened:
they take longer than most commands do.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from libs.runtime.redact import redact
from services.calicoctl import version
from services.calicoctl.config import ETCD, KUBERNETES, ConfigProblem, CtlConfig, load

if TYPE_CHECKING:
    from libs.bus.api import Bus
    from libs.bus.config import BusConfig
    from libs.resources.api import Resources
    from libs.resources.client import ResourceClient
    from libs.store.api import Store
    from libs.store.config import StoreConfig

T = TypeVar("T")

CONNECT_S = 10.0


@asynccontextmanager
async def etcd(config: StoreConfig) -> AsyncIterator[Store]:
    from libs.store.etcd import EtcdStore

    store = EtcdStore(config)  # that etcd answers, the first request will tell
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def nats(config: BusConfig) -> AsyncIterator[Bus]:
    from libs.bus.nats import connect

    bus = await connect(config, name="calicoctl", timeout_s=CONNECT_S)
    try:
        yield bus
    finally:
        await bus.close()


@dataclass(frozen=True, slots=True)
class Environment:
    """How connections are made, and the process environment."""

    store: Callable[[StoreConfig], AbstractAsyncContextManager[Store]] = etcd
    bus: Callable[[BusConfig], AbstractAsyncContextManager[Bus]] = nats
    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)


class NeedsEtcd(Exception):
    """What was asked for cannot be done through an API server; the text says by which way it can."""


@dataclass(frozen=True, slots=True)
class Session:
    """One command's connections. config: --config; it is read, and can be refused, when the first one is opened.

    context: of kubeconfig, "" for its current one. any_version: --allow-version-mismatch.
    """

    environment: Environment
    config: str | None
    context: str = ""
    any_version: bool = False

    def settings(self) -> CtlConfig:
        return load(self.config, self.environment.variables, self.context)

    @asynccontextmanager
    async def resources(
        self, *, writes: bool = False, guarded: bool = True, dry_run: bool = False
    ) -> AsyncIterator[Resources]:
        """Of whichever datastore is chosen. writes: initialise it first, as far as our rights go. guarded: not with a
        cluster of another version (services/calicoctl/version.py). dry_run: what is written is checked and seen by
        later calls, and gone at the end.
        """
        settings = self.settings()
        if settings.datastore == ETCD:
            async with self._of_etcd(settings, writes=writes, guarded=guarded, dry_run=dry_run) as client:
                yield client
            return
        from libs.resources.remote import connect
        from libs.resources.remote_access import AccessProblem, open_access

        try:
            access = await open_access(settings.kubernetes)
        except AccessProblem as error:
            raise ConfigProblem(str(error)) from error
        async with connect(access, dry_run=dry_run) as remote:
            await self._guard(remote, guarded)
            yield remote

    @asynccontextmanager
    async def client(
        self, *, writes: bool = False, guarded: bool = True, purpose: str = "this command"
    ) -> AsyncIterator[ResourceClient]:
        """Of etcd, for what needs its other keys too. Raises NeedsEtcd with the kubernetes datastore."""
        settings = self.settings()
        if settings.datastore == KUBERNETES:
            raise NeedsEtcd(
                f"{purpose} works on etcd itself, which API servers do not show: set DATASTORE_TYPE=etcdv3 and "
                "ETCD_ENDPOINTS (with certificates where needed), for example on a node"
            )
        async with self._of_etcd(settings, writes=writes, guarded=guarded, dry_run=False) as client:
            yield client

    @asynccontextmanager
    async def _of_etcd(
        self, settings: CtlConfig, *, writes: bool, guarded: bool, dry_run: bool
    ) -> AsyncIterator[ResourceClient]:
        from libs.resources.client import ResourceClient
        from libs.resources.errors import ResourceError
        from libs.resources.release import IpamRelease
        from libs.store.api import StoreError

        async with self.environment.store(settings.store) as real:
            store = real
            if dry_run:
                from libs.store.overlay import OverlayStore

                store = OverlayStore(real)
            client = ResourceClient(store, release=None if dry_run else IpamRelease(store))
            await self._guard(client, guarded)
            if writes:
                # Rights may be for some kinds only; what is missing will show in the write itself.
                with suppress(ResourceError, StoreError):
                    await client.ensure_initialized()
            yield client

    async def _guard(self, client: Resources, guarded: bool) -> None:
        if guarded and not self.any_version:
            await version.check(client)

    def bus(self) -> AbstractAsyncContextManager[Bus]:
        return self.environment.bus(self.settings().bus)


def session_of(config: str | None, *, context: str = "", any_version: bool = False) -> Session:
    """Of the command that runs now."""
    environment = click.get_current_context().find_object(Environment)
    return Session(environment or Environment(), config, context, any_version)


def fail(message: str) -> NoReturn:
    """End with exit status 1, the message on standard error. Never shows credentials."""
    click.echo(redact(message), err=True)
    raise SystemExit(1)


def run(command: Coroutine[Any, Any, T], doing: str = "execute command") -> T:
    """Run to the end; trouble with the outside world becomes a message and exit status 1."""
    import asyncio

    try:
        return asyncio.run(command)
    except Exception as error:
        message = _told(error, doing)
        if message is None:
            raise
        fail(message)


def _told(error: Exception, doing: str) -> str | None:
    """None: nothing that a user can do anything about."""
    from libs.bus.api import BusError
    from libs.bus.config import BusConfigError
    from libs.resources.errors import ResourceError
    from libs.store.api import StoreError

    match error:
        case ConfigProblem():
            return f"Failed to create Calico API client: {error}"
        case version.VersionMismatch():
            return str(error)
        case NeedsEtcd() | ResourceError():
            return f"Failed to {doing}: {error}"
        case StoreError():
            return f"Failed to {doing}: datastore: {error or type(error).__name__}"
        case BusError() | BusConfigError():
            return f"Failed to {doing}: bus: {error or type(error).__name__}"
    return None
