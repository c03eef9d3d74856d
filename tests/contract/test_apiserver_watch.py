"""Watches over HTTP from a real etcd: what Kubernetes promises its clients, through restarts, compaction and loss."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from libs.model import keys
from libs.resources import codec
from libs.store import StoreConfig, StoreError
from libs.store.etcd import EtcdStore
from libs.testkit.relay import Relay
from libs.testkit.servers import EtcdServer, etcd_cluster, free_port
from services.apiserver.core.ports import Stored
from services.apiserver.core.status import ApiError
from services.apiserver.shell.cache import CacheSettings
from services.apiserver.shell.watching import WatchSettings, metadata_only
from tests.contract.apiserver_watch_stage import (
    DEADLINE_S,
    PATIENT,
    SETS,
    Api,
    Reflector,
    State,
    api,
    delete,
    document,
    eventually,
    key_of,
    listed,
    put,
    tier,
    watching,
)

pytestmark = pytest.mark.servers

SET = "GlobalNetworkSet"
QUICK = replace(PATIENT, progress_s=0.1, hold_s=0.1)


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as started:
        yield started


@pytest.fixture
async def store(server: EtcdServer) -> AsyncGenerator[EtcdStore, None]:
    async with EtcdStore(StoreConfig((server.endpoint,))) as made:
        for kv in (await made.list(keys.PREFIX, keys_only=True)).kvs:
            await made.delete(kv.key)
        yield made


@pytest.fixture
async def running(store: EtcdStore) -> AsyncGenerator[Api, None]:
    async with api(store).serve() as made:
        yield made


# --- how a watch begins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
async def test_without_a_revision_all_is_added_and_then_what_changes(
    store: EtcdStore, running: Api, query: dict[str, str]
) -> None:
    first, second = await put(store, SET, "b"), await put(store, SET, "a")
    await running.cache.list(_kind(), at_least=second)
    async with watching(running.url, **query) as frames:
        assert frames.answer.headers["Content-Type"] == "application/json"
        assert await frames.short(2) == [("ADDED", "a", second), ("ADDED", "b", first)]
        third = await put(store, SET, "c")
        fourth = await put(store, SET, "c", app="x")
        fifth = await delete(store, SET, "a")
        assert await frames.short(3) == [("ADDED", "c", third), ("MODIFIED", "c", fourth), ("DELETED", "a", fifth)]


async def test_unset_revision_shows_what_was_written_before_it_was_asked(store: EtcdStore, running: Api) -> None:
    """The cache must not answer from before."""
    for number in range(20):
        revision = await put(store, SET, f"s{number}")
        async with watching(running.url) as frames:
            names = [name for _, name, _ in await frames.short(number + 1)]
        assert f"s{number}" in names
        state, at = await listed(running.url)
        assert len(state) == number + 1
        assert at >= revision
    for number in range(20):
        revision = await delete(store, SET, f"s{number}")
        state, at = await listed(running.url)
        assert f"/s{number}" not in state
        assert at >= revision


async def test_from_a_revision_only_what_came_after(store: EtcdStore, running: Api) -> None:
    first = await put(store, SET, "a")
    _, listed_at = await listed(running.url)
    second = await put(store, SET, "b")
    async with watching(running.url, resourceVersion=str(first)) as frames:
        assert await frames.short(1) == [("ADDED", "b", second)]
    async with watching(running.url, resourceVersion=str(listed_at)) as frames:
        assert await frames.short(1) == [("ADDED", "b", second)]
    async with watching(running.url, resourceVersion=str(second), timeoutSeconds="1") as frames:
        assert await frames.until_end() == []


async def test_streamed_list_ends_with_a_bookmark_that_says_so(store: EtcdStore, running: Api) -> None:
    revision = await put(store, SET, "a")
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    for asked in ({}, {"resourceVersion": "0"}, {"resourceVersion": str(revision)}):
        async with watching(running.url, **query, **asked) as frames:
            added, end = await frames.take(2)
            assert (added["type"], key_of(added["object"])) == ("ADDED", "/a")
            assert end["type"] == "BOOKMARK"
            assert end["object"]["kind"] == SET
            assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
            assert int(end["object"]["metadata"]["resourceVersion"]) >= revision
            assert set(end["object"]) == {"kind", "apiVersion", "metadata"}


async def test_refused_before_the_stream_begins(running: Api) -> None:
    async with aiohttp.ClientSession() as session:
        for query, code, reason in (
            ({"resourceVersion": "abc"}, 400, "BadRequest"),
            ({"sendInitialEvents": "true"}, 422, "Invalid"),
            ({"resourceVersionMatch": "Exact"}, 422, "Invalid"),
            ({"resourceVersion": str(2**62)}, 410, "Expired"),  # no etcd of this history ever had it
        ):
            async with session.get(f"{running.url}/{SETS}", params={"watch": "1", **query}) as answer:
                status = await answer.json()
                assert (answer.status, status["reason"], status["kind"]) == (code, reason, "Status"), query


async def test_list_of_a_revision_that_never_comes_is_a_timeout(store: EtcdStore) -> None:
    async with api(store, settings=CacheSettings(wait_s=0.2)).serve() as made:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{made.url}/{SETS}", params={"resourceVersion": str(2**40)}) as answer,
        ):
            status = await answer.json()
            assert answer.status == 504
        assert status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


async def test_default_allow_profile_is_shown_and_nobody_changes_it(store: EtcdStore, running: Api) -> None:
    await store.put(keys.resource_key("Profile", "projectcalico-default-allow"), b"{}")
    await put(store, "Profile", "p")
    state, _ = await listed(running.url, "profiles")
    assert set(state) == {"/p", "/projectcalico-default-allow"}
    assert state["/projectcalico-default-allow"]["metadata"]["resourceVersion"] == "1"
    async with watching(running.url, "profiles") as frames:
        assert [name for _, name, _ in await frames.short(2)] == ["p", "projectcalico-default-allow"]


async def test_values_that_nobody_can_read_are_skipped(store: EtcdStore, running: Api) -> None:
    await store.put(keys.resource_key(SET, "bad"), b"{")
    first = await put(store, SET, "good")
    state, _ = await listed(running.url)
    assert list(state) == ["/good"]
    async with watching(running.url, resourceVersion=str(first)) as frames:
        second = await put(store, SET, "bad")
        key, _ = document(SET, "bad")
        third = await store.put(key, b"\xff")
        assert await frames.short(2) == [("ADDED", "bad", second), ("DELETED", "bad", third)]


# --- selection and forms ---------------------------------------------------------------------------------------------


async def test_object_that_leaves_the_selection_is_deleted_and_one_that_enters_is_added(
    store: EtcdStore, running: Api
) -> None:
    start = await put(store, SET, "a", colour="blue")
    async with watching(running.url, labelSelector="colour=blue", resourceVersion=str(start)) as frames:
        left = await put(store, SET, "a", colour="red")
        await put(store, SET, "a", colour="green")
        entered = await put(store, SET, "a", colour="blue", more="x")
        found = await frames.take(2)
    assert [frame["type"] for frame in found] == ["DELETED", "ADDED"]
    assert found[0]["object"]["metadata"]["labels"] == {"colour": "blue"}
    assert [int(frame["object"]["metadata"]["resourceVersion"]) for frame in found] == [left, entered]


async def test_rendered_watch_is_told_which_frame_is_the_first(store: EtcdStore) -> None:
    def render(stored: Stored, first: bool) -> bytes:
        return json.dumps({"kind": "Table", "first": first, "row": stored.resource.name}).encode()

    async with api(store, render=render).serve() as made:
        await put(store, SET, "a")
        await put(store, SET, "b")
        async with watching(made.url) as frames:
            found = [frame["object"] for frame in await frames.take(2)]
    assert found == [
        {"kind": "Table", "first": True, "row": "a"},
        {"kind": "Table", "first": False, "row": "b"},
    ]


async def test_partial_metadata(store: EtcdStore) -> None:
    async with api(store, render=metadata_only).serve() as made:
        revision = await put(store, SET, "a", app="x")
        async with watching(made.url) as frames:
            (frame,) = await frames.take(1)
    thing = frame["object"]
    assert (thing["kind"], thing["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert set(thing) == {"kind", "apiVersion", "metadata"}
    assert (thing["metadata"]["labels"], thing["metadata"]["resourceVersion"]) == ({"app": "x"}, str(revision))


async def test_websocket_over_ipv6_carries_a_frame_in_each_message(store: EtcdStore) -> None:
    async with (
        api(store, watching=WatchSettings(poll_s=0.05)).serve(host="::1") as made,
        aiohttp.ClientSession() as session,
    ):
        first = await put(store, SET, "a")
        async with session.ws_connect(f"{made.url}/{SETS}?watch=true") as socket:
            assert _short(await _text(socket)) == ("ADDED", "a", first)
            second = await delete(store, SET, "a")
            assert _short(await _text(socket)) == ("DELETED", "a", second)
        await eventually(lambda: made.handlers == 0)
        async with session.ws_connect(f"{made.url}/{SETS}?watch=true&timeoutSeconds=1") as socket:
            async with asyncio.timeout(DEADLINE_S):
                end = await socket.receive()
            assert end.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


async def _text(socket: aiohttp.ClientWebSocketResponse) -> str:
    async with asyncio.timeout(DEADLINE_S):
        return await socket.receive_str()


def _short(text: str) -> tuple[str, str, int]:
    frame = json.loads(text)
    return frame["type"], frame["object"]["metadata"]["name"], int(frame["object"]["metadata"]["resourceVersion"])


# --- bookmarks and the end -------------------------------------------------------------------------------------------


async def test_bookmarks_move_while_the_kind_is_at_rest_and_only_for_those_who_ask(store: EtcdStore) -> None:
    """Other kinds' writes move them at once, those outside of the watched prefix by comparison with etcd."""
    async with api(store, settings=QUICK, watching=WatchSettings(bookmark_s=0.1)).serve() as made:
        start = await put(store, SET, "a")
        async with AsyncExitStack() as stack:
            asked = await stack.enter_async_context(
                watching(made.url, resourceVersion=str(start), allowWatchBookmarks="true")
            )
            other = await stack.enter_async_context(watching(made.url, resourceVersion=str(start), timeoutSeconds="10"))
            for write in (put(store, SET, "b"), put(store, "Tier", "t"), store.put("/elsewhere", b"1")):
                revision = await write
                async with asyncio.timeout(DEADLINE_S):
                    while True:
                        (frame,) = await asked.take(1)
                        at = int(frame["object"]["metadata"]["resourceVersion"])
                        assert at <= (await store.status()).revision
                        if at >= revision:
                            break
            assert [frame["type"] for frame in await other.until_end()] == ["ADDED"]


