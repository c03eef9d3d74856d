"""The speaker's side of the kernel: what is learned gets there, stays right whatever others do, and goes in time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest

from libs.netlink.codec import RepliesLost
from libs.testkit import netns
from libs.testkit.servers import free_port
from services.bgp.core.paths import Attributes, EndOfRib, Family, Reach, Unreach, nlri
from services.bgp.core.rib.peers import Session
from services.bgp.core.rib.rib import Rib
from services.bgp.core.session.negotiation import Restart
from services.bgp.core.settings import Originated, PeerKind, PeerSettings, PoolExport, SecretRef, SpeakerSettings
from services.bgp.core.wire.context import Context
from services.bgp.shell import kernel
from services.bgp.shell.kernel import Kernel
from services.bgp.shell.secrets import NotYet
from services.bgp.shell.speaker import Speaker

pytestmark = pytest.mark.kernel
PEER = PeerSettings("Global_10_9_0_2", PeerKind.GLOBAL, ip_address("10.9.0.2"), 64512, 64512)
SETTINGS = SpeakerSettings(
    node="node1", router_id=1, local_as=64512, addresses=(ip_address("10.9.0.1"),), peers=(PEER,),
    pools=(PoolExport(ip_network("10.65.0.0/16")),), own_blocks=(ip_network("10.65.1.0/26"),),
    originated=(Originated(Family.IPV4, nlri(ip_network("10.65.1.0/26")), Attributes(), block=True),),
)  # fmt: skip
SESSION = Session(
    Context(internal=True), 64512, 2, addresses={Family.IPV4: ip_address("10.9.0.1").packed},
    graceful=frozenset({Family.IPV4}),
)  # fmt: skip
BIRDS = str(2147483647 - 100)  # metric of what BIRD left, and of what our peer tells


class Side:
    """Tables, the kernel's part, and what `ip route` shows."""

    def __init__(self, space: netns.Namespace, *, restarting: bool = False) -> None:
        self.space = space
        self.kernel = Kernel(netns=space.path)
        self.restarting = restarting
        self.rib: Rib

    def wake(self) -> None:
        self.kernel.wake()

    def tell(self, *texts: str, via: str = "10.9.0.2") -> None:
        attributes = Attributes(next_hop=ip_address(via).packed, local_pref=100)
        family = Family.IPV6 if ":" in via else Family.IPV4
        self.rib.receive(PEER.name, [Reach(family, attributes, [nlri(ip_network(text)) for text in texts])])
        self.wake()

    def withdraw(self, *texts: str) -> None:
        self.rib.receive(PEER.name, [Unreach(Family.IPV4, [nlri(ip_network(text)) for text in texts])])
        self.wake()

    def routes(self, version: int = 4) -> dict[str, str]:
        """Destination -> way, of protocol 81."""
        shown = json.loads(self.space.run("ip", f"-{version}", "-j", "route", "show", "proto", "81"))
        return {one["dst"]: _way(one) for one in shown}


def _way(shown: dict[str, str]) -> str:
    return shown.get("type") or f"{shown.get('gateway', 'direct')} {shown['dev']}"


@asynccontextmanager
async def running(space: netns.Namespace, *, restarting: bool = False) -> AsyncIterator[Side]:
    side = Side(space, restarting=restarting)
    assert await side.kernel.start(side) is restarting
    deferral_s = 60.0 if restarting else None
    side.rib = Rib(SETTINGS, side.kernel.next_hops.resolve, time.monotonic(), deferral_s)
    side.kernel.attach(side.rib)
    side.rib.peer_up(PEER, SESSION, time.monotonic())
    task = asyncio.create_task(side.kernel.write_forever())
    side.wake()
    try:
        yield side
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await side.kernel.stop()


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def space() -> AsyncIterator[netns.Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("bgpk") as made:
        for name, address in (("va", "10.9.0.1/24"), ("vc", "10.9.1.1/24")):
            made.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}x")
            made.run("ip", "link", "set", f"{name}x", "up")
            made.run("ip", "link", "set", name, "up")
            made.run("ip", "address", "add", address, "dev", name)
        yield made


async def test_learned_routes_come_change_and_go(space: netns.Namespace) -> None:
    async with running(space) as side:
        side.tell("10.65.2.0/26", "10.65.3.0/26")
        expected = {"10.65.2.0/26": "10.9.0.2 va", "10.65.3.0/26": "10.9.0.2 va", "10.65.1.0/26": "blackhole"}
        await until(lambda: side.routes() == expected, "both, and the own block as a blackhole")
        side.tell("10.65.3.0/26", via="10.9.1.2")
        side.withdraw("10.65.2.0/26")
        await until(lambda: side.routes() == {"10.65.3.0/26": "10.9.1.2 vc", "10.65.1.0/26": "blackhole"}, "changed")


