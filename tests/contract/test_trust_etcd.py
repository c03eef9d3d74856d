"""etcd with authentication by certificate: roles, what a stolen identity can do, renewal under a watch (X05, X02)."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from libs.store.api import Store, StoreAuthError, StoreError, StoreUnavailable
from libs.store.config import StoreConfig, StoreConfigError
from libs.store.connection import Connection
from libs.store.etcd import EtcdStore
from libs.testkit.pki import Authority as OtherAuthority
from libs.testkit.servers import EtcdServer
from libs.testkit.trusted import Trust
from libs.trust import etcd_auth, etcd_roles, identities
from libs.trust.etcd_roles import RESOURCES
from tests.contract.store_backends import eventually

pytestmark = pytest.mark.servers
NODES = ("node1", "node2")


@asynccontextmanager
async def opened(config: StoreConfig) -> AsyncGenerator[EtcdStore, None]:
    store = EtcdStore(config)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[tuple[Trust, EtcdServer], None]:
    trust = Trust(tmp_path / "ca", NODES)
    async with EtcdServer(**trust.etcd_files()) as server:
        await trust.enable_auth(server.endpoint)
        yield trust, server


async def may(store: Store, *, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> None:
    for prefix in reads:
        await store.list(prefix)
    for key in writes:
        await store.put(key, b"{}")
        await store.delete(key)


async def may_not(store: Store, *, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> None:
    for prefix in reads:
        with pytest.raises(StoreAuthError):
            await store.list(prefix)
        async with aclosing(store.watch(prefix, revision=1)) as batches:
            with pytest.raises(StoreAuthError):
                await anext(batches)
    for key in writes:
        with pytest.raises(StoreAuthError):
            await store.put(key, b"{}")
        with pytest.raises(StoreAuthError):
            await store.delete(key)


POLICY = f"{RESOURCES}networkpolicies/default/web"
GLOBAL = f"{RESOURCES}globalnetworkpolicies/web"
STATUS = "/calico/felix/v2/no-region/host/node1/workload/k8s/a/endpoint/eth0"
BLOCK = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"
WEP = f"{RESOURCES}workloadendpoints/default/node1-k8s-web-eth0"
ELECTION = "/calico/election/v1/kube-controllers"
PEER = f"{RESOURCES}bgppeers/one"
OUTSIDE = "/registry/secrets/default/one"

CASES = {
    identities.node("node1"): ((RESOURCES, "/calico/ipam/v2/"), (WEP, BLOCK, STATUS),
                               (OUTSIDE, "/"), (POLICY, GLOBAL, PEER, ELECTION, OUTSIDE)),
    identities.TYPHA: (("/calico/",), (), (OUTSIDE, "/"), (POLICY, WEP, BLOCK, STATUS, ELECTION)),
    identities.APISERVER: ((RESOURCES,), (POLICY, PEER, BLOCK), (OUTSIDE, "/"), (STATUS, ELECTION, OUTSIDE)),
    identities.KUBE_CONTROLLERS: (("/calico/",), (POLICY, WEP, BLOCK, ELECTION), (OUTSIDE, "/"),
                                  (PEER, STATUS, f"{RESOURCES}bgpconfigurations/default", OUTSIDE)),
    identities.READER: ((RESOURCES, "/calico/ipam/v2/"), (), (OUTSIDE, "/"), (POLICY, BLOCK, STATUS)),
    identities.POLICY_EDITOR: ((RESOURCES,), (POLICY, GLOBAL), (OUTSIDE,), (PEER, BLOCK, WEP, ELECTION)),
    identities.OPERATOR: (("/calico/",), (POLICY, PEER, BLOCK), (OUTSIDE, "/"), (STATUS, ELECTION, OUTSIDE)),
}  # fmt: skip


async def test_each_identity_has_its_role_and_no_more(stage: tuple[Trust, EtcdServer]) -> None:
    trust, server = stage
    for identity, (reads, writes, unread, unwritten) in CASES.items():
        async with opened(trust.store_config(server, identity)) as store:
            await may(store, reads=reads, writes=writes)
            await may_not(store, reads=unread, writes=unwritten)


async def test_what_roles_of_etcd_cannot_keep_apart(stage: tuple[Trust, EtcdServer]) -> None:
    """docs/design/trust.md says so: prefixes know no owner, so a node may write another node's keys."""
    trust, server = stage
    async with opened(trust.store_config(server, identities.node("node1"))) as store:
        await may(store, writes=(f"{RESOURCES}workloadendpoints/default/node2-k8s-web-eth0", f"{RESOURCES}nodes/node2"))


