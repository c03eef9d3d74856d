"""Keeps the node's tunnel addresses in step with pools, with the node and with FelixConfiguration.

Each round looks at everything and may be cut short anywhere (libs/resources/tunnel_addresses.py); this decides when.
Narrow watches, not a mirror of all resources: every node has one of these.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.model import FelixConfiguration, keys
from libs.resources.client import ResourceClient
from libs.resources.errors import ResourceError
from libs.resources.tunnel_addresses import Tunnels, ensure_tunnel_addresses
from libs.runtime.backoff import Backoff
from libs.runtime.health import Reporter
from libs.store.api import Store, StoreError
from services.node.core.host_encryption import host_encryption
from services.node.shell.watch import notice

log = logging.getLogger(__name__)

SETTLE_S = 0.02  # changes that come together are looked at together
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 30.0


class TunnelAddresses:
    """host_encryption: of the environment, which wins over FelixConfiguration; None: not given."""

    def __init__(
        self,
        store: Store,
        node: str,
        random: Random,
        *,
        host_encryption: bool | None = None,
        observe: Callable[[Tunnels], None] = lambda tunnels: None,
    ) -> None:
        self._store = store
        self._node = node
        self._random = random
        self._host_encryption = host_encryption
        self._observe = observe
        self._resources = ResourceClient(store)
        self._ipam = IpamClient(store)
        self._due = asyncio.Event()

    async def round(self) -> Tunnels:
        """Raises StoreError, ResourceError, IpamError."""
        encrypts = self._host_encryption
        if encrypts is None:
            encrypts = await self._configured()
        done = await ensure_tunnel_addresses(self._resources, self._ipam, self._node, host_encryption=encrypts)
        self._observe(done)
        return done

    async def _configured(self) -> bool:
        listed = (await self._resources.list("FelixConfiguration")).items
        configurations = [one for one in listed if isinstance(one, FelixConfiguration)]
        node = await self._resources.get("Node", self._node)
        return host_encryption(configurations, self._node, node.metadata.labels)

    async def try_round(self) -> tuple[Tunnels | None, str]:
        """(what came of it, what failed): a failure of the datastore, or tunnels that got no address."""
        try:
            done = await self.round()
        except (StoreError, ResourceError, IpamError) as error:
            return None, str(error) or type(error).__name__
        return done, "; ".join(f"{tunnel.value[0]}: {why}" for tunnel, why in done.failures.items())

    async def once(self, timeout_s: float) -> tuple[Tunnels | None, str]:
        """Tries until all is well or the time is up; the last outcome."""
        backoff = Backoff(self._random, first_s=FIRST_RETRY_S, cap_s=5.0)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            done, failed = await self.try_round()
            wait_s = backoff.next_s()
            if not failed or loop.time() + wait_s > deadline:
                return done, failed
            log.warning("tunnel addresses, trying again", extra={"error": failed, "retry_s": wait_s})
            await asyncio.sleep(wait_s)

    async def run(self, health: Reporter, refresh_s: float) -> None:
        """For ever."""
        prefixes = [keys.resource_key("Node", self._node), *map(keys.resource_prefix, ("IPPool", "FelixConfiguration"))]
        async with asyncio.TaskGroup() as tasks:
            for prefix in prefixes:
                tasks.create_task(notice(self._store, prefix, self._due.set, self._random), name=f"watch {prefix}")
            tasks.create_task(self._rounds(health, refresh_s), name="rounds")

    async def _rounds(self, health: Reporter, refresh_s: float) -> None:
        backoff = Backoff(self._random, first_s=FIRST_RETRY_S, cap_s=LAST_RETRY_S)
        told: Tunnels | None = None
        wait_s: float | None = None  # before the first notice there may be no datastore to ask
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._due.wait()
                await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                pass
            self._due.clear()
            done, failed = await self.try_round()
            if done is not None and (told is None or done.addresses != told.addresses or done.released):
                held = {tunnel.value[0]: str(address) for tunnel, address in done.addresses.items()}
                log.info("tunnel addresses", extra={"addresses": held, "released": list(map(str, done.released))})
            told = done or told
            if failed:
                wait_s = backoff.next_s()
                health.report(detail=f"failed: {failed}")
                log.warning("tunnel addresses, trying again", extra={"error": failed, "retry_s": wait_s})
            else:
                backoff.reset()
                wait_s = refresh_s
                words = (
                    ", ".join(f"{tunnel.value[0]} {address}" for tunnel, address in told.addresses.items())
                    if told
                    else ""
                )
                health.report(detail=words or "none needed")
