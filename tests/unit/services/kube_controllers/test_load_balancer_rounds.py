"""Rounds of the load balancer controller in situations that histories meet too seldom (tests/properties has those)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from libs.ipam import keys
from libs.kube.objects import Key
from libs.store.api import FenceLost
from services.kube_controllers.core.load_balancers import POOLS4
from services.kube_controllers.core.settings import Environment, default_configuration, running
from services.kube_controllers.shell.load_balancers import SPACING_S
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
    world.now_s += SPACING_S
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


async def test_without_the_lead_no_status_is_written(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    world.leads = False
    with pytest.raises(FenceLost):
        await world.controller.round(SETTINGS)
    assert not world.api.shown("s0")


async def test_what_the_next_leader_wrote_is_not_written_over(world: World) -> None:
    """It takes over after we were told that we lead, and before our write arrives."""
    world.api.put("s0")
    world.api.hear()

    def taken_over(key: Key) -> None:
        if world.leads:
            world.leads = False
            world.api.show("s0", "10.1.0.3")

    world.api.before = taken_over
    with pytest.raises(FenceLost):
        await world.controller.round(SETTINGS)
    assert world.api.shown("s0") == ["10.1.0.3"]


async def test_a_service_made_anew_under_the_name_gets_nothing_of_the_one_before(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    world.api.before = _once(lambda: (world.api.delete("s0"), world.api.put("s0")))
    await world.controller.round(SETTINGS)
    assert not world.api.shown("s0")
    await world.settle()
    assert world.api.shown("s0")


async def test_a_status_that_was_edited_meanwhile_is_put_right_in_the_same_round(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    world.api.before = _once(lambda: world.api.show("s0", "192.0.2.1"))
    assert not (await world.controller.round(SETTINGS)).failures
    assert world.api.shown("s0")
    assert world.api.shown("s0") != ["192.0.2.1"]


async def test_nothing_is_released_of_a_service_that_was_changed_meanwhile(world: World) -> None:
    world.api.put("s0", annotations={POOLS4: '["a"]'})
    world.api.hear()
    await world.round()
    before = await world.held()
    world.api.put("s0", annotations={POOLS4: '["b"]'})
    world.api.hear()
    world.api.before = _once(lambda: world.api.put("s0", annotations={POOLS4: '["a"]'}))
    world.now_s += SPACING_S
    made = await world.controller.round(SETTINGS)
    assert "changed meanwhile" in made.failures["ns/s0"]
    assert await world.held() == before
    await world.settle()
    assert await world.held() == before


async def test_where_every_pool_is_disabled_another_program_may_serve(world: World) -> None:
    for name, cidr in (("a", "10.0.0.0/30"), ("b", "10.1.0.0/30")):
        await world.change_pool(name, cidr, disabled=True)
    await world.store.delete(keys.resource("ippools", "six"))
    await world.mirror.reached((await world.store.status()).revision)
    world.api.put("s0")
    world.api.hear()
    made = await world.controller.round(SETTINGS)
    assert made.detail == "0 services"
    assert not world.api.events


async def test_a_burst_of_changes_reads_address_management_once(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    await world.controller.round(SETTINGS)
    assert world.api.shown("s0"), "the first is served at once"
    assert world.reads == 1
    for name in ("s1", "s2", "s3"):
        world.api.put(name)
        world.api.hear()
        waits_s = (await world.controller.round(SETTINGS)).again_s
        assert waits_s == SPACING_S
    assert world.reads == 1
    world.now_s += SPACING_S
    await world.controller.round(SETTINGS)
    assert all(map(world.api.shown, ("s1", "s2", "s3")))
    assert world.reads == 2
    world.api.hear()  # of what the controller wrote itself
    world.api.put("inside", type="ClusterIP")
    world.api.hear()
    world.now_s += SPACING_S
    await world.controller.round(SETTINGS)
    assert world.reads == 2, "neither concerns it"
    world.api.show("s1", "192.0.2.1")
    world.api.hear()
    await world.controller.round(SETTINGS)
    assert world.reads == 3
    assert world.api.shown("s1") != ["192.0.2.1"]


async def test_after_a_failure_the_next_round_is_a_whole_one(world: World) -> None:
    world.api.put("s0")
    world.api.hear()
    world.api.away = True
    assert (await world.controller.round(SETTINGS)).failures
    world.api.away = False
    assert not (await world.controller.round(SETTINGS)).failures
    assert world.api.shown("s0")


def _once(work: Callable[[], object]) -> Callable[[Key], None]:
    left = [work]

    def hook(key: Key) -> None:
        if left:
            left.pop()()

    return hook


async def _nothing(key: Key) -> None:
    pass
