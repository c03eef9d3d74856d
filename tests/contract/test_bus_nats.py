"""What only a real nats-server can show: deaf and stopped peers, permissions, passwords, several servers."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import uvloop

from libs.bus import BusConfig, BusNoResponders, BusPayloadTooLarge, BusTimeout, BusUnavailable, Msg
from libs.bus.nats import NatsBus, connect
from libs.testkit.patience import Allowance
from libs.testkit.relay import Relay
from libs.testkit.servers import NatsServer, free_port
from tests.contract.store_backends import eventually

pytestmark = pytest.mark.servers

PERMISSIONS = """
authorization {
  users = [
    {user: typha, password: t, permissions: {publish: ">", subscribe: ">"}}
    {user: node1, password: n, permissions: {
      publish: ["calico.felix.node1.>", "calico.typha.snapshot.node1", "_INBOX.>"]
      subscribe: ["_INBOX.node1.>", "calico.typha.>"]
    }}
  ]
}
"""


def config_for(*urls: str) -> BusConfig:
    return BusConfig(urls, reconnect_min_s=0.01, reconnect_max_s=0.1, watchdog_s=1.0)


async def test_deaf_connection_is_replaced() -> None:
    """nats-py's read loop ends at an unexpected exception and everything looks fine: only the round trip can tell."""
    with NatsServer() as server:
        async with await connect(config_for(server.url), name="deaf", timeout_s=10) as bus:
            got: list[bytes] = []
            events: list[str] = []
            bus.subscribe("t", lambda message: got.append(message.data))
            bus.on_disconnect.append(lambda: events.append("down"))
            bus.on_reconnect.append(lambda: events.append("up"))
            client = bus._client
            assert client is not None

            async def explode(data: bytes) -> None:
                raise KeyError("an unexpected exception")

            client._ps.parse = explode
            bus.publish("t", b"lost")
            await eventually(lambda: events == ["down", "up"])
            assert client.is_closed or client is not bus._client
            bus.publish("t", b"heard")
            await eventually(lambda: got == [b"heard"])


async def test_after_a_barrier_the_connection_may_die() -> None:
    """What was published before must be at the server, not in a buffer of ours that dies too."""
    with NatsServer() as server:
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(await connect(config_for(server.url), name="r", timeout_s=10))
            writer = await stack.enter_async_context(await connect(config_for(server.url), name="w", timeout_s=10))
            for round_number in range(2):
                got: list[bytes] = []
                subscription = reader.subscribe("t.barrier", lambda message, got=got: got.append(message.data))
                await reader.barrier()
                for number in range(2_900):
                    writer.publish("t.barrier", b"%20000d" % number)
                    if number == 300:
                        await asyncio.sleep(0)  # nats-py's flusher begins, and waits for the socket while more comes
                await writer.barrier(60.0)
                assert writer._client is not None
                writer._client._transport._io_writer.transport.abort()
                await eventually(lambda got=got: len(got) == 2_900)  # type: ignore[misc]
                subscription.unsubscribe()
                connections = round_number + 2
                await eventually(lambda wanted=connections: writer.connections == wanted)  # type: ignore[misc]


async def test_reconnect_hook_means_that_nothing_published_from_now_on_is_missed() -> None:
    with NatsServer() as server:
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(await connect(config_for(server.url), name="r", timeout_s=10))
            writer = await stack.enter_async_context(await connect(config_for(server.url), name="w", timeout_s=10))
            got: list[bytes] = []
            for number in range(100):
                reader.subscribe(f"t.{number}", lambda message: got.append(message.data))
            reader.on_reconnect.append(lambda: [writer.publish(f"t.{number}", b"") for number in range(100)])  # type: ignore[arg-type,return-value]
            for _ in range(10):
                got.clear()
                assert reader._client is not None
                reader._client._transport._io_writer.transport.abort()
                await eventually(lambda: len(got) == 100)


