"""Create, update, patch, delete over REST and a real etcd, as Kubernetes' clients expect it (rows A04 to A06, A11)."""

from __future__ import annotations

import asyncio

import pytest

from libs.model.storage import TIER_LABEL
from tests.contract.verbs_stage import API_VERSION, Stage

pytestmark = pytest.mark.servers

NETSETS = "namespaces/shop/networksets"
POLICIES = "namespaces/shop/networkpolicies"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


# --- create ----------------------------------------------------------------------------------------------------------


async def test_created_object_has_what_the_server_adds(stage: Stage) -> None:
    made = await stage.call(
        "POST", POLICIES, {"apiVersion": API_VERSION, "kind": "NetworkPolicy", "metadata": {"name": "web", "uid": "x"}}
    )
    assert made.status == 201
    metadata = made.json["metadata"]
    assert (metadata["namespace"], metadata["generation"]) == ("shop", 1)
    assert metadata["uid"] != "x"
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"] == "2026-11-28T01:02:03Z"
    assert metadata["labels"] == {TIER_LABEL: "default"}
    assert made.json["spec"] == {"tier": "default", "types": ["Ingress"]}
    got = await stage.call("GET", f"{POLICIES}/web")
    assert got.json == made.json
    (entry,) = metadata["managedFields"]
    assert entry["operation"] == "Update"


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("tiers", {"metadata": {}}, 422, 'Tier.projectcalico.org "" is invalid: metadata.name: Required value: name'),
        ("tiers", {"metadata": {"name": "a", "resourceVersion": "5"}}, 400, "resourceVersion should not be set on obj"),
        (NETSETS, {"metadata": {"name": "a", "namespace": "x"}}, 400, "the namespace of the provided object does not"),
        ("tiers", {"kind": "Tier", "apiVersion": "v1", "metadata": {"name": "a"}}, 400, "the API version in the data"),
        ("tiers", {"kind": "IPPool", "metadata": {"name": "a"}}, 400, "cannot be handled as a Tier"),
        ("tiers", {"kind": "Pod", "metadata": {"name": "a"}}, 400, 'no kind "Pod" is registered'),
        ("tiers", {"metadata": {"name": "UPPER"}}, 422, "metadata.name: Invalid value: "),
        ("tiers", {"metadata": {"name": "a"}, "spec": {"order": "x"}}, 400, "spec.order: expected a number"),
        ("tiers", {"metadata": {"name": "a"}, "spec": []}, 400, "spec: expected an object"),
        ("tiers", {"metadata": 5}, 400, "metadata"),
        ("tiers", [], 400, "expected an object"),
        ("tiers", b"", 400, "the body is empty"),
        ("tiers", b'{"metadata": {"name"', 400, "json parse error"),
        ("tiers", b'{"metadata": {"name": "\xff"}}', 400, "unrecognized"),
        ("tiers", b'{"spec": {"order": NaN}}', 400, "json parse error"),
        ("tiers", b"[" * 100_000, 400, "unrecognized"),
        (POLICIES, {"metadata": {"name": "a"}, "spec": {"tier": "none"}}, 404, '.projectcalico.org "none" not found'),
        ("tiers", {"metadata": {"name": "default"}}, 409, 'tiers.projectcalico.org "default" already exists'),
    ],
)  # fmt: skip
async def test_what_cannot_be_created_is_refused(
    stage: Stage, path: str, body: object, code: int, message: str
) -> None:
    before = (await stage.store.list("/calico/")).kvs
    answer = await stage.call("POST", path, body)
    assert (answer.status, answer.json["code"], answer.json["kind"]) == (code, code, "Status"), answer.text
    assert message in answer.message
    assert (await stage.store.list("/calico/")).kvs == before


