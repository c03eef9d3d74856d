"""WireGuard as felix runs it: restarts, what others take away, when it looks at the kernel and tells its key."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from libs.feed.delta import Delta
from libs.netlink.monitor import Lost
from libs.netlink.netns import in_netns
from libs.netlink.wireguard import WgDevice, format_key, parse_key
from libs.policy.output import Block, NodeInfo
from services.felix.core.mtu import PATTERN
from services.felix.core.route_settings import RouteSettings
from services.felix.core.wireguard import FamilySettings, WireguardSettings
from services.felix.drivers.interfaces import InterfaceDriver
from services.felix.drivers.wireguard import Devices, WireguardError
from services.felix.shell.wireguard import WireguardReconciler
from tests.kernel.wireguard_lab import (
    MAKER,
    MARKS,
    NETS,
    PEER,
    Stage,
    socket_gone,
)

pytestmark = MARKS


def info(version: int, number: int, key: bytes | None) -> NodeInfo:
    told = format_key(key) if key else ""
    return NodeInfo(
        ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64", wireguard_key=told if version == 4 else "",
        wireguard_key6="" if version == 4 else told,
    )  # fmt: skip


class Node1:
    """A reconciler and the keys that it tells; node2 has one."""

    def __init__(self, stage: Stage) -> None:
        self.told: list[dict[int, str]] = []
        self.version = stage.version
        self.made = WireguardReconciler("node1", "wireguard-go", lambda: 1500, on_keys=self.told.append)
        family = FamilySettings(enabled=True, interface=stage.name, port=51833)
        on = WireguardSettings(v4=family) if stage.version == 4 else WireguardSettings(v6=family)
        self.made.configure(on, 0xFFFF0000)
        own, theirs, *_ = NETS[stage.version]
        blocks: dict[str, Block | None] = {own: Block(cidr=own, node="node1"), theirs: Block(cidr=theirs, node="node2")}
        self.made.fold(Delta(blocks=blocks, nodes={"node2": info(stage.version, 2, PEER)}))
        self.hear("")

    def hear(self, key: str) -> None:
        """Our own Node says this key."""
        self.made.fold(Delta(nodes={"node1": info(self.version, 1, parse_key(key) if key else None)}))

    async def agreed(self) -> str:
        """The key, told and heard; routes lead into the tunnel."""
        assert await self.made.step() == {}
        key = self.made.keys[self.version]
        self.hear(key)
        assert await self.made.step() == {}
        return key


def play(stage: Stage, story: Callable[[Node1], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        node1 = Node1(stage)
        try:
            await story(node1)
        finally:
            await node1.made.close()

    stage.call(lambda: asyncio.run(run()))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_cannot_be_read_once_changes_nothing(
    stage: Stage, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(node1: Node1) -> None:
        key, shown = await node1.agreed(), stage.routes()
        if restarted:
            await node1.made.close()
            node1.__init__(stage)  # type: ignore[misc]
            node1.hear(key)
        node1.told.clear()
        node1.made.resync()

        def fail(devices: Devices, name: str) -> WgDevice:
            raise WireguardError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(MAKER, "read", fail)
            assert await node1.made.step() == {
                f"WireGuard IPv{stage.version}": "not compared with the kernel: no answer"
            }
        assert stage.routes() == shown
        assert len(stage.rules()) == 1
        assert await node1.made.step() == {}, "it is tried again without another reason"
        assert [told for told in node1.told if told] == []

    play(stage, story)


def test_after_a_restart_no_familys_key_is_taken_back_before_its_device_was_read(stage: Stage) -> None:
    async def story(node1: Node1) -> None:
        node1.hear(await node1.agreed())
        key = node1.made.keys[stage.version]
        await node1.made.close()
        node1.__init__(stage)  # type: ignore[misc]
        node1.hear(key)
        assert await node1.made.step() == {}
        assert [told for told in node1.told if told] == []

    play(stage, story)


@pytest.mark.parametrize("enabled", [True, False])
def test_after_a_restart_with_another_name_the_old_device_goes(stage: Stage, enabled: bool) -> None:
    async def story(node1: Node1) -> None:
        key = await node1.agreed()
        await node1.made.close()
        stage.name = f"wg{uuid.uuid4().hex[:10]}"
        node1.__init__(stage)  # type: ignore[misc]
        node1.hear(key)
        if not enabled:
            node1.made.configure(WireguardSettings(), 0xFFFF0000)
        async with asyncio.timeout(20):
            while await node1.made.step():  # noqa: ASYNC110  # the old one's process may still have the port
                await asyncio.sleep(0.01)
        links = stage.run("ip", "link")
        assert old not in links
        assert (stage.name in links) == enabled
        assert (node1.made.keys[stage.version] not in ("", key)) == enabled
        assert stage.routes() == {}

    old = stage.name
    try:
        play(stage, story)
    finally:
        Path(f"/var/run/wireguard/{old}.sock").unlink(missing_ok=True)


@pytest.mark.parametrize("table", [1, 1000])
def test_what_others_take_away_is_mended_when_the_kernel_says_so(stage: Stage, table: int) -> None:
    """Also once the settings name another table."""

    async def story(node1: Node1) -> None:
        await node1.agreed()
        stage.table = table
        node1.made.configure(replace(node1.made.settings, table=table), 0xFFFF0000)
        assert await node1.made.step() == {}
        rules, routes, family = stage.rules(), stage.routes(), f"-{stage.version}"
        driver = InterfaceDriver(("cali",))
        driver.configure(PATTERN, False, RouteSettings(), table)
        assert routes
        watching = asyncio.ensure_future(driver.watch(node1.made.interfaces_changed, lambda: None, node1.made.resync))
        try:
            await asyncio.sleep(0)
            driver.underlay_mtu_bytes()  # so that links are known
            for command in (
                ("link", "set", stage.name, "down"),
                (family, "rule", "del", "priority", "99"),
                (family, "route", "del", NETS[stage.version][1], "table", str(table)),
                (family, "route", "flush", "table", str(table)),
            ):
                stage.run("ip", *command)
                async with asyncio.timeout(10):
                    while (stage.rules(), stage.routes()) != (rules, routes):
                        await asyncio.sleep(0.01)
                        assert await node1.made.step() == {}, command
            async with asyncio.timeout(10):  # what we did ourselves is looked at, and comes to rest
                before = -1
                while before != node1.made.comparisons:
                    before = node1.made.comparisons
                    await asyncio.sleep(0.1)
                    await node1.made.step()
            driver._event(Lost())
            await node1.made.step()
            assert node1.made.comparisons > before
        finally:
            watching.cancel()
            await driver.close()

    play(stage, story)


def test_a_key_is_told_when_the_device_can_hear(stage: Stage) -> None:
    async def story(node1: Node1) -> None:
        with in_netns(stage.space.path):
            other = socket.socket(socket.AF_INET if stage.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        with other:
            other.bind(("", 51833))
            assert "Address already in use" in (await node1.made.step())[f"WireGuard {stage.name}"]
            assert node1.made.keys[stage.version] == ""
        key = await node1.agreed()
        assert {stage.version: key} in node1.told
        assert stage.routes()[NETS[stage.version][1]] == stage.name

    play(stage, story)


@pytest.mark.stock_kernel
def test_the_reconciler_compares_when_there_is_a_reason_and_not_with_every_pod(stage: Stage) -> None:
    """A key, then routes once it is told, then nothing until the device is taken away."""
    own, theirs, *_ = NETS[stage.version]

    async def story(node1: Node1) -> None:
        made, version = node1.made, stage.version
        assert await made.step() == {}
        key = made.keys[version]
        assert node1.told[-1] == {version: key}
        assert stage.routes() == {}
        node1.hear(key)
        assert await made.step() == {}
        assert stage.routes() == {own: "throw", theirs: stage.name}
        before = made.comparisons
        made.interfaces_changed()
        assert await made.step() == {}
        assert made.comparisons == before
        stage.run("ip", "link", "del", stage.name)
        await asyncio.to_thread(socket_gone, stage)
        made.interfaces_changed()
        assert await made.step() == {}
        assert made.comparisons == before + 1
        assert made.keys[version] not in ("", key)
        assert stage.routes() == {}  # nobody would understand us
        made.fold(Delta(nodes={"node2": info(version, 2, parse_key(made.keys[version]))}))
        assert set(await made.step()) == {f"WireGuard IPv{version} node node{n}" for n in (1, 2)}
        made.configure(WireguardSettings(), 0xFFFF0000)
        made.fold(Delta(nodes={"node1": info(version, 1, None), "node2": None}))
        assert await made.step() == {}
        assert stage.name not in stage.run("ip", "link")

    play(stage, story)
