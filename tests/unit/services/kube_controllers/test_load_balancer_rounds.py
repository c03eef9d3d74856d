"""Rounds of the load balancer controller in situations that histories meet too seldom (tests/properties has those)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from libs.ipam import keys
from libs.kube.objects import Key
from services.kube_controllers.core.load_balancers import POOLS4
from services.kube_controllers.core.settings import Environment, default_configuration, running
from tests.properties.test_load_balancers import World

SETTINGS = running(default_configuration().spec, Environment(kubernetes=True))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.start()
    following = asyncio.create_task(made.mirror.run())
    await made.mirror.reached(1)
    yield made
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def test_a_status_that_the_informer_has_not_heard_of_is_cleared_before_the_release(world: World) -> None:
    """The informer still shows no address; the pool becomes manual, so the address is to go."""
    world.api.put("s0")
    world.api.hear()
    await world.round()
    before = world.api.shown("s0")
    pool, other = ("a", "b") if before[0].startswith("10.0.") else ("b", "a")
    await world.change_pool(pool, f"10.{'ab'.index(pool)}.0.0/30", assignmentMode="Manual")
    await world.round()  # the world looks at each release
    after = world.api.shown("s0")
    assert after != before
    assert after[0].startswith(f"10.{'ab'.index(other)}.")


async def test_nothing_is_released_while_the_pool_cannot_be_read(world: World) -> None:
    world.api.put("s0", annotations={POOLS4: '["b"]'})
    world.api.hear()
    await world.round()
    held = await world.held()
    assert held
    revision = await world.store.put(keys.resource("ippools", "b"), b"{damaged")
    await world.mirror.reached(revision)
    await world.round()
    assert await world.held() == held
    assert {"10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.3"} & set(world.api.shown("s0"))


async def test_an_answer_that_nobody_can_read_is_a_failure_of_that_service_alone(world: World) -> None:
    world.api.put("s0")
    world.api.put("s1")
    world.api.hear()
    world.api.services[Key("ns", "s0")]["spec"]["ipFamilies"] = "IPv4"  # no list
    world.api.then = _nothing
    world.api.patched = lambda key: None
    made = await world.controller.round(SETTINGS)
    assert list(made.failures) == ["ns/s0"]
    assert "cannot be read" in made.failures["ns/s0"]
    assert world.api.shown("s1")


async def test_what_another_controller_shows_stays_when_ours_goes(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    await world.round()
    key = Key("ns", "s0")
    ours, others = world.api.services[key]["status"]["loadBalancer"]["ingress"], {"hostname": "lb.example", "ports": []}
    world.api.services[key]["status"] = {"loadBalancer": {"ingress": [*ours, others]}}
    world.api.hear()
    world.api.then = _nothing
    requested = replace(SETTINGS, upkeep=replace(SETTINGS.upkeep, load_balancers="RequestedServicesOnly"))
    await world.controller.round(requested)
    assert world.api.services[key]["status"]["loadBalancer"]["ingress"] == [others]
    assert not await world.held()


@pytest.mark.parametrize("stored", [b'{"spec": {"datastoreReady": false}}', b"{damaged"])
async def test_nothing_is_given_while_the_datastore_is_locked_or_may_be(world: World, stored: bytes) -> None:
    world.api.put("s0")
    world.api.hear()
    revision = await world.store.put(keys.resource("clusterinformations", "default"), stored)
    await world.mirror.reached(revision)
    assert "locked" in (await world.controller.round(SETTINGS)).detail
    assert not await world.held()
    assert not world.api.shown("s0")


async def _nothing(key: Key) -> None:
    pass
