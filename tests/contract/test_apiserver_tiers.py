"""Tier RBAC through the verbs (row A07): who has one tier neither reads nor writes another, lists included."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.verbs_stage import Stage, role

pytestmark = pytest.mark.servers

GNP = "globalnetworkpolicies"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
GROUPS = ["projectcalico.org"]


def of_tier(tier: str, *verbs: str, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rules for policies in a tier: all of them, or those of the names."""
    return [
        {"apiGroups": GROUPS, "resources": ["tiers"], "resourceNames": [tier], "verbs": ["get"]},
        {
            "apiGroups": GROUPS,
            "resources": [f"tier.{GNP}"],
            "resourceNames": list(names) or [f"{tier}.*"],
            "verbs": list(verbs) or ["*"],
        },
    ]


@pytest.fixture
async def two_tiers(stage: Stage) -> Stage:
    """alice has all of tier a; bob may read a, and write what is called b1 in b; carol has nothing."""
    for tier in ("a", "b"):
        await stage.make("tiers", tier, {"order": 5})
        for number in (1, 2):
            await stage.make(GNP, f"{tier}{number}", {"tier": tier}, labels={"n": str(number)})
    stage.allow(
        [
            *role("alice", *of_tier("a")),
            *role("bob", *of_tier("a", "get", "list", "watch"), *of_tier("b", "get", "update", "patch", names=("b1",))),
        ]
    )
    return stage


async def test_other_tiers_are_neither_read_nor_written(two_tiers: Stage) -> None:
    stage = two_tiers
    before = (await stage.call("GET", f"{GNP}/b1")).json
    for method, path, body, content_type in (
        ("GET", f"{GNP}/b1", None, ""),
        ("PUT", f"{GNP}/b1", {**before, "spec": {**before["spec"], "order": 1}}, "application/json"),
        ("PATCH", f"{GNP}/b1", {"spec": {"order": 1}}, MERGE),
        ("DELETE", f"{GNP}/b1", None, ""),
        ("POST", GNP, {"metadata": {"name": "b3"}, "spec": {"tier": "b"}}, "application/json"),
    ):
        answer = await stage.call(method, path, body, content_type=content_type or "application/json", user="alice")
        assert (answer.status, answer.json["reason"]) == (403, "Forbidden"), (method, answer.text)
        assert 'User "alice" cannot' in answer.message
        assert 'in tier "b"' in answer.message
        assert "(user cannot get tier)" in answer.message
    apply = {"metadata": {"name": "b1"}, "spec": {"tier": "b", "order": 1}}
    answer = await stage.call("PATCH", f"{GNP}/b1", apply, content_type=APPLY, user="alice", fieldManager="x")
    assert answer.status == 403
    assert (await stage.call("GET", f"{GNP}/b1")).json == before
    assert (await stage.call("GET", f"{GNP}/b3")).status == 404