async def test_every_fault_is_a_cause_with_its_field(stage: Stage) -> None:
    spec = {"selector": "a ==", "ingress": [{"action": "Permit"}]}
    answer = await stage.call("POST", POLICIES, {"metadata": {"name": "web"}, "spec": spec})
    assert (answer.status, answer.json["reason"]) == (422, "Invalid")
    details = answer.json["details"]
    assert (details["group"], details["kind"], details["name"]) == ("projectcalico.org", "NetworkPolicy", "web")
    assert {cause["field"] for cause in details["causes"]} == {"spec.selector", "spec.ingress[0].action"}
    assert {cause["reason"] for cause in details["causes"]} == {"FieldValueInvalid"}


async def test_generated_names_differ_and_begin_as_asked(stage: Stage) -> None:
    names = set()
    for _ in range(20):
        made = await stage.call("POST", NETSETS, {"metadata": {"generateName": "set-"}})
        assert made.status == 201
        assert made.json["metadata"]["generateName"] == "set-"
        names.add(made.json["metadata"]["name"])
    assert len(names) == 20
    assert all(name.startswith("set-") and len(name) == 9 for name in names)


async def test_yaml_goes_in_and_comes_out(stage: Stage) -> None:
    text = b"metadata:\n  name: web\nspec:\n  ingress:\n  - action: Allow\n    protocol: TCP\n    destination:\n"
    text += b"      ports: [22:53, 80]\n"
    made = await stage.call(
        "POST", POLICIES, text, content_type="application/yaml", headers={"Accept": "application/yaml"}
    )
    assert (made.status, made.headers["Content-Type"].split(";")[0]) == (201, "application/yaml")
    assert "ports:\n" in made.text
    got = await stage.call("GET", f"{POLICIES}/web")
    assert got.json["spec"]["ingress"][0]["destination"]["ports"] == ["22:53", 80]


async def test_media_types_that_nobody_speaks_are_refused(stage: Stage) -> None:
    answer = await stage.call("POST", "tiers", b"x", content_type="application/vnd.kubernetes.protobuf")
    assert (answer.status, answer.json["reason"]) == (415, "UnsupportedMediaType")
    answer = await stage.call("GET", "tiers", headers={"Accept": "application/vnd.kubernetes.protobuf"})
    assert (answer.status, answer.json["reason"]) == (406, "NotAcceptable")
    answer = await stage.call("PATCH", "tiers/default", {}, content_type="application/json")
    assert answer.status == 415
    assert "application/merge-patch+json" in answer.message


# --- update ----------------------------------------------------------------------------------------------------------


