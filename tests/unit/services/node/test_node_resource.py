"""Two nodes that start together with one address: the order of their writes decides, whatever is written meanwhile."""

from __future__ import annotations

import pytest

from libs import model
from libs.model.base import ObjectMeta, Resource
from libs.model.node import NodeBGPSpec, NodeSpec
from libs.resources.client import ResourceClient, Written
from libs.store.memory import MemoryStore
from services.node.shell.node_resource import Clash, NodeResource
from services.node.startup_config import StartupConfig


class Slow(ResourceClient):
    """While it writes its node, another with the same address is written: before or after, and then once more."""

    def __init__(self, store: MemoryStore, *, other_first: bool) -> None:
        super().__init__(store)
        self._others, self._other_first = ResourceClient(store), other_first

    async def create(self, resource: Resource) -> Written:
        if not isinstance(resource, model.Node):  # a first write makes tiers and the like too
            return await super().create(resource)
        other = model.Node(
            metadata=ObjectMeta(name="a"), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.5/24"))
        )  # fmt: skip
        if self._other_first:
            await self._others.create(other)
        written = await super().create(resource)
        if not self._other_first:
            await self._others.create(other)
        again = await self._others.get("Node", "a")
        again.metadata.labels["seen"] = "later"
        await self._others.update(again)
        return written


async def address(store: MemoryStore, name: str) -> str:
    node = await ResourceClient(store).get("Node", name)
    assert isinstance(node, model.Node)
    return node.spec.bgp.ipv4_address if node.spec.bgp else ""


@pytest.mark.parametrize("other_first", [True, False])
async def test_d03_the_later_one_gives_way_also_when_the_earlier_one_wrote_again(other_first: bool) -> None:
    store = MemoryStore()
    config = StartupConfig(node="b", ip="192.0.2.5/24")
    node = NodeResource(config, Slow(store, other_first=other_first), None)
    if other_first:
        with pytest.raises(Clash, match="address of node a"):
            await node.update(first=True)
        assert await address(store, "b") == ""
    else:
        await node.update(first=True)
        assert await address(store, "b") == "192.0.2.5/24"
    assert await address(store, "a") == "192.0.2.5/24"
