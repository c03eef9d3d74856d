"""Two nodes with WireGuard, and what is seen on the wire between them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from libs.netlink.wireguard import WgPeer
from libs.testkit.patience import patient
from libs.testkit.processes import Probe
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.sniff import Sniffer
from libs.testkit.topology import Namespace, remove
from services.felix.core.wireguard import Wanted
from tests.kernel.wireguard_lab import (
    MARKS,
    NETS,
    THROW,
    TUNNEL,
    Stage,
    socket_gone,
)

pytestmark = MARKS

PORT = 51833
PODS = {4: ("10.65.1.5", "10.65.2.5"), 6: ("fd00:65:1::5", "fd00:65:2::5")}  # in the block of each


class Pair:
    """Two nodes on one link, each with a pod's address. Without WireGuard they reach each other in clear text."""

    def __init__(self, one: Stage, two: Stage) -> None:
        self.stages = one, two
        self.pods = PODS[one.version]
        self.blocks = NETS[one.version][:2]
        self._hosts = ("192.0.2.1", "192.0.2.2") if one.version == 4 else ("2001:db8::1", "2001:db8::2")
        one.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", two.space.name)
        full, length, nodad = (32, 24, ()) if one.version == 4 else (128, 64, ("nodad",))
        for stage, host, pod in zip(self.stages, self._hosts, self.pods, strict=True):
            stage.run("ip", "addr", "add", f"{host}/{length}", "dev", "e0", *nodad)
            stage.run("ip", "addr", "add", f"{pod}/{full}", "dev", "lo", *nodad)
            stage.run("ip", "link", "set", "e0", "up")
        for stage, block, host in zip(self.stages, self.blocks[::-1], self._hosts[::-1], strict=True):
            stage.run("ip", f"-{stage.version}", "route", "add", block, "via", host)

    def wanted(self, number: int, key: bytes) -> Wanted:
        """What the one or the other wants of a peer with this key: its block in the tunnel, our own thrown back."""
        own, theirs = ip_network(self.blocks[number]), ip_network(self.blocks[1 - number])
        there = WgPeer(key, (ip_address(self._hosts[1 - number]), PORT), frozenset({theirs}))
        made = self.stages[number].wanted()
        return replace(made, addresses=frozenset(), peers={key: there}, routes={own: THROW, theirs: TUNNEL})

    def on(self) -> None:
        keys = [stage.ensure() for stage in self.stages]
        for number, stage in enumerate(self.stages):
            assert stage.apply(self.wanted(number, keys[1 - number])) == {}

    def passes(self) -> Verdict:
        one = self.stages[0]
        flow = Flow(one.space.path, ip_address(self.pods[1]), 8080, "tcp", ip_address(self.pods[0]))
        return check([flow], timeout_s=patient(1))[0]

    def seen(self) -> tuple[int, int]:
        """Packets on the link while the pods connect, until they can: (in clear text, encrypted)."""
        pods = {ip_address(pod) for pod in self.pods}
        deadline = time.monotonic() + 60
        with Sniffer(self.stages[0].space, "e0") as wire:
            while self.passes() is not Verdict.ALLOW:
                assert time.monotonic() < deadline, "no connection"
            packets = wire.packets()
        return sum(one.source in pods for one in packets), sum(one.target_port == PORT for one in packets)


@pytest.fixture
def pair(stage: Stage) -> Iterator[Pair]:
    space = Namespace(f"t-wgw-{uuid.uuid4().hex[:8]}")
    space.create()
    other = Stage(space, stage.version)
    probe = None
    try:
        made = Pair(stage, other)
        probe = Probe("two", space, (8080,), ())
        yield made
    finally:
        if probe is not None:
            probe.stop()
        remove([space])
        Path(f"/var/run/wireguard/{other.name}.sock").unlink(missing_ok=True)


@pytest.mark.stock_kernel
def test_a_new_peer_is_greeted_without_any_traffic(pair: Pair) -> None:
    """Each of two is told of the other, one after the other; the first attempt of the first meets nobody."""
    pair.on()
    deadline = time.monotonic() + 60
    for stage in pair.stages:
        (key,) = stage.devices.read(stage.name).peers
        while not stage.devices.read(stage.name).stats[key].handshake_s:
            assert time.monotonic() < deadline, "no handshake"
            time.sleep(0.02)
        assert stage.devices.read(stage.name).peers[key].keepalive_s == 0


@pytest.mark.stock_kernel
def test_packets_are_encrypted_while_it_is_on_and_after_another_key_and_not_once_it_is_off(pair: Pair) -> None:
    one, two = pair.stages

    def encrypted() -> None:
        in_clear, hidden = pair.seen()
        assert hidden
        assert not in_clear

    in_clear, hidden = pair.seen()
    assert in_clear
    assert not hidden
    pair.on()
    encrypted()
    before = two.devices.read(two.name).public_key
    two.run("ip", "link", "del", two.name)
    socket_gone(two)
    after = two.ensure()
    assert after != before
    assert two.apply(pair.wanted(1, one.ensure())) == {}
    assert pair.passes() is not Verdict.ALLOW, "who has the old key alone is not understood, and sends no clear text"
    pair.on()
    assert set(one.devices.read(one.name).peers) == {after}
    encrypted()
    for stage in pair.stages:
        stage.call(lambda stage=stage: stage.writer.remove(stage.name))  # type: ignore[misc]
    for stage in pair.stages:
        socket_gone(stage)
    in_clear, hidden = pair.seen()
    assert in_clear
    assert not hidden
    pair.on()
    encrypted()