async def test_update_replaces_and_counts_generations(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop")
    changed = {**made, "spec": {"nets": ["fd00::/64"]}}
    answer = await stage.call("PUT", f"{NETSETS}/a", changed)
    assert answer.status == 200
    assert answer.json["metadata"]["generation"] == 2
    assert answer.json["spec"] == {"nets": ["fd00::/64"]}
    labelled = {**answer.json, "metadata": {**answer.json["metadata"], "labels": {"a": "b"}}}
    again = await stage.call("PUT", f"{NETSETS}/a", labelled)
    assert again.json["metadata"]["generation"] == 2
    assert again.json["metadata"]["labels"] == {"a": "b"}
    same = await stage.call("PUT", f"{NETSETS}/a", again.json)
    assert same.json == again.json


async def test_stale_update_is_a_conflict(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop")
    assert (await stage.call("PUT", f"{NETSETS}/a", {**made, "spec": {}})).status == 200
    answer = await stage.call("PUT", f"{NETSETS}/a", {**made, "spec": {"nets": ["10.0.0.2/32"]}})
    assert (answer.status, answer.json["reason"]) == (409, "Conflict")
    assert answer.message == (
        'Operation cannot be fulfilled on networksets.projectcalico.org "a": the object has been modified; please '
        "apply your changes to the latest version and try again"
    )
    assert (await stage.call("GET", f"{NETSETS}/a")).json["spec"] == {}


@pytest.mark.parametrize(
    ("metadata", "code", "message"),
    [
        ({"name": "b"}, 400, "the name of the object (b) does not match the name on the URL (a)"),
        ({"name": ""}, 400, "the name of the object (a based on URL) was undeterminable: name must be provided"),
        ({"namespace": "x"}, 400, "the namespace of the object (x) does not match the namespace on the request (shop)"),
        ({"resourceVersion": ""}, 422, "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"),
        ({"resourceVersion": "abc"}, 422, 'metadata.resourceVersion: Invalid value: "abc"'),
        ({"resourceVersion": "1"}, 409, "the object has been modified"),
        ({"uid": "other"}, 409, "Precondition failed: UID in precondition: other, UID in object meta: "),
        ({"creationTimestamp": "2020-01-01T00:00:00Z"}, 422, "metadata.creationTimestamp: Invalid value: "),
        ({"labels": {"a": 5}}, 400, "metadata.labels[a]: expected text"),
        ({"labels": {"-": "b"}}, 422, "metadata.labels[-]: Invalid value: "),
    ],
)
async def test_update_of_another_object_is_refused(
    stage: Stage, metadata: dict[str, object], code: int, message: str
) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    answer = await stage.call("PUT", f"{NETSETS}/a", {**made, "metadata": {**made["metadata"], **metadata}})
    assert answer.status == code, answer.text
    assert message in answer.message
    assert (await stage.call("GET", f"{NETSETS}/a")).json == made


async def test_update_of_what_is_not_there_does_not_create_it(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    await stage.call("DELETE", f"{NETSETS}/a")
    answer = await stage.call("PUT", f"{NETSETS}/a", made)
    assert (answer.status, answer.message) == (404, 'networksets.projectcalico.org "a" not found')


# --- patch -----------------------------------------------------------------------------------------------------------


async def test_each_kind_of_patch(stage: Stage) -> None:
    await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop", labels={"keep": "1", "go": "2"})
    path = f"{NETSETS}/a"
    merged = await stage.call("PATCH", path, {"metadata": {"labels": {"go": None, "new": "3"}}}, content_type=MERGE)
    assert merged.json["metadata"]["labels"] == {"keep": "1", "new": "3"}
    assert merged.json["metadata"]["generation"] == 1
    operations = [
        {"op": "test", "path": "/spec/nets/0", "value": "10.0.0.1/32"},
        {"op": "add", "path": "/spec/nets/-", "value": "fd00::1/128"},
    ]
    patched = await stage.call("PATCH", path, operations, content_type=JSON_PATCH)
    assert patched.json["spec"]["nets"] == ["10.0.0.1/32", "fd00::1/128"]
    assert patched.json["metadata"]["generation"] == 2
    body = {"metadata": {"finalizers": ["example.com/one"]}, "spec": {"nets": ["10.0.0.9/32"]}}
    strategic = await stage.call("PATCH", path, body, content_type=STRATEGIC)
    assert strategic.json["spec"]["nets"] == ["10.0.0.9/32"]
    assert strategic.json["metadata"]["finalizers"] == ["example.com/one"]


@pytest.mark.parametrize(
    ("content_type", "body", "code", "message"),
    [
        (JSON_PATCH, [{"op": "test", "path": "/spec/nets", "value": 1}], 422, "json patch does not apply"),
        (JSON_PATCH, [{"op": "remove", "path": "/spec/none"}], 422, "json patch does not apply"),
        (JSON_PATCH, {"op": "add"}, 400, "must be a list of operations"),
        (JSON_PATCH, [5], 400, "must be a list of operations"),
        (JSON_PATCH, [{"op": "test", "path": "/kind", "value": "NetworkSet"}] * 10_001, 413, "got 10001"),
        (JSON_PATCH, [{"op": "copy", "from": "/spec/nets", "path": "/spec/nets/-"}] * 50, 413, "more than 1048576"),
        (JSON_PATCH, [{"op": "replace", "path": "", "value": 5}], 422, "replaces the whole object"),
        (MERGE, [], 400, "the patch must be an object"),
        (MERGE, b"{", 400, "error decoding patch"),
        (MERGE, {"metadata": {"name": "b"}}, 400, "does not match the name on the URL"),
        (MERGE, {"kind": "Tier"}, 400, "cannot be handled as a NetworkSet"),
        (MERGE, {"metadata": {"resourceVersion": "1"}}, 409, "the object has been modified"),
        (MERGE, {"metadata": {"uid": "other"}}, 409, "Precondition failed: UID"),
        (MERGE, {"spec": {"nets": "x"}}, 422, "spec.nets: Invalid value: "),
        (MERGE, {"spec": {"nets": ["x"]}}, 422, "spec.nets[0]: Invalid value: "),
        (STRATEGIC, {"spec": {"$patch": "explode"}}, 422, "unknown directive"),
    ],
)  # fmt: skip
async def test_patches_that_do_not_fit_change_nothing(
    stage: Stage, content_type: str, body: object, code: int, message: str
) -> None:
    made = await stage.make("networksets", "a", {"nets": ["10.0.0.1/32"]}, "shop")
    answer = await stage.call("PATCH", f"{NETSETS}/a", body, content_type=content_type)
    assert answer.status == code, answer.text
    assert message in answer.message
    assert (await stage.call("GET", f"{NETSETS}/a")).json == made
    missing = await stage.call("PATCH", f"{NETSETS}/none", {}, content_type=MERGE)
    assert missing.status == 404


async def test_patches_without_a_version_never_conflict(stage: Stage) -> None:
    await stage.make("networksets", "a", {}, "shop")

    async def label(number: int) -> int:
        body = {"metadata": {"labels": {f"l{number}": "x"}}}
        return (await stage.call("PATCH", f"{NETSETS}/a", body, content_type=MERGE)).status

    assert set(await asyncio.gather(*map(label, range(25)))) == {200}
    labels = (await stage.call("GET", f"{NETSETS}/a")).json["metadata"]["labels"]
    assert set(labels) == {f"l{number}" for number in range(25)}


# --- dry run ---------------------------------------------------------------------------------------------------------


async def test_dry_run_checks_everything_and_stores_nothing(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    await stage.make("ippools", "p", {"cidr": "10.0.0.0/16"})
    before = (await stage.store.list("/calico/")).kvs
    tried = await stage.call("POST", NETSETS, {"metadata": {"name": "b"}}, dryRun="All")
    assert tried.status == 201
    assert tried.json["metadata"]["uid"]
    assert "resourceVersion" not in tried.json["metadata"]
    changed = await stage.call("PUT", f"{NETSETS}/a", {**made, "spec": {"nets": ["10.0.0.1/32"]}}, dryRun="All")
    assert (changed.status, changed.json["spec"]) == (200, {"nets": ["10.0.0.1/32"]})
    assert changed.json["metadata"]["generation"] == 2
    patched = await stage.call(
        "PATCH", f"{NETSETS}/a", {"metadata": {"labels": {"x": "y"}}}, content_type=MERGE, dryRun="All"
    )
    assert patched.json["metadata"]["labels"] == {"x": "y"}
    assert (await stage.call("DELETE", f"{NETSETS}/a", dryRun="All")).json["status"] == "Success"
    assert (await stage.call("DELETE", NETSETS, dryRun="All")).status == 200
    assert (await stage.call("DELETE", "ippools/p", {"dryRun": ["All"]})).status == 200
    # What would fail fails.
    assert (await stage.call("POST", NETSETS, {"metadata": {"name": "a"}}, dryRun="All")).status == 409
    stale = {**made, "metadata": {**made["metadata"], "resourceVersion": "1"}}
    assert (await stage.call("PUT", f"{NETSETS}/a", stale, dryRun="All")).status == 409
    overlap = await stage.call(
        "POST", "ippools", {"metadata": {"name": "q"}, "spec": {"cidr": "10.0.1.0/24"}}, dryRun="All"
    )
    assert (overlap.status, overlap.json["details"]["causes"][0]["field"]) == (422, "spec.cidr")
    assert (await stage.call("DELETE", f"{NETSETS}/none", dryRun="All")).status == 404
    assert (await stage.call("DELETE", "tiers/default", dryRun="All")).status == 403
    wrong = await stage.call("POST", NETSETS, {"metadata": {"name": "b"}}, dryRun="Some")
    assert wrong.message == (
        'CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: "Some": supported values: "All"'
    )
    assert (await stage.store.list("/calico/")).kvs == before


# --- fields that do not exist ----------------------------------------------------------------------------------------

ODD = b'{"metadata": {"name": "a"}, "spec": {"order": 1, "ordre": 2, "order": 3}, "extra": {}}'


async def test_unknown_and_double_fields_by_field_validation(stage: Stage) -> None:
    strict = await stage.call("POST", "tiers", ODD, fieldValidation="Strict")
    assert strict.status == 400
    assert strict.message == (
        'Tier in version "v3" cannot be handled as a Tier: strict decoding error: unknown field "spec.ordre", unknown '
        'field "extra", duplicate field "spec.order"'
    )
    assert (await stage.call("GET", "tiers/a")).status == 404
    warned = await stage.call("POST", "tiers", ODD)
    assert warned.status == 201
    assert warned.warnings == [
        '299 - "unknown field \\"spec.ordre\\""',
        '299 - "unknown field \\"extra\\""',
        '299 - "duplicate field \\"spec.order\\""',
    ]
    assert warned.json["spec"] == {"order": 3, "defaultAction": "Deny"}
    await stage.call("DELETE", "tiers/a")
    silent = await stage.call("POST", "tiers", ODD, fieldValidation="Ignore")
    assert (silent.status, silent.warnings) == (201, [])
    patched = await stage.call("PATCH", "tiers/a", {"spec": {"x": {"y": 1}}}, content_type=MERGE)
    assert patched.warnings == ['299 - "unknown field \\"spec.x\\""']
    refused = await stage.call("PATCH", "tiers/a", {"spec": {"x": 1}}, content_type=MERGE, fieldValidation="Strict")
    assert (refused.status, 'strict decoding error: unknown field "spec.x"' in refused.message) == (400, True)
    bad = await stage.call("POST", "tiers", ODD, fieldValidation="Loud")
    assert bad.message == (
        'CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Loud": supported values: "", '
        '"Ignore", "Strict", "Warn"'
    )


async def test_unknown_fields_of_yaml_are_named_too(stage: Stage) -> None:
    text = b"metadata: {name: a}\nspec:\n  order: 1\n  ordre: 2\n  order: 3\n"
    warned = await stage.call("POST", "tiers", text, content_type="application/yaml")
    assert warned.warnings == ['299 - "unknown field \\"spec.ordre\\""', '299 - "duplicate field \\"spec.order\\""']


# --- status ----------------------------------------------------------------------------------------------------------


async def test_status_and_spec_are_written_apart(stage: Stage) -> None:
    condition = {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": "2026-11-28T00:00:00Z",
        "reason": "R",
        "message": "m",
    }
    made = await stage.call(
        "POST", "tiers", {"metadata": {"name": "a"}, "spec": {"order": 5}, "status": {"conditions": [condition]}}
    )
    assert made.json["status"] == {}, "a new object has no status"
    both = {**made.json, "spec": {"order": 6}, "status": {"conditions": [condition]}}
    of_status = await stage.call("PUT", "tiers/a/status", both)
    assert of_status.status == 200
    assert (of_status.json["spec"]["order"], of_status.json["status"]) == (5, {"conditions": [condition]})
    assert of_status.json["metadata"]["generation"] == 1
    assert (await stage.call("GET", "tiers/a/status")).json == of_status.json
    of_spec = await stage.call("PUT", "tiers/a", {**of_status.json, "spec": {"order": 7}, "status": {}})
    assert (of_spec.json["spec"]["order"], of_spec.json["status"]) == (7, {"conditions": [condition]})
    patch = {"spec": {"order": 8}, "status": {"conditions": []}, "metadata": {"labels": {"a": "b"}}}
    patched = await stage.call("PATCH", "tiers/a/status", patch, content_type=MERGE)
    assert (patched.json["spec"]["order"], patched.json["status"]) == (7, {})
    assert "labels" not in patched.json["metadata"]
    stale = await stage.call("PUT", "tiers/a/status", both)
    assert stale.status == 409
    assert (await stage.call("PUT", f"{NETSETS}/a/status", {})).status == 404
    assert (await stage.call("DELETE", "tiers/a/status")).status == 405


# --- delete ----------------------------------------------------------------------------------------------------------


async def test_delete_says_what_went(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    answer = await stage.call("DELETE", f"{NETSETS}/a", {"kind": "DeleteOptions", "propagationPolicy": "Background"})
    assert answer.json == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {
            "name": "a", "group": "projectcalico.org", "kind": "networksets", "uid": made["metadata"]["uid"],
        },
    }  # fmt: skip
    assert (await stage.call("DELETE", f"{NETSETS}/a")).status == 404


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"preconditions": {"uid": "x"}}, 409, "Precondition failed: UID in precondition: x, UID in object meta: "),
        ({"preconditions": {"resourceVersion": "1"}}, 409, "Precondition failed: ResourceVersion in precondition: 1"),
        ({"propagationPolicy": "Now"}, 422, 'propagationPolicy: Unsupported value: "Now"'),
        ({"propagationPolicy": "Orphan", "orphanDependents": True}, 422, "cannot be both set"),
        ({"dryRun": ["Some"]}, 422, 'dryRun: Unsupported value: "Some"'),
        ({"dryRun": "All"}, 400, "dryRun: expected list"),
        ({"kind": "Tier"}, 400, "cannot be converted to DeleteOptions"),
        ({"gracePeriodSeconds": "x"}, 400, "gracePeriodSeconds: expected int"),
        ([], 400, "must be DeleteOptions"),
        (b"{", 400, "must be DeleteOptions"),
    ],
)
async def test_bad_delete_options_delete_nothing(stage: Stage, body: object, code: int, message: str) -> None:
    made = await stage.make("networksets", "a", {}, "shop")
    answer = await stage.call("DELETE", f"{NETSETS}/a", body)
    assert answer.status == code, answer.text
    assert message in answer.message
    assert (await stage.call("GET", f"{NETSETS}/a")).json == made


