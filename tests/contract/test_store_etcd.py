"""What only a real etcd can show: several endpoints, a cluster, passwords, permissions, TLS, silence on the wire."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aetcd.rpc import auth_pb2
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from libs.store import KeyExists, StoreAuthError, StoreConfig, StoreUnavailable, connection
from libs.store.etcd import EtcdStore, connect
from libs.testkit.relay import Relay
from libs.testkit.servers import EtcdServer, etcd_cluster, free_port
from tests.contract.store_backends import FAST_LEASES, take

EAGER_KEEPALIVE = "--grpc-keepalive-min-time=200ms"  # etcd would drop clients that probe as often as these tests do

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(extra_args=(*FAST_LEASES, EAGER_KEEPALIVE)) as started:
        yield started


# --- endpoints -------------------------------------------------------------------------------------------------------


async def test_dead_endpoints_are_passed_over(server: EtcdServer) -> None:
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
    for _ in range(4):  # it begins with a random one
        async with await connect(StoreConfig((*dead, server.endpoint, "http://no-such-host.invalid:2379"))) as store:
            await store.put("/failover", b"1")
            assert await store.get("/failover") is not None


async def test_no_endpoint_at_all_is_unavailable_in_time() -> None:
    config = StoreConfig((f"http://127.0.0.1:{free_port()}",), request_timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match="no etcd endpoint reachable"):
        async with asyncio.timeout(30):
            await connect(config)


async def test_a_write_into_silence_may_have_happened_and_is_not_repeated(server: EtcdServer) -> None:
    """The relay passes nothing on until the call has given up, then all: etcd must see the write at most once."""
    async with Relay(server.port) as relay, AsyncExitStack() as stack:
        config = StoreConfig((f"http://127.0.0.1:{relay.port}",), request_timeout_s=3.0)
        store = await stack.enter_async_context(EtcdStore(config))
        other = await stack.enter_async_context(EtcdStore(StoreConfig((server.endpoint,))))
        begin = await store.put("/silence", b"before")
        relay.stall()
        with pytest.raises(StoreUnavailable):
            await store.put("/silence", b"during")
        relay.unstall()
        tries = 0
        async with asyncio.timeout(30):
            while True:
                tries += 1
                try:
                    await store.put("/silence", b"after")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
        found = await other.get("/silence")
        assert found is not None
        assert found.value in (b"during", b"after")  # released together, the two may even change places
        assert found.mod_revision - begin <= 1 + tries, "the write was sent more than once"


async def test_a_write_whose_answer_is_lost_is_not_repeated(server: EtcdServer) -> None:
    async with Relay(server.port) as relay, AsyncExitStack() as stack:
        store = await stack.enter_async_context(EtcdStore(StoreConfig((f"http://127.0.0.1:{relay.port}",))))
        other = await stack.enter_async_context(EtcdStore(StoreConfig((server.endpoint,))))
        for number in range(5):
            key = f"/lost-answer/{number}"
            await store.put(key, b"before")
            relay.lose_next_answer = True
            with pytest.raises(StoreUnavailable):
                await store.put(key, b"after")
            found = await store.get(key)  # a read finds its way by itself
            assert found is not None
            assert found.version <= 2, "the write was sent more than once"
            assert found == await other.get(key)


async def test_a_silent_connection_is_left_for_another_endpoint(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is closed, nothing answers: only the keepalive can tell, and the watch must go on elsewhere."""
    monkeypatch.setattr(connection, "_HEAD_START_S", 5.0)
    async with Relay(server.port) as first, Relay(server.port) as second, AsyncExitStack() as stack:
        config = StoreConfig(
            (f"http://127.0.0.1:{first.port}", f"http://127.0.0.1:{second.port}"),
            keepalive_time_s=3.0,
            keepalive_timeout_s=3.0,
        )
        store = await stack.enter_async_context(EtcdStore(config))
        other = await stack.enter_async_context(EtcdStore(StoreConfig((server.endpoint,))))
        begin = await other.put("/silent/a", b"1")
        batches = await stack.enter_async_context(aclosing(store.watch("/silent/", revision=begin)))
        await take(batches, lambda events: len(events) == 1)
        used = first if first.accepted else second
        assert not (first.accepted and second.accepted), "one endpoint is enough while it answers"
        used.stall()
        await other.put("/silent/a", b"2")
        assert len(await take(batches, lambda events: len(events) == 1)) == 1
        assert await store.get("/silent/a") is not None