async def test_what_others_delete_or_links_take_along_comes_back(space: netns.Namespace) -> None:
    async with running(space) as side:
        side.tell("10.65.2.0/26")
        await until(lambda: "10.65.2.0/26" in side.routes(), "there")
        space.run("ip", "route", "del", "10.65.2.0/26")
        await until(lambda: "10.65.2.0/26" in side.routes(), "deleted by hand: back")
        space.run("ip", "link", "set", "va", "down")
        await until(lambda: "10.65.2.0/26" not in side.routes(), "no way there")
        space.run("ip", "link", "set", "va", "up")
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.2 va", "the link is back, and so is the route")


async def test_next_hop_that_moves_takes_its_routes_along(space: netns.Namespace) -> None:
    async with running(space) as side:
        space.run("ip", "route", "add", "172.20.0.9/32", "via", "10.9.0.7")
        side.tell("10.65.2.0/26", via="172.20.0.9")
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.7 va", "by way of the gateway")
        space.run("ip", "route", "replace", "172.20.0.9/32", "via", "10.9.1.7")
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.1.7 vc", "by way of the other one")
        space.run("ip", "route", "del", "172.20.0.9/32")
        await until(lambda: "10.65.2.0/26" not in side.routes(), "the next hop cannot be reached")


async def test_route_that_covers_its_own_next_hop_stays(space: netns.Namespace) -> None:
    """By others' routes alone is its next hop reached, so it does not take the ground from under itself."""
    async with running(space) as side:
        space.run("ip", "route", "add", "default", "via", "10.9.1.7", "metric", "20000")
        side.tell("172.20.0.0/16", "10.65.2.0/26", via="172.20.0.9")
        for number in range(3):
            space.run("ip", "route", "add", f"10.77.{number}.0/24", "via", "10.9.1.7")  # looks again at next hops
            side.tell(f"10.65.3.{number}/32")
            await until(lambda n=number: f"10.65.3.{n}" in side.routes(), "all that came before is in the kernel")  # type: ignore[misc]
            states, _ = side.kernel.next_hops.look_again(side.rib.next_hops())
            assert states == {}
            assert side.routes()["172.20.0.0/16"] == side.routes()["10.65.2.0/26"] == "10.9.1.7 vc"
        space.run("ip", "route", "add", "172.20.0.0/24", "via", "10.9.0.7", "metric", "50")
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.7 va", "the others' longest")
        space.run("ip", "route", "del", "172.20.0.0/24")
        space.run("ip", "route", "del", "default")
        await until(lambda: "10.65.2.0/26" not in side.routes(), "the next hop cannot be reached")


async def test_tunnel_that_comes_late_or_again_is_used(space: netns.Namespace) -> None:
    """Felix makes tunl0 when it has read its settings, which may be after us. (Any link of that name will do here.)"""

    def make() -> int:
        space.run("ip", "link", "add", "tunl0", "type", "veth", "peer", "name", "tunl0x")
        space.run("ip", "link", "set", "tunl0x", "up")
        space.run("ip", "link", "set", "tunl0", "up")
        return int(json.loads(space.run("ip", "-j", "link", "show", "tunl0"))[0]["ifindex"])

    overlaid = replace(
        SETTINGS, pools=(PoolExport(ip_network("10.65.0.0/16"), ipip_mode="Always"),), program_cluster_routes="Enabled"
    )
    async with running(space) as side:
        side.rib.configure(overlaid)
        side.tell("10.65.2.0/26", "10.65.3.0/26")
        place = (Family.IPV4, nlri(ip_network("10.65.2.0/26")))
        await until(lambda: not side.rib.fib_waiting() and place[1] in side.rib.fib(Family.IPV4), "handed out")
        assert "10.65.2.0/26" not in side.routes()
        first = make()
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.2 tunl0", "now there is a tunnel")
        space.run("ip", "link", "del", "tunl0")
        second = make()
        assert second != first
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.2 tunl0", "by the new tunnel")
        await until(lambda: "10.65.3.0/26" in side.routes(), "all of them")