async def test_finalizers_hold_an_object_until_the_last_is_gone(stage: Stage) -> None:
    made = await stage.make("networksets", "a", {}, "shop", finalizers=["example.com/one", "example.com/two"])
    answer = await stage.call("DELETE", f"{NETSETS}/a")
    assert (answer.status, answer.json["kind"]) == (200, "NetworkSet")
    metadata = answer.json["metadata"]
    assert (metadata["deletionTimestamp"], metadata["deletionGracePeriodSeconds"]) == ("2026-11-28T01:02:03Z", 0)
    assert metadata["uid"] == made["metadata"]["uid"]
    again = await stage.call("DELETE", f"{NETSETS}/a")
    assert again.json == answer.json
    more = {"metadata": {"finalizers": ["example.com/three"]}}
    refused = await stage.call("PATCH", f"{NETSETS}/a", more, content_type=MERGE)
    assert (refused.status, "no new finalizers can be added" in refused.message) == (422, True)
    back = {"metadata": {"deletionTimestamp": None}}
    kept = await stage.call("PATCH", f"{NETSETS}/a", back, content_type=MERGE)
    assert kept.json["metadata"]["deletionTimestamp"] == "2026-11-28T01:02:03Z"
    one = {"metadata": {"finalizers": ["example.com/two"]}}
    assert (await stage.call("PATCH", f"{NETSETS}/a", one, content_type=MERGE)).status == 200
    assert (await stage.call("GET", f"{NETSETS}/a")).status == 200
    tried = await stage.call(
        "PATCH", f"{NETSETS}/a", {"metadata": {"finalizers": []}}, content_type=MERGE, dryRun="All"
    )
    assert tried.status == 200
    assert (await stage.call("GET", f"{NETSETS}/a")).status == 200
    last = await stage.call("PATCH", f"{NETSETS}/a", {"metadata": {"finalizers": []}}, content_type=MERGE)
    assert last.status == 200
    assert (await stage.call("GET", f"{NETSETS}/a")).status == 404


