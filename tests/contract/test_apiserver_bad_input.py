"""Objects that are none, or wrong ones: Kubernetes' code and reason, the field's path, bounded memory (row P30)."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.apiserver_process import (
    API,
    POLICIES,
    SETS,
    TIERS,
    JsonObject,
    Running,
    ask,
    network_set,
    policy,
)
from tests.contract.bad_input_stage import APPLY, MB, MERGE, PATCH, STRATEGIC, under_fire

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from under_fire(tmp_path_factory.mktemp("apiserver"))


@pytest.fixture(autouse=True)
async def served_afterwards(server: Running) -> AsyncIterator[None]:
    yield
    await server.answers()


# --- bodies that are no object ---


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "truncated"),
        (json.dumps(policy("x", order=1)).encode()[:-9], "truncated"),
        (json.dumps(policy("x", order=1)).encode() + b"}", "trailing"),
        (b"{'a': 1}", "malformed"),
        (b'{"spec":{"order":NaN}}', "malformed"),
        (b'{"spec":{"order":-Infinity}}', "malformed"),
        (b'{"spec":{"order":1e999}}', "out of range"),
        (b'{"spec":{"order":01}}', "malformed"),
        (b"\xff\xfe{\x00}\x00", "malformed"),  # UTF-16
        (b'{"metadata":{"name":"\xff"}}', "utf-8"),
        (b'{"metadata":{"name":"\xed\xa0\x80"}}', "utf-8"),  # half of a surrogate pair
        (b'{"metadata":{"name":"\\ud800"}}', "json parse error"),
        (b'{"metadata":{"name":"a\nb"}}', "malformed"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"spec":' * 200_000, "nested too deeply"),
        (b"[" * 900 + b"]" * 900, "expected an object"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b'"text"', "expected an object"),
    ],
)
async def test_a_body_that_is_no_json_object(server: Running, body: bytes, said: str) -> None:
    for method, path in (("POST", POLICIES), ("PUT", POLICIES + "/there")):
        found = await server.ask(method, path, body)
        assert (found.status, found.reason) == (400, "BadRequest"), found.body
        assert said in found.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"a: b: c", "yaml"),
        (b"a: &x [*x]", "contain itself"),
        (b"!!python/object/apply:os.system [id]", "yaml"),
        (b"\xff", "not UTF-8"),
        (b"- " * 20_000, "nested too deeply"),
        (b"{" * 5_000, "nested too deeply"),
        (b"a: [" + b"[" * 5_000, "nested too deeply"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%b]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(20)
        ), "aliases counted"),
        (b"apiVersion: projectcalico.org/v3\n---\nkind: Tier\n", "document"),
        (b"a: 1\n\tb: 2\n", "yaml"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_yaml_object(server: Running, body: bytes, said: str) -> None:
    found = await server.ask("POST", TIERS, body, headers={"Content-Type": "application/yaml"})
    assert (found.status, found.reason) == (400, "BadRequest"), found.body
    assert said in found.message
    patched = await server.ask("PATCH", TIERS + "/default?fieldManager=me", body, headers={"Content-Type": APPLY})
    assert (patched.status, patched.reason) == (400, "BadRequest"), patched.body


# --- objects of the wrong kind, and fields ---


def changed(**top: Any) -> JsonObject:
    return {**policy("new", order=1), **top}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (changed(kind="Bogus"), 'no kind "Bogus"'),
        (changed(kind="Tier"), "does not match"),
        (changed(kind=7), "kind"),
        (changed(apiVersion="projectcalico.org/v4"), "does not match the expected API version"),
        (changed(apiVersion="v1"), "does not match the expected API version"),
        (changed(apiVersion=[]), "must be text"),
        (changed(kind=[None]), "must be text"),
        (changed(metadata=3), "metadata"),
        (changed(metadata={"name": 3}), "metadata.name"),
        (changed(metadata={"name": "new", "labels": {"a": 1}}), "metadata.labels"),
        (changed(metadata={"name": "new", "resourceVersion": "5"}), "resourceVersion should not be set"),
        (changed(spec=[]), "spec"),
        (changed(spec={"order": "1"}), "spec.order"),
        (changed(spec={"order": 10**400}), "spec.order"),
        (changed(spec={"types": "Ingress"}), "spec.types"),
        (changed(spec={"ingress": [{"action": "Allow", "protocol": {"a": 1}}]}), "spec.ingress[0].protocol"),
        (changed(spec={"ingress": [{"action": "Allow", "destination": {"ports": [70000.5]}}]}), "ports[0]"),
        (changed(spec={"ingress": [{"action": "Allow", "icmp": {"type": 10**30}}]}), "spec.ingress[0].icmp.type"),
        (changed(spec={"ingress": [None]}), "spec.ingress[0]"),
    ],
)
async def test_an_object_of_another_shape_is_a_bad_request_that_names_the_field(
    server: Running, body: JsonObject, said: str
) -> None:
    found = await server.ask("POST", POLICIES, body)
    assert (found.status, found.reason) == (400, "BadRequest"), found.body
    assert said in found.message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (POLICIES, policy("new", selector="a =="), "spec.selector"),
        (POLICIES, policy("new", types=["Sideways"]), "spec.types"),
        (POLICIES, policy("new", ingress=[{"action": "Perhaps"}]), "spec.ingress[0].action"),
        (POLICIES, policy("new", ingress=[{"action": "Allow", "source": {"nets": ["10.0.0.0/33"]}}]), "nets"),
        (POLICIES, policy("new", ingress=[{"action": "Allow", "source": {"nets": ["fd00::/129"]}}]), "nets"),
        (POLICIES, policy("a/b"), "metadata.name"),
        (POLICIES, policy("x" * 254), "metadata.name"),
        (POLICIES, policy("new\n"), "metadata.name"),
        (POLICIES, policy(""), "metadata.name"),
        (POLICIES, changed(metadata={"name": "new", "labels": {"a b": "c"}}), "metadata.labels"),
        (SETS, network_set("new", ["not-a-net"]), "spec.nets"),
        (TIERS, {"metadata": {"name": "new"}, "spec": {"defaultAction": "Maybe"}}, "spec.defaultAction"),
    ],
)
async def test_invalid_values_are_unprocessable_and_name_the_field(
    server: Running, path: str, body: JsonObject, field: str
) -> None:
    found = await server.ask("POST", path, body)
    assert (found.status, found.reason) == (422, "Invalid"), found.body
    assert any(field.lower() in said.lower() for said in found.fields), found.fields


async def test_all_faults_of_an_object_come_at_once(server: Running) -> None:
    body = policy("new", selector="a ==", types=["Sideways"], ingress=[{"action": "Perhaps"}])
    found = await server.ask("POST", POLICIES, body)
    assert found.status == 422
    assert len(found.fields) >= 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"metadata":{"name":"v"},"spec":{"order":1,"ordr":2}}', 'unknown field "spec.ordr"'),
        (b'{"metadata":{"name":"v"},"spec":{"order":1,"order":2}}', 'duplicate field "spec.order"'),
        (b'{"metadata":{"name":"v","bogus":1},"spec":{}}', 'unknown field "metadata.bogus"'),
        (
            b'{"metadata":{"name":"v"},"spec":{"ingress":[{"action":"Allow","x":1}]}}',
            'unknown field "spec.ingress[0].x"',
        ),
        (b'{"metadata":{"name":"v"},"spec":{},"extra":{}}', 'unknown field "extra"'),
    ],
)  # fmt: skip
async def test_unknown_and_duplicate_fields_by_validation(server: Running, body: bytes, said: str) -> None:
    strict = await server.ask("POST", POLICIES + "?fieldValidation=Strict&dryRun=All", body)
    assert (strict.status, strict.reason) == (400, "BadRequest")
    assert f"strict decoding error: {said}" in strict.message
    for validation in ("", "&fieldValidation=Warn"):
        warned = await server.ask("POST", f"{POLICIES}?dryRun=All{validation}", body)
        assert warned.status == 201
        assert said.replace('"', '\\"') in warned.headers["Warning"]
    ignored = await server.ask("POST", POLICIES + "?fieldValidation=Ignore&dryRun=All", body)
    assert ignored.status == 201
    assert "Warning" not in ignored.headers


async def test_a_hundred_thousand_unknown_fields_make_no_endless_answer(server: Running) -> None:
    many = {f"field{number}": 1 for number in range(100_000)}
    strict = await server.ask("POST", POLICIES + "?fieldValidation=Strict", policy("new", **many))
    assert strict.status == 400
    warned = await server.ask("POST", POLICIES + "?dryRun=All", policy("new", **many))
    assert warned.status == 201
    assert sum(len(name) + len(value) for name, value in warned.headers.items()) < 32 * 1024


async def test_a_hundred_thousand_faults_make_no_endless_answer(server: Running) -> None:
    found = await server.ask("POST", SETS, network_set("new", ["x"] * 100_000))
    assert found.status == 422


# --- names, versions, preconditions ---


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"name": "other"}, 400, "does not match the name on the URL"),
        ({"name": ""}, 400, "name must be provided"),
        ({"resourceVersion": None}, 422, "must be specified for an update"),
        ({"resourceVersion": "0"}, 422, "must be specified for an update"),
        ({"resourceVersion": "abc"}, 422, "invalid syntax"),
        ({"resourceVersion": "-1"}, 422, "invalid syntax"),
        ({"resourceVersion": "1"}, 409, "the object has been modified"),
        ({"resourceVersion": "9" * 18}, 409, "the object has been modified"),
        ({"resourceVersion": "9" * 40}, 409, "the object has been modified"),
        ({"resourceVersion": 5}, 422, "invalid syntax"),
        ({"uid": "another"}, 409, "UID"),
    ],
)
async def test_updates_that_do_not_fit_what_is_there(
    server: Running, change: JsonObject, status: int, said: str
) -> None:
    live = (await server.ask("GET", POLICIES + "/there")).json
    metadata = {name: value for name, value in {**live["metadata"], **change}.items() if value is not None}
    found = await server.ask("PUT", POLICIES + "/there", {**live, "metadata": metadata})
    assert found.status == status, found.body
    assert found.reason == {400: "BadRequest", 409: "Conflict", 422: "Invalid"}[status]
    assert said in found.message
    assert (await server.ask("GET", POLICIES + "/there")).json == live


async def test_what_the_server_writes_into_metadata_is_not_the_clients(server: Running) -> None:
    live = (await server.ask("GET", POLICIES + "/there")).json
    others = {
        "creationTimestamp": "2001-01-01T00:00:00Z",
        "generation": 99,
        "deletionTimestamp": "2001-01-01T00:00:00Z",
    }
    found = await server.ask("PUT", POLICIES + "/there", {**live, "metadata": {**live["metadata"], **others}})
    assert found.status in (200, 422), found.body
    kept = (await server.ask("GET", POLICIES + "/there")).json["metadata"]
    assert {name: kept.get(name) for name in others} == {name: live["metadata"].get(name) for name in others}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", POLICIES + "/absent", None, 404, "NotFound"),
        ("PUT", POLICIES + "/absent", changed(metadata={"name": "absent", "resourceVersion": "5"}), 404, "NotFound"),
        ("DELETE", POLICIES + "/absent", None, 404, "NotFound"),
        ("POST", POLICIES, policy("there"), 409, "AlreadyExists"),
        ("GET", "/apis/projectcalico.org/v3/bogus", None, 404, "NotFound"),
        ("GET", "/apis/projectcalico.org/v4/tiers", None, 404, "NotFound"),
        ("GET", "/apis/projectcalico.org/v3/tiers/default/bogus", None, 404, "NotFound"),
        ("GET", "/apis/projectcalico.org/v3/namespaces/x/tiers/default", None, 404, "NotFound"),
        ("GET", "/apis/projectcalico.org/v3/../../../etc/passwd", None, 404, "NotFound"),
        ("GET", POLICIES + "/%00", None, 404, "NotFound"),
        ("GET", POLICIES + "/a%2fb", None, 404, "NotFound"),
        ("GET", POLICIES + "/" + "x" * 4000, None, 404, "NotFound"),
        ("GET", "/apis/projectcalico.org/v3/namespaces/%0a/networksets/x", None, 404, "NotFound"),
        ("POST", POLICIES + "/there", policy("there"), 405, "MethodNotAllowed"),
        ("PATCH", POLICIES, {}, 405, "MethodNotAllowed"),
        ("PUT", POLICIES, policy("there"), 405, "MethodNotAllowed"),
        ("DELETE", TIERS + "/default/status", None, 405, "MethodNotAllowed"),
        ("TRACE", TIERS, None, 405, "MethodNotAllowed"),
        ("BOGUS", TIERS, None, 400, "BadRequest"),
        ("POST", SETS.replace("/namespaces/default", ""), network_set("new", []), 405, "MethodNotAllowed"),
        ("POST", SETS, network_set("new", [], namespace="other"), 400, "BadRequest"),
        ("DELETE", TIERS + "/default", None, 403, "Forbidden"),
        ("DELETE", POLICIES + "/there", {"preconditions": {"uid": "another"}}, 409, "Conflict"),
        ("DELETE", POLICIES + "/there", {"preconditions": {"resourceVersion": "1"}}, 409, "Conflict"),
        ("DELETE", POLICIES + "/there", {"preconditions": 5}, 400, "BadRequest"),
        ("DELETE", POLICIES + "/there", [], 400, "BadRequest"),
        ("DELETE", POLICIES + "/there", b"{", 400, "BadRequest"),
        ("DELETE", POLICIES + "/there", {"kind": "Tier", "apiVersion": API}, 400, "BadRequest"),
        ("DELETE", POLICIES + "/there", {"dryRun": ["Some"]}, 422, "Invalid"),
        ("DELETE", POLICIES + "/there", {"propagationPolicy": "Bogus"}, 422, "Invalid"),
        ("DELETE", POLICIES + "/there", {"gracePeriodSeconds": "x"}, 400, "BadRequest"),
    ],
)  # fmt: skip
async def test_what_is_not_there_or_not_allowed(
    server: Running, method: str, path: str, body: Any, status: int, reason: str
) -> None:
    found = await server.ask(method, path, body)
    assert (found.status, found.reason) == (status, reason), found.body
    assert (await server.ask("GET", POLICIES + "/there")).status == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=x", 400),
        ("limit=99999999999999999999", 400),
        ("continue=garbage", 400),
        ("continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ", 400),
        ("continue=" + "A" * 6000, 400),
        ("labelSelector=a in (", 400),
        ("labelSelector=a==b,,", 400),
        ("labelSelector=" + "a%3Db,!" * 600, 400),
        ("fieldSelector=spec.bogus=1", 400),
        ("fieldSelector=metadata.name", 400),
        ("resourceVersion=x", 400),
        ("resourceVersion=-1", 400),
        ("resourceVersion=99999999999999999999", 400),
        ("resourceVersion=999999999999", 504),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=1&resourceVersionMatch=Bogus", 422),
        ("sendInitialEvents=true", 422),
        ("watch=1&resourceVersion=x", 400),
        ("watch=1&timeoutSeconds=x", 400),
        ("watch=1&sendInitialEvents=true", 422),
        ("timeout=x", 400),
        ("timeout=-5", 400),
    ],
)
async def test_queries_that_mean_nothing(server: Running, query: str, status: int) -> None:
    found = await server.ask("GET", f"{POLICIES}?{query}")
    assert found.status == status, found.body
    assert found.reason == {400: "BadRequest", 422: "Invalid", 504: "Timeout"}[status]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("dryRun=Some", "dryRun"),
        ("fieldValidation=Perhaps", "fieldValidation"),
        ("fieldManager=" + "m" * 129, "fieldManager"),
        ("fieldManager=a%00b", "fieldManager"),
    ],
)
async def test_options_of_writes_are_checked(server: Running, query: str, field: str) -> None:
    found = await server.ask("POST", f"{POLICIES}?{query}", policy("new"))
    assert (found.status, found.reason, found.fields) == (422, "Invalid", [field]), found.body


# --- media types and encodings ---


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", POLICIES, {"Content-Type": "text/plain"}, 415),
        ("POST", POLICIES, {"Content-Type": "application/vnd.kubernetes.protobuf"}, 415),
        ("POST", POLICIES, {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ("PATCH", POLICIES + "/there", {"Content-Type": "application/json"}, 415),
        ("PATCH", POLICIES + "/there", {"Content-Type": "application/x-patch"}, 415),
        ("GET", POLICIES, {"Accept": "application/vnd.kubernetes.protobuf"}, 406),
        ("GET", POLICIES, {"Accept": "text/html"}, 406),
        ("GET", POLICIES, {"Accept": "application/json;as=Bogus;v=v1;g=meta.k8s.io"}, 406),
    ],
)
async def test_media_types_that_are_not_spoken(
    server: Running, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = None if method == "GET" else json.dumps(policy("there")).encode()
    found = await server.ask(method, path, body, headers=headers)
    assert found.status == status, found.body
    assert found.reason == {415: "UnsupportedMediaType", 406: "NotAcceptable"}[status]


BOMB = zlib.compressobj(9, zlib.DEFLATED, 31)
_GZIPPED = b"".join([*(BOMB.compress(bytes(MB)) for _ in range(2_000)), BOMB.flush()])
"""Two gigabytes of zeros in two megabytes."""


@pytest.mark.parametrize(
    ("encoding", "body", "statuses"),
    [
        ("gzip", _GZIPPED, {400, 413}),
        ("deflate", zlib.compress(bytes(64 * MB)), {400, 413}),
        ("gzip", b"\x1f\x8b" + bytes(100), {400}),
        ("gzip", gzip.compress(json.dumps(policy("packed")).encode()), {201, 400, 415}),
        ("br", bytes(100), {400, 415}),
        ("zstd", bytes(100), {400, 415}),
        ("bogus", b"not json", {400, 415}),
    ],
    ids=("bomb", "deflated", "broken", "small", "br", "zstd", "bogus"),
)
async def test_packed_bodies_count_by_what_is_in_them(
    server: Running, encoding: str, body: bytes, statuses: set[int]
) -> None:
    """A kube-apiserver does not unpack at all; a server that does must not be filled by it."""
    before = server.rss_bytes
    found = await server.ask("POST", POLICIES + "?dryRun=All", body, headers={"Content-Encoding": encoding})
    assert found.status in statuses, found.body
    assert (server.rss_bytes - before) / MB < 40


async def test_a_body_that_cannot_be_unpacked_is_the_clients_fault_alone(server: Running) -> None:
    """Nothing in the log but the request; the connection is not used again, since nobody knows where the body ends."""
    packed = gzip.compress(json.dumps(policy("packed")).encode())
    logged = len(server.log)
    for body in (b"\x1f\x8b" + bytes(100), packed[:20] + b"\0\0" + packed[22:], b"no gzip at all" * 20_000):
        found = await server.ask("POST", POLICIES, body, headers={"Content-Encoding": "gzip"})
        assert (found.status, found.reason) == (400, "BadRequest")
    await server.answers()
    assert "Unhandled" not in server.log[logged:]
    assert "Traceback" not in server.log[logged:]


# --- patches ---


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        (PATCH, b"{", 400),
        (PATCH, {"op": "add"}, 400),
        (PATCH, [5], 400),
        (PATCH, [{}], 422),
        (PATCH, [{"op": "bogus", "path": "/spec/order", "value": 1}], 422),
        (PATCH, [{"op": "add", "path": "spec", "value": 1}], 422),
        (PATCH, [{"op": "add", "path": "/spec/order"}], 422),
        (PATCH, [{"op": "remove", "path": "/spec/absent"}], 422),
        (PATCH, [{"op": "test", "path": "/spec/order", "value": 99}], 422),
        (PATCH, [{"op": "replace", "path": "", "value": 3}], 422),
        (PATCH, [{"op": "remove", "path": ""}], 422),
        (PATCH, [{"op": "add", "path": "/spec/types/99999999", "value": "x"}], 422),
        (PATCH, [{"op": "add", "path": "/spec/types/-1", "value": "x"}], 422),
        (PATCH, [{"op": "move", "from": "/spec", "path": "/spec/inner"}], 422),
        (PATCH, [{"op": "add", "path": "/a" * 50_000, "value": 1}], 422),
        (PATCH, [{"op": "test", "path": "/spec/order", "value": 1}] * 10_001, 413),
        (PATCH, [{"op": "add", "path": "/metadata/annotations", "value": {"a": "x" * 1000}}]
         + [{"op": "copy", "from": "/metadata/annotations", "path": f"/metadata/annotations/b{i}"} for i in range(90)],
         413),
        (PATCH, [{"op": "replace", "path": "/metadata/name", "value": "other"}], 400),
        (MERGE, b"[1]", 400),
        (MERGE, b"7", 400),
        (MERGE, {"metadata": None}, 400),
        (MERGE, {"metadata": {"name": "other"}}, 400),
        (MERGE, {"metadata": {"resourceVersion": "1"}}, 409),
        (MERGE, {"metadata": {"uid": "another"}}, 409),
        (MERGE, {"kind": "Tier"}, 400),
        (MERGE, {"spec": {"order": "x"}}, 422),
        (MERGE, {"spec": {"selector": "a =="}}, 422),
        (MERGE, b'{"a":' * 100_000, 400),
        (STRATEGIC, {"$patch": "bogus"}, 422),
        (STRATEGIC, {"spec": {"$retainKeys": 5}}, 422),
        (APPLY, {"apiVersion": API, "kind": "GlobalNetworkPolicy"}, 400),
        (APPLY, changed(metadata={"name": "other"}), 400),
        (APPLY, changed(metadata={"name": "there", "managedFields": []}), 400),
        (APPLY, changed(metadata={"name": "there"}, kind="Tier"), 400),
        (APPLY, changed(metadata={"name": "there"}, spec=[]), 400),
        (APPLY, changed(metadata={"name": "there"}, spec={"order": [1]}), 400),
        (APPLY, changed(metadata={"name": "there"}, spec={"types": ["Ingress", "Ingress"]}), 400),
        (APPLY, changed(metadata={"name": "there", "ownerReferences": [{"name": "x"}]}), 400),
        (APPLY, changed(metadata={"name": "there"}, spec={"order": 99}), 409),
        (APPLY, changed(metadata={"name": "there"}, spec={"selector": "a =="}), 422),
        (APPLY, changed(metadata={"name": "there", "uid": "another"}), 409),
    ],
)  # fmt: skip
async def test_patches_that_do_not_fit(server: Running, media: str, body: Any, status: int) -> None:
    before = (await server.ask("GET", POLICIES + "/there")).json
    query = "?fieldManager=me" if media == APPLY else ""
    found = await server.ask("PATCH", POLICIES + "/there" + query, body, headers={"Content-Type": media})
    assert found.status == status, found.body
    reasons = {400: "BadRequest", 409: "Conflict", 413: "RequestEntityTooLarge", 422: "Invalid"}
    assert found.reason == reasons[status]
    assert (await server.ask("GET", POLICIES + "/there")).json == before


async def test_an_apply_needs_a_manager_and_force_an_apply(server: Running) -> None:
    found = await server.ask(
        "PATCH", POLICIES + "/there", changed(metadata={"name": "there"}), headers={"Content-Type": APPLY}
    )
    assert (found.status, found.fields) == (422, ["fieldManager"])
    found = await server.ask("PATCH", POLICIES + "/there?force=true", {}, headers={"Content-Type": MERGE})
    assert (found.status, found.fields) == (422, ["force"])


async def test_garbage_as_managed_fields_is_ignored(server: Running) -> None:
    live = (await server.ask("GET", POLICIES + "/there")).json
    entries: list[Any] = [
        [{"manager": "x", "operation": "Apply", "apiVersion": API, "fieldsType": "FieldsV1", "fieldsV1": {"q": {}}}],
        [{"operation": "Bogus"}],
    ]
    for entry in entries:
        body = {**live, "metadata": {**live["metadata"], "managedFields": entry}}
        found = await server.ask("PUT", POLICIES + "/there", body)
        assert found.status in (200, 400, 422), found.body
        kept = (await server.ask("GET", POLICIES + "/there")).json
        assert kept["metadata"]["managedFields"] == live["metadata"]["managedFields"]


# --- anything at all ---

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = ("order", "selector", "types", "ingress", "tier", "name", "labels", "spec", "metadata", "finalizers", "status")
MEMBERS: st.SearchStrategy[Any] = st.recursive(
    JUNK, lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4), max_leaves=10
)
OBJECTS = st.builds(
    lambda spec, metadata, more: {**policy("drawn"), "spec": spec, **more, "metadata": metadata},
    MEMBERS,
    st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=3).map(lambda rest: {"name": "drawn", **rest}) | JUNK,
    st.dictionaries(st.sampled_from(("kind", "apiVersion", "status", "x")), JUNK, max_size=2),
)
MEDIA = st.sampled_from((MERGE, PATCH, STRATEGIC, APPLY))


@given(body=st.one_of(OBJECTS.map(lambda found: json.dumps(found).encode()), st.binary(max_size=200)), media=MEDIA)
def test_anything_gets_an_answer_that_is_not_the_servers_fault(server: Running, body: bytes, media: str) -> None:
    async def send() -> None:
        async with server.session() as session:
            found = await ask(session, "POST", POLICIES + "?dryRun=All", body)
            assert found.status in (201, 400, 409, 413, 422), found.body
            path = POLICIES + "/there?dryRun=All" + ("&fieldManager=me" if media == APPLY else "")
            found = await ask(session, "PATCH", path, body, {"Content-Type": media})
            assert found.status in (200, 400, 409, 413, 422), found.body

    asyncio.run(send())
