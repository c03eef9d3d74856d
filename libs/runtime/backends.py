"""How every service reaches the datastore and the bus: by the environment, without waiting for either.

A service starts, and goes on, while etcd or NATS is away; what needs them waits by itself. A setting that cannot be
used ends the service with status 2. The clients are imported when they are opened: each is some 10 MB of memory, and
few services need both.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from libs.runtime.exits import ServiceExit

if TYPE_CHECKING:
    from libs.bus.nats import NatsBus
    from libs.store.etcd import EtcdStore


@asynccontextmanager
async def open_store() -> AsyncIterator[EtcdStore]:
    from libs.store.config import StoreConfig, StoreConfigError
    from libs.store.etcd import EtcdStore

    try:
        store = EtcdStore(StoreConfig.from_env(os.environ))
    except StoreConfigError as error:
        raise ServiceExit(2, str(error)) from error
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_bus(name: str, *, inbox: str = "") -> AsyncIterator[NatsBus]:
    """name: who we are; answers to our requests arrive below `_INBOX.<name>.`, or `_INBOX.<inbox>.`, which
    is what the bus's permissions know (libs/trust/nats_config.py).
    """
    from libs.bus.config import BusConfig, BusConfigError
    from libs.bus.nats import NatsBus

    try:
        bus = NatsBus(BusConfig.from_env(os.environ), name=name, inbox=inbox)
    except BusConfigError as error:
        raise ServiceExit(2, str(error)) from error
    try:
        bus.start()
        yield bus
    finally:
        await bus.close()