async def test_collection_is_deleted_by_selector_and_namespace(stage: Stage) -> None:
    for number in range(30):
        await stage.make("networksets", f"n{number:02}", {}, "shop", labels={"odd": str(number % 2)})
    await stage.make("networksets", "other", {}, "elsewhere", labels={"odd": "1"})
    answer = await stage.call("DELETE", NETSETS, labelSelector="odd=1")
    assert answer.json["kind"] == "NetworkSetList"
    assert answer.names == [f"n{number:02}" for number in range(1, 30, 2)]
    left = await stage.call("GET", "networksets")
    assert left.names == ["other", *(f"n{number:02}" for number in range(0, 30, 2))]
    assert (await stage.call("DELETE", NETSETS, fieldSelector="metadata.name=n00")).names == ["n00"]
    assert (await stage.call("DELETE", NETSETS)).status == 200
    assert (await stage.call("GET", "networksets")).names == ["other"]


async def test_pool_goes_with_its_blocks(stage: Stage) -> None:
    await stage.make("ippools", "p", {"cidr": "10.0.0.0/16"})
    await stage.make("ippools", "held", {"cidr": "10.1.0.0/16"}, finalizers=["example.com/mine"])
    assert (await stage.call("DELETE", "ippools/p")).json["status"] == "Success"
    kept = await stage.call("DELETE", "ippools/held")
    assert kept.json["metadata"]["deletionTimestamp"]
    assert kept.json["status"]["conditions"][0]["reason"] == "Terminating"


