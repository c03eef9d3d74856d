"""Several clients at once on the whole apiserver: one wins, the others are told, and nothing is lost (rows A04, A06).

By default some hundreds of rounds; `./dev hunt` runs ten thousand. All rounds of a test share one server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.contract.apiserver_process import (
    API,
    POLICIES,
    SETS,
    TIERS,
    Answer,
    JsonObject,
    Running,
    ask,
    network_set,
    policy,
    running,
)

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]

ROUNDS = 300
HUNT_ROUNDS = 10_000
APPLY = {"Content-Type": "application/apply-patch+yaml"}
Session = aiohttp.ClientSession


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("apiserver"), user_rate_per_s="0") as found:
        yield found


@pytest.fixture
async def clients(server: Running) -> AsyncIterator[tuple[Session, Session]]:
    """Two, with connections of their own."""
    async with server.session() as one, server.session() as other:
        yield one, other


def counted(answers: list[Answer]) -> dict[int, int]:
    found: dict[int, int] = {}
    for answer in answers:
        found[answer.status] = found.get(answer.status, 0) + 1
    return found


async def created(session: Session, path: str, body: JsonObject) -> JsonObject:
    answer = await ask(session, "POST", path, body)
    assert answer.status == 201, answer.body
    return answer.json


# --- two writers with the version that both read ---


async def update_rounds(clients: tuple[Session, Session], name: str, rounds: int) -> None:
    """In each round both put what they read with a mark of their own; the marks of those who won must all be there."""
    live = await created(clients[0], SETS, network_set(name, []))
    path = f"{SETS}/{name}"
    won: list[str] = []
    for number in range(rounds):
        bodies = []
        for who in ("ann", "bob"):
            # Every won round leaves its mark; only the last fifty are kept, so that the object stays small.
            marks = [*won[-50:], f"{who}-{number}"]
            metadata = {**live["metadata"], "annotations": {"marks": ",".join(marks), "last": who}}
            bodies.append({**live, "metadata": metadata})
        answers = await asyncio.gather(
            *(ask(session, "PUT", path, body) for session, body in zip(clients, bodies, strict=True))
        )
        assert counted(answers) == {200: 1, 409: 1}, [answer.body for answer in answers]
        winner, loser = sorted(answers, key=lambda answer: answer.status)
        assert loser.reason == "Conflict"
        assert "the object has been modified" in loser.message
        won.append(f"{('ann', 'bob')[answers.index(winner)]}-{number}")
        live = (await ask(clients[number % 2], "GET", path)).json
        assert live == winner.json
        assert live["metadata"]["annotations"]["marks"].split(",") == won[-51:]


async def test_two_writers_one_wins_and_the_other_is_told(clients: tuple[Session, Session]) -> None:
    await update_rounds(clients, "updates", ROUNDS)


@pytest.mark.hunt
@pytest.mark.timeout(3600)
async def test_two_writers_ten_thousand_rounds(clients: tuple[Session, Session]) -> None:
    await update_rounds(clients, "updates-hunt", HUNT_ROUNDS)


async def test_writers_that_read_again_after_a_conflict_lose_no_increment(server: Running) -> None:
    """The loop of every controller: read, change, write, again on 409."""
    async with server.session() as session:
        await created(session, SETS, network_set("counter", [], annotations={"count": "0"}))
        path, conflicts = f"{SETS}/counter", 0

        async def count(times: int) -> None:
            nonlocal conflicts
            for _ in range(times):
                while True:
                    live = (await ask(session, "GET", path)).json
                    annotations = live["metadata"]["annotations"]
                    annotations["count"] = str(int(annotations["count"]) + 1)
                    answer = await ask(session, "PUT", path, live)
                    if answer.status == 200:
                        break
                    assert answer.status == 409, answer.body
                    conflicts += 1

        writers, each = 6, ROUNDS // 10
        await asyncio.gather(*(count(each) for _ in range(writers)))
        live = (await ask(session, "GET", path)).json
    assert int(live["metadata"]["annotations"]["count"]) == writers * each
    assert conflicts, "nobody was ever in another's way: the test shows nothing"


async def test_patches_without_a_version_all_come_in(server: Running) -> None:
    """The server reads, patches and writes, and does so again when another was faster."""
    async with server.session() as session:
        await created(session, SETS, network_set("patched", []))
        path = f"{SETS}/patched"
        kinds: list[tuple[str, Any]] = []
        for number in range(ROUNDS // 3):
            name = f"p{number}"
            merge = {"metadata": {"annotations": {name: "1"}}}
            kinds.append(("application/merge-patch+json", merge))
        await ask(session, "PATCH", path, {"metadata": {"annotations": {"a": "1"}}}, {"Content-Type": kinds[0][0]})
        for number in range(ROUNDS // 3):
            operation = {"op": "add", "path": f"/metadata/annotations/j{number}", "value": "1"}
            kinds.append(("application/json-patch+json", [operation]))
        Random(1).shuffle(kinds)
        room = asyncio.Semaphore(8)

        async def patch(media: str, body: Any) -> Answer:
            async with room:
                return await ask(session, "PATCH", path, body, {"Content-Type": media})

        answers = await asyncio.gather(*(patch(media, body) for media, body in kinds))
        assert counted(answers) == {200: len(kinds)}
        annotations = (await ask(session, "GET", path)).json["metadata"]["annotations"]
    assert len(annotations) == len(kinds) + 1


# --- server-side apply ---


async def test_managers_that_apply_at_the_same_time_all_get_their_fields(server: Running) -> None:
    """Each owns nets and an annotation of its own, and changes them in every round."""
    managers = [f"m{number}" for number in range(6)]
    rounds = ROUNDS // 12
    path = f"{SETS}/applied"

    async def manage(session: Session, number: int, manager: str) -> None:
        for turn in range(rounds):
            body = network_set("applied", [f"10.{number}.{turn}.0/24", f"fd00:{number}:{turn}::/64"])
            body["metadata"]["annotations"] = {manager: str(turn)}
            answer = await ask(session, "PATCH", f"{path}?fieldManager={manager}", body, APPLY)
            assert answer.status in (200, 201), answer.body
            nets = answer.json["spec"]["nets"]
            assert set(body["spec"]["nets"]) <= set(nets), "what was applied is not in the answer"
            assert len([net for net in nets if net.startswith(f"10.{number}.")]) == 1, "the one before was not removed"

    async with server.session() as session:
        await asyncio.gather(*(manage(session, number, manager) for number, manager in enumerate(managers)))
        live = (await ask(session, "GET", path)).json
    expected = {f"10.{number}.{rounds - 1}.0/24" for number in range(len(managers))}
    expected |= {f"fd00:{number}:{rounds - 1}::/64" for number in range(len(managers))}
    assert set(live["spec"]["nets"]) == expected
    assert live["metadata"]["annotations"] == {manager: str(rounds - 1) for manager in managers}
    owners = {entry["manager"]: entry for entry in live["metadata"]["managedFields"]}
    assert set(owners) == set(managers)
    for number, manager in enumerate(managers):
        fields = owners[manager]["fieldsV1"]
        assert owners[manager]["operation"] == "Apply"
        assert set(fields["f:spec"]["f:nets"]) == {
            f'v:"10.{number}.{rounds - 1}.0/24"', f'v:"fd00:{number}:{rounds - 1}::/64"'
        }  # fmt: skip


async def test_of_managers_that_apply_different_values_one_wins(server: Running) -> None:
    """A new object each round: the first apply creates it and owns the value, all others are told who does."""
    managers = [f"m{number}" for number in range(4)]
    async with server.session() as session:
        for turn in range(ROUNDS // 6):
            path = f"{POLICIES}/contested-{turn}"
            answers = await asyncio.gather(*(
                ask(session, "PATCH", f"{path}?fieldManager={manager}", policy(f"contested-{turn}", order=order), APPLY)
                for order, manager in enumerate(managers, 1)
            ))  # fmt: skip
            assert counted(answers) == {201: 1, 409: 3}, [answer.body for answer in answers]
            winner = next(answer.json for answer in answers if answer.status == 201)
            (owner,) = (entry["manager"] for entry in winner["metadata"]["managedFields"])
            for answer in answers:
                if answer.status == 409:
                    assert (answer.reason, answer.fields) == ("Conflict", [".spec.order"])
                    assert f'conflict with "{owner}"' in answer.message
            live = (await ask(session, "GET", path)).json
            assert live["spec"]["order"] == managers.index(owner) + 1


async def test_an_apply_and_updates_in_each_others_way_lose_nothing(server: Running) -> None:
    async with server.session() as session:
        await created(session, SETS, network_set("mixed", []))
        path, rounds = f"{SETS}/mixed", ROUNDS // 6

        async def applying() -> None:
            for turn in range(rounds):
                body = {"apiVersion": API, "kind": "NetworkSet", "metadata": {"name": "mixed"}}
                body["metadata"] = {"name": "mixed", "labels": {"applied": str(turn)}}
                answer = await ask(session, "PATCH", f"{path}?fieldManager=applier", body, APPLY)
                assert answer.status == 200, answer.body

        async def updating() -> None:
            for turn in range(rounds):
                while True:
                    live = (await ask(session, "GET", path)).json
                    live["metadata"].setdefault("annotations", {})[f"u{turn}"] = "1"
                    answer = await ask(session, "PUT", f"{path}?fieldManager=updater", live)
                    if answer.status == 200:
                        break
                    assert answer.status == 409, answer.body

        await asyncio.gather(applying(), updating())
        live = (await ask(session, "GET", path)).json
    assert live["metadata"]["labels"] == {"applied": str(rounds - 1)}
    assert len(live["metadata"]["annotations"]) == rounds
    owned = {(entry["manager"], entry["operation"]) for entry in live["metadata"]["managedFields"]}
    assert {("applier", "Apply"), ("updater", "Update")} <= owned


# --- the beginning and the end of objects ---


async def test_creators_of_one_name_one_wins(server: Running) -> None:
    async with server.session() as session:
        for turn in range(ROUNDS // 3):
            body = [policy(f"once-{turn}", order=order) for order in (1, 2, 3, 4)]
            answers = await asyncio.gather(*(ask(session, "POST", POLICIES, one) for one in body))
            assert counted(answers) == {201: 1, 409: 3}
            assert {answer.reason for answer in answers if answer.status == 409} == {"AlreadyExists"}
            winner = next(answer.json for answer in answers if answer.status == 201)
            assert (await ask(session, "GET", f"{POLICIES}/once-{turn}")).json == winner


async def test_generated_names_never_meet(server: Running) -> None:
    body = {"apiVersion": API, "kind": "GlobalNetworkPolicy", "metadata": {"generateName": "made-"}, "spec": {}}
    async with server.session(connections=16) as session:
        answers = await asyncio.gather(*(ask(session, "POST", POLICIES, body) for _ in range(ROUNDS // 2)))
    assert counted(answers) == {201: ROUNDS // 2}
    assert len({answer.json["metadata"]["name"] for answer in answers}) == ROUNDS // 2


async def test_delete_against_update(clients: tuple[Session, Session]) -> None:
    """Either the update came first and the deletion took it along, or it finds nothing; never does it bring the object
    back, and never does it go to another object of that name.
    """
    deleter, updater = clients
    seen: set[int] = set()
    path = f"{TIERS}/short"
    for turn in range(ROUNDS // 2):
        live = await created(deleter, TIERS, {"metadata": {"name": "short"}, "spec": {"order": turn + 1}})
        uid = live["metadata"]["uid"]
        changed = {**live, "spec": {**live["spec"], "order": turn + 2}}
        first, second = (ask(deleter, "DELETE", path), ask(updater, "PUT", path, changed))
        gone, put = await asyncio.gather(*((first, second) if turn % 2 else (second, first)))
        if not turn % 2:
            gone, put = put, gone
        assert gone.status == 200, gone.body
        assert put.status in (200, 404, 409), put.body
        if put.status == 200:
            assert put.json["metadata"]["uid"] == uid
        seen.add(put.status)
        assert (await ask(updater, "GET", path)).status == 404, "the deleted object is there again"
    assert len(seen) > 1, f"always {seen}: they never met"


async def test_a_deletion_of_an_earlier_object_spares_the_new_one(clients: tuple[Session, Session]) -> None:
    one, other = clients
    path = f"{TIERS}/again"
    body = {"metadata": {"name": "again"}, "spec": {"order": 1}}
    for _ in range(ROUNDS // 6):
        old = await created(one, TIERS, body)
        assert (await ask(one, "DELETE", path)).status == 200
        precondition = {"preconditions": {"uid": old["metadata"]["uid"]}}
        new, late = await asyncio.gather(ask(one, "POST", TIERS, body), ask(other, "DELETE", path, precondition))
        assert new.status == 201
        assert late.status in (404, 409), late.body
        assert (await ask(other, "GET", path)).json["metadata"]["uid"] == new.json["metadata"]["uid"]
        assert (await ask(other, "DELETE", path, {"preconditions": {"uid": new.json["metadata"]["uid"]}})).status == 200


async def test_deletions_of_one_object_one_finds_it(server: Running) -> None:
    async with server.session() as session:
        for turn in range(ROUNDS // 6):
            await created(session, POLICIES, policy(f"doomed-{turn}"))
            answers = await asyncio.gather(*(ask(session, "DELETE", f"{POLICIES}/doomed-{turn}") for _ in range(4)))
            assert counted(answers) == {200: 1, 404: 3}, [answer.body for answer in answers]


async def test_what_is_created_during_a_deletion_of_all_is_there_or_was_deleted(server: Running) -> None:
    async with server.session() as session:
        for number in range(30):
            await created(session, SETS, network_set(f"all-{number}", [], labels={"of": "all"}))
        selector = f"{SETS}?labelSelector=of%3Dall"
        deleted, *made = await asyncio.gather(
            ask(session, "DELETE", selector),
            *(ask(session, "POST", SETS, network_set(f"late-{n}", [], labels={"of": "all"})) for n in range(10)),
        )
        assert deleted.status == 200
        assert counted(made) == {201: 10}
        left = {item["metadata"]["name"] for item in (await ask(session, "GET", selector)).json["items"]}
        assert left <= {f"late-{number}" for number in range(10)}
        for name in left:
            assert (await ask(session, "GET", f"{SETS}/{name}")).status == 200