async def test_busy_reader_is_not_taken_for_a_deaf_one() -> None:
    """A round trip to ourselves takes its place behind everything that waits to be read."""
    with NatsServer() as server:
        async with AsyncExitStack() as stack:
            busy = replace(config_for(server.url), max_pending_bytes=1 << 30, max_pending_msgs=1 << 20)
            reader = await stack.enter_async_context(await connect(busy, name="r", timeout_s=10))
            writer = await stack.enter_async_context(await connect(config_for(server.url), name="w", timeout_s=10))
            got: list[int] = []

            def slowly(message: Msg) -> None:
                got.append(1)
                time.sleep(0.001)  # five seconds in all: the watchdog would miss a round trip behind it twice

            reader.subscribe("t.busy", slowly)
            await reader.barrier()
            for _ in range(5_000):
                writer.publish("t.busy", b"x" * 2_000)
            await eventually(lambda: len(got) == 5_000, deadline_s=60)
            assert reader.connections == 1


async def test_stopped_server_is_noticed_and_left() -> None:
    before = asyncio.all_tasks()
    with NatsServer() as first, NatsServer() as second:
        async with await connect(config_for(first.url, second.url), name="stopped", timeout_s=10) as bus:
            bus.subscribe("t.other", lambda message: None)
            down: list[bool] = []
            bus.on_disconnect.append(lambda: down.append(True))
            assert bus._client is not None
            connected = bus._client.connected_url
            assert connected is not None
            used, spare = (first, second) if connected.port == first.port else (second, first)
            for _ in range(200):  # more than socket buffers hold: a close that flushes would wait for ever
                bus.publish("t.flood", b"x" * 100_000)
            used.pause()
            for _ in range(100):
                bus.publish("t.flood", b"x" * 100_000)
            await eventually(lambda: down and bus.connected, deadline_s=60)
            assert bus._client is not None
            now = bus._client.connected_url
            assert now is not None
            assert now.port == spare.port
        await eventually(lambda: asyncio.all_tasks() == before)
        used.resume()


async def test_connection_that_passes_nothing_on_is_noticed() -> None:
    with NatsServer() as server:
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(Relay(server.port))
            bus = await connect(config_for(f"nats://127.0.0.1:{relay.port}"), name="silent", timeout_s=10)
            await stack.enter_async_context(bus)
            relay.stall()
            await eventually(lambda: not bus.connected)
            with pytest.raises(BusUnavailable):
                await bus.request("t", b"", 10.0)
            relay.unstall()
            await eventually(lambda: bus.connected, deadline_s=60)
            await bus.barrier()


async def test_dead_servers_are_passed_over() -> None:
    with NatsServer() as server:
        dead = [f"nats://127.0.0.1:{free_port()}" for _ in range(3)]
        async with await connect(config_for(*dead, server.url), name="many", timeout_s=10) as bus:
            await bus.barrier()


async def test_no_server_is_unavailable_in_time_and_found_later() -> None:
    port = free_port()
    config = config_for(f"nats://127.0.0.1:{port}")
    with pytest.raises(BusUnavailable, match="no NATS server reachable"):
        await connect(config, name="early", timeout_s=0.2)
    async with NatsBus(config, name="patient") as bus:
        got: list[bytes] = []
        bus.subscribe("t", lambda message: got.append(message.data))
        bus.publish("t", b"early")
        assert not bus.connected
        reconnects: list[bool] = []
        bus.on_reconnect.append(lambda: reconnects.append(True))
        async with NatsServer(port=port):
            await bus.wait_connected(10)
            await eventually(lambda: got == [b"early"])
            assert not reconnects, "the first connection is no reconnect"