async def test_bookmark_before_the_timeout_and_a_clean_end(store: EtcdStore, running: Api) -> None:
    start = await put(store, SET, "a")
    revision = await put(store, SET, "b")
    query = {"allowWatchBookmarks": "true", "timeoutSeconds": "8", "resourceVersion": str(start)}
    async with watching(running.url, **query) as frames:
        found = await frames.until_end()
    assert [frame["type"] for frame in found] == ["ADDED", "BOOKMARK"]
    assert int(found[1]["object"]["metadata"]["resourceVersion"]) >= revision


async def test_shutdown_ends_watches_cleanly_and_at_once(store: EtcdStore) -> None:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(api(store).serve())
        await put(store, SET, "a")
        clients = [await stack.enter_async_context(watching(made.url)) for _ in range(20)]
        for client in clients:
            await client.take(1)
        made.cache.close()
        for client in clients:
            assert await client.until_end() == []


async def test_client_that_goes_is_not_kept(store: EtcdStore) -> None:
    async with api(store, watching=WatchSettings(poll_s=0.05)).serve() as made:
        async with watching(made.url):
            assert made.handlers == 1
        await eventually(lambda: made.handlers == 0)


async def test_client_that_does_not_read_is_closed_and_costs_little(store: EtcdStore) -> None:
    """It never reads; the server must give it up after its limit, with the window moved far past it."""
    made = api(store, settings=replace(PATIENT, max_changes=50), watching=WatchSettings(write_limit_s=0.5))
    async with made.serve():
        await put(store, SET, "a")
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port, limit=1_000)
        path = made.url.removeprefix(f"http://127.0.0.1:{made.port}")
        writer.write(f"GET {path}/{SETS}?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await eventually(lambda: made.handlers == 1)
        big = "x" * 100_000
        async with asyncio.timeout(60):
            while made.handlers:
                await put(store, SET, "a", big=big)
        writer.close()
        del reader


# --- 410 -------------------------------------------------------------------------------------------------------------


async def test_slow_watcher_is_told_410_in_the_stream_and_others_are_not(store: EtcdStore) -> None:
    made = api(store, settings=replace(PATIENT, max_changes=5))
    kind = _kind()
    async with made.serve():
        start = await put(store, SET, "a")
        await made.cache.list(kind, at_least=start)
        slow = await made.cache.watch(kind, since=start)
        quick = Reflector(lambda: made.url)
        running = asyncio.create_task(quick.run())
        for number in range(20):
            revision = await put(store, SET, "a", n=str(number))
            await eventually(lambda expected=revision: quick.revision >= expected)  # type: ignore[misc]
        with pytest.raises(ApiError) as refused:
            await anext(slow)
        assert refused.value.code == 410
        await slow.aclose()
        assert quick.relists == 1
        await _cancelled(running)


async def test_compacted_revision_is_410(store: EtcdStore) -> None:
    start = await put(store, SET, "a")
    await put(store, SET, "a", n="2")
    revision = await put(store, SET, "a", n="3")
    await store.compact(revision)
    async with api(store).serve() as made, watching(made.url, resourceVersion=str(start)) as frames:
        assert frames.answer.status == 410
        assert (await frames.answer.json())["reason"] == "Expired"


# --- tiers -----------------------------------------------------------------------------------------------------------


async def test_new_or_deleted_tier_ends_watches_of_policies_only_and_nothing_is_missed(
    store: EtcdStore, running: Api
) -> None:
    policies = "globalnetworkpolicies"
    start = await put(store, "GlobalNetworkPolicy", "p0")
    for name, change in (("t", store.put(*tier("t"))), ("t", store.delete(tier("t")[0]))):
        async with (
            watching(running.url, policies, resourceVersion=str(start)) as frames,
            watching(running.url, SETS, resourceVersion=str(start)) as sets,
        ):
            before = await put(store, "GlobalNetworkPolicy", f"before-{name}")
            at = await change
            assert at is not None
            after = await put(store, "GlobalNetworkPolicy", f"after-{name}")
            found = await frames.until_end()
            told = [int(frame["object"]["metadata"]["resourceVersion"]) for frame in found]
            assert told == [before], "a watch must end where the tiers changed"
            put_set = await put(store, SET, f"s{at}")
            assert (await sets.short(1))[0][2] == put_set
        async with watching(running.url, policies, resourceVersion=str(told[-1])) as frames:
            assert (await frames.short(1))[0][2] == after
        start = put_set


async def test_watch_decided_before_a_tier_came_ends_at_once(store: EtcdStore, running: Api) -> None:
    kind = keys.kinds.kind("GlobalNetworkPolicy")
    start = await put(store, "GlobalNetworkPolicy", "p")
    await running.cache.list(kind, at_least=start)
    decided_at = running.cache.revision
    at = await store.put(*tier("t"))
    await eventually(lambda: running.cache.revision >= at)
    watch = await running.cache.watch(kind, since=start, decided_at=decided_at)
    async with asyncio.timeout(DEADLINE_S):
        assert [change async for changes in watch for change in changes] == []
    await watch.aclose()


async def test_changed_tier_ends_nothing(store: EtcdStore, running: Api) -> None:
    await store.put(*tier("t"))
    start = await put(store, "GlobalNetworkPolicy", "p")
    async with watching(running.url, "globalnetworkpolicies", resourceVersion=str(start)) as frames:
        key, value = tier("t")
        await store.put(key, value.replace(b'"uid"', b'"generation":2,"uid"'))
        after = await put(store, "GlobalNetworkPolicy", "q")
        assert (await frames.short(1))[0][2] == after


# --- restarts, compaction, loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slack", [0, 1_000])
async def test_restarted_server_tells_what_was_missed_exactly(store: EtcdStore, slack: int) -> None:
    async with api(store).serve() as made:
        start = await put(store, SET, "a")
        await listed(made.url)
    missed = [await put(store, SET, "a", n="1"), await put(store, SET, "b"), await delete(store, SET, "a")]
    async with api(store, settings=replace(PATIENT, replay_slack=slack)).serve() as made:
        await listed(made.url)  # the new cache begins here
        async with watching(made.url, resourceVersion=str(start)) as frames:
            assert await frames.short(3) == [
                ("MODIFIED", "a", missed[0]), ("ADDED", "b", missed[1]), ("DELETED", "a", missed[2]),
            ]  # fmt: skip
            for number in range(3):  # and goes on
                revision = await put(store, SET, f"new{number}")
                assert await frames.short(1) == [("ADDED", f"new{number}", revision)]
            assert [held.replays for held in made.cache._held.values() if held.replays] == []


async def test_many_who_come_back_after_a_restart_share_a_few_replays(store: EtcdStore) -> None:
    revisions = [await put(store, SET, "a", n=str(number)) for number in range(40)]
    async with api(store).serve() as made:

        def replays() -> int:
            return sum(len(held.replays) for held in made.cache._held.values())

        await listed(made.url)
        async with AsyncExitStack() as stack:
            clients, most = [], 0
            for revision in Random(4).sample(revisions, 40):
                client = await stack.enter_async_context(watching(made.url, resourceVersion=str(revision)))
                clients.append((revision, client))
                most = max(most, replays())
            assert 1 <= most <= 3
            for revision, client in clients:
                expected = [other for other in revisions if other > revision]
                assert [at for _, _, at in await client.short(len(expected))] == expected
        await eventually(lambda: not replays())


async def test_compaction_while_the_server_is_cut_off_is_no_end(server: EtcdServer, store: EtcdStore) -> None:
    """The cache loses etcd, etcd forgets what happened meanwhile; watchers are told what differs and go on."""
    async with Relay(server.port) as relay:
        config = StoreConfig((f"http://127.0.0.1:{relay.port}",), request_timeout_s=2.0)
        async with EtcdStore(config) as cut, api(cut).serve() as made:
            for name in "abc":
                await put(store, SET, name)
            client = Reflector(lambda: made.url)
            running = asyncio.create_task(client.run())
            await eventually(lambda: len(client.state) == 3)
            await relay.cut()
            await put(store, SET, "a", n="2")
            await delete(store, SET, "b")
            await put(store, SET, "d")
            await delete(store, SET, "c")
            await put(store, SET, "c", again="yes")
            last = await put(store, SET, "e")
            await store.compact(last)
            await relay.mend()
            await _same(client, store, running)
            assert client.relists == 1
            assert client.state["/c"]["metadata"]["labels"] == {"again": "yes"}
            await _cancelled(running)


async def test_another_history_ends_all_watches_with_410() -> None:
    with EtcdServer() as alone:
        async with EtcdStore(StoreConfig((alone.endpoint,))) as store, api(store).serve() as made:
            for name in "abc":
                start = await put(store, SET, name)
            async with watching(made.url, resourceVersion=str(start)) as frames:
                alone.forget()
                alone.cluster_token = uuid.uuid4().hex
                await alone.start_async()
                async with EtcdStore(StoreConfig((alone.endpoint,))) as fresh:
                    await put(fresh, SET, "x")
                    found = await frames.until_end()
                    assert [frame["type"] for frame in found] == ["ERROR"]
                    assert (found[0]["object"]["code"], found[0]["object"]["reason"]) == (410, "Expired")
                    state, _ = await listed(made.url)
                    assert list(state) == ["/x"]


async def test_etcd_member_is_restarted_and_watches_go_on(crash_etcd: Path) -> None:
    members = etcd_cluster(3, binary=crash_etcd)
    try:
        async with EtcdStore(StoreConfig(tuple(m.endpoint for m in members))) as store, api(store).serve() as made:
            await put(store, SET, "a")
            client = Reflector(lambda: made.url)
            running = asyncio.create_task(client.run())
            await eventually(lambda: client.state)
            for member in members:
                member.kill()
                await _put_somehow(store, f"during-{member.name}")
                await member.start_async()
            await _put_somehow(store, "last")
            await _same(client, store, running)
            assert client.relists == 1
            await _cancelled(running)
    finally:
        for member in members:
            member.close()


async def _put_somehow(store: EtcdStore, name: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await put(store, SET, name)
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return


# --- watch against list ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_random_writes_and_watchers_that_break_end_with_the_stores_state(
    store: EtcdStore, seed: int
) -> None:
    """Watchers with different selectors, interrupted at random points, the server restarted under them, etcd compacted
    in between: each ends with exactly what etcd holds. It checks on every frame what a watch promises (Reflector).
    """
    random = Random(seed)
    port = free_port()
    url = f"http://127.0.0.1:{port}/apis/projectcalico.org/v3"
    settings = replace(PATIENT, max_changes=40, progress_s=0.1, hold_s=0.05, replay_slack=20)
    watching_settings = WatchSettings(bookmark_s=0.05, min_timeout_s=0.5, poll_s=0.1)
    clients = [
        Reflector(lambda: url),
        Reflector(lambda: url, labelSelector="colour=blue"),
        Reflector(lambda: url, labelSelector="colour=red", streaming=True),
        Reflector(lambda: url, streaming=True),
        Reflector(lambda: url, "networksets", labelSelector="colour=blue"),
    ]
    async with AsyncExitStack() as server:
        await server.enter_async_context(api(store, settings=settings, watching=watching_settings).serve(port))
        running = [asyncio.create_task(client.run()) for client in clients]
        for number in range(1_000):
            await _random_write(store, random)
            _check(running)
            if random.random() < 0.05:
                random.choice(clients).interrupt()
            if number % 250 == 150:
                await server.aclose()
                for _ in range(random.randrange(30)):
                    await _random_write(store, random)
                await server.enter_async_context(api(store, settings=settings, watching=watching_settings).serve(port))
            if number % 400 == 300:
                await store.compact((await store.status()).revision - random.randrange(20))
        for client, task in zip(clients, running, strict=True):
            await _same(client, store, task)
        for task in running:
            await _cancelled(task)
    assert sum(client.resumed for client in clients) > 20


async def _random_write(store: EtcdStore, random: Random) -> None:
    kind, namespace = random.choice([(SET, ""), (SET, ""), ("NetworkSet", "ns1"), ("NetworkSet", "ns2")])
    name = f"s{random.randrange(25)}"
    roll = random.random()
    if roll < 0.3:
        await store.delete(keys.resource_key(kind, name, namespace))
    elif roll < 0.33:
        await store.put(keys.resource_key(kind, name, namespace), b"{")
    elif roll < 0.36:
        await store.put(f"/elsewhere/{name}", b"1")
    else:
        await put(store, kind, name, namespace, colour=random.choice(["red", "blue"]), n=str(random.random()))


def _check(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _same(client: Reflector, store: EtcdStore, task: asyncio.Task[None]) -> None:
    """Waits until the client believes what a direct look at etcd says."""
    kind = {"globalnetworksets": SET, "networksets": "NetworkSet"}[client._plural]
    wanted: State = {}
    name, _, value = client._query.get("labelSelector", "").partition("=")
    for kv in (await store.list(keys.resource_prefix(kind))).kvs:
        resource = codec.readable(kind, kv)
        if resource is not None and (not name or resource.metadata.labels.get(name) == value):
            thing = codec.to_json(resource)
            wanted[key_of(thing)] = thing

    def same() -> bool:
        _check([task])
        return client.state == wanted

    try:
        await eventually(same)
    except TimeoutError:
        assert client.state == wanted


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


# --- many ------------------------------------------------------------------------------------------------------------


async def test_a_thousand_watchers_are_told_everything_over_one_etcd_watch(store: EtcdStore) -> None:
    made = api(store)
    async with made.serve(), AsyncExitStack() as stack:
        start = await put(store, SET, "a")
        clients = []
        for _ in range(1_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port, limit=2**16)
            stack.callback(writer.close)
            path = made.url.removeprefix(f"http://127.0.0.1:{made.port}")
            writer.write(f"GET {path}/{SETS}?watch=1&resourceVersion={start} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            clients.append(reader)
        for reader in clients:
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        revisions = [await put(store, SET, "a", n=str(number)) for number in range(10)]
        for reader in clients:
            found: list[int] = []
            async with asyncio.timeout(60):
                while len(found) < len(revisions):
                    line = await reader.readline()
                    if line.startswith(b'{"type":'):
                        found.append(int(json.loads(line)["object"]["metadata"]["resourceVersion"]))
            assert found == revisions
        (held,) = [held for held in made.cache._held.values() if held.watches]
        assert len(held.watches) == 1_000
        assert not held.replays


def _kind() -> Any:
    return keys.kinds.kind(SET)
