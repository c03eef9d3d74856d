"""WireGuard of this node as one more reconciler of the dataplane, and the public keys that our Node tells.

delta (nodes, blocks, pools) ──► core of each family ──► device, peers, routes, rule
                                     ▲                        │ public key of the device
typha ◄── etcd ◄── Node.status ◄─────┼────── KeyPublisher ◄───┘
   └────────── own Node ─────────────┘  (only then do we send through the tunnel)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TypeVar

from libs.feed.delta import Delta
from libs.model import Node
from libs.netlink.codec import NetlinkError
from libs.netlink.wireguard import format_key
from libs.resources.client import ResourceClient
from libs.resources.errors import Conflict, ResourceError
from libs.runtime.backoff import Backoff
from libs.store.api import StoreError
from services.felix.core.wireguard import OVERHEAD_BYTES, Wireguard, WireguardSettings, mark_of
from services.felix.drivers.wireguard import FirstOf, KernelDevices, WireguardError
from services.felix.drivers.wireguard_userspace import UserspaceDevices
from services.felix.drivers.wireguard_writer import DeviceState, FamilyWriter, allow_marked_sources

log = logging.getLogger(__name__)

R = TypeVar("R")
READ_EVERY_S = 5.0
FAILED = (WireguardError, NetlinkError, OSError)


class WireguardReconciler:
    """program: of the userspace implementation, empty for none. underlay_mtu_bytes: of the host, when asked.
    on_keys: public keys by family, "" for none; called when they may be news.
    """

    def __init__(
        self,
        node: str,
        program: str,
        underlay_mtu_bytes: Callable[[], int],
        *,
        ipv6: bool = True,
        on_keys: Callable[[dict[int, str]], None] = lambda keys: None,
    ) -> None:
        versions = (4, 6) if ipv6 else (4,)
        self.settings = WireguardSettings()
        self.keys: dict[int, str] = dict.fromkeys(versions, "")
        self.cores = {version: Wireguard(node, version) for version in versions}
        self.states: list[DeviceState] = []  # as last read
        self.problems: dict[str, str] = {}  # what is not encrypted, and why
        self._writers = {
            version: FamilyWriter(version, FirstOf(KernelDevices(), UserspaceDevices(program))) for version in versions
        }
        self._underlay = underlay_mtu_bytes
        self._on_keys = on_keys
        self.comparisons = 0  # with the kernel
        self._made: dict[int, str] = {}  # version -> name of the device that we keep
        self._held: dict[int, tuple[int, int]] = {}  # index of its link, MTU that it should have
        self._stale = dict.fromkeys(versions, True)
        self._started = set(versions)  # that may have a device of another name
        self._look = False  # whether the devices are still there
        self._said: dict[int, str] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="wireguard")

    def configure(self, settings: WireguardSettings, mark_mask: int) -> None:
        self.settings = settings
        for core in self.cores.values():
            core.configure(settings, mark_of(mark_mask))

    def fold(self, delta: Delta) -> None:
        for core in self.cores.values():
            for cidr, pool in delta.pools.items():
                core.put_pool(cidr, pool)
            for name, info in delta.nodes.items():
                core.put_node(name, info)
            for cidr, block in delta.blocks.items():
                core.put_block(cidr, block)

    def resync(self) -> None:
        self._stale = dict.fromkeys(self._stale, True)

    def interfaces_changed(self) -> None:
        """Happens with every pod: the next step only looks whether the devices are still there."""
        self._look = bool(self._made)

    def mtu_bytes(self) -> list[int]:
        """Of the devices in use: pods' packets must fit into each."""
        families = ((version, self.settings.family(version)) for version in self.cores)
        return [one.mtu_bytes or self._underlay() - OVERHEAD_BYTES[version] for version, one in families if one.enabled]

    async def step(self) -> dict[str, str]:
        """Make the kernel match; object -> reason for what could not be, or is not encrypted."""
        failures: dict[str, str] = {}
        if self._look:
            self._look = False
            for version, name in self._made.items():
                try:
                    self._stale[version] |= await self._hold(version, name) != self._held.get(version)
                except FAILED:
                    self._stale[version] = True
        before = self.comparisons
        for version, core in self.cores.items():
            if core.dirty or self._stale[version]:
                core.dirty = self._stale[version] = False
                failures |= await self._step(version, core)
        if self.comparisons != before:  # of all families: at first the other's is not known yet, which is no news
            self._on_keys({version: key for version, key in self.keys.items() if key != self.cores[version].told_key})
        return failures | self.problems

    async def _hold(self, version: int, name: str) -> tuple[int, int]:
        mtu_bytes = self.settings.family(version).mtu_bytes or self._underlay() - OVERHEAD_BYTES[version]
        return await self._run(lambda: self._writers[version].index(name)), mtu_bytes

    async def _is_held(self, version: int, name: str) -> bool:
        """The device is up, and the one that we had; after a restart, one whose key was told."""
        had = self._held.get(version, (0, 0))[0]
        try:
            index, _ = await self._hold(version, name)
        except FAILED:
            return bool(had)
        return bool(index) and (index == had or (not had and bool(self.cores[version].told_key)))

    async def _step(self, version: int, core: Wireguard) -> dict[str, str]:
        self.comparisons += 1
        failures: dict[str, str] = {}
        writer, mine, name = self._writers[version], core.settings, f"WireGuard IPv{version}"
        before = self._made.get(version, mine.interface)
        own_key: bytes | None = None
        try:
            if version in self._started:
                before = await self._run(writer.used) or before
            if before != mine.interface:
                await self._run(lambda: writer.remove(before))
            self._started.discard(version)
            if mine.enabled or core.told_key:
                own_key = await self._run(lambda: writer.ensure(mine.interface, make=mine.enabled))
        except FAILED as error:
            if mine.enabled and await self._is_held(version, mine.interface):
                # What works goes on as it is: nothing is sent in clear text because we could not look.
                failures[name] = f"not compared with the kernel: {error}"
                self._stale[version] = True
                self.keys[version] = self.keys[version] or core.told_key
                self._say(version, failures[name])
                return failures
            failures[name] = f"traffic is not encrypted: {error}"
        self.problems = {key: why for key, why in self.problems.items() if not key.startswith(name)}
        wanted = core.wanted(own_key)
        try:
            if wanted is None:
                await self._run(lambda: writer.remove(mine.interface))
                self._made.pop(version, None)
            else:
                self._made[version] = mine.interface
                mtu_bytes = self._underlay() - OVERHEAD_BYTES[version]
                failures |= await self._run(lambda: writer.apply(wanted, mtu_bytes))
                if mine.enabled and self.settings.host_encryption and version == 4:
                    await self._run(allow_marked_sources)
                self.problems |= wanted.problems
                self._held[version] = await self._hold(version, mine.interface)
        except FAILED as error:
            failures.setdefault(name, str(error))
        if failures:
            self._stale[version] = True
        self._say(version, failures.get(name, ""))
        key = format_key(own_key) if own_key is not None and mine.enabled else ""
        if key and failures.keys() & {name, f"WireGuard {mine.interface}"}:
            key = core.told_key  # it may hear nobody: no new key is told then, and none taken back
        self.keys[version] = key
        return failures

    def _say(self, version: int, problem: str) -> None:
        """Once for each, however often it is tried."""
        if problem != self._said.get(version, ""):
            self._said[version] = problem
            if problem:
                log.error("WireGuard", extra={"family": f"IPv{version}", "error": problem})

    async def read_forever(self) -> None:
        """Keeps `states` fresh, for metrics."""
        while True:
            await asyncio.sleep(READ_EVERY_S)
            self.states = await self._read() if self.settings.metrics else []

    async def _read(self) -> list[DeviceState]:
        found = []
        for version, name in dict(self._made).items():
            try:
                state = await self._run(lambda v=version, n=name: self._writers[v].read(n))  # type: ignore[misc]
            except FAILED as error:
                log.debug("device not read", extra={"interface": name, "error": str(error)})
                continue
            if state is not None:
                found.append(state)
        return found

    async def _run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def close(self) -> None:
        """Devices, routes and rules stay: what is encrypted goes on."""
        self._worker.shutdown(wait=True)