async def test_cluster_goes_on_without_the_member_in_use() -> None:
    members = etcd_cluster(3, extra_args=(EAGER_KEEPALIVE,))
    config = StoreConfig(tuple(member.endpoint for member in members), keepalive_time_s=1.0, keepalive_timeout_s=1.0)
    try:
        async with await connect(config) as store:
            begin = await store.put("/cluster/a", b"0")
            batches = store.watch("/cluster/", revision=begin)
            seen = await take(batches, lambda events: len(events) == 1)
            written = [begin]
            for member in members:
                member.pause()
                async with asyncio.timeout(30):
                    while True:
                        try:
                            written.append(await store.put("/cluster/a", b"x"))
                            break
                        except StoreUnavailable:  # may have happened: look before writing again
                            try:
                                found = await store.get("/cluster/a")
                            except StoreUnavailable:
                                continue
                            assert found is not None
                            if found.mod_revision != written[-1]:
                                written.append(found.mod_revision)
                                break
                # A put of before, answered by nobody, may happen as late as this: the look finds what has been seen.
                if seen[-1].revision < written[-1]:
                    seen += await take(batches, lambda events: events and events[-1].revision >= written[-1])
                member.resume()
            revisions = [event.revision for event in seen]
            assert set(written) <= set(revisions)
            assert revisions == sorted(set(revisions))
            await batches.aclose()
    finally:
        for member in members:
            member.close()


# --- authentication --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """Authentication on: root/rootpw, and reader/readpw who may read /calico/ only. Tokens live two seconds."""
    with EtcdServer(extra_args=(*FAST_LEASES, "--auth-token-ttl=2")) as started:
        asyncio.run(_enable_auth(started.host_port))
        yield started


async def _enable_auth(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        auth: Any = stubs.AuthStub(channel)
        await auth.UserAdd(pb.AuthUserAddRequest(name="root", password="rootpw"))
        await auth.UserAdd(pb.AuthUserAddRequest(name="reader", password="readpw"))
        await auth.RoleAdd(pb.AuthRoleAddRequest(name="root"))
        await auth.RoleAdd(pb.AuthRoleAddRequest(name="readers"))
        permission = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=b"/calico/", range_end=b"/calico0")
        await auth.RoleGrantPermission(pb.AuthRoleGrantPermissionRequest(name="readers", perm=permission))
        await auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user="root", role="root"))
        await auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user="reader", role="readers"))
        await auth.AuthEnable(pb.AuthEnableRequest())


def config_for(server: EtcdServer, username: str = "", password: str = "") -> StoreConfig:
    return StoreConfig((server.endpoint,), username=username, password=password, request_timeout_s=5.0)


async def test_password_opens_and_a_wrong_one_is_refused_at_once(guarded: EtcdServer) -> None:
    async with await connect(config_for(guarded, "root", "rootpw")) as store:
        await store.put("/calico/auth", b"1")
    for username, password in (("root", "wrong"), ("nobody", "x"), ("", "")):
        with pytest.raises(StoreAuthError):
            async with asyncio.timeout(30):
                await connect(replace(config_for(guarded, username, password), request_timeout_s=60.0))