# --- built in --------------------------------------------------------------------------------------------------------


async def test_built_in_objects_are_protected(stage: Stage) -> None:
    for name in ("default", "kube-admin", "kube-baseline"):
        answer = await stage.call("DELETE", f"tiers/{name}")
        assert (answer.status, answer.json["reason"]) == (403, "Forbidden")
        assert answer.message == f'tiers.projectcalico.org "{name}" is forbidden: it is a built-in tier'
    assert (await stage.call("DELETE", "tiers")).status == 403
    changed = await stage.call("PATCH", "tiers/default", {"spec": {"order": 5}}, content_type=MERGE)
    assert (changed.status, changed.json["details"]["causes"][0]["field"]) == (422, "spec.order")
    assert len((await stage.call("GET", "tiers")).names) == 3
    await stage.make("tiers", "sec", {})
    await stage.make("globalnetworkpolicies", "in-it", {"tier": "sec"})
    answer = await stage.call("DELETE", "tiers/sec")
    assert (answer.status, "tier is not empty" in answer.message) == (403, True)


async def test_cluster_information_is_read_only(stage: Stage) -> None:
    found = await stage.call("GET", "clusterinformations/default")
    assert found.json["spec"]["datastoreReady"] is True
    body = {**found.json, "spec": {}}
    for method, path, content_type in (
        ("PUT", "clusterinformations/default", "application/json"),
        ("PATCH", "clusterinformations/default", MERGE),
        ("PATCH", "clusterinformations/default", "application/apply-patch+yaml"),
        ("DELETE", "clusterinformations/default", "application/json"),
        ("DELETE", "clusterinformations", "application/json"),
        ("POST", "clusterinformations", "application/json"),
    ):
        answer = await stage.call(
            method,
            path,
            None if method == "DELETE" else {"metadata": {"name": "default"}} if method == "POST" else body,
            content_type=content_type,
            **({"fieldManager": "x"} if content_type.endswith("yaml") else {}),
        )
        assert (answer.status, answer.json["reason"]) == (405, "MethodNotAllowed"), (method, answer.text)
        assert 'is not supported on resources of kind "clusterinformations.projectcalico.org"' in answer.message
    assert (await stage.call("GET", "clusterinformations/default")).json == found.json


