"""What a command works with: connections that are opened when needed and closed at its end, and where its text goes.

Tests put their own `Environment` in: an in-memory store, a bus without NATS.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import click

from libs.bus import Bus, BusConfig, BusConfigError, BusError
from libs.resources.client import ResourceClient
from libs.resources.errors import ResourceError
from libs.resources.release import IpamRelease
from libs.runtime.redact import redact
from libs.store import Store, StoreConfig, StoreError
from libs.store.etcd import connect as connect_store
from services.calicoctl.config import ConfigProblem, CtlConfig, load

T = TypeVar("T")

CONNECT_S = 10.0


@asynccontextmanager
async def etcd(config: StoreConfig) -> AsyncIterator[Store]:
    store = await connect_store(config)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def nats(config: BusConfig) -> AsyncIterator[Bus]:
    from libs.bus.nats import connect  # a third of the start-up time, and most commands need no bus

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
        return load(self.config, self.environment.variables)

    @asynccontextmanager
    async def client(self, *, writes: bool = False) -> AsyncIterator[ResourceClient]:
        """writes: initialise the datastore first, as far as our rights go."""
        async with self.environment.store(self.settings().store) as store:
            client = ResourceClient(store, release=IpamRelease(store))
            if writes:
                # Rights may be for some kinds only; what is missing will show in the write itself.
                with suppress(ResourceError, StoreError):
                    await client.ensure_initialized()
            yield client

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
    try:
        return asyncio.run(command)
    except ConfigProblem as error:
        fail(f"Failed to create Calico API client: {error}")
    except StoreError as error:
        fail(f"Failed to {doing}: datastore: {error or type(error).__name__}")
    except (BusError, BusConfigError) as error:
        fail(f"Failed to {doing}: bus: {error or type(error).__name__}")
    except ResourceError as error:
        fail(f"Failed to {doing}: {error}")