async def test_token_that_expired_is_renewed_for_reads_and_writes_and_leases(guarded: EtcdServer) -> None:
    async with await connect(config_for(guarded, "root", "rootpw")) as store:
        lease = await store.lease_grant(6)
        await store.put("/calico/leased", b"1", lease=lease)
        connection = store._connection
        for _ in range(2):
            connection._token = "stale.1"  # what an expired token looks like to etcd
            revision = await store.put("/calico/token", b"1")
            connection._token = "stale.2"
            found = await store.get("/calico/token")
            assert found is not None
            assert found.mod_revision == revision, "the write was made twice"
        connection._token = "stale.3"
        many = await asyncio.gather(*(store.get("/calico/token") for _ in range(20)))
        assert all(many)
        await asyncio.sleep(7.0)  # longer than lease and token live
        assert await store.get("/calico/leased") is not None


async def test_watch_outlives_its_token(guarded: EtcdServer) -> None:
    async with await connect(config_for(guarded, "root", "rootpw")) as store:
        begin = await store.put("/calico/watched", b"1")
        store._connection._token = "stale.1"
        async with aclosing(store.watch("/calico/watched", revision=begin)) as batches:
            await take(batches, lambda events: len(events) == 1)
            await asyncio.sleep(3.0)
            await store.put("/calico/watched", b"2")
            await take(batches, lambda events: len(events) == 1)


async def test_what_a_role_may_not_do_is_an_auth_error(guarded: EtcdServer) -> None:
    async with await connect(config_for(guarded, "root", "rootpw")) as root:
        revision = await root.put("/calico/role", b"1")
    async with await connect(config_for(guarded, "reader", "readpw")) as store:
        assert await store.get("/calico/role") is not None
        assert (await store.status()).revision >= revision
        with pytest.raises(StoreAuthError):
            await store.put("/calico/role", b"2")
        with pytest.raises(StoreAuthError):
            await store.get("/other")
        with pytest.raises(StoreAuthError):
            async with asyncio.timeout(30):
                await anext(store.watch("/other/", revision=1))
        async with aclosing(store.watch("/calico/role", revision=revision)) as batches:
            await take(batches, lambda events: len(events) == 1)


async def test_credentials_do_no_harm_where_none_are_wanted(server: EtcdServer) -> None:
    async with await connect(config_for(server, "root", "rootpw")) as store:
        await store.put("/no-auth", b"1")


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client certificates, made with openssl; other-ca signed nothing."""
    home = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, check=True, capture_output=True, timeout=60)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for ca in ("ca", "other-ca"):
        openssl("req", "-x509", *new_key, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
    for name in ("server", "client"):
        openssl(
            *("req", "-x509", *new_key, "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    return home


@pytest.fixture(scope="module")
def tls_server(pki: Path) -> Iterator[EtcdServer]:
    with EtcdServer(cert_file=pki / "server.pem", key_file=pki / "server.key", ca_file=pki / "ca.pem") as started:
        yield started


async def test_mutual_tls_from_the_environment(tls_server: EtcdServer, pki: Path) -> None:
    env = {
        "ETCD_ENDPOINTS": tls_server.endpoint,
        "ETCD_CA_CERT_FILE": str(pki / "ca.pem"),
        "ETCD_CERT_FILE": str(pki / "client.pem"),
        "ETCD_KEY_FILE": str(pki / "client.key"),
    }
    async with await connect(StoreConfig.from_env(env)) as store:
        await store.create("/tls", b"1")
        with pytest.raises(KeyExists):
            await store.create("/tls", b"1")


@pytest.mark.parametrize("wrong", ["no client certificate", "other authority", "plain"])
async def test_tls_that_does_not_fit_never_connects(tls_server: EtcdServer, pki: Path, wrong: str) -> None:
    config = StoreConfig(
        (tls_server.endpoint.replace("https", "http") if wrong == "plain" else tls_server.endpoint,),
        ca=(pki / ("other-ca.pem" if wrong == "other authority" else "ca.pem")).read_bytes(),
        cert=b"" if wrong == "no client certificate" else (pki / "client.pem").read_bytes(),
        key=b"" if wrong == "no client certificate" else (pki / "client.key").read_bytes(),
        request_timeout_s=1.0,
    )
    with pytest.raises(StoreUnavailable):
        await connect(config)