async def test_default_allow_profile_is_there_and_stays(stage: Stage) -> None:
    name = "projectcalico-default-allow"
    found = await stage.call("GET", f"profiles/{name}")
    assert (found.status, found.json["metadata"]["resourceVersion"]) == (200, "1")
    assert (await stage.call("POST", "profiles", {"metadata": {"name": name}})).status == 409
    assert (await stage.call("PATCH", f"profiles/{name}", {}, content_type=MERGE)).status == 403
    assert (await stage.call("DELETE", f"profiles/{name}")).status == 403


async def test_kubernetes_own_policies_are_not_written_here(stage: Stage) -> None:
    answer = await stage.call("POST", POLICIES, {"metadata": {"name": "knp.default.web"}})
    assert (answer.status, answer.json["reason"]) == (403, "Forbidden")
    assert "kubernetes network policies must be managed through the kubernetes API" in answer.message
    for method in ("PUT", "PATCH", "DELETE"):
        answer = await stage.call(
            method, f"{POLICIES}/knp.default.web", {"metadata": {"name": "knp.default.web"}}, content_type=(
                MERGE if method == "PATCH" else "application/json"
            ),
        )  # fmt: skip
        assert answer.status == 403, method


# --- races -----------------------------------------------------------------------------------------------------------


async def race(stage: Stage, rounds: int) -> None:
    """Two writers add to one list, each reading, changing and writing; a conflict is read and tried again."""
    await stage.make("networksets", "a", {}, "shop")
    written: list[str] = []
    conflicts = 0

    async def writer(number: int) -> None:
        nonlocal conflicts
        for turn in range(rounds):
            net = f"10.{number}.{turn // 250}.{turn % 250}/32"
            while True:
                live = (await stage.call("GET", f"{NETSETS}/a")).json
                # A bounded list: each round's last few stand for all, since nothing may be lost from one to the next.
                nets = [*live["spec"].get("nets", [])[-9:], net]
                count = str(int(live["metadata"].get("annotations", {}).get("count", "0")) + 1)
                metadata = {**live["metadata"], "annotations": {"count": count}}
                answer = await stage.call("PUT", f"{NETSETS}/a", {**live, "metadata": metadata, "spec": {"nets": nets}})
                if answer.status == 200:
                    written.append(net)
                    break
                assert answer.status == 409, answer.text
                conflicts += 1

    await asyncio.gather(writer(1), writer(2))
    final = (await stage.call("GET", f"{NETSETS}/a")).json
    assert final["metadata"]["annotations"]["count"] == str(2 * rounds)
    assert final["metadata"]["generation"] == 2 * rounds + 1
    assert set(final["spec"]["nets"]) <= set(written)
    assert conflicts > 0, "the writers never met"


async def test_of_two_racing_writers_one_wins_and_nothing_is_lost(stage: Stage) -> None:
    await race(stage, 150)


@pytest.mark.hunt
@pytest.mark.timeout(1800)
async def test_two_writers_race_ten_thousand_rounds(stage: Stage) -> None:
    await race(stage, 10_000)


async def test_of_many_creators_one_wins(stage: Stage) -> None:
    for number in range(10):
        answers = await asyncio.gather(
            *(
                stage.call("POST", NETSETS, {"metadata": {"name": f"n{number}", "labels": {"by": str(by)}}})
                for by in range(6)
            )
        )
        assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409, 409]
        (winner,) = (answer for answer in answers if answer.status == 201)
        assert (await stage.call("GET", f"{NETSETS}/n{number}")).json == winner.json
