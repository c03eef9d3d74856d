"""What only a real nats-server can show: deaf and stopped peers, permissions, passwords, several servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from libs.bus import BusConfig, BusNoResponders, BusTimeout, BusUnavailable
from libs.bus.nats import NatsBus, connect
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
    return BusConfig(urls, reconnect_min_s=0.01, reconnect_max_s=0.1, watchdog_s=0.2)


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
            await eventually(lambda: events == ["down", "up"], deadline_s=5)
            assert client.is_closed or client is not bus._client
            bus.publish("t", b"heard")
            await eventually(lambda: got == [b"heard"])


async def test_stopped_server_is_noticed_and_left() -> None:
    with NatsServer() as first, NatsServer() as second:
        async with await connect(config_for(first.url, second.url), name="stopped", timeout_s=10) as bus:
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
            await eventually(lambda: down and bus.connected, deadline_s=10)
            assert bus._client is not None
            now = bus._client.connected_url
            assert now is not None
            assert now.port == spare.port
            used.resume()


async def test_connection_that_passes_nothing_on_is_noticed() -> None:
    with NatsServer() as server:
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(Relay(server.port))
            bus = await connect(config_for(f"nats://127.0.0.1:{relay.port}"), name="silent", timeout_s=10)
            await stack.enter_async_context(bus)
            relay.stall()
            await eventually(lambda: not bus.connected, deadline_s=5)
            with pytest.raises(BusUnavailable):
                await bus.request("t", b"", 10.0)
            relay.unstall()
            await eventually(lambda: bus.connected, deadline_s=10)
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
        with pytest.raises(BusUnavailable):
            await connect(config, name="typha", timeout_s=0.5)
    assert any("Authorization" in str(getattr(record, "error", "")) for record in caplog.records)


async def test_closing_while_the_server_is_away_is_quick() -> None:
    with NatsServer() as server:
        for _ in range(20):  # cancellation meets the connection attempt at ever new places
            if not server.running:
                await server.start_async()
            bus = await connect(config_for(server.url), name="quick", timeout_s=10)
            server.kill()
            await eventually(lambda bus=bus: not bus.connected)  # type: ignore[misc]
            async with asyncio.timeout(3):
                await bus.close()


async def test_nothing_is_left_running_after_close() -> None:
    before = asyncio.all_tasks()
    with NatsServer() as server:
        async with await connect(config_for(server.url), name="tidy", timeout_s=10) as bus:
            for number in range(50):
                bus.subscribe(f"t.{number}", lambda message: None)
            with pytest.raises(BusNoResponders):
                await bus.request("nobody", b"", 1.0)
            await server.start_async() if not server.running else None
            server.kill()
            await eventually(lambda: not bus.connected)
            await server.start_async()
            await bus.wait_connected(10)
        await eventually(lambda: asyncio.all_tasks() == before, deadline_s=3)
