"""What every bus promises, tried on the one in memory and on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from libs.bus import Bus, BusConfig, BusNoResponders, BusPayloadTooLarge, BusTimeout, BusUnavailable, Msg
from libs.bus.memory import Fault, MemoryBroker
from libs.bus.nats import connect
from libs.testkit.servers import NatsServer
from tests.contract.store_backends import eventually


@dataclass
class World:
    """Two clients of one server, and what can happen to it."""

    a: Bus
    b: Bus
    make: Callable[[str], Awaitable[Bus]]
    stop_server: Callable[[], Awaitable[None]]
    start_server: Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


def config_for(server: NatsServer) -> BusConfig:
    return BusConfig((server.url,), reconnect_min_s=0.01, reconnect_max_s=0.1, watchdog_s=1.0)


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.servers)])
async def world(request: pytest.FixtureRequest) -> AsyncGenerator[World, None]:
    made: list[Bus] = []
    if request.param == "memory":
        broker = MemoryBroker()

        async def make(name: str) -> Bus:
            made.append(broker.connect(name))
            return made[-1]

        async def stop() -> None:
            for bus in made:
                broker.disconnect(bus.name)  # type: ignore[attr-defined]

        async def start() -> None:
            for bus in made:
                broker.reconnect(bus.name)  # type: ignore[attr-defined]
    else:
        server: NatsServer = request.getfixturevalue("nats_server")

        async def make(name: str) -> Bus:
            made.append(await connect(config_for(server), name=name, timeout_s=10))
            return made[-1]

        async def stop() -> None:
            server.kill()

        async def start() -> None:
            if not server.running:
                await server.start_async()

    yield World(await make("a"), await make("b"), make, stop, start)
    for bus in made:
        await bus.close()
    if request.param == "nats":
        await start()


def collect(into: list[bytes]) -> Callable[[Msg], None]:
    return lambda message: into.append(message.data)


# --- publish and subscribe -------------------------------------------------------------------------------------------


async def test_messages_on_a_subject_arrive_in_order_once(world: World) -> None:
    got: list[bytes] = []
    world.b.subscribe("t.order", collect(got))
    await world.b.barrier()
    sent = [b"%d" % number for number in range(2_000)]
    for data in sent:
        world.a.publish("t.order", data)
    await eventually(lambda: len(got) >= len(sent))
    await world.b.barrier()
    assert got == sent


async def test_subscriber_hears_itself(world: World) -> None:
    got: list[bytes] = []
    world.a.subscribe("t.self", collect(got))
    world.a.publish("t.self", b"1")
    await eventually(lambda: got == [b"1"])


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("t.*.c", ["t.b.c", "t.x.c"], ["t.c", "t.b.b.c", "t.b.d"]),
        ("t.>", ["t.a", "t.a.b.c"], ["t", "u.a"]),
        ("t.a.*", ["t.a.1"], ["t.a", "t.a.1.2"]),
        ("*.*", ["t.a", "x.y"], ["t", "t.a.b"]),
        ("t.a%2Eb", ["t.a%2Eb"], ["t.a", "t.a.b"]),
    ],
)
async def test_wildcards(world: World, pattern: str, hits: list[str], misses: list[str]) -> None:
    got: list[str] = []
    ends: list[bytes] = []
    world.b.subscribe(pattern, lambda message: got.append(message.subject))
    world.b.subscribe("end", collect(ends))
    await world.b.barrier()
    for subject in (*misses, *hits):
        world.a.publish(subject, b"")
    world.a.publish("end", b"")
    await eventually(lambda: ends)
    assert got == hits


async def test_every_subscription_gets_its_copy(world: World) -> None:
    got: list[bytes] = []
    for _ in range(3):
        world.b.subscribe("t.copies", collect(got))
    await world.b.barrier()
    world.a.publish("t.copies", b"1")
    await eventually(lambda: len(got) >= 3)
    assert got == [b"1"] * 3


async def test_queue_group_shares_the_work_and_others_get_all(world: World) -> None:
    shares: list[list[bytes]] = [[], [], []]
    everything: list[bytes] = []
    for share in shares:
        world.b.subscribe("t.work", collect(share), queue="workers")
    world.b.subscribe("t.work", collect(everything))
    await world.b.barrier()
    sent = [b"%d" % number for number in range(300)]
    for data in sent:
        world.a.publish("t.work", data)
    await eventually(lambda: len(everything) == 300 and sum(map(len, shares)) >= 300)
    assert sorted(data for share in shares for data in share) == sorted(sent)
    assert all(shares), "one member got nothing at all"


async def test_no_callback_after_unsubscribe(world: World) -> None:
    got: list[bytes] = []
    other: list[bytes] = []
    subscription = world.b.subscribe("t.stop", collect(got))
    world.b.subscribe("t.stop", collect(other))
    await world.b.barrier()
    world.a.publish("t.stop", b"1")
    await eventually(lambda: got and other)
    world.a.publish("t.stop", b"2")
    subscription.unsubscribe()
    subscription.unsubscribe()
    await eventually(lambda: len(other) == 2)
    assert got == [b"1"]


async def test_subscriber_may_unsubscribe_itself(world: World) -> None:
    got: list[bytes] = []

    def once(message: Msg) -> None:
        got.append(message.data)
        subscription.unsubscribe()

    subscription = world.b.subscribe("t.once", once)
    last: list[bytes] = []
    world.b.subscribe("t.once", collect(last))
    await world.b.barrier()
    for number in range(10):
        world.a.publish("t.once", b"%d" % number)
    await eventually(lambda: len(last) == 10)
    assert got == [b"0"]


async def test_headers_travel(world: World) -> None:
    got: list[Msg] = []
    world.b.subscribe("t.headers", got.append)
    await world.b.barrier()
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Other": "a: b, c"}
    world.a.publish("t.headers", b"1", headers)
    world.a.publish("t.headers", b"2")
    await eventually(lambda: len(got) == 2)
    assert dict(got[0].headers) == headers
    assert dict(got[1].headers) == {}
    assert got[0].data == b"1"


async def test_bytes_of_any_kind_and_size_up_to_the_limit(world: World) -> None:
    got: list[bytes] = []
    world.b.subscribe("t.bytes", collect(got))
    await world.b.barrier()
    sent = [b"", bytes(range(256)) * 4, b"\r\nMSG x 1 1\r\n", b"x" * world.a.max_payload_bytes]
    for data in sent:
        world.a.publish("t.bytes", data)
    await eventually(lambda: len(got) == len(sent))
    assert got == sent
    with pytest.raises(BusPayloadTooLarge):
        world.a.publish("t.bytes", b"x" * (world.a.max_payload_bytes + 1))


@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a b", "a\r\nb", "a.*", "a.>", "*"])
async def test_malformed_subjects_are_refused_on_publish(world: World, subject: str) -> None:
    with pytest.raises(ValueError):
        world.a.publish(subject, b"")
    with pytest.raises(ValueError):
        await world.a.request(subject, b"", 1.0)


@pytest.mark.parametrize("subject", ["", "a..b", "a b", ">.a", "a.b*", "a.>b"])
async def test_malformed_subjects_are_refused_on_subscribe(world: World, subject: str) -> None:
    with pytest.raises(ValueError):
        world.a.subscribe(subject, lambda message: None)


async def test_failing_callback_is_reported_and_does_not_stop_the_others(world: World) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    got: list[bytes] = []

    def fail(message: Msg) -> None:
        got.append(message.data)
        raise KeyError("boom")

    world.b.subscribe("t.fail", fail)
    await world.b.barrier()
    world.a.publish("t.fail", b"1")
    world.a.publish("t.fail", b"2")
    await eventually(lambda: len(got) == 2)
    assert [str(context["exception"]) for context in reported] == ["'boom'"] * 2


# --- requests --------------------------------------------------------------------------------------------------------


async def test_request_gets_the_answer(world: World) -> None:
    def double(message: Msg) -> None:
        message.respond(message.data * 2, {"seen": message.headers.get("asked", "")})

    world.b.subscribe("t.double", double)
    await world.b.barrier()
    answer = await world.a.request("t.double", b"ab", 5.0, {"asked": "yes"})
    assert (answer.data, dict(answer.headers)) == (b"abab", {"seen": "yes"})
    with pytest.raises(ValueError):
        answer.respond(b"")


async def test_answers_find_their_requests(world: World) -> None:
    waiting: list[Msg] = []
    world.b.subscribe("t.echo", waiting.append)
    await world.b.barrier()
    requests = [asyncio.create_task(world.a.request("t.echo", b"%d" % number, 5.0)) for number in range(50)]
    await eventually(lambda: len(waiting) == 50)
    for message in reversed(waiting):
        message.respond(message.data)
        message.respond(b"too many answers")
    answers = await asyncio.gather(*requests)
    assert [answer.data for answer in answers] == [b"%d" % number for number in range(50)]


async def test_request_to_nobody_fails_at_once(world: World) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(BusNoResponders):
            await world.a.request("t.nobody", b"", 60.0)


async def test_request_to_the_silent_times_out(world: World) -> None:
    world.b.subscribe("t.silent", lambda message: None)
    await world.b.barrier()
    with pytest.raises(BusTimeout):
        await world.a.request("t.silent", b"", 0.1)


async def test_request_fails_when_the_connection_goes(world: World) -> None:
    got: list[Msg] = []
    world.b.subscribe("t.lost", got.append)
    await world.b.barrier()
    request = asyncio.create_task(world.a.request("t.lost", b"", 30.0))
    await eventually(lambda: got)
    await world.stop_server()
    with pytest.raises(BusUnavailable):
        async with asyncio.timeout(20):
            await request
    with pytest.raises(BusUnavailable):
        await world.a.request("t.lost", b"", 30.0)
    with pytest.raises(BusUnavailable):
        await world.a.barrier()


# --- connection ------------------------------------------------------------------------------------------------------


async def test_barrier_means_that_the_server_has_it(world: World) -> None:
    """Subscriptions made before, by somebody else; publications after one barrier and many messages."""
    for round_number in range(20):
        subject = f"t.barrier.{round_number}"
        world.b.subscribe(subject, lambda message: message.respond(b"here"))
        await world.b.barrier()
        assert (await world.a.request(subject, b"", 5.0)).data == b"here"


async def test_after_a_barrier_all_of_20000_messages_are_at_the_server(world: World) -> None:
    got: list[bytes] = []
    world.b.subscribe("t.many", collect(got))
    await world.b.barrier()
    for _ in range(20_000):
        world.a.publish("t.many", b"x" * 100)
    await world.a.barrier()
    await world.b.barrier()  # the server's answer comes behind what it had to deliver before
    await eventually(lambda: len(got) == 20_000)


async def test_hooks_and_subscriptions_across_a_server_restart(world: World) -> None:
    events: list[str] = []
    got: list[bytes] = []
    world.b.on_disconnect.append(lambda: events.append("down"))
    world.b.on_reconnect.append(lambda: events.append("up"))
    subscriptions = [world.b.subscribe(f"t.restart.{number}", collect(got)) for number in range(200)]
    await world.b.barrier()
    assert world.b.connected
    for _ in range(2):
        events.clear()
        got.clear()
        await world.stop_server()
        await eventually(lambda: events == ["down"] and not world.a.connected)
        assert not world.b.connected
        subscriptions.append(world.b.subscribe(f"t.restart.{len(subscriptions)}", collect(got)))
        subscriptions.pop(0).unsubscribe()
        await world.start_server()
        await eventually(lambda: events == ["down", "up"] and world.a.connected and world.b.connected)
        await world.b.barrier()
        for number in range(len(subscriptions) + 2):
            world.a.publish(f"t.restart.{number}", b"%d" % number)
        await world.a.barrier()
        await eventually(lambda: len(got) >= len(subscriptions))
        await world.b.barrier()
        assert len(got) == len(subscriptions)
    assert events == ["down", "up"]


async def test_reconnect_hook_sees_standing_subscriptions(world: World) -> None:
    """A reader asks for a snapshot in the hook: what is published after its answer must reach it."""
    world.b.subscribe("t.snapshot", lambda message: message.respond(b"state"))
    asked: list[asyncio.Task[Msg]] = []
    hook_saw: list[bool] = []

    def ask() -> None:
        hook_saw.append(world.a.connected)
        asked.append(asyncio.ensure_future(world.a.request("t.snapshot", b"", 5.0)))

    await world.b.barrier()
    await world.stop_server()
    await eventually(lambda: not world.a.connected and not world.b.connected)
    await world.start_server()
    await eventually(lambda: world.a.connected and world.b.connected)
    await world.a.barrier()
    world.a.on_reconnect.append(ask)
    await world.stop_server()
    await eventually(lambda: not world.a.connected and not world.b.connected)
    await world.start_server()
    await eventually(lambda: asked)
    assert hook_saw == [True]
    with suppress(BusNoResponders):  # when the other one is not back yet: a fair answer, never silence
        assert (await asked[0]).data == b"state"


async def test_what_is_published_while_disconnected_waits_its_turn(world: World) -> None:
    got: list[bytes] = []
    world.a.subscribe("t.later", collect(got))
    await world.a.barrier()
    await world.stop_server()
    await eventually(lambda: not world.a.connected)
    for number in range(10):
        world.a.publish("t.later", b"%d" % number)
    await world.start_server()
    await eventually(lambda: len(got) == 10)
    assert got == [b"%d" % number for number in range(10)]


async def test_buffer_while_disconnected_is_bounded(world: World) -> None:
    await world.stop_server()
    await eventually(lambda: not world.a.connected)

    def flood() -> None:
        for _ in range(100):
            world.a.publish("t.full", b"x" * 1_000_000)

    with pytest.raises(BusUnavailable, match="buffer is full"):
        flood()


async def test_closed_bus_says_so(world: World) -> None:
    bus = await world.make("c")
    await bus.close()
    await bus.close()
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        bus.publish("t.closed", b"")
    with pytest.raises(BusUnavailable):
        bus.subscribe("t.closed", lambda message: None)
    with pytest.raises(BusUnavailable):
        await bus.request("t.closed", b"", 1.0)


async def test_closing_sends_what_was_published(world: World) -> None:
    got: list[bytes] = []
    world.b.subscribe("t.last", collect(got))
    await world.b.barrier()
    bus = await world.make("d")
    for number in range(1_000):
        bus.publish("t.last", b"%d" % number)
    await bus.close()
    await eventually(lambda: len(got) == 1_000)


async def test_slow_subscriber_is_told_which_subject_it_lost(request: pytest.FixtureRequest, world: World) -> None:
    lost: list[str] = []
    got: list[bytes] = []
    if hasattr(world.a, "broker"):
        slow = world.b
        world.a.broker.faults.append(Fault(lambda d: d.receiver == "b" and d.data == b"7", slow=True))
    else:
        server: NatsServer = request.getfixturevalue("nats_server")
        slow = await connect(replace(config_for(server), max_pending_msgs=10), name="slow", timeout_s=10)
    slow.on_slow_consumer.append(lost.append)
    slow.subscribe("t.slow", collect(got))
    await slow.barrier()
    for number in range(5_000):
        world.a.publish("t.slow", b"%d" % number)
    await eventually(lambda: lost)
    assert set(lost) == {"t.slow"}
    assert slow.connected
    if slow is not world.b:
        await slow.close()