async def test_who_may_not_see_a_tier_does_not_learn_which_names_it_has(two_tiers: Stage) -> None:
    """With the name or without it the same is answered; who may see any tier learns of names that belong to none."""
    stage = two_tiers
    await stage.make(GNP, "b.there", {"tier": "b"})
    answers = []
    for name in ("b.there", "b.none"):
        body = {"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"tier": "b"}}
        for method, given, content_type in (
            ("GET", None, ""),
            ("PUT", body, "application/json"),
            ("PATCH", {"spec": {"order": 1}}, MERGE),
            ("DELETE", None, ""),
        ):
            answer = await stage.call(method, f"{GNP}/{name}", given, content_type=content_type, user="alice")
            answers.append((name, answer.status, answer.message.replace(name, "NAME")))
    there, none = [[rest for name, *rest in answers if name == one] for one in ("b.there", "b.none")]
    assert there == none
    assert {status for status, _ in none} == {403}
    assert (await stage.call("GET", f"{GNP}/b.none")).status == 404
    assert (await stage.call("GET", f"{GNP}/a.none", user="alice")).status == 404
    assert (await stage.call("GET", f"{GNP}/none", user="alice")).status == 404  # and then she may create it in a
    assert (await stage.call("GET", f"{GNP}/not.there", user="alice")).status == 404
    assert (await stage.call("GET", f"{GNP}/none", user="carol")).status == 403
    assert (await stage.call("GET", f"{GNP}/none", user="carol", resourceVersion=0)).status == 403
    assert (await stage.call("DELETE", f"{GNP}/none", user="carol")).status == 403


async def test_own_tier_is_read_and_written(two_tiers: Stage) -> None:
    stage = two_tiers
    made = await stage.call("POST", GNP, {"metadata": {"name": "a3"}, "spec": {"tier": "a"}}, user="alice")
    assert made.status == 201
    assert (await stage.call("PUT", f"{GNP}/a3", made.json, user="alice")).status == 200
    answer = await stage.call("PATCH", f"{GNP}/a3", {"spec": {"order": 1}}, content_type=MERGE, user="alice")
    assert answer.status == 200
    assert (await stage.call("DELETE", f"{GNP}/a3", user="alice")).status == 200


async def test_names_within_a_tier(two_tiers: Stage) -> None:
    stage = two_tiers
    patch = {"spec": {"order": 9}}
    assert (await stage.call("PATCH", f"{GNP}/b1", patch, content_type=MERGE, user="bob")).status == 200
    for path in (f"{GNP}/b2", f"{GNP}/a1"):
        answer = await stage.call("PATCH", path, patch, content_type=MERGE, user="bob")
        assert answer.status == 403
        assert "(user cannot get tier)" not in answer.message
    assert (await stage.call("GET", f"{GNP}/b2", user="bob")).status == 403
    assert (await stage.call("GET", f"{GNP}/a2", user="bob")).status == 200


async def test_lists_show_readable_tiers_alone(two_tiers: Stage) -> None:
    stage = two_tiers
    assert (await stage.call("GET", GNP)).names == ["a1", "a2", "b1", "b2"]
    assert (await stage.call("GET", GNP, user="alice")).names == ["a1", "a2"]
    assert (await stage.call("GET", GNP, user="bob")).names == ["a1", "a2"]
    assert (await stage.call("GET", GNP, user="carol")).names == []
    assert (await stage.call("GET", GNP, user="alice", labelSelector="n=2")).names == ["a2"]
    assert (await stage.call("GET", GNP, user="alice", labelSelector="projectcalico.org/tier in (a,b)")).names == [
        "a1",
        "a2",
    ]
    for query in ({"labelSelector": "projectcalico.org/tier=b"}, {"fieldSelector": "spec.tier=b"}):
        answer = await stage.call("GET", GNP, user="alice", **query)
        assert (answer.status, 'in tier "b"' in answer.message) == (403, True)
    page = await stage.call("GET", GNP, user="alice", limit=1)
    assert "remainingItemCount" not in page.json["metadata"], "how many the others have is not told"
    rest = await stage.call("GET", GNP, user="alice", continue_=page.json["metadata"]["continue"])
    assert page.names + rest.names == ["a1", "a2"]


async def test_a_move_needs_both_tiers(two_tiers: Stage) -> None:
    stage = two_tiers
    for content_type, body in (
        (MERGE, {"spec": {"tier": "b"}}),
        (APPLY, {"metadata": {"name": "a1"}, "spec": {"tier": "b"}}),
    ):
        query = {"fieldManager": "x", "force": "true"} if content_type == APPLY else {}
        answer = await stage.call("PATCH", f"{GNP}/a1", body, content_type=content_type, user="alice", **query)
        assert (answer.status, 'in tier "b"' in answer.message) == (403, True), answer.text
    live = (await stage.call("GET", f"{GNP}/a1")).json
    moved = {**live, "spec": {**live["spec"], "tier": "b"}}
    assert (await stage.call("PUT", f"{GNP}/a1", moved, user="alice")).status == 403
    stage.allow(role("alice", *of_tier("a"), *of_tier("b")))
    answer = await stage.call("PUT", f"{GNP}/a1", moved, user="alice")
    assert (answer.status, answer.json["metadata"]["labels"]["projectcalico.org/tier"]) == (200, "b")


async def test_deletecollection_takes_what_may_be_deleted_or_nothing(two_tiers: Stage) -> None:
    stage = two_tiers
    answer = await stage.call("DELETE", GNP, user="bob")
    assert (answer.status, 'in tier "a"' in answer.message) == (403, True)
    assert (await stage.call("GET", GNP)).names == ["a1", "a2", "b1", "b2"]
    assert (await stage.call("DELETE", GNP, user="alice")).names == ["a1", "a2"]
    assert (await stage.call("GET", GNP)).names == ["b1", "b2"]


async def test_apply_that_creates_needs_to_create(two_tiers: Stage) -> None:
    stage = two_tiers
    body = {"metadata": {"name": "a9"}, "spec": {"tier": "a"}}
    answer = await stage.call("PATCH", f"{GNP}/a9", body, content_type=APPLY, user="alice", fieldManager="x")
    assert (answer.status, "cannot create resource" in answer.message) == (403, True)
    create = {"apiGroups": GROUPS, "resources": [GNP], "verbs": ["create"]}
    stage.allow(role("alice", create, *of_tier("a")))
    answer = await stage.call("PATCH", f"{GNP}/a9", body, content_type=APPLY, user="alice", fieldManager="x")
    assert answer.status == 201
    (entry,) = answer.json["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("x", "Apply")


async def test_two_appliers_meet_in_a_conflict(stage: Stage) -> None:
    body = {"metadata": {"name": "p"}, "spec": {"order": 1}}
    first = await stage.call("PATCH", f"{GNP}/p", body, content_type=APPLY, fieldManager="one")
    assert first.status == 201
    other = {"metadata": {"name": "p"}, "spec": {"order": 2}}
    refused = await stage.call("PATCH", f"{GNP}/p", other, content_type=APPLY, fieldManager="two")
    assert (refused.status, refused.json["reason"]) == (409, "Conflict")
    (cause,) = refused.json["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".spec.order")
    forced = await stage.call("PATCH", f"{GNP}/p", other, content_type=APPLY, fieldManager="two", force="true")
    assert (forced.status, forced.json["spec"]["order"]) == (200, 2)
    nobody = await stage.call("PATCH", f"{GNP}/p", other, content_type=APPLY)
    assert (nobody.status, "fieldManager: Required value: is required for apply patch" in nobody.message) == (422, True)


async def test_watch_shows_readable_tiers_alone(two_tiers: Stage) -> None:
    stage = two_tiers
    answer = await stage.call("GET", GNP, user="alice", watch="true", timeoutSeconds=1)
    names = [line.split('"name":"', 1)[1].split('"', 1)[0] for line in answer.text.splitlines()]
    assert names == ["a1", "a2"]
