"""Informers on an API server in trouble: what they know stays right, and they do not hurry it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from libs.kube import api as kube_api
from libs.kube import informer as kube_informer
from libs.kube.api import KubeApi, KubeError
from libs.kube.informer import Informer
from libs.kube.objects import PODS, Key, Pod
from tests.contract.kube_stage import TroubledApi, document, event, events, listing, pod, silent, status
from tests.contract.typha_stage import eventually

pytestmark = [pytest.mark.asyncio]


class Watched:
    """An informer and what it told."""

    def __init__(self, api: KubeApi, path: str = PODS.path, *, optional: bool = False) -> None:
        self.told: list[frozenset[Key]] = []
        self.problems: list[str] = []
        self.informer: Informer[Pod] = Informer(
            api, path, PODS.decode, self.told.append, Random(1), report=self.problems.append, optional=optional
        )

    def labels(self) -> dict[str, dict[str, str]]:
        return {key.name: found.metadata.labels for key, found in self.informer.objects.items()}

    async def until(self, **labels: dict[str, str]) -> None:
        await eventually(lambda: self.labels() == labels, what=f"{labels}")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[TroubledApi]:
    async with TroubledApi() as made:
        yield made


@pytest_asyncio.fixture
async def api(server: TroubledApi, tmp_path: Path) -> AsyncIterator[KubeApi]:
    async with await KubeApi.open(server.kubeconfig(tmp_path)) as made:
        yield made


@pytest_asyncio.fixture
async def watched(api: KubeApi) -> AsyncIterator[Watched]:
    made = Watched(api)
    yield made


async def running(made: Watched) -> asyncio.Task[None]:
    return asyncio.create_task(made.informer.run(), name="informer")


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_errors_of_the_list_are_tried_again_and_retry_after_is_kept(
    server: TroubledApi, watched: Watched
) -> None:
    server.put("a", x="1")
    server.lists += [status(500, "etcd is slow"), status(429, "too many", **{"Retry-After": "1"})]
    task = await running(watched)
    assert not watched.informer.in_sync
    await watched.until(a={"x": "1"})
    times = server.times("LIST")
    assert len(times) == 3
    assert times[2] - times[1] >= 1.0
    assert any("etcd is slow" in text for text in watched.problems)
    assert watched.problems[-1] == ""
    assert watched.told == [frozenset({Key("ns", "a")})]
    await ended(task)


async def test_a_watch_that_ends_at_once_is_not_asked_for_in_a_hurry(server: TroubledApi, watched: Watched) -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "11"}})
    server.watches += [events(), events(bookmark), events(), events(bookmark), events()]
    task = await running(watched)
    await eventually(lambda: len(server.times("WATCH")) >= 6)
    pauses = [later - earlier for earlier, later in pairwise(server.times("WATCH"))]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6), strict=False)), pauses
    assert len(server.times("LIST")) == 1, "a watch that ends is no reason to list"
    await ended(task)


async def test_a_lost_history_is_listed_again_and_what_went_meanwhile_is_told(
    server: TroubledApi, watched: Watched
) -> None:
    server.put("a")
    server.put("b")
    task = await running(watched)
    gone = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
    await watched.until(a={}, b={})
    del server.objects["a"]
    server.put("c")
    server.watches.append(events(gone))
    server.end.set()
    await watched.until(b={}, c={})
    assert watched.told[-1] == frozenset({Key("ns", "a"), Key("ns", "c")})
    await ended(task)


async def test_a_list_that_breaks_in_the_middle_tells_nothing_and_forgets_nothing(
    server: TroubledApi, watched: Watched
) -> None:
    server.put("a", v="1")
    server.put("b", v="1")
    task = await running(watched)
    await watched.until(a={"v": "1"}, b={"v": "1"})
    changed = server.put("a", v="2")
    # Page one is taken in; then the token is too old: what page one brought must still be told.
    server.lists += [document(listing([changed], 20, "token")), status(410, "token expired")]
    server.watches.append(events(event("ERROR", {"code": 410, "message": "too old"})))
    server.end.set()
    await watched.until(a={"v": "2"}, b={"v": "1"})
    await eventually(lambda: len(watched.told) == 2)
    assert watched.told[-1] == frozenset({Key("ns", "a")})
    assert [query.get("continue") for query in server.queries("LIST")] == [None, None, "token", None]
    await ended(task)


async def test_nothing_is_in_sync_before_the_last_page(server: TroubledApi, watched: Watched) -> None:
    release = asyncio.Event()
    server.lists += [document(listing([pod("a", 5)], 20, "token")), silent(release)]
    task = await running(watched)
    await eventually(lambda: len(server.queries("LIST")) == 2)
    assert not watched.informer.in_sync
    assert watched.told == []
    await ended(task)
    release.set()


async def test_a_bookmark_moves_the_revision_that_the_next_watch_begins_at(
    server: TroubledApi, watched: Watched
) -> None:
    server.watches += [
        events(event("BOOKMARK", {"metadata": {"resourceVersion": "77"}})),
        events(event("ADDED", pod("a", 80))),
    ]
    task = await running(watched)
    await eventually(lambda: len(server.queries("WATCH")) >= 3)
    assert [query["resourceVersion"] for query in server.queries("WATCH")][:3] == ["10", "77", "80"]
    await ended(task)


@pytest.mark.parametrize(
    "line",
    [
        b"{garbage",
        b'"text"',
        b'{"type": "ADDED", "object": []}',
        b'{"type": "ADDED", "object": {"metadata": {}}}',
        b'{"type": "ADDED", "object": {"metadata": {"name": 5}}}',
        b'{"type": "BOOKMARK", "object": null}',
        b'{"type": "ERROR", "object": "oops"}',
        b'{"type": "ERROR", "object": {"code": "x", "details": []}}',
        b'{"type": "SURPRISE", "object": {"metadata": {"name": "a"}}}',
        b'{"type": "ADDED", "object": "' + b"x" * 3000 + b'"}',
    ],
)
async def test_a_line_that_makes_no_sense_leads_to_a_new_list(
    server: TroubledApi, watched: Watched, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_api, "_LINE_LIMIT", 2000)
    server.put("a")
    server.watches.append(events(line, stay=server.end))
    task = await running(watched)
    await eventually(lambda: len(server.times("LIST")) >= 2)
    await watched.until(a={})
    assert not task.done()
    await ended(task)


@pytest.mark.parametrize(
    "answer", [{"items": "none"}, {"items": [5]}, {"items": [{"metadata": {"name": ""}}]}, {"items": [], "metadata": 5}]
)
async def test_a_list_that_makes_no_sense_is_not_taken_for_an_empty_one(
    server: TroubledApi, watched: Watched, answer: dict[str, object]
) -> None:
    server.put("a")
    server.lists.append(document(answer))
    task = await running(watched)
    await watched.until(a={})
    assert watched.told == [frozenset({Key("ns", "a")})]
    await ended(task)


async def test_an_object_that_cannot_be_read_exists_all_the_same(server: TroubledApi, watched: Watched) -> None:
    server.put("a")["spec"] = {"nodeName": 5}
    key = Key("ns", "a")
    task = await running(watched)
    await eventually(lambda: watched.informer.in_sync)
    assert key in watched.informer
    assert key not in watched.informer.objects
    assert "nodeName" in watched.informer.unreadable[key]
    repaired = pod("a", 30, fixed="yes")
    server.watches.append(events(event("MODIFIED", repaired)))
    server.end.set()
    await watched.until(a={"fixed": "yes"})
    assert not watched.informer.unreadable
    await ended(task)


async def test_a_server_that_says_nothing_is_left_and_asked_again(
    server: TroubledApi, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_api, "LIST_TIMEOUT_S", 3.0)
    monkeypatch.setattr(kube_api, "WATCH_S", 0.2)
    monkeypatch.setattr(kube_api, "TIMEOUT_S", 3.0)
    server.put("a")
    server.lists.append(silent(server.end))
    server.watches.append(events(stay=server.end))  # begins, and then nothing for longer than a watch may last
    task = await running(watched)
    await watched.until(a={})
    lists = len(server.times("LIST"))
    assert lists >= 2
    await eventually(lambda: len(server.times("WATCH")) >= 2)
    assert len(server.times("LIST")) == lists
    assert {query["resourceVersion"] for query in server.queries("WATCH")} == {"11"}
    await ended(task)


async def test_a_revision_from_before_a_restored_backup_leads_to_a_new_list(
    server: TroubledApi, watched: Watched
) -> None:
    server.put("a")
    server.put("b")
    task = await running(watched)
    await watched.until(a={}, b={})
    server.revision = 5
    server.objects = {"a": pod("a", 3, old="yes")}
    server.watches.append(status(504, "Too large resource version"))
    server.end.set()
    await watched.until(a={"old": "yes"})
    await ended(task)


async def test_a_kind_that_is_not_served_has_no_objects_and_may_come_and_go(
    server: TroubledApi, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_informer, "ABSENT_S", 0.05)
    made = Watched(api, "/apis/example.org/v1/things", optional=True)
    server.served = False
    server.lists += [status(404)] * 2
    server.put("a")
    task = await running(made)
    await eventually(lambda: made.informer.in_sync)
    assert made.labels() == {}
    server.served = True
    await made.until(a={})
    # 404 while the kind is served says nothing of its objects.
    server.lists.append(status(404))
    server.watches.append(events(event("ERROR", {"code": 410, "message": "too old"})))
    server.end.set()
    await eventually(lambda: len(server.times("LIST")) >= 5)
    assert made.labels() == {"a": {}}
    server.served = False
    server.lists += [status(404)] * 50
    server.watches += [status(404)] * 50
    await made.until()
    assert Key("ns", "a") in made.told[-1]
    await ended(task)


async def test_a_missing_kind_that_must_be_there_is_no_reason_to_forget(server: TroubledApi, watched: Watched) -> None:
    server.put("a")
    task = await running(watched)
    await watched.until(a={})
    server.watches += [status(404), events(stay=asyncio.Event())]
    server.lists += [status(404)]
    server.end.set()
    await eventually(lambda: len(server.times("LIST")) >= 3)
    assert all("a" in {key.name for key in told} for told in watched.told)
    assert watched.labels() == {"a": {}}
    await ended(task)


async def test_an_answer_that_is_no_json_and_a_status_without_a_message_are_errors(
    server: TroubledApi, api: KubeApi
) -> None:
    server.lists += [events(b"<html>"), events(b"[]"), status(418, "")]
    for code in (502, 502, 418):
        with pytest.raises(KubeError) as caught:
            await api.list_all("/api/v1/pods")
        assert caught.value.code == code
        assert "GET /api/v1/pods" in str(caught.value)