async def test_etcd_3_4_which_does_not_tell_whether_authentication_is_on(crash_etcd: Path, tmp_path: Path) -> None:
    """The distribution's, which is in our image, too."""
    trust = Trust(tmp_path / "ca", NODES)
    async with EtcdServer(binary=crash_etcd, **trust.etcd_files()) as server:
        steps = await trust.enable_auth(server.endpoint)
        assert steps[-1].method == "AuthEnable"
        assert await trust.enable_auth(server.endpoint) == []
        async with opened(trust.store_config(server, identities.TYPHA)) as store:
            await may(store, reads=(RESOURCES,))
            await may_not(store, writes=(POLICY,))


async def test_nobody_gets_in_otherwise(stage: tuple[Trust, EtcdServer], tmp_path: Path) -> None:
    trust, server = stage
    good = replace(trust.store_config(server, identities.TYPHA), request_timeout_s=2.0)

    async def refused(config: StoreConfig, error: type[StoreError]) -> None:
        async with opened(config) as store:
            with pytest.raises(error):
                await store.get("/calico/one")

    plain = replace(good, endpoints=(server.endpoint.replace("https", "http"),), ca=b"", cert=b"", key=b"")
    foreign = OtherAuthority("calico-ca", tmp_path / "other")
    theirs = foreign.issue(identities.TYPHA)
    await refused(replace(plain, tls_files=(None, None, None)), StoreUnavailable)
    await refused(replace(good, cert=b"", key=b""), StoreUnavailable)
    await refused(replace(good, cert=theirs.cert.read_bytes(), key=theirs.key.read_bytes()), StoreUnavailable)
    await refused(replace(good, ca=foreign.cert.read_bytes()), StoreUnavailable)
    trust.authority.issue("calico-node:gone")
    await refused(trust.store_config(server, "calico-node:gone"), StoreAuthError)  # of the authority, and no user
    trust.authority.issue("calico-node:late", life=datetime.timedelta(days=-1))
    late = replace(trust.store_config(server, "calico-node:late"), request_timeout_s=2.0)
    await refused(late, StoreUnavailable)


async def test_users_with_passwords(stage: tuple[Trust, EtcdServer]) -> None:
    """A password is another way in for the same roles; a server without client certificates knows no other."""
    trust, _ = stage
    files = trust.etcd_files()
    async with EtcdServer(cert_file=files["cert_file"], key_file=files["key_file"]) as server:
        anybody = replace(trust.store_config(server, identities.TYPHA), cert=b"", key=b"", tls_files=(None, None, None))
        passwords = {identities.ROOT: "r00t", identities.READER: "first"}
        connection = Connection(anybody)
        try:
            steps = etcd_auth.plan(await etcd_auth.read(connection), etcd_roles.users(()), passwords)
            assert not any("first" in f"{step} {step.text}" for step in steps)
            await etcd_auth.carry_out(connection, steps, lambda step: None)
        finally:
            await connection.close()
        async with opened(replace(anybody, username=identities.READER, password="first")) as store:
            await may(store, reads=(RESOURCES,))
            await may_not(store, writes=(POLICY,))
        async with opened(replace(anybody, username=identities.READER, password="wrong")) as store:
            with pytest.raises(StoreAuthError):
                await store.get(POLICY)


async def test_a_changed_password_is_read_when_it_is_needed(stage: tuple[Trust, EtcdServer], tmp_path: Path) -> None:
    """A file first and then etcd loses nothing; the other way round what is asked meanwhile is refused, and no more."""
    trust, _ = stage
    files = trust.etcd_files()
    password = tmp_path / "password"
    async with EtcdServer(cert_file=files["cert_file"], key_file=files["key_file"]) as server:
        anybody = replace(trust.store_config(server, identities.TYPHA), cert=b"", key=b"", tls_files=(None, None, None))

        async def set_password(text: str, **root: str) -> None:
            passwords = {identities.ROOT: "r00t", identities.OPERATOR: text}
            connection = Connection(replace(anybody, **root))
            try:
                steps = etcd_auth.plan(await etcd_auth.read(connection), etcd_roles.users(()), passwords)
                await etcd_auth.carry_out(connection, steps, lambda step: None)
            finally:
                await connection.close()

        await set_password("first")
        as_root = {"username": identities.ROOT, "password": "r00t"}
        password.write_text("first\n")
        environ = {
            "ETCD_ENDPOINTS": server.endpoint, "ETCD_CA_CERT_FILE": str(files["ca_file"]),
            "ETCD_USERNAME": identities.OPERATOR, "ETCD_PASSWORD_FILE": str(password),
        }  # fmt: skip
        config = StoreConfig.from_env(environ)
        assert "first" not in repr(config)
        async with opened(config) as store, aclosing(store.watch(RESOURCES, revision=1)) as batches:
            await store.put(POLICY, b"1")
            await anext(batches)
            password.write_text("second\n")
            await store.put(POLICY, b"2")
            await set_password("second", **as_root)
            await store.put(POLICY, b"3")
            await set_password("third", **as_root)
            with pytest.raises(StoreAuthError):
                await store.get(POLICY)
            password.unlink()
            with pytest.raises(StoreAuthError, match="ETCD_PASSWORD_FILE"):
                await store.get(POLICY)
            password.write_text("third")
            await store.put(POLICY, b"4")
            seen: list[bytes] = []
            async with asyncio.timeout(20):
                while seen[-1:] != [b"4"]:
                    seen += [event.kv.value for event in (await anext(batches)).events if event.kv is not None]
            assert seen == [b"2", b"3", b"4"]
        for text, said in (("", "is empty"), (None, "No such file")):
            password.unlink()
            if text is not None:
                password.write_text(text)
            with pytest.raises(StoreConfigError, match=said):
                StoreConfig.from_env(environ)
            password.touch()
        with pytest.raises(StoreConfigError, match="not both"):
            StoreConfig.from_env(environ | {"ETCD_PASSWORD": "x"})