async def test_route_of_another_program_stays_and_ours_waits(space: netns.Namespace) -> None:
    async with running(space) as side:
        metric = str(2147483647 - 100)
        space.run("ip", "route", "add", "10.65.2.0/26", "dev", "vc", "proto", "80", "metric", metric)
        space.run(
            "ip", "route", "add", "10.65.2.0/26", "dev", "va", "proto", "bird", "metric", "32"
        )  # beside the point
        side.tell("10.65.2.0/26")
        place = (Family.IPV4, nlri(ip_network("10.65.2.0/26")))
        await until(lambda: "another program" in side.kernel.fib.blocked.get(place, ""), "reported")
        await until(lambda: side.kernel.failures == {"kernel routes": "1 not installed"}, "told")
        assert "10.65.2.0/26" not in side.routes()
        space.run("ip", "route", "del", "10.65.2.0/26", "proto", "80", "metric", metric)
        await until(lambda: side.routes().get("10.65.2.0/26") == "10.9.0.2 va", "its turn has come")
        await until(lambda: not side.kernel.failures, "nothing to report any more")


def bird_leaves(space: netns.Namespace) -> None:
    """Routes to 10.65.2.0/26 and fd00:65:2::/122 the way that ours will have, and to those with 3 another way."""
    space.run("ip", "address", "add", "fd00:9::1/64", "dev", "va", "nodad")
    for text, via in (
        ("10.65.2.0/26", "10.9.0.2"), ("10.65.3.0/26", "10.9.0.3"),
        ("fd00:65:2::/122", "fd00:9::2"), ("fd00:65:3::/122", "fd00:9::3"),
    ):  # fmt: skip
        space.run("ip", "route", "add", text, "via", via, "dev", "va", "proto", "bird", "metric", BIRDS)


def of_bird(space: netns.Namespace) -> set[str]:
    shown = [json.loads(space.run("ip", version, "-j", "route", "show", "proto", "bird")) for version in ("-4", "-6")]
    return {one["dst"] for routes in shown for one in routes}


async def test_routes_that_bird_left_are_taken_over_in_place(space: netns.Namespace) -> None:
    """The BIRD of an earlier Calico: IPv6 routes without a metric have the kernel's 1024, which may be ours too. Where
    they led elsewhere they would keep ours out for ever."""
    bird_leaves(space)
    async with running(space) as side:
        assert await side.kernel.fib.predecessor() == {Family.IPV4, Family.IPV6}
        side.tell("10.65.2.0/26", "10.65.3.0/26")
        side.tell("fd00:65:2::/122", "fd00:65:3::/122", via="fd00:9::2")
        ours = {"10.65.1.0/26": "blackhole", "10.65.2.0/26": "10.9.0.2 va", "10.65.3.0/26": "10.9.0.2 va"}
        await until(lambda: side.routes() == ours, "ours, as the peer says")
        ours6 = {"fd00:65:2::/122": "fd00:9::2 va", "fd00:65:3::/122": "fd00:9::2 va"}
        await until(lambda: side.routes(6) == ours6, "IPv6, too")
        assert not of_bird(space)
        assert not side.kernel.fib.blocked
        side.withdraw("10.65.2.0/26", "10.65.3.0/26")
        await until(lambda: not {"10.65.2.0/26", "10.65.3.0/26"} & side.routes().keys(), "it is ours to take away")


async def test_routes_of_a_bird_that_runs_are_its_own(space: netns.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.bgp.shell.fib.bird_runs", lambda: True)  # one would have to run in our own namespace
    bird_leaves(space)
    before = of_bird(space)
    async with running(space) as side:
        assert await side.kernel.fib.predecessor() == frozenset()
        side.tell("10.65.2.0/26")
        side.tell("fd00:65:3::/122", via="fd00:9::2")
        await until(lambda: len(side.kernel.fib.blocked) == 2, "ours wait")
        assert of_bird(space) == before
        assert set(side.routes()) == {"10.65.1.0/26"}


async def test_restart_keeps_what_is_right_and_sweeps_the_rest_after_end_of_rib(space: netns.Namespace) -> None:
    async with running(space) as side:
        side.tell("10.65.2.0/26", "10.65.3.0/26")
        await until(lambda: len(side.routes()) == 3, "there")
    assert len(side.routes()) == 3  # the speaker is gone, its routes are not
    async with running(space, restarting=True) as again:
        again.tell("10.65.2.0/26")
        await until(lambda: again.rib.counts(PEER.name, Family.IPV4).received == 1, "told")
        assert len(again.routes()) == 3
        again.rib.receive(PEER.name, [EndOfRib(Family.IPV4)], time.monotonic())
        again.wake()
        await until(lambda: set(again.routes()) == {"10.65.1.0/26", "10.65.2.0/26"}, "the stale one is swept")
        assert again.kernel.fib.writes == 1  # that one


@pytest.mark.parametrize("protocol", ["boot", "80", "99"])
async def test_workloads_are_told_as_the_kernel_has_them(space: netns.Namespace, protocol: str) -> None:
    """Whatever `deviceRouteProtocol` gives felix's routes; not what the workload itself told by BGP."""
    async with running(space) as side:
        space.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "pod1")
        space.run("ip", "link", "set", "cali1", "up")
        space.run("ip", "link", "set", "pod1", "up")
        space.run("ip", "route", "add", "10.65.9.6/32", "dev", "cali1", "proto", "bird")
        space.run("ip", "route", "add", "10.65.9.7/32", "dev", "cali1", "proto", protocol)
        key = nlri(ip_network("10.65.9.7/32"))
        await until(lambda: key in side.rib.prefixes(Family.IPV4), "a borrowed address is known")
        assert [path.source for path in side.rib.explain(Family.IPV4, key).paths] == ["kernel"]
        assert nlri(ip_network("10.65.9.6/32")) not in side.rib.prefixes(Family.IPV4)
        space.run("ip", "link", "del", "cali1")
        await until(lambda: key not in side.rib.prefixes(Family.IPV4), "gone with its interface")


