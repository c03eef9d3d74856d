"""Get and list over REST and a real etcd: freshness, chunks of one revision, selectors, forms of answers (row A03)."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from libs.model import keys
from libs.resources import codec
from libs.store import StoreConfig
from libs.store.etcd import connect
from libs.testkit.servers import EtcdServer
from services.apiserver.shell.cache import CacheSettings
from tests.contract.verbs_stage import API_VERSION, Stage, open_stage

pytestmark = pytest.mark.servers

NETSETS = "namespaces/shop/networksets"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,"
PARTIAL += "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


async def fill(stage: Stage, count: int, namespace: str = "shop") -> None:
    async def one(number: int) -> None:
        labels = {"odd": str(number % 2)}
        await stage.make("networksets", f"n{number:03}", {"nets": ["10.0.0.1/32"]}, namespace, labels=labels)

    for first in range(0, count, 20):
        await asyncio.gather(*map(one, range(first, min(first + 20, count))))


# --- freshness -------------------------------------------------------------------------------------------------------


async def test_list_shows_every_write_that_was_answered(stage: Stage) -> None:
    for number in range(40):
        made = await stage.make("networksets", f"n{number}", {}, "shop")
        listed = await stage.call("GET", NETSETS)
        assert f"n{number}" in listed.names
        assert int(listed.json["metadata"]["resourceVersion"]) >= int(made["metadata"]["resourceVersion"])
        await stage.call("DELETE", f"{NETSETS}/n{number}")
        assert (await stage.call("GET", NETSETS)).names == []


async def test_get_and_list_not_older_than(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    version = made["metadata"]["resourceVersion"]
    got = await stage.call("GET", f"{NETSETS}/a", resourceVersion=version)
    assert got.json == made
    listed = await stage.call("GET", NETSETS, resourceVersion=version)
    assert listed.names == ["a"]
    assert int(listed.json["metadata"]["resourceVersion"]) >= int(version)
    assert (await stage.call("GET", f"{NETSETS}/a", resourceVersion=0)).status in (200, 404)
    assert (await stage.call("GET", NETSETS, resourceVersion=0)).status == 200
    monkeypatch.setattr(stage.cache, "_settings", CacheSettings(wait_s=0.5))
    future = str(int(version) + 1_000_000)
    for path in (NETSETS, f"{NETSETS}/a"):
        answer = await stage.call("GET", path, resourceVersion=future)
        assert (answer.status, answer.json.get("reason")) == (504, "Timeout")
        assert answer.json["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


async def test_exact_revisions_show_the_past(stage: Stage) -> None:
    await stage.make("networksets", "a", {}, "shop")
    then = (await stage.make("networksets", "b", {}, "shop"))["metadata"]["resourceVersion"]
    await stage.call("DELETE", f"{NETSETS}/a")
    await stage.make("networksets", "c", {}, "shop")
    past = await stage.call("GET", NETSETS, resourceVersion=then, resourceVersionMatch="Exact")
    assert (past.names, past.json["metadata"]["resourceVersion"]) == (["a", "b"], then)
    limited = await stage.call("GET", NETSETS, resourceVersion=then, limit=1)
    assert (limited.names, limited.json["metadata"]["remainingItemCount"]) == (["a"], 1)
    newest = (await stage.call("GET", NETSETS)).json["metadata"]["resourceVersion"]
    await stage.store.compact(int(newest))
    gone = await stage.call("GET", NETSETS, resourceVersion=then, resourceVersionMatch="Exact")
    assert (gone.status, gone.json["reason"]) == (410, "Expired")
    ahead = str(int(newest) + 1_000_000)
    future = await stage.call("GET", NETSETS, resourceVersion=ahead, resourceVersionMatch="Exact")
    assert (future.status, future.json["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")


# --- chunks ----------------------------------------------------------------------------------------------------------


async def test_chunks_are_one_list_of_one_moment(stage: Stage) -> None:
    await fill(stage, 50)
    await fill(stage, 3, "aaa")
    await fill(stage, 3, "shopping")
    whole = await stage.call("GET", NETSETS)
    page = await stage.call("GET", NETSETS, limit=20)
    names, items, metadata = page.names, page.json["items"], page.json["metadata"]
    assert metadata["remainingItemCount"] == 30
    assert metadata["resourceVersion"] == whole.json["metadata"]["resourceVersion"]
    await stage.call("DELETE", f"{NETSETS}/n030")
    await stage.make("networksets", "n025x", {}, "shop")
    changed = whole.json["items"][40] | {"spec": {"nets": ["10.9.9.9/32"]}}
    assert (await stage.call("PUT", f"{NETSETS}/n040", changed)).status == 200
    assert (await stage.call("GET", NETSETS)).json["items"][40]["spec"]["nets"] == ["10.9.9.9/32"]  # it is known by now
    while token := metadata.get("continue"):
        page = await stage.call("GET", NETSETS, limit=20, continue_=token)
        assert page.json["metadata"]["resourceVersion"] == metadata["resourceVersion"]
        metadata = page.json["metadata"]
        names += page.names
        items += page.json["items"]
    assert "remainingItemCount" not in metadata
    assert items == whole.json["items"]
    assert names == whole.names == [f"n{number:03}" for number in range(50)]


async def test_chunks_with_selectors_do_not_count_the_rest(stage: Stage) -> None:
    await fill(stage, 25)
    names, token, pages = [], "", 0
    while True:
        query = {"continue": token} if token else {}
        page = await stage.call("GET", NETSETS, limit=5, labelSelector="odd=1", **query)
        assert "remainingItemCount" not in page.json["metadata"]
        assert len(page.names) <= 5
        names, pages = names + page.names, pages + 1
        token = page.json["metadata"].get("continue", "")
        if not token:
            break
    assert names == [f"n{number:03}" for number in range(1, 25, 2)]
    assert pages == 3


async def test_chunk_whose_revision_is_gone_says_how_to_go_on(stage: Stage) -> None:
    await fill(stage, 10)
    page = await stage.call("GET", NETSETS, limit=4)
    await stage.make("networksets", "z", {}, "shop")
    newest = (await stage.call("GET", NETSETS)).json["metadata"]["resourceVersion"]
    await stage.store.compact(int(newest))
    gone = await stage.call("GET", NETSETS, limit=4, continue_=page.json["metadata"]["continue"])
    assert (gone.status, gone.json["reason"]) == (410, "Expired")
    assert "The provided continue parameter is too old to display a consistent list result" in gone.message
    rest = await stage.call("GET", NETSETS, continue_=gone.json["metadata"]["continue"])
    assert rest.names == [*(f"n{number:03}" for number in range(4, 10)), "z"]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v2","rv":5,"start":"a"}').decode(),
        base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":0,"start":"a"}').decode(),
        base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":-2,"start":"a"}').decode(),
        base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":5,"start":"../../tiers/a"}').decode(),
        base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":5,"start":""}').decode(),
        "é",
    ],
)
async def test_continue_tokens_of_nobody_are_refused(stage: Stage, token: str) -> None:
    answer = await stage.call("GET", NETSETS, continue_=token)
    assert (answer.status, answer.json.get("reason")) == (400, "BadRequest"), answer.text
    assert answer.message.startswith("continue key is not valid: ")


async def test_built_in_profile_is_in_every_list_at_its_place(stage: Stage) -> None:
    for name in ("a", "projectcalico-default-a", "z"):
        await stage.make("profiles", name, {})
    wanted = ["a", "projectcalico-default-a", "projectcalico-default-allow", "z"]
    assert (await stage.call("GET", "profiles")).names == wanted
    for limit in (1, 2, 3, 4):
        names, token = [], ""
        while True:
            query = {"continue": token} if token else {}
            page = await stage.call("GET", "profiles", limit=limit, **query)
            names += page.names
            token = page.json["metadata"].get("continue", "")
            if not token:
                break
        assert names == wanted, limit


async def test_one_answer_of_many_reads_is_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.apiserver.shell.reading._READ_AT_ONCE", 2)
    names = ["a", "b", "c", "projectcalico-default-b", "q", "r", "s"]
    for name in names:
        made = await stage.make("profiles", name, {}, labels={"at": name})
    version = made["metadata"]["resourceVersion"]
    wanted = sorted([*names, "projectcalico-default-allow"])
    past = await stage.call("GET", "profiles", resourceVersion=version, resourceVersionMatch="Exact")
    assert past.names == wanted
    some = await stage.call(
        "GET", "profiles", resourceVersion=version, limit=2, labelSelector="at in (a,r,s)", resourceVersionMatch="Exact"
    )
    assert some.names == ["a", "r"]
    rest = await stage.call("GET", "profiles", labelSelector="at", continue_=some.json["metadata"]["continue"])
    assert rest.names == ["s"]


# --- selectors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "fields", "names"),
    [
        ("app=web", "", ["a", "b"]),
        ("app!=web", "", ["c", "d"]),
        ("app in (web, db),!old", "", ["b", "c"]),
        ("app notin (web)", "", ["c", "d"]),
        ("old", "", ["a"]),
        ("", "metadata.name=c", ["c"]),
        ("", "metadata.name!=c", ["a", "b", "d"]),
        ("", "metadata.namespace=two", ["d"]),
        ("app", "metadata.namespace=one,metadata.name!=a", ["b", "c"]),
        ("app=none", "", []),
    ],
)
async def test_selectors(stage: Stage, labels: str, fields: str, names: list[str]) -> None:
    await stage.make("networksets", "a", {}, "one", labels={"app": "web", "old": ""})
    await stage.make("networksets", "b", {}, "one", labels={"app": "web"})
    await stage.make("networksets", "c", {}, "one", labels={"app": "db"})
    await stage.make("networksets", "d", {}, "two")
    found = await stage.call("GET", "networksets", labelSelector=labels, fieldSelector=fields)
    assert found.names == names


async def test_policies_are_selected_by_tier(stage: Stage) -> None:
    await stage.make("tiers", "sec", {})
    await stage.make("globalnetworkpolicies", "a", {"tier": "sec"})
    await stage.make("globalnetworkpolicies", "b", {})
    where = "globalnetworkpolicies"
    assert (await stage.call("GET", where, fieldSelector="spec.tier=sec")).names == ["a"]
    assert (await stage.call("GET", where, fieldSelector="spec.tier!=sec")).names == ["b"]
    assert (await stage.call("GET", where, labelSelector="projectcalico.org/tier in (sec)")).names == ["a"]
    assert (await stage.call("GET", where)).names == ["a", "b"]


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ({"fieldSelector": "spec.tier=a"}, 400, "field label not supported: spec.tier"),
        ({"fieldSelector": "metadata.name"}, 400, "invalid selector: 'metadata.name'"),
        ({"labelSelector": "a b"}, 400, "unable to parse requirement: found 'b', expected: in, notin"),
        ({"labelSelector": "a=b=c"}, 400, "found '=', expected: ',' or 'end of string'"),
        ({"limit": "x"}, 400, 'strconv.ParseInt: parsing "x": invalid syntax'),
        ({"resourceVersion": "x"}, 400, 'resourceVersion: Invalid value: "x"'),
        ({"resourceVersion": str(2**64)}, 400, "value out of range"),
        ({"resourceVersionMatch": "Exact"}, 422, "is forbidden unless resourceVersion is provided"),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "0"}, 422, 'is forbidden for resourceVersion "0"'),
        ({"resourceVersionMatch": "Some", "resourceVersion": "5"}, 422, 'Unsupported value: "Some"'),
        ({"sendInitialEvents": "true"}, 422, "sendInitialEvents is forbidden for list"),
        ({"includeObject": "All"}, 400, 'unrecognized includeObject value: "All"'),
    ],
)  # fmt: skip
async def test_bad_queries_are_told(stage: Stage, query: dict[str, str], code: int, message: str) -> None:
    answer = await stage.call("GET", NETSETS, **query)
    assert answer.status == code, answer.text
    assert message in answer.message


# --- forms -----------------------------------------------------------------------------------------------------------


async def test_table_of_a_list_and_of_one(stage: Stage) -> None:
    await stage.make("ippools", "p", {"cidr": "fd00::/48"})
    table = (await stage.call("GET", "ippools", headers={"Accept": TABLE})).json
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    names = [column["name"] for column in table["columnDefinitions"]]
    (row,) = table["rows"]
    assert dict(zip(names, row["cells"], strict=True))["CIDR"] == "fd00::/48"
    assert row["object"]["kind"] == "PartialObjectMetadata"
    one = (await stage.call("GET", "ippools/p", headers={"Accept": TABLE}, includeObject="Object")).json
    assert one["rows"][0]["object"]["spec"]["cidr"] == "fd00::/48"
    none = (await stage.call("GET", "ippools", headers={"Accept": TABLE}, includeObject="None")).json
    assert "object" not in none["rows"][0]


async def test_metadata_alone(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop")
    listed = (await stage.call("GET", NETSETS, headers={"Accept": PARTIAL})).json
    assert (listed["kind"], listed["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    wanted = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": made["metadata"]}
    assert listed["items"] == [wanted]
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    assert (await stage.call("GET", f"{NETSETS}/a", headers={"Accept": accept})).json == wanted


async def test_yaml_and_pretty_are_the_same_object(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop")
    pretty = await stage.call("GET", f"{NETSETS}/a", pretty="true")
    assert pretty.json == made
    assert '\n  "metadata": {\n' in pretty.text
    yaml = await stage.call("GET", NETSETS, headers={"Accept": "application/yaml"})
    assert "kind: NetworkSetList\n" in yaml.text


async def test_large_list_is_whole_though_sent_in_pieces(stage: Stage) -> None:
    await fill(stage, 40)
    big = {"metadata": {"annotations": {"big": "x" * 20_000}}}
    for number in range(40):
        body = json.dumps(big).encode()
        path = f"{NETSETS}/n{number:03}"
        await stage.call("PATCH", path, body, content_type="application/merge-patch+json")
    listed = await stage.call("GET", NETSETS)
    assert listed.headers["Transfer-Encoding"] == "chunked"
    assert len(listed.names) == 40
    assert {len(item["metadata"]["annotations"]["big"]) for item in listed.json["items"]} == {20_000}


async def test_what_calicoctl_stores_is_read_and_what_nobody_can_read_is_skipped(stage: Stage) -> None:
    await stage.resources.create(
        codec.from_json(
            {"kind": "NetworkSet", "apiVersion": API_VERSION, "metadata": {"name": "a", "namespace": "shop"}}
        )
    )
    await stage.store.put(keys.resource_key("NetworkSet", "bad", "shop"), b"{")
    assert (await stage.call("GET", NETSETS)).names == ["a"]
    assert (await stage.call("GET", NETSETS, limit=1)).names == ["a"]
    got = (await stage.call("GET", f"{NETSETS}/a")).json
    assert "generation" not in got["metadata"]
    changed = await stage.call("PUT", f"{NETSETS}/a", {**got, "spec": {"nets": ["10.0.0.1/32"]}})
    assert changed.json["metadata"]["generation"] == 1
    broken = await stage.call("GET", f"{NETSETS}/bad")
    assert (broken.status, broken.json["reason"]) == (500, "InternalError")
    assert (await stage.call("DELETE", f"{NETSETS}/bad")).status == 200


async def test_names_that_are_paths_reach_nothing_else(stage: Stage) -> None:
    await stage.make("networksets", "a", {}, "shop")
    for path in ("networksets/shop%2Fa", "namespaces/shop%2Fa/networksets/b", "tiers/..%2Ftiers%2Fdefault"):
        for method in ("GET", "DELETE"):
            answer = await stage.call(method, f"/apis/projectcalico.org/v3/{path}")
            assert answer.status in (400, 404), (method, path, answer.text)


async def test_head_has_no_body(stage: Stage) -> None:
    await stage.make("networksets", "a", {}, "shop")
    for path in (NETSETS, f"{NETSETS}/a"):
        answer = await stage.call("HEAD", path)
        assert (answer.status, answer.text) == (200, "")


async def test_datastore_that_is_away_is_said_so(tmp_path: Path) -> None:
    async with EtcdServer() as etcd:
        store = await connect(StoreConfig(endpoints=(etcd.endpoint,)))
        async with open_stage(store, tmp_path) as stage:
            made = await stage.make("networksets", "a", {}, "shop")
            assert (await stage.call("GET", NETSETS)).names == ["a"]
            patient = store._connection.config
            store._connection.config = replace(patient, request_timeout_s=1.0)
            etcd.pause()
            for method, path, body in (
                ("GET", f"{NETSETS}/a", None),
                ("GET", NETSETS, None),
                ("POST", NETSETS, {"metadata": {"name": "b"}}),
                ("PUT", f"{NETSETS}/a", {**made, "spec": {"nets": ["10.0.0.1/32"]}}),
                ("DELETE", f"{NETSETS}/a", None),
            ):
                answer = await stage.call(method, path, body)
                assert (answer.status, answer.json.get("reason")) == (503, "ServiceUnavailable"), (method, answer.text)
                assert int(answer.headers["Retry-After"]) >= 1
            cached = await stage.call("GET", NETSETS, resourceVersion=0)
            assert (cached.status, cached.names) == (200, ["a"]), "what the cache knows it still tells"
            etcd.resume()
            store._connection.config = patient
            async with asyncio.timeout(60):
                while (answer := await stage.call("GET", "tiers")).status == 503:
                    pass
            assert answer.status == 200
        await store.close()


async def test_writes_and_chunked_lists_meet(stage: Stage) -> None:
    """While others write, each chunked list is the state of one moment: as many objects as were there then."""
    await fill(stage, 40)
    done = asyncio.Event()

    async def swap() -> None:
        number = 0
        while not done.is_set():
            name = f"n{number % 40:03}"
            assert (await stage.call("DELETE", f"{NETSETS}/{name}")).status == 200
            await stage.make("networksets", name, {}, "shop")
            number += 1

    swapping = asyncio.create_task(swap())
    try:
        for limit in (3, 7, 11, 39, 40, 41):
            names: list[str] = []
            token = ""
            while True:
                page = await stage.call("GET", NETSETS, limit=limit, **({"continue": token} if token else {}))
                assert page.status == 200, page.text
                names += page.names
                token = page.json["metadata"].get("continue", "")
                if not token:
                    break
            assert names == sorted(set(names))
            assert len(names) in (39, 40)
    finally:
        done.set()
        await swapping