class KeyPublisher:
    """Writes public keys into our Node's status, over what is there at that moment and nothing newer."""

    def __init__(self, resources: ResourceClient, node: str, random: Random) -> None:
        self._resources = resources
        self._node = node
        self._backoff = Backoff(random, first_s=0.2, cap_s=10.0)
        self._wanted: dict[int, str] = {}
        self._wake = asyncio.Event()
        self._busy = False

    @property
    def waits(self) -> bool:
        """There is something that has not been told yet, or may have to be."""
        return self._busy or self._wake.is_set()

    def want(self, keys: dict[int, str]) -> None:
        """Family -> key, "" for none; those that are not named stay as they are."""
        self._wanted = keys
        if keys:
            self._wake.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._busy = False
            await self._wake.wait()
            self._wake.clear()
            self._busy = True
            try:
                await self._publish(dict(self._wanted))
            except (StoreError, ResourceError) as error:
                if not isinstance(error, Conflict):
                    log.warning("WireGuard key not told, trying again", extra={"error": str(error)})
                await asyncio.sleep(self._backoff.next_s())
                self._wake.set()
            else:
                self._backoff.reset()

    async def _publish(self, keys: dict[int, str]) -> None:
        node = await self._resources.get("Node", self._node)
        assert isinstance(node, Node)
        status = node.status
        before = (status.wireguard_public_key, status.wireguard_public_key_v6)
        status.wireguard_public_key = keys.get(4, before[0])
        status.wireguard_public_key_v6 = keys.get(6, before[1])
        if (status.wireguard_public_key, status.wireguard_public_key_v6) != before:
            await self._resources.update(node)
            log.info(
                "WireGuard key told",
                extra={"ipv4": status.wireguard_public_key, "ipv6": status.wireguard_public_key_v6},
            )