async def test_setting_up_again_changes_nothing_and_damage_is_repaired(stage: tuple[Trust, EtcdServer]) -> None:
    trust, server = stage
    assert await trust.enable_auth(server.endpoint) == []
    connection = Connection(trust.store_config(server, identities.ROOT))
    try:
        more = replace(etcd_roles.READER, reads=(*etcd_roles.READER.reads, "/registry/"), writes=("/calico/ipam/v2/",))
        extra = [step for step in etcd_auth._role(more, etcd_auth.grants(etcd_roles.READER)) if step]
        await etcd_auth.carry_out(connection, extra, lambda step: None)
    finally:
        await connection.close()
    done = [step.text for step in await trust.enable_auth(server.endpoint)]
    assert done == [
        "role calicoctl-reader: no more /registry/",
        "role calicoctl-reader: reads /calico/ipam/v2/",
    ]
    assert await trust.enable_auth(server.endpoint) == []


async def test_removal_leaves_an_etcd_without_authentication_and_its_data(stage: tuple[Trust, EtcdServer]) -> None:
    trust, server = stage
    async with opened(trust.store_config(server, identities.OPERATOR)) as store:
        await store.put(POLICY, b"{}")
    connection = Connection(trust.store_config(server, identities.ROOT))
    try:
        await etcd_auth.carry_out(connection, etcd_auth.removal(await etcd_auth.read(connection)), lambda step: None)
        assert await etcd_auth.read(connection) == etcd_auth.State()
    finally:
        await connection.close()
    async with opened(trust.store_config(server, identities.READER)) as store:
        assert await store.get(POLICY) is not None
        await store.put(OUTSIDE, b"")


async def test_renewed_certificates_are_used_without_a_restart_and_a_watch_loses_nothing(
    stage: tuple[Trust, EtcdServer],
) -> None:
    trust, server = stage
    identity = identities.node("node1")
    config = replace(trust.store_config(server, identity), reload_check_s=0.1)
    async with opened(config) as store, opened(trust.store_config(server, identities.OPERATOR)) as writer:
        connection = store._connection
        got: list[int] = []
        ended = asyncio.Event()
        start = (await writer.list(RESOURCES)).revision
        lease = await store.lease_grant(9)

        async def follow() -> None:
            async with aclosing(store.watch(RESOURCES, revision=start + 1)) as batches:
                async for batch in batches:
                    got.extend(int(event.kv.value) for event in batch.events if event.kv is not None)
                    if got and got[-1] < 0:
                        ended.set()
                        return

        task = asyncio.create_task(follow())
        sent = 0
        for _ in range(3):
            before = connection._endpoints
            trust.authority.renew(identity)
            async with asyncio.timeout(20):
                while connection._endpoints is before:
                    await writer.put(GLOBAL, str(sent).encode())
                    await store.get(GLOBAL)
                    sent += 1
            for _ in range(20):
                await writer.put(GLOBAL, str(sent).encode())
                await store.get(GLOBAL)
                sent += 1
        await writer.put(GLOBAL, b"-1")
        async with asyncio.timeout(20):
            await ended.wait()
        await task
        assert got == [*range(sent), -1]
        left_s = store.lease_left_s(lease)
        assert left_s > 0
        await eventually(lambda: store.lease_left_s(lease) > left_s)  # it is renewed over the new connections, too
        # Half of a renewal is not used, and named.
        before = connection._endpoints
        key = trust.files(identity) / "tls.key"
        key.write_bytes(b"-----BEGIN")
        await asyncio.sleep(0.5)  # several looks at the files
        assert connection._endpoints is before
        await store.get(GLOBAL)


def test_unusable_files_are_named_without_their_content(stage_files: Path) -> None:
    with pytest.raises(StoreConfigError) as told:
        StoreConfig.from_env({"ETCD_CA_CERT_FILE": str(stage_files / "none.crt")})
    assert "ETCD_CA_CERT_FILE" in str(told.value)


@pytest.fixture
def stage_files(tmp_path: Path) -> Path:
    return tmp_path
