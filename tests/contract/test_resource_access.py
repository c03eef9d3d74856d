"""One suite for both ways to the resources: ResourceClient on a store, RemoteClient through an API server."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import pytest

from libs import model
from libs.model.base import Resource
from libs.resources import codec
from libs.resources.api import Changed, Resources
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Conflict, Forbidden, NotFound, NotSupported, ValidationError
from libs.resources.patch import PatchType
from libs.resources.remote import RemoteClient, connect
from libs.resources.remote_access import AccessProblem, open_access
from libs.resources.remote_errors import of_answer
from libs.resources.remote_settings import Settings
from libs.store import Store, StoreAuthError, StoreConfig, StoreUnavailable
from libs.store.etcd import connect as connect_etcd
from libs.store.memory import MemoryStore
from libs.testkit.servers import EtcdServer, free_port
from tests.contract.rest_stage import RestStage, rest_stage
from tests.contract.typha_stage import Child

WAIT_S = 20.0


@dataclass
class World:
    """resources: what is tried; direct: always on the store itself; stage: the server, where there is one."""

    resources: Resources
    direct: ResourceClient
    stage: RestStage | None = None


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="module")
def apiserver(etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the real one, on that etcd."""
    port, log = free_port(), tmp_path_factory.mktemp("apiserver") / "log"
    child = Child(
        "services.apiserver", "--development", f"--insecure-port={port}", "--bind-address=127.0.0.1",
        "--secure-port=none",
        env={"ETCD_ENDPOINTS": etcd.endpoint}, log=log,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            assert child.process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.process.kill()
        child.process.wait()


@pytest.fixture(
    params=[
        "memory", pytest.param("etcd", marks=pytest.mark.servers), "rest",
        pytest.param("apiserver", marks=pytest.mark.servers),
    ]
)  # fmt: skip
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        store: Store = MemoryStore()
        if request.param in ("etcd", "apiserver"):
            server = request.getfixturevalue("etcd")
            store = await connect_etcd(StoreConfig(endpoints=(server.endpoint,)))
            stack.push_async_callback(store.close)
            for kv in (await store.list("/calico/", keys_only=True)).kvs:
                await store.delete(kv.key)
        direct = ResourceClient(store)
        await direct.ensure_initialized()
        if request.param not in ("rest", "apiserver"):
            yield World(direct, direct)
            return
        if request.param == "apiserver":
            access = await open_access(Settings(endpoint=request.getfixturevalue("apiserver")))
            yield World(await stack.enter_async_context(connect(access)), direct)
            return
        stage = await stack.enter_async_context(rest_stage(store))
        access = await open_access(Settings(endpoint=stage.url))
        yield World(await stack.enter_async_context(connect(access)), direct, stage)


def resource(kind: str, name: str, spec: dict[str, object] | None = None, namespace: str = "") -> Resource:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return codec.from_json(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec or {}}
    )


def policy(name: str, tier: str = "default", **spec: object) -> Resource:
    return resource("NetworkPolicy", name, {"tier": tier, "selector": "all()", **spec}, "shop")


async def test_create_get_list(world: World) -> None:
    written = await world.resources.create(policy("web", order=5))
    assert written.created
    assert written.revision == int(written.resource.metadata.resource_version)
    assert await world.resources.get("NetworkPolicy", "web", "shop") == written.resource
    await world.resources.create(policy("api"))
    listed = await world.resources.list("NetworkPolicy", "shop")
    assert [item.metadata.name for item in listed.items] == ["api", "web"]
    assert listed.revision >= written.revision
    assert (await world.resources.list("NetworkPolicy", "bank")).items == []
    assert len((await world.resources.list("NetworkPolicy")).items) == 2


