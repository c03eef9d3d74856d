"""Three NATS servers under one configuration, and `calicoctl datastore auth` against a real etcd."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from libs.bus import Msg, subjects
from libs.bus.nats import NatsBus, connect
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, NatsServer, etcd_cluster, free_port
from libs.testkit.trusted import LOOPBACK, Trust
from libs.trust import identities, nats_config
from tests.contract.store_backends import eventually

pytestmark = pytest.mark.servers


def route_text(trust: Trust, identity: str, routes: list[str], port: str) -> str:
    """Of a server that shows others this identity's certificate."""
    files = nats_config.ServerFiles(trust.files(identity))
    text = nats_config.server(files, routes=routes, cluster_listen=f"127.0.0.1:{port}")
    return text + nats_config.users(nats_config.cluster(trust.nodes))


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path / "ca", ("node1",))


@pytest.fixture
def three(trust: Trust) -> Iterator[tuple[list[NatsServer], list[str]]]:
    ports = [str(free_port("127.0.0.1")) for _ in range(3)]
    routes = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(NatsServer(config=route_text(trust, identities.NATS, routes, port))) for port in ports
        ]
        yield servers, routes


async def test_three_servers_are_one_bus_and_a_node_is_no_route(
    trust: Trust, three: tuple[list[NatsServer], list[str]]
) -> None:
    servers, routes = three
    async with AsyncExitStack() as stack:

        async def joined(server: NatsServer, identity: str, name: str) -> NatsBus:
            bus = await connect(trust.bus_config(server, identity), name=name, timeout_s=20)
            stack.push_async_callback(bus.close)
            return bus

        typha = await joined(servers[0], identities.TYPHA, "typha")
        readers = [await joined(server, identities.READER, "calicoctl") for server in servers]
        heard: set[int] = set()
        for number, reader in enumerate(readers):

            def received(message: Msg, number: int = number) -> None:
                heard.add(number)

            reader.subscribe("calico.>", received)
            await reader.barrier()

        async def everywhere() -> None:
            while len(heard) < 3:  # routes are made in the background, and nobody says when
                typha.publish(subjects.beat("abcd"), b"")
                await asyncio.sleep(0.05)

        async with asyncio.timeout(20):
            await everywhere()

        assert not any("TLS route handshake error" in server.log_path.read_text() for server in servers)
        # A server with a node's certificate, signed by the ordinary authority, wants to be a route.
        # Its names are right, so that nothing but its authority stands against it.
        node = trust.authority.issue(identities.node("node1"), names=LOOPBACK)
        for name in ("crt", "key"):
            (node / f"peer.{name}").write_bytes((node / f"tls.{name}").read_bytes())
        (node / "peer-ca.crt").write_bytes((trust.files(identities.NATS) / "peer-ca.crt").read_bytes())
        port = str(free_port("127.0.0.1"))
        stack.enter_context(NatsServer(config=route_text(trust, identities.node("node1"), routes, port)))
        await eventually(
            lambda: any("TLS route handshake error" in server.log_path.read_text() for server in servers), deadline_s=20
        )


async def test_members_of_etcd_know_each_other_by_an_authority_of_their_own(trust: Trust) -> None:
    """Whoever speaks at a member's peer port is above all users and roles; so no client's certificate opens it."""
    at = trust.files(identities.ETCD)
    members = etcd_cluster(3, tls=at)
    try:
        stores = [EtcdStore(trust.store_config(member, identities.OPERATOR)) for member in members]
        try:
            for number, store in enumerate(stores):
                await store.put(f"/calico/{number}", b"x")
                assert len((await stores[number - 1].list("/calico/")).kvs) == number + 1
        finally:
            for store in stores:
                await store.close()

        def shown(certificate: Path, key: Path, port: int) -> str:
            """Serial of the member's certificate, "" when it lets us ask nothing."""
            context = ssl.create_default_context(cafile=at / "peer-ca.crt")
            context.load_cert_chain(certificate, key)
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
                    context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
                ):
                    secure.sendall(b"GET /members HTTP/1.1\r\nHost: etcd\r\n\r\n")
                    assert secure.recv(12) == b"HTTP/1.1 200"
                    found = secure.getpeercert()
                    return str(found and found["serialNumber"])
            except (ssl.SSLError, ConnectionError):
                return ""

        for member in members:
            assert shown(at / "peer.crt", at / "peer.key", member.peer_port)
            for identity in (identities.ETCD, identities.ROOT, identities.node("node1")):
                files = trust.files(identity)
                assert shown(files / "tls.crt", files / "tls.key", member.peer_port) == ""
            with socket.create_connection(("127.0.0.1", member.peer_port), timeout=20) as plain:
                plain.sendall(b"GET /members HTTP/1.1\r\nHost: etcd\r\n\r\n")
                assert b" 200 " not in plain.recv(64)
        before = shown(at / "peer.crt", at / "peer.key", members[0].peer_port)
        trust.authority.renew(identities.ETCD)
        assert shown(at / "peer.crt", at / "peer.key", members[0].peer_port) not in ("", before)
    finally:
        for member in members:
            member.close()


async def test_auth_is_set_up_by_one_command_and_removed_by_one(trust: Trust) -> None:
    async with EtcdServer(**trust.etcd_files()) as server:

        def ctl(*arguments: str, identity: str = identities.ROOT) -> subprocess.CompletedProcess[str]:
            env = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD", "NATS"))}
            return subprocess.run(
                [sys.executable, "-m", "services.calicoctl", "datastore", "auth", *arguments], check=False, text=True,
                env=env | {"ETCD_ENDPOINTS": server.endpoint} | trust.env(identity), capture_output=True, timeout=60,
            )  # fmt: skip

        plan = ctl("setup", "--node", "node1", "--dry-run")
        assert "would switch authentication on" in plan.stdout, plan.stderr
        assert "Dry run" in plan.stdout
        done = ctl("setup", "--node", "node1")
        assert done.returncode == 0, done.stderr
        assert "add user calico-node:node1, known by certificate" in done.stdout
        assert [f"would {line}" for line in done.stdout.splitlines()] == plan.stdout.splitlines()[:-1]
        assert "Nothing to change" in ctl("setup", "--node", "node1").stdout
        refused = ctl("setup", identity=identities.OPERATOR)
        assert refused.returncode == 1
        assert "permission denied" in refused.stderr
        gone = ctl("remove")
        assert "switch authentication off" in gone.stdout, gone.stderr
        assert "Nothing to remove" in ctl("remove").stdout