async def test_node_may_speak_and_hear_only_as_itself() -> None:
    with NatsServer(config=PERMISSIONS) as server:
        base = config_for(server.url)
        async with AsyncExitStack() as stack:
            typha = await connect(replace(base, user="typha", password="t"), name="typha", timeout_s=10)
            node = await connect(replace(base, user="node1", password="n"), name="node1", timeout_s=10)
            await stack.enter_async_context(typha)
            await stack.enter_async_context(node)
            heard: list[str] = []
            typha.subscribe("calico.felix.*.applied", lambda message: heard.append(message.subject))
            typha.subscribe("calico.typha.snapshot.*", lambda message: message.respond(b"snapshot"))
            await typha.barrier()
            assert (await node.request("calico.typha.snapshot.node1", b"", 5.0)).data == b"snapshot"
            with pytest.raises(BusTimeout):
                await node.request("calico.typha.snapshot.node2", b"", 0.3)
            node.publish("calico.felix.node2.applied", b"forged")
            node.publish("calico.felix.node1.applied", b"true")
            await eventually(lambda: heard)
            assert heard == ["calico.felix.node1.applied"]
            assert node.connected, "a refused publication must not cost the connection"


async def test_wrong_password_never_connects_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config=PERMISSIONS) as server:
        config = replace(config_for(server.url), user="typha", password="wrong")
        async with NatsBus(config, name="typha") as bus:
            await eventually(lambda: any("Authorization" in str(getattr(one, "error", "")) for one in caplog.records))
            with pytest.raises(BusUnavailable):
                await bus.wait_connected(0.5)


async def test_closing_while_the_server_is_away_is_quick() -> None:
    with NatsServer() as server:
        for _ in range(20):  # cancellation meets the connection attempt at ever new places
            if not server.running:
                await server.start_async()
            bus = await connect(config_for(server.url), name="quick", timeout_s=10)
            server.kill()
            await eventually(lambda bus=bus: not bus.connected)  # type: ignore[misc]
            closing, allowance = asyncio.create_task(bus.close()), Allowance(3.0)
            while not closing.done() and (step_s := allowance.step()) > 0:
                await asyncio.wait({closing}, timeout=step_s)
            assert closing.done(), "it is not quick"
            await closing


async def test_nothing_is_left_running_after_close() -> None:
    before = asyncio.all_tasks()
    with NatsServer() as server:
        async with await connect(config_for(server.url), name="tidy", timeout_s=10) as bus:
            for number in range(50):
                bus.subscribe(f"t.{number}", lambda message: None)
            with pytest.raises(BusNoResponders):
                await bus.request("nobody", b"", 60.0)
            await server.start_async() if not server.running else None
            server.kill()
            await eventually(lambda: not bus.connected)
            await server.start_async()
            await bus.wait_connected(10)
        await eventually(lambda: asyncio.all_tasks() == before)


async def test_what_waited_and_the_next_server_does_not_take_is_dropped_and_the_rest_sent() -> None:
    port = free_port()
    with NatsServer(port=port) as server:
        bus = await connect(config_for(server.url), name="big", timeout_s=10)
    async with bus:
        got: list[bytes] = []
        bus.subscribe("t", lambda message: got.append(message.data))
        await eventually(lambda: not bus.connected)
        bus.publish("t", b"x" * 2048)
        bus.publish("t", b"small")
        with NatsServer(port=port, config="max_payload: 1024\n"):
            await eventually(lambda: got == [b"small"])
            with pytest.raises(BusPayloadTooLarge):
                bus.publish("t", b"x" * 2048)


def test_a_name_that_is_not_resolved_in_time_leaves_no_complaint() -> None:
    """ "Future exception was never retrieved" was logged again and again while the server's name was not known."""
    complaints: list[str] = []

    async def away() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        config = config_for("nats://no.such.host.invalid:4222")
        for timeout_s in (0.0001, 0.001, 0.005):
            bus = NatsBus(replace(config, connect_timeout_s=timeout_s), name="r")
            bus.start()
            with pytest.raises(BusUnavailable):
                await bus.wait_connected(0.5)
            await bus.close()
        await loop.shutdown_default_executor()  # no resolver is under way any more
        gc.collect()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(away())
    gc.collect()
    assert not complaints