async def test_what_is_stored_is_the_same_by_both_ways(world: World) -> None:
    spec = {"order": 10, "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, "1:5"]}}]}
    await world.resources.create(policy("web", **spec))
    found = await world.direct.get("NetworkPolicy", "web", "shop")
    plain = ResourceClient(MemoryStore())
    await plain.ensure_initialized()
    expected = (await plain.create(policy("web", **spec))).resource
    assert found.spec == expected.spec
    assert found.metadata.labels == expected.metadata.labels


async def test_errors_are_the_same(world: World) -> None:
    await world.resources.create(resource("Tier", "sec", {"order": 5}))
    with pytest.raises(AlreadyExists, match=r"Tier\(sec\)"):
        await world.resources.create(resource("Tier", "sec"))
    with pytest.raises(NotFound, match=r"Tier\(none\)"):
        await world.resources.get("Tier", "none")
    with pytest.raises(NotFound, match=r"Tier\(none\)"):
        await world.resources.create(policy("web", tier="none"))
    with pytest.raises(NotFound, match=r"Tier\(none\)"):
        await world.resources.delete("Tier", "none")
    with pytest.raises(NotSupported):
        await world.resources.delete("Profile", "projectcalico-default-allow")
    with pytest.raises((NotSupported, Forbidden), match="built-in tier"):
        await world.resources.delete("Tier", "default")


async def test_faults_name_their_fields(world: World) -> None:
    with pytest.raises(ValidationError) as caught:
        await world.resources.create(resource("IPPool", "p", {"cidr": "10.0.0.0/16", "blockSize": 33}))
    assert [problem.path for problem in caught.value.problems] == ["spec.blockSize"]
    await world.resources.create(resource("IPPool", "p", {"cidr": "10.0.0.0/16"}))
    with pytest.raises(ValidationError) as caught:  # only the datastore can know this one
        await world.resources.create(resource("IPPool", "q", {"cidr": "10.0.5.0/24"}))
    assert [problem.path for problem in caught.value.problems] == ["spec.cidr"]


async def test_update_needs_the_latest_version(world: World) -> None:
    first = (await world.resources.create(resource("Tier", "sec", {"order": 5}))).resource
    second = await world.resources.update(model.Tier(metadata=first.metadata, spec=model.TierSpec(order=6)))
    with pytest.raises(Conflict):
        await world.resources.update(model.Tier(metadata=first.metadata, spec=model.TierSpec(order=7)))
    with pytest.raises(Conflict):
        await world.resources.delete("Tier", "sec", resource_version=first.metadata.resource_version)
    await world.resources.delete("Tier", "sec", resource_version=second.resource.metadata.resource_version)


async def test_apply_keeps_labels_and_writes_nothing_that_is_there(world: World) -> None:
    first = await world.resources.apply(codec.with_metadata(resource("Tier", "sec", {"order": 5}), labels={"a": "1"}))
    assert first.created
    changed = await world.resources.apply(resource("Tier", "sec", {"order": 6}))
    assert not changed.created
    assert changed.resource.metadata.labels == {"a": "1"}
    assert changed.resource.metadata.uid == first.resource.metadata.uid
    same = await world.resources.apply(resource("Tier", "sec", {"order": 6}))
    assert same.revision == changed.revision


async def test_replace_gives_way_to_nobody_without_a_version(world: World) -> None:
    await world.resources.create(resource("Tier", "sec", {"order": 5}))

    async def spin(order: int) -> None:
        await world.resources.replace(resource("Tier", "sec", {"order": order}))

    await asyncio.gather(*(spin(order) for order in range(10, 14)))
    with pytest.raises(NotFound):
        await world.resources.replace(resource("Tier", "none", {"order": 5}))


@pytest.mark.parametrize(
    ("patch_type", "patch"),
    [
        (PatchType.MERGE, {"spec": {"order": 7}}),
        (PatchType.STRATEGIC, {"spec": {"order": 7}}),
        (PatchType.JSON, [{"op": "replace", "path": "/spec/order", "value": 7}]),
    ],
)
async def test_patches(world: World, patch_type: PatchType, patch: object) -> None:
    await world.resources.create(resource("Tier", "sec", {"order": 5}))
    written = await world.resources.patch("Tier", "sec", patch, patch_type)
    assert codec.to_json(written.resource)["spec"]["order"] == 7
    with pytest.raises(ValidationError, match="may not change"):
        await world.resources.patch("Tier", "sec", {"metadata": {"name": "other"}}, PatchType.MERGE)
    with pytest.raises(ValidationError, match=r"spec\.order"):
        await world.resources.patch("Tier", "sec", {"spec": {"order": "x"}}, PatchType.MERGE)


async def test_profiles_show_the_built_in_one_once(world: World) -> None:
    await world.resources.create(resource("Profile", "kns.shop"))
    names = [item.metadata.name for item in (await world.resources.list("Profile")).items]
    assert sorted(names) == ["kns.shop", "projectcalico-default-allow"]
    assert (await world.resources.get("Profile", "projectcalico-default-allow")).metadata.name in names


class Follower:
    """Keeps what a follower of a listing is told."""

    def __init__(self, resources: Resources, kind: str) -> None:
        self.told: list[tuple[str, str]] = []
        self.state: dict[str, Resource] = {}
        self._resources, self._kind = resources, kind
        self._news = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Follower:
        self._task = asyncio.create_task(self._run())
        await asyncio.wait_for(self._ready.wait(), WAIT_S)
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        listed = await self._resources.list(self._kind)
        self.state = {item.metadata.name: item for item in listed.items}
        self._ready.set()
        async for change in self._resources.follow(self._kind, listed):
            self._take(change)
            self._news.set()

    def _take(self, change: Changed) -> None:
        name = change.resource.metadata.name
        if change.gone:
            self.told.append(("gone", name))
            del self.state[name]
            return
        self.told.append(("created" if change.created else "changed", name))
        assert (name in self.state) is not change.created
        self.state[name] = change.resource

    async def until(self, count: int) -> list[tuple[str, str]]:
        async with asyncio.timeout(WAIT_S):
            while len(self.told) < count:
                self._news.clear()
                await self._news.wait()
        return self.told


async def test_followers_are_told_each_change_once(world: World) -> None:
    await world.resources.create(resource("GlobalNetworkSet", "a"))
    async with Follower(world.resources, "GlobalNetworkSet") as follower:
        await world.direct.create(resource("GlobalNetworkSet", "b"))
        await world.direct.apply(resource("GlobalNetworkSet", "a", {"nets": ["192.0.2.0/24", "2001:db8::/32"]}))
        await world.direct.delete("GlobalNetworkSet", "b")
        assert await follower.until(3) == [("created", "b"), ("changed", "a"), ("gone", "b")]
        assert [codec.to_json(item)["spec"] for item in follower.state.values()] == [
            {"nets": ["192.0.2.0/24", "2001:db8::/32"]}
        ]


# --- what only a server does -----------------------------------------------------------------------------------------


@pytest.fixture
async def rest() -> AsyncIterator[tuple[RestStage, RemoteClient, ResourceClient]]:
    store = MemoryStore()
    async with rest_stage(store) as stage:
        access = await open_access(Settings(endpoint=stage.url))
        async with connect(access) as remote:
            yield stage, remote, ResourceClient(store)


async def test_lists_come_in_pages_and_survive_an_expired_one(
    rest: tuple[RestStage, RemoteClient, ResourceClient],
) -> None:
    stage, remote, direct = rest
    for number in range(7):
        await direct.create(resource("GlobalNetworkSet", f"s{number}"))
    stage.page_limit = 3
    assert len((await remote.list("GlobalNetworkSet")).items) == 7
    assert len([path for _, path in stage.requests if "globalnetworksets" in path]) == 3
    stage.expire_watches = True
    names = [item.metadata.name for item in (await remote.list("GlobalNetworkSet")).items]
    assert names == [f"s{number}" for number in range(7)]


async def test_followers_survive_restarts_and_lost_history(
    rest: tuple[RestStage, RemoteClient, ResourceClient],
) -> None:
    """What happens while the server is away, or is forgotten, is told all the same: changes, news and deletions."""
    stage, remote, direct = rest
    for name in ("stays", "changes", "goes"):
        await direct.create(resource("GlobalNetworkSet", name))
    async with Follower(remote, "GlobalNetworkSet") as follower:
        await stage.stop()
        await direct.create(resource("GlobalNetworkSet", "while-away"))
        await stage.start()
        assert await follower.until(1) == [("created", "while-away")]
        await stage.stop()
        await direct.apply(resource("GlobalNetworkSet", "changes", {"nets": ["10.0.0.0/8"]}))
        await direct.delete("GlobalNetworkSet", "goes")
        await direct.create(resource("GlobalNetworkSet", "comes"))
        stage.expire_watches = True
        await stage.start()
        assert sorted((await follower.until(4))[1:]) == [("changed", "changes"), ("created", "comes"), ("gone", "goes")]
        await direct.delete("GlobalNetworkSet", "stays")
        assert (await follower.until(5))[4:] == [("gone", "stays")]


async def test_a_dry_run_checks_all_and_stores_nothing() -> None:
    store = MemoryStore()
    async with rest_stage(store) as stage:
        async with connect(await open_access(Settings(endpoint=stage.url)), dry_run=True) as remote:
            await remote.create(resource("Tier", "sec", {"order": 5}))
            with pytest.raises(NotFound, match=r"Tier\(none\)"):
                await remote.create(policy("web", tier="none"))
        with pytest.raises(NotFound):
            await ResourceClient(store).get("Tier", "sec")
        assert all("dryRun=All" in path for method, path in stage.requests if method != "GET")


@pytest.mark.servers
async def test_the_real_server_runs_dry_too(etcd: EtcdServer, apiserver: str) -> None:
    store = await connect_etcd(StoreConfig(endpoints=(etcd.endpoint,)))
    try:
        await ResourceClient(store).ensure_initialized()
        before = [kv.key for kv in (await store.list("/calico/")).kvs]
        async with connect(await open_access(Settings(endpoint=apiserver)), dry_run=True) as remote:
            written = await remote.create(resource("Tier", "dry", {"order": 5}))
            assert written.resource.metadata.name == "dry"
            with pytest.raises(NotFound, match=r"Tier\(none\)"):
                await remote.create(policy("dry", tier="none"))
            with pytest.raises(AlreadyExists):
                await remote.create(resource("Tier", "default"))
        assert [kv.key for kv in (await store.list("/calico/")).kvs] == before
    finally:
        await store.close()


async def test_a_wrong_token_is_told() -> None:
    async with rest_stage(MemoryStore(), token="right-token") as stage:
        wrong = await open_access(Settings(endpoint=stage.url, token="wrong-token"))
        async with connect(wrong) as remote:
            with pytest.raises(StoreAuthError, match="credentials"):
                await remote.list("Tier")
        right = await open_access(Settings(endpoint=stage.url, token="right-token"))
        async with connect(right) as remote:
            assert len((await remote.list("Tier")).items) == 3


async def test_nodes_are_said_to_be_elsewhere(rest: tuple[RestStage, RemoteClient, ResourceClient]) -> None:
    _stage, remote, _direct = rest
    with pytest.raises(NotSupported, match="DATASTORE_TYPE=etcdv3"):
        await remote.list("Node")


async def test_a_server_that_is_away_is_told_with_its_address() -> None:
    access = await open_access(Settings(endpoint="http://127.0.0.1:1"))
    async with connect(access) as remote:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
            await remote.create(resource("Tier", "sec"))


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (403, b'{"message": "tiers.projectcalico.org is forbidden: no"}', Forbidden),
        (429, b"slow down", StoreUnavailable),
        (500, b"\xff\xfe", StoreUnavailable),
        (404, b"404 page not found", NotSupported),
        (422, b'{"details": {"causes": [{"field": "spec.x", "message": "bad"}]}}', ValidationError),
        (409, b'{"reason": "AlreadyExists"}', AlreadyExists),
        (409, b'{"reason": "Conflict"}', Conflict),
    ],
)
def test_answers_that_are_no_result(code: int, body: bytes, expected: type[Exception]) -> None:
    assert isinstance(of_answer(code, body, "get", codec.identity_of("Tier", "x")), expected)