async def test_workload_whose_route_changes_its_metric_stays_told(space: netns.Namespace) -> None:
    """As felix changes it at the end of a live migration: the new one first, then the old one goes."""
    async with running(space) as side:
        space.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "pod1")
        space.run("ip", "link", "set", "cali1", "up")
        space.run("ip", "link", "set", "pod1", "up")
        key = nlri(ip_network("10.65.9.7/32"))

        def preference() -> list[int | None]:
            return [path.attributes.local_pref for path in side.rib.explain(Family.IPV4, key).paths]

        space.run("ip", "route", "add", "10.65.9.7/32", "dev", "cali1", "proto", "80", "metric", "512")
        await until(lambda: preference() == [2147483647 - 512], "announced with the lower metric")
        space.run("ip", "route", "add", "10.65.9.7/32", "dev", "cali1", "proto", "80", "metric", "1024")
        space.run("ip", "route", "del", "10.65.9.7/32", "dev", "cali1", "metric", "512")
        await until(lambda: preference() == [2147483647 - 1024], "announced with the normal one")
        space.run("ip", "route", "replace", "10.65.9.7/32", "via", "10.9.0.2", "proto", "80", "metric", "1024")
        await until(lambda: preference() == [], "it is elsewhere now")


async def test_whatever_goes_wrong_once_routes_are_written_again(space: netns.Namespace) -> None:
    async with running(space) as side:
        side.tell("10.65.2.0/26")
        await until(lambda: "10.65.2.0/26" in side.routes(), "there")
        put, failures = side.kernel.fib._writer.put, [RepliesLost(105, "receive buffer overflowed")]

        def failing(*arguments: Any, **named: Any) -> Any:
            if failures:
                raise failures.pop()
            return put(*arguments, **named)

        side.kernel.fib._writer.put = failing  # type: ignore[method-assign]
        side.tell("10.65.3.0/26")
        await until(lambda: "10.65.3.0/26" in side.routes(), "written after the failure")
        assert not failures


