"""NATS with a user for each identity: what a stolen certificate of each kind can do, and cannot (X01, T06)."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from libs.bus import Bus, BusConfig, BusConfigError, BusUnavailable, Msg, subjects
from libs.bus.nats import NatsBus, connect
from libs.testkit.pki import Authority as OtherAuthority
from libs.testkit.servers import NatsServer
from libs.testkit.trusted import Trust
from libs.trust import identities
from tests.contract.store_backends import eventually

pytestmark = pytest.mark.servers
NODES = ("node1", "node2.example")


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust(tmp_path_factory.mktemp("trust") / "ca", NODES)


@pytest.fixture(scope="module")
def server(trust: Trust) -> Iterator[NatsServer]:
    with NatsServer(config=trust.nats_text()) as server:
        yield server


class Buses:
    """Connections by identity; `heard`: what a subscriber of everything as typha or a reader has seen."""

    def __init__(self, stack: AsyncExitStack, trust: Trust, server: NatsServer) -> None:
        self._stack, self._trust, self._server = stack, trust, server

    async def bus(self, identity: str, name: str, inbox: str = "") -> NatsBus:
        bus = NatsBus(self._trust.bus_config(self._server, identity), name=name, inbox=inbox)
        self._stack.push_async_callback(bus.close)
        bus.start()
        await bus.wait_connected(20)
        return bus

    async def node(self, name: str, service: str = "felix") -> NatsBus:
        return await self.bus(identities.node(name), f"{service}-{name}")

    async def typha(self) -> NatsBus:
        return await self.bus(identities.TYPHA, "typha")

    async def reader(self) -> NatsBus:
        return await self.bus(identities.READER, "calicoctl")


@pytest.fixture
async def buses(trust: Trust, server: NatsServer) -> AsyncGenerator[Buses, None]:
    async with AsyncExitStack() as stack:
        yield Buses(stack, trust, server)


async def delivered(sender: Bus, subject: str, witness: Bus, pattern: str, marker: tuple[Bus, str]) -> bool:
    """Whether `witness` gets what `sender` publishes. marker: who may surely publish what the witness reads: it comes
    last, so nothing is waited for that may never arrive.
    """
    got: list[str] = []
    end = asyncio.Event()

    def received(message: Msg) -> None:
        if message.data == b"end":
            end.set()
        else:
            got.append(message.subject)

    subscriptions = [witness.subscribe(pattern, received), witness.subscribe(marker[1], received)]
    await witness.barrier()
    sender.publish(subject, b"forged")
    await sender.barrier()
    marker[0].publish(marker[1], b"end")
    async with asyncio.timeout(20):
        await end.wait()
    for subscription in subscriptions:
        subscription.unsubscribe()
    return subject in got


OWN = [
    subjects.applied("node1"),
    subjects.applied("node1", subjects.Role.BGP),
    subjects.endpoint_status("node1", "k8s/ns/web/eth0"),
    subjects.bgp_peer("node1", "Mesh_10_0_0_1"),
    subjects.bgp_route("node1"),
    "calico.flow.node1",
    subjects.any_snapshot("node1"),
    subjects.own_snapshot("abcd", "node1"),
    subjects.TYPHA_CONCERNS,
    subjects.TYPHA_MARK,
]
FORGED = [
    subjects.applied("node2.example"),
    subjects.applied("node2.example", subjects.Role.BGP),
    subjects.endpoint_status("node2.example", "k8s/ns/web/eth0"),
    subjects.bgp_route("node2.example"),
    "calico.flow.node2%2Eexample",
    subjects.any_snapshot("node2.example"),
    subjects.own_snapshot("abcd", "node2.example"),
    subjects.rpc("felix", "node2.example", "trace"),
    subjects.node_stream("abcd", "node2.example"),
    subjects.node_stream("abcd", "node1"),
    subjects.of_stream("abcd", subjects.policy_stream("np/ns1/web")),
    subjects.of_stream("abcd", "route.nodes"),
    subjects.beat("abcd"),
    subjects.event("abcd", "NetworkPolicy", "ns1", "web"),
    subjects.audit("r1"),
]


@pytest.mark.parametrize("subject", OWN)
async def test_a_node_publishes_below_its_own_name(buses: Buses, subject: str) -> None:
    node, reader, typha = await buses.node("node1"), await buses.reader(), await buses.typha()
    assert await delivered(node, subject, reader, "calico.>", (typha, subjects.beat("zzzz")))


@pytest.mark.parametrize("subject", FORGED)
async def test_a_node_publishes_as_nobody_else(buses: Buses, subject: str, caplog: pytest.LogCaptureFixture) -> None:
    node, reader, typha = await buses.node("node1"), await buses.reader(), await buses.typha()
    with caplog.at_level(logging.WARNING):
        assert not await delivered(node, subject, reader, "calico.>", (typha, subjects.beat("zzzz")))
        await eventually(lambda: "permissions violation" in caplog_text(caplog).lower())


def caplog_text(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(f"{record.message} {getattr(record, 'error', '')}" for record in caplog.records)


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        (subjects.node_stream("abcd", "node1"), subjects.node_stream("abcd", "node1")),
        (subjects.of_stream("abcd", "local.node1"), subjects.of_stream("abcd", "local.node1")),
        (subjects.of_stream("abcd", "route.nodes"), subjects.of_stream("abcd", "route.nodes")),
        (subjects.of_stream("abcd", "ipset.s:1.2"), subjects.of_stream("abcd", "ipset.s:1.2")),
        (subjects.of_stream("abcd", "policy.np/a/b"), subjects.of_stream("abcd", "policy.np/a/b")),
        ("calico.typha.*.beat", subjects.beat("abcd")),
    ],
)
async def test_a_node_reads_what_it_needs(buses: Buses, pattern: str, subject: str) -> None:
    node, typha = await buses.node("node1"), await buses.typha()
    assert await delivered(typha, subject, node, pattern, (typha, subjects.beat("zzzz")))


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        (">", subjects.node_stream("abcd", "node2.example")),
        ("calico.>", subjects.node_stream("abcd", "node2.example")),
        ("calico.typha.>", subjects.node_stream("abcd", "node2.example")),
        (subjects.node_stream("abcd", "node2.example"), subjects.node_stream("abcd", "node2.example")),
        ("calico.typha.*.node.*", subjects.node_stream("abcd", "node2.example")),
        ("calico.typha.*.local.*", subjects.of_stream("abcd", "local.node2.example")),
        (subjects.event("abcd", "Node", "_", "n"), subjects.event("abcd", "Node", "_", "n")),
        ("_INBOX.>", "_INBOX.felix-node2%2Eexample.0123456789abcdef.1"),
        ("_INBOX.felix-node2%2Eexample.>", "_INBOX.felix-node2%2Eexample.0123456789abcdef.1"),
        ("_INBOX.typha.>", "_INBOX.typha.0123456789abcdef.1"),
    ],
)
async def test_a_node_reads_nothing_of_others(buses: Buses, pattern: str, subject: str) -> None:
    node, typha = await buses.node("node1"), await buses.typha()
    assert not await delivered(typha, subject, node, pattern, (typha, subjects.beat("zzzz")))


async def test_a_node_asks_and_answers_but_writes_into_no_inbox(buses: Buses) -> None:
    node, other, typha = await buses.node("node1"), await buses.node("node2.example"), await buses.typha()
    people = await buses.bus(identities.OPERATOR, "calicoctl")
    typha.subscribe(f"{subjects.TYPHA_SNAPSHOT}.*", lambda message: message.respond(b"all"), queue="typha")
    node.subscribe(subjects.rpc("felix", "node1", "trace"), lambda message: message.respond(b"why"))
    await typha.barrier()
    await node.barrier()
    assert (await node.request(subjects.any_snapshot("node1"), b"", 20)).data == b"all"
    assert (await people.request(subjects.rpc("felix", "node1", "trace"), b"", 20)).data == b"why"
    inbox = f"{other._inbox}.7"
    assert not await delivered(node, inbox, other, f"{other._inbox}.7", (typha, subjects.beat("zzzz")))
    assert await delivered(typha, inbox, other, f"{other._inbox}.7", (typha, subjects.beat("zzzz")))


async def test_typha_does_not_write_where_a_request_wants_it_to(buses: Buses) -> None:
    """A reply subject is any text: with typha's rights it would reach another node's commits."""
    node, reader, typha = await buses.node("node1"), await buses.reader(), await buses.typha()
    asked = asyncio.Event()

    def answer(message: Msg) -> None:
        message.respond(b"forged")
        asked.set()

    typha.subscribe(f"{subjects.TYPHA_SNAPSHOT}.*", answer)
    seen: list[str] = []
    end = asyncio.Event()
    reader.subscribe("calico.>", lambda message: (seen.append(message.subject), message.data == b"end" and end.set()))
    await typha.barrier()
    await reader.barrier()
    target = subjects.node_stream("abcd", "node2.example")
    node._publish(subjects.any_snapshot("node1"), b"", target, None)
    async with asyncio.timeout(20):
        await asked.wait()
        typha.publish(subjects.beat("abcd"), b"end")
        await end.wait()
    assert target not in seen


@pytest.mark.parametrize(
    ("identity", "name", "subject"),
    [
        (identities.READER, "calicoctl", subjects.TYPHA_MARK),
        (identities.READER, "calicoctl", subjects.rpc("felix", "node1", "trace")),
        (identities.READER, "calicoctl", subjects.beat("abcd")),
        (identities.OPERATOR, "calicoctl", subjects.applied("node1")),
        (identities.OPERATOR, "calicoctl", subjects.node_stream("abcd", "node1")),
        (identities.APISERVER, "apiserver", subjects.beat("abcd")),
        (identities.APISERVER, "apiserver", subjects.applied("node1")),
        (identities.TYPHA, "typha", subjects.applied("node1")),
        (identities.TYPHA, "typha", subjects.audit("r1")),
    ],
)
async def test_other_identities_publish_as_themselves_only(
    buses: Buses, identity: str, name: str, subject: str
) -> None:
    thief, typha = await buses.bus(identity, name), await buses.typha()
    reader = await buses.reader()
    assert not await delivered(thief, subject, reader, "calico.>", (typha, subjects.beat("zzzz")))


# --- who gets in ------------------------------------------------------------------------------------------------------


async def refused(config: BusConfig) -> None:
    with pytest.raises(BusUnavailable):
        await connect(replace(config, connect_timeout_s=5.0), name="thief", timeout_s=1.5)


async def test_nobody_gets_in_without_a_certificate_of_the_authority(
    trust: Trust, server: NatsServer, tmp_path: Path
) -> None:
    good = trust.bus_config(server, identities.TYPHA)
    await (await connect(good, name="typha", timeout_s=20)).close()
    foreign = OtherAuthority("calico-ca", tmp_path).issue(identities.TYPHA)
    stranger = OtherAuthority("calico-ca", tmp_path / "2")
    await refused(replace(good, ca_file=None, cert_file=None, key_file=None))  # plain
    await refused(replace(good, cert_file=None, key_file=None))  # no identity
    await refused(replace(good, cert_file=foreign.cert, key_file=foreign.key))  # another authority's
    await refused(replace(good, ca_file=stranger.cert))  # a server that we do not trust


async def test_expired_and_unknown_identities_are_refused(trust: Trust, server: NatsServer) -> None:
    await refused(trust_with(trust, server, "calico-node:node9", datetime.timedelta(days=1)))
    await refused(trust_with(trust, server, "calico-node:node8", datetime.timedelta(days=-1)))
    await refused(trust_with(trust, server, identities.NATS, datetime.timedelta(days=1)))


def trust_with(trust: Trust, server: NatsServer, identity: str, life: datetime.timedelta) -> BusConfig:
    if identity not in identities.SERVERS:
        trust.authority.issue(identity, life=life)
    return trust.bus_config(server, identity)


async def test_a_server_of_another_name_is_refused(tmp_path: Path) -> None:
    trust = Trust(tmp_path / "ca", (), addresses=("10.9.9.9",))
    with NatsServer(config=trust.nats_text()) as server:
        await refused(trust.bus_config(server, identities.TYPHA))


async def test_files_that_do_not_belong_together_are_named_and_no_key_is_shown(
    trust: Trust, server: NatsServer
) -> None:
    mixed = replace(trust.bus_config(server, identities.TYPHA), key_file=trust.files(identities.APISERVER) / "tls.key")
    with pytest.raises(BusConfigError) as told:
        NatsBus(mixed, name="typha")
    assert "TLS files of the bus" in str(told.value)
    assert "PRIVATE" not in str(told.value)


# --- renewal ----------------------------------------------------------------------------------------------------------


async def test_renewed_certificates_are_used_without_a_restart_and_nothing_published_is_lost(
    tmp_path: Path,
) -> None:
    trust = Trust(tmp_path / "ca", NODES)
    with NatsServer(config=trust.nats_text()) as server:
        async with AsyncExitStack() as stack:
            buses = Buses(stack, trust, server)
            node, reader = await buses.node("node1"), await buses.reader()
            got: list[int] = []
            reader.subscribe("calico.flow.*", lambda message: got.append(int(message.data)))
            await reader.barrier()
            sent = 0

            async def more(count: int) -> None:
                nonlocal sent
                for _ in range(count):
                    node.publish("calico.flow.node1", str(sent).encode())
                    sent += 1
                    await asyncio.sleep(0)

            await more(100)
            before = node.connections
            trust.authority.renew(identities.node("node1"))
            async with asyncio.timeout(20):
                while node.connections == before:
                    await more(1)
                    await asyncio.sleep(0.001)
            await more(100)
            await node.barrier()
            await eventually(lambda: len(got) == sent)
            assert got == list(range(sent))
            # Half of a renewal: the old connection stays, and the next whole one is used.
            files = trust.files(identities.node("node1"))
            key = (files / "tls.key").read_bytes()
            (files / "tls.key").write_bytes(b"-----BEGIN")
            await asyncio.sleep(5.0)  # two looks at the files
            assert node.connected
            assert node.connections == before + 1
            (files / "tls.key").write_bytes(key)
            await eventually(lambda: node.connections == before + 2)
