"""How a node's public keys get into its Node object, and how the reconciler hands them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

from libs.model import Node
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.store.memory import MemoryEtcd, MemoryStore
from services.felix.core.wireguard import FamilySettings, WireguardSettings
from services.felix.shell.wireguard import KeyPublisher, WireguardReconciler
from tests.contract.store_backends import eventually

KEY, OTHER = "A" * 42 + "E=", "B" * 42 + "E="


class Stage:
    def __init__(self) -> None:
        self.server = MemoryEtcd()
        self.user = ResourceClient(MemoryStore(self.server))
        self.store = MemoryStore(self.server)
        self.publisher = KeyPublisher(ResourceClient(self.store), "node1", Random(1))
        self.seen: tuple[str, str] = ("", "")

    async def node(self) -> None:
        await self.user.apply(codec.from_json({
            "apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "node1"},
            "spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}},
        }))  # fmt: skip

    async def told(self) -> tuple[str, str]:
        found = await self.user.get("Node", "node1")
        assert isinstance(found, Node)
        return found.status.wireguard_public_key, found.status.wireguard_public_key_v6

    async def until(self, *wanted: str) -> None:
        async with asyncio.timeout(20):
            while await self.told() != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.publisher.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_o11_keys_are_told_one_family_at_a_time_and_the_other_stays() -> None:
    stage = Stage()
    await stage.node()
    async with stage.running():
        stage.publisher.want({4: KEY})
        await stage.until(KEY, "")
        stage.publisher.want({6: OTHER})
        await stage.until(KEY, OTHER)
        stage.publisher.want({4: ""})
        await stage.until("", OTHER)


async def test_o11_what_others_change_meanwhile_is_kept() -> None:
    """Somebody is faster three times: a label each time we have read, so that our write is of an old revision."""
    stage = Stage()
    await stage.node()
    labels = 0

    class Racing(ResourceClient):
        async def get(self, kind: str, name: str, namespace: str = ""):  # type: ignore[no-untyped-def]
            nonlocal labels
            found = await super().get(kind, name, namespace)
            if labels < 3:
                labels += 1
                present = await stage.user.get("Node", "node1")
                present.metadata.labels[f"l{labels}"] = "x"
                await stage.user.update(present)
            return found

    stage.publisher = KeyPublisher(Racing(stage.store), "node1", Random(1))
    async with stage.running():
        stage.publisher.want({4: KEY})
        await stage.until(KEY, "")
    assert set((await stage.user.get("Node", "node1")).metadata.labels) == {"l1", "l2", "l3"}


async def test_o11_a_key_is_told_once_the_datastore_and_the_node_are_there() -> None:
    stage = Stage()
    stage.store.cut = True
    async with stage.running():
        stage.publisher.want({4: KEY})
        await stage.node()
        stage.store.cut = False
        await stage.until(KEY, "")


async def test_a_key_that_is_told_already_is_not_written_again() -> None:
    stage = Stage()
    await stage.node()
    async with stage.running():
        stage.publisher.want({4: KEY})
        await stage.until(KEY, "")
        revision = (await stage.store.status()).revision
        stage.publisher.want({4: KEY, 6: ""})
        stage.publisher.want({})
        await eventually(lambda: not stage.publisher.waits)
    assert (await stage.store.status()).revision == revision


async def test_pods_fit_into_the_devices_of_both_families_as_set_or_as_the_underlay_leaves() -> None:
    made = WireguardReconciler("node1", "", lambda: 1500)
    try:
        assert made.mtu_bytes() == []
        on = WireguardSettings(v4=FamilySettings(enabled=True), v6=FamilySettings(enabled=True))
        made.configure(on, 0xFFFF0000)
        assert made.mtu_bytes() == [1440, 1420]
        made.configure(WireguardSettings(v4=FamilySettings(enabled=True, mtu_bytes=1300)), 0xFFFF0000)
        assert made.mtu_bytes() == [1300]
    finally:
        await made.close()