async def test_a_slice_is_worked_out_while_the_kernel_writes_the_one_before(
    space: netns.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that fails in the midst of others is made up for; what changes meanwhile counts."""
    monkeypatch.setattr(kernel, "SLICE", 4)
    texts = [f"10.65.{number}.0/26" for number in range(2, 22)]
    async with running(space) as side:
        await until(lambda: side.routes() == {"10.65.1.0/26": "blackhole"}, "the own block")
        put, may_go, calls = side.kernel.fib._writer.put, threading.Event(), 0

        def slow(*arguments: Any, sending: Callable[[], object] | None, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RepliesLost(105, "receive buffer overflowed")
            if sending is not None:  # none where all is compared anew
                sending()
            assert may_go.wait(20)
            return put(*arguments, **named)

        side.kernel.fib._writer.put = slow  # type: ignore[assignment]
        side.tell(*texts)
        await until(lambda: calls == 1 and side.rib.fib_waiting() == len(texts) - 2 * 4, "two slices are taken")
        side.tell(*texts[:6], via="10.9.1.2")
        side.withdraw(*texts[-6:])
        may_go.set()
        ways = ["10.9.1.2 vc"] * 6 + ["10.9.0.2 va"] * 8
        expected = dict(zip(texts, ways, strict=False)) | {"10.65.1.0/26": "blackhole"}
        await until(lambda: side.routes() == expected, "all, as it was told last")
        assert calls > 3


async def test_preference_beyond_all_metrics_is_the_best_one(space: netns.Namespace) -> None:
    async with running(space) as side:
        attributes = Attributes(next_hop=ip_address("10.9.0.2").packed, local_pref=4_000_000_000)
        side.rib.receive(PEER.name, [Reach(Family.IPV4, attributes, [nlri(ip_network("10.65.2.0/26"))])])
        side.wake()
        await until(lambda: "10.65.2.0/26" in side.routes(), "with metric 1")


async def test_of_two_routes_of_an_earlier_life_the_one_that_counted_is_adopted(space: netns.Namespace) -> None:
    for metric, via in (("1024", "10.9.0.2"), ("2147483547", "10.9.0.3")):
        space.run("ip", "route", "add", "10.65.2.0/26", "via", via, "proto", "81", "metric", metric)
    async with running(space, restarting=True) as side:
        assert side.kernel.fib.held[Family.IPV4][nlri(ip_network("10.65.2.0/26"))].metric == 1024
        shown = json.loads(space.run("ip", "-j", "route", "show", "10.65.2.0/26"))
        assert [one["metric"] for one in shown] == [1024]


class Passwords:
    """All are answered with `answer`, whatever it is just now."""

    def __init__(self, answer: bytes | str) -> None:
        self.answer = answer

    async def read(self, refs: Iterable[SecretRef]) -> Mapping[SecretRef, bytes | str]:
        return dict.fromkeys(refs, self.answer)


@asynccontextmanager
async def restarted(
    space: netns.Namespace, answer: bytes | str, *, protocol: str = "81"
) -> AsyncIterator[tuple[Speaker, Passwords]]:
    """A speaker whose one peer has a password, and a route that the peer told in an earlier life."""
    space.run("ip", "route", "add", "10.65.2.0/26", "via", "10.9.0.2", "proto", protocol, "metric", "1024")
    peer = replace(PEER, passive=True, password=SecretRef("bgp", "pw"))
    settings = replace(SETTINGS, peers=(peer,), bind=(ip_address("127.0.0.1"),), listen_port=free_port())
    passwords = Passwords(answer)
    speaker = Speaker(settings, Kernel(netns=space.path), passwords, Random(1))
    try:
        await speaker.start()
        yield speaker, passwords
    finally:
        await speaker.stop()


async def test_routes_stay_while_a_password_is_not_known_yet(space: netns.Namespace) -> None:
    """After a restart the Kubernetes API may take its time, or be away."""
    async with restarted(space, NotYet("not heard")) as (speaker, passwords):
        (peer,) = speaker.peers.values()
        assert peer.held_down == "not heard"  # never a session without a password
        assert not speaker.rib.sweep_allowed(Family.IPV4)
        passwords.answer = b"secret"
        await until(lambda: not peer.held_down, "the password is there")
        assert not speaker.rib.sweep_allowed(Family.IPV4)  # now the peer is waited for
        assert "10.65.2.0/26" in space.run("ip", "route", "show", "proto", "81")


async def test_who_has_no_password_is_not_waited_for_after_a_restart(space: netns.Namespace) -> None:
    async with restarted(space, NotYet("not heard")) as (speaker, passwords):
        assert not speaker.rib.sweep_allowed(Family.IPV4)
        passwords.answer = "is missing"
        await until(lambda: speaker.rib.sweep_allowed(Family.IPV4), "there is nobody to wait for")
        await until(lambda: "10.65.2.0/26" not in space.run("ip", "route", "show", "proto", "81"), "swept")


async def test_the_first_start_after_bird_is_a_restart(space: netns.Namespace) -> None:
    """Peers kept the node's routes, so End-of-RIB would let them drop what a reflector has not learned again yet."""
    async with restarted(space, b"secret", protocol="bird") as (speaker, _):
        (peer,) = speaker.peers.values()
        assert peer.session.restart == Restart(restarting=True, preserved=frozenset({Family.IPV4}))
        assert not speaker.rib.sweep_allowed(Family.IPV4)


async def test_a_start_where_nobody_left_routes_is_none(space: netns.Namespace) -> None:
    async with restarted(space, b"secret", protocol="static") as (speaker, _):
        (peer,) = speaker.peers.values()
        assert peer.session.restart == Restart(restarting=False, preserved=frozenset())
        assert speaker.rib.sweep_allowed(Family.IPV4)