# --- how a server is found -------------------------------------------------------------------------------------------

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: good
clusters:
- {name: here, cluster: {server: "%(url)s"}}
- {name: nowhere, cluster: {server: "http://127.0.0.1:1"}}
users:
- {name: me, user: {token: right-token}}
contexts:
- {name: good, context: {cluster: here, user: me}}
- {name: bad, context: {cluster: nowhere, user: me}}
"""


async def test_kubeconfig_and_its_contexts(tmp_path: object) -> None:
    async with rest_stage(MemoryStore(), token="right-token") as stage:
        text = KUBECONFIG % {"url": stage.url}
        for settings, works in (
            (Settings(kubeconfig_text=text), True),
            (Settings(kubeconfig_text=text, context="bad"), False),
            (Settings(kubeconfig_text=text, context="bad", endpoint=stage.url), True),
        ):
            async with connect(await open_access(settings)) as remote:
                if works:
                    assert len((await remote.list("Tier")).items) == 3
                else:
                    with pytest.raises(StoreUnavailable):
                        await remote.create(resource("Tier", "sec"))
        with pytest.raises(AccessProblem, match="none"):
            await open_access(Settings(kubeconfig_text=text, context="none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(endpoint="ftp://x"), "K8S_API_ENDPOINT"),
        (Settings(endpoint="https://x", cert_file="/a"), "K8S_KEY_FILE"),
        (Settings(endpoint="https://x", ca_file="/none"), "/none"),
        (Settings(kubeconfig="/none/here"), "/none/here"),
        (Settings(kubeconfig_text="5"), "expected a kubeconfig"),
    ],
)
async def test_settings_that_cannot_be_used(settings: Settings, message: str) -> None:
    with pytest.raises(AccessProblem, match=message):
        await open_access(settings)
