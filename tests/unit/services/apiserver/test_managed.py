"""Server-side apply and managed fields: what Kubernetes documents, on Calico's kinds, and where ours says more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.model import kinds
from services.apiserver.core.managed import LAST_APPLIED, ApplyConflict, ApplyRefused, apply, settled, update

JsonObject = dict[str, Any]

API = "projectcalico.org/v3"
T0, T1, T2 = (f"2026-11-28T01:00:0{second}Z" for second in range(3))


def made(kind: str, spec: JsonObject | None = None, status: JsonObject | None = None, **metadata: Any) -> JsonObject:
    found: JsonObject = {"apiVersion": API, "kind": kind, "metadata": {"name": "n", **metadata}}
    if spec is not None:
        found["spec"] = spec
    return found | ({"status": status} if status is not None else {})


def applied(
    live: JsonObject | None,
    wanted: JsonObject,
    manager: str = "ann",
    now: str = T1,
    *,
    force: bool = False,
    sub: str = "",
) -> JsonObject:
    kind = kinds.kind(wanted["kind"])
    return apply(live, wanted, kind=kind, manager=manager, force=force, now=now, subresource=sub)


def updated(
    live: JsonObject | None, new: JsonObject, manager: str = "upd", now: str = T1, *, sub: str = ""
) -> JsonObject:
    return update(live, new, kind=kinds.kind(new["kind"]), manager=manager, now=now, subresource=sub)


def owners(value: JsonObject) -> dict[str, JsonObject]:
    """Fields by `manager/operation[/subresource]`."""
    return {
        "/".join(filter(None, (entry["manager"], entry["operation"], entry.get("subresource")))): entry["fieldsV1"]
        for entry in value["metadata"].get("managedFields", ())
    }


def changed(value: JsonObject, **spec: Any) -> JsonObject:
    """Another spec, nulls taken out."""
    merged = {name: of for name, of in {**value.get("spec", {}), **spec}.items() if of is not None}
    return {**value, "spec": merged}


# --- Kubernetes' documentation, "Server-Side Apply" ---


def test_applying_creates_and_records_what_was_applied() -> None:
    found = applied(None, made("Tier", {"order": 10}, labels={"test-label": "test"}))
    assert found == {
        "apiVersion": API,
        "kind": "Tier",
        "metadata": {
            "name": "n",
            "labels": {"test-label": "test"},
            "managedFields": [
                {
                    "manager": "ann",
                    "operation": "Apply",
                    "apiVersion": API,
                    "time": T1,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:metadata": {"f:labels": {"f:test-label": {}}}, "f:spec": {"f:order": {}}},
                }
            ],
        },
        "spec": {"order": 10},
    }


def test_an_update_takes_over_what_it_changes() -> None:
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}))
    found = updated(live, changed(live, order=20), "controller", T2)
    assert owners(found) == {
        "ann/Apply": {"f:spec": {"f:defaultAction": {}}},
        "controller/Update": {"f:spec": {"f:order": {}}},
    }


def test_a_conflict_names_the_owner_and_the_field_and_changes_nothing() -> None:
    live = updated(None, made("Tier", {"order": 10}, labels={"a": "1"}), "kubectl-edit", T0)
    with pytest.raises(ApplyConflict) as caught:
        applied(live, made("Tier", {"order": 20}))
    text = f'Apply failed with 1 conflict: conflict with "kubectl-edit" using {API}: .spec.order'
    assert str(caught.value) == text
    status = caught.value.api_error().status()
    assert (status["code"], status["reason"], status["message"]) == (409, "Conflict", text)
    cause = {"reason": "FieldManagerConflict", "message": f'conflict with "kubectl-edit" using {API}'}
    assert status["details"]["causes"] == [cause | {"field": ".spec.order"}]


def test_several_conflicts_come_by_owner() -> None:
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}, labels={"x": "1"}), "ann")
    live = applied(live, made("Tier", {"order": 10}), "bob")
    with pytest.raises(ApplyConflict) as caught:
        applied(live, made("Tier", {"order": 20, "defaultAction": "Deny"}), "cyd")
    said = 'conflicts with "ann":\n- .spec.defaultAction\n- .spec.order\nconflicts with "bob":\n- .spec.order'
    assert str(caught.value) == f"Apply failed with 3 conflicts: {said}"


def test_force_takes_the_field_from_its_owner() -> None:
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}), "ann")
    found = applied(live, made("Tier", {"order": 20}), "bob", T2, force=True)
    assert found["spec"] == {"order": 20, "defaultAction": "Pass"}
    assert owners(found) == {
        "ann/Apply": {"f:spec": {"f:defaultAction": {}}},
        "bob/Apply": {"f:spec": {"f:order": {}}},
    }


def test_the_same_value_is_owned_by_both() -> None:
    live = applied(None, made("Tier", {"order": 10}), "ann")
    live = applied(live, made("Tier", {"order": 10}), "bob", T2)
    assert set(owners(live)) == {"ann/Apply", "bob/Apply"}
    with pytest.raises(ApplyConflict):
        applied(live, made("Tier", {"order": 11}), "ann")


def test_what_is_no_longer_applied_goes_unless_another_owns_it() -> None:
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}, labels={"a": "1", "b": "1"}), "ann")
    live = applied(live, made("Tier", {"order": 10}, labels={"b": "1"}), "bob")
    found = applied(live, made("Tier"), "ann", T2)
    assert found["spec"] == {"order": 10}
    assert found["metadata"]["labels"] == {"b": "1"}
    assert set(owners(found)) == {"bob/Apply"}


def test_handing_a_field_over_to_a_controller_keeps_its_value() -> None:
    """The documented case of a horizontal pod autoscaler and `replicas`."""
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}), "ann")
    live = applied(live, made("Tier", {"order": 10}), "hand-over", T1)
    live = applied(live, made("Tier", {"defaultAction": "Pass"}), "ann", T2)
    live = updated(live, changed(live, order=99), "scaler", T2)
    assert live["spec"]["order"] == 99
    assert owners(live)["ann/Apply"] == {"f:spec": {"f:defaultAction": {}}}


def test_what_nobody_owns_may_be_taken_and_is_left_alone_otherwise() -> None:
    live = made("Tier", {"order": 10})
    found = applied({**live, "metadata": {**live["metadata"], "labels": {"a": "1"}}}, made("Tier", {"order": 10}))
    assert owners(found)["before-first-apply/Update"] == {
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
        "f:spec": {".": {}, "f:order": {}},
    }
    assert found["metadata"]["labels"] == {"a": "1"}


def test_atomic_lists_are_replaced_and_sets_are_joined() -> None:
    rule = {"action": "Allow", "protocol": "TCP"}
    live = applied(None, made("NetworkPolicy", {"types": ["Ingress"], "ingress": [rule]}), "ann")
    found = applied(live, made("NetworkPolicy", {"types": ["Egress"]}), "bob")
    assert sorted(found["spec"]["types"]) == ["Egress", "Ingress"]
    assert owners(found)["bob/Apply"] == {"f:spec": {"f:types": {'v:"Egress"': {}}}}
    with pytest.raises(ApplyConflict, match=r"\.spec\.ingress"):
        applied(found, made("NetworkPolicy", {"ingress": [rule, rule]}), "bob")
    gone = applied(found, made("NetworkPolicy", {"ingress": [rule]}), "ann")
    assert gone["spec"]["types"] == ["Egress"]


def test_conditions_are_merged_by_type_in_the_wanted_order() -> None:
    def condition(type_: str, status: str) -> JsonObject:
        return {"type": type_, "status": status, "reason": "R", "message": "m", "lastTransitionTime": T0}

    live = updated(None, made("IPPool", {"cidr": "fd00::/112"}), "ann")
    live = applied(live, made("IPPool", status={"conditions": [condition("A", "True")]}), "x", sub="status")
    wanted = [condition("B", "True"), condition("C", "True")]
    live = applied(live, made("IPPool", status={"conditions": wanted}), "y", sub="status")
    assert [item["type"] for item in live["status"]["conditions"]] == ["A", "B", "C"]
    wanted.reverse()
    live = applied(live, made("IPPool", status={"conditions": wanted}), "y", sub="status")
    assert [item["type"] for item in live["status"]["conditions"]] == ["A", "C", "B"]
    assert list(owners(live)["x/Apply/status"]["f:status"]["f:conditions"]) == ['k:{"type":"A"}']
    live = applied(live, made("IPPool", status={"conditions": []}), "y", sub="status")
    assert [item["type"] for item in live["status"]["conditions"]] == ["A"]


# --- nothing changes ---


def test_applying_again_is_the_same_object_times_included() -> None:
    wanted = made("NetworkPolicy", {"order": 1.5, "types": ["Ingress"]}, labels={"a": "1"})
    live = applied(None, wanted, now=T0)
    assert applied(live, wanted, now=T2) == live


def test_updating_with_nothing_new_is_the_same_object() -> None:
    live = updated(None, made("Tier", {"order": 10}), now=T0)
    assert updated(live, live, "someone-else", T2) == live


def test_times_alone_are_not_stored() -> None:
    live = updated(None, made("Tier", {"order": 10}), now=T0)
    later = json.loads(json.dumps(live).replace(T0, T2))
    assert settled(live, later) == live
    other = changed(later, order=11)
    assert settled(live, other) == other
    assert settled(None, later) == later
    assert settled(made("Tier"), later) == later


@pytest.mark.parametrize(
    ("kind", "sent", "stored"),
    [
        ("BGPPeer", {"maxRestartTime": "90s"}, {"maxRestartTime": "1m30s"}),
        ("Tier", {"order": 10.0}, {"order": 10}),
        ("IPPool", {"cidr": "fd00::/112", "natOutgoing": False}, {"cidr": "fd00::/112"}),
        (
            "NetworkPolicy",
            {"ingress": [{"action": "Allow", "protocol": "6", "source": {}, "notProtocol": None}]},
            {"ingress": [{"action": "Allow", "protocol": 6}]},
        ),
    ],
)
def test_the_same_value_in_another_spelling_is_no_conflict_and_no_change(
    kind: str, sent: JsonObject, stored: JsonObject
) -> None:
    """Kubernetes compares texts; ours compares what is stored."""
    first = applied(None, made(kind, sent), "ann", T0)
    live = {**first, "spec": stored}  # as it is read again
    shared = applied(live, made(kind, sent), "bob", T1)
    assert set(owners(shared)) == {"ann/Apply", "bob/Apply"}
    again = applied({**shared, "spec": stored}, made(kind, sent), "ann", T2)
    assert settled({**shared, "spec": stored}, {**again, "spec": stored})["metadata"] == shared["metadata"]
    assert T2 not in json.dumps(again)


def test_turning_a_value_off_that_another_turned_on_is_a_conflict() -> None:
    live = applied(None, made("IPPool", {"cidr": "10.0.0.0/24", "natOutgoing": True}), "ann")
    with pytest.raises(ApplyConflict, match="natOutgoing"):
        applied(live, made("IPPool", {"natOutgoing": False}), "bob")


# --- nulls and empties ---


def test_a_null_empties_its_field_and_owns_the_emptiness() -> None:
    live = applied(None, made("Tier", {"order": 10, "defaultAction": "Pass"}), "ann")
    with pytest.raises(ApplyConflict, match=r"\.spec\.order"):
        applied(live, made("Tier", {"order": None}), "bob")
    found = applied(live, made("Tier", {"order": None}), "bob", force=True)
    assert found["spec"] == {"defaultAction": "Pass"}
    assert owners(found)["bob/Apply"] == {"f:spec": {"f:order": {}}}


def test_empty_objects_stay_and_are_owned() -> None:
    found = applied(None, made("Tier", {}, labels={}))
    assert found["metadata"]["labels"] == {}
    assert found["spec"] == {}
    assert owners(found) == {"ann/Apply": {"f:metadata": {"f:labels": {}}, "f:spec": {}}}


# --- status and the rest ---


def test_status_is_not_written_through_the_object_nor_the_rest_through_status() -> None:
    live = applied(None, made("IPPool", {"cidr": "10.0.0.0/24"}, {"conditions": [{"type": "A"}]}))
    assert "status" not in live
    assert owners(live) == {"ann/Apply": {"f:spec": {"f:cidr": {}}}}
    wanted = made("IPPool", {"cidr": "10.9.0.0/24"}, {"conditions": [{"type": "A"}]}, labels={"a": "1"})
    found = applied(live, wanted, "ctl", T2, sub="status")
    assert found["spec"] == live["spec"]
    assert "labels" not in found["metadata"]
    assert found["status"] == {"conditions": [{"type": "A"}]}
    assert owners(found)["ctl/Apply/status"] == {
        "f:status": {"f:conditions": {'k:{"type":"A"}': {".": {}, "f:type": {}}}}
    }
    again = applied(found, made("IPPool", {"cidr": "10.0.0.0/24"}), "ann", T2)
    assert again["status"] == found["status"]


def test_an_update_of_the_status_owns_the_status_alone() -> None:
    live = updated(None, made("IPPool", {"cidr": "10.0.0.0/24"}), "ann", T0)
    found = updated(live, {**live, "status": {"conditions": [{"type": "A"}]}}, "ctl", T1, sub="status")
    assert set(owners(found)) == {"ann/Update", "ctl/Update/status"}
    assert list(owners(found)["ctl/Update/status"]) == ["f:status"]
    fields = [entry for entry in found["metadata"]["managedFields"] if entry["manager"] == "ann"]
    assert fields == live["metadata"]["managedFields"]


# --- what clients do with managedFields ---


@pytest.mark.parametrize("sent", [[], [{}]])
def test_managed_fields_can_be_forgotten(sent: list[Any]) -> None:
    live = updated(None, made("Tier", {"order": 10}), now=T0)
    found = updated(live, {**live, "metadata": {**live["metadata"], "managedFields": sent}}, now=T1)
    assert "managedFields" not in found["metadata"]
    assert "managedFields" not in updated(found, changed(found, order=3), now=T2)["metadata"]
    assert set(owners(applied(found, made("Tier", {"order": 10})))) == {"ann/Apply", "before-first-apply/Update"}


@pytest.mark.parametrize("sent", [None, [{"operation": "x"}], "nonsense", [{"fieldsV1": 3}]])
def test_clients_that_know_nothing_of_managed_fields_lose_none(sent: object) -> None:
    live = updated(None, made("Tier", {"order": 10}), "ann", T0)
    new = changed({**live, "metadata": {**live["metadata"], "managedFields": sent}}, defaultAction="Pass")
    assert set(owners(updated(live, new, "bob", T1))) == {"ann/Update", "bob/Update"}


def test_managed_fields_through_status_are_not_taken() -> None:
    live = updated(None, made("IPPool", {"cidr": "10.0.0.0/24"}), "ann", T0)
    found = updated(live, {**live, "metadata": {**live["metadata"], "managedFields": [{}]}}, "bob", T1, sub="status")
    assert found == live


def test_ten_updaters_are_kept_apart() -> None:
    live: JsonObject | None = None
    for number in range(14):
        new = live or made("Tier", {"order": 1})
        new = {
            **new,
            "metadata": {**new["metadata"], "labels": {**new["metadata"].get("labels", {}), f"l{number}": "1"}},
        }
        live = updated(live, new, f"m{number:02}", f"2026-11-28T01:00:{number:02}Z")
    assert live is not None
    found = owners(live)
    assert len(found) == 10
    assert {f"f:l{number}" for number in range(5)} <= found["ancient-changes/Update"]["f:metadata"]["f:labels"].keys()


def test_metadata_that_the_server_writes_is_never_owned() -> None:
    metadata = {"uid": "u", "resourceVersion": "5", "creationTimestamp": T0, "generation": 2, "namespace": "ns"}
    assert owners(updated(None, made("Tier", **metadata))) == {}
    assert owners(applied(None, made("Tier", **metadata))) == {}


def test_entries_of_other_versions_go() -> None:
    live = updated(None, made("Tier", {"order": 10}), "ann", T0)
    old = {**live["metadata"]["managedFields"][0], "apiVersion": "crd.projectcalico.org/v1", "manager": "old"}
    live["metadata"]["managedFields"].append(old)
    assert set(owners(updated(live, changed(live, order=11), "bob", T1))) == {"bob/Update", "ann/Update"}


def test_entries_from_when_a_list_was_not_atomic_own_the_list() -> None:
    live = applied(None, made("NetworkPolicy", {"ingress": [{"action": "Allow"}]}), "ann")
    live["metadata"]["managedFields"][0]["fieldsV1"] = {"f:spec": {"f:ingress": {"i:0": {".": {}}}}}
    with pytest.raises(ApplyConflict, match=r"\.spec\.ingress$"):
        applied(live, made("NetworkPolicy", {"ingress": [{"action": "Deny"}]}), "bob")


# --- kubectl, from client-side to server-side apply ---


def client_side(spec: JsonObject, **metadata: Any) -> JsonObject:
    last = json.dumps(made("Tier", spec))
    return updated(None, made("Tier", spec, annotations={LAST_APPLIED: last}, **metadata), "kubectl-client-side-apply")


def test_kubectl_takes_over_what_its_client_side_apply_owned() -> None:
    live = client_side({"order": 10})
    found = applied(live, made("Tier", {"order": 20}), "kubectl", T2)
    assert found["spec"] == {"order": 20}
    annotation = found["metadata"]["annotations"][LAST_APPLIED]
    assert json.loads(annotation)["spec"] == {"order": 20}
    assert annotation.endswith("\n")
    with pytest.raises(ApplyConflict):
        applied(live, made("Tier", {"order": 20}), "someone-else", T2)


def test_kubectl_does_not_take_what_another_changed_since() -> None:
    live = client_side({"order": 10, "defaultAction": "Pass"})
    live = updated(live, changed(live, order=11), "bob", T1)
    with pytest.raises(ApplyConflict) as caught:
        applied(live, made("Tier", {"order": 20, "defaultAction": "Deny"}), "kubectl", T2)
    assert [cause.field for cause in caught.value.api_error().causes] == [".spec.order"]


@pytest.mark.parametrize("annotation", ["", "{", "[]", '{"apiVersion": "v1"}', "[" * 100_000])
def test_a_bad_annotation_takes_nothing_over(annotation: str) -> None:
    live = updated(None, made("Tier", {"order": 10}, annotations={LAST_APPLIED: annotation}), "bob")
    with pytest.raises(ApplyConflict):
        applied(live, made("Tier", {"order": 20}), "kubectl", T2)


# --- what is refused ---


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"kind": "Tier"}, "invalid object type: None, Kind=Tier"),
        ({"apiVersion": "v1", "kind": "Tier"}, "invalid object type: v1, Kind=Tier; expected"),
        (made("IPPool") | {"kind": "Tier", "spec": []}, r"\.spec: expected an object, got a list"),
        (made("Tier", {"ordr": 1}), r"\(/n; .*, Kind=Tier\): \.spec\.ordr: field not declared in schema"),
        (made("Tier", {"order": [1]}), r"\.spec\.order: expected a scalar, got a list"),
        (made("Tier", finalizers={"a": 1}), r"\.metadata\.finalizers: expected a list, got an object"),
        (made("Tier", finalizers=["a", "a"]), r'finalizers: duplicate entries for key \[="a"\]'),
        (made("Tier", finalizers=[["a"]]), "element 0: expected a scalar, got a list"),
        (made("Tier", finalizers=[None]), "element 0: expected a scalar, got null"),
        (made("Tier", ownerReferences=[{"name": "a"}]), "element 0: needs uid"),
        (made("Tier", ownerReferences=["a"]), "element 0: expected an object, got text"),
        (made("Tier", ownerReferences=[{"uid": "a"}, {"uid": "a"}]), r'duplicate entries for key \[uid="a"\]'),
        (made("Tier", managedFields=[]), r"metadata\.managedFields must be nil"),
        (made("Tier") | {"metadata": 3}, r"\.metadata: expected an object, got a number"),
    ],
)
def test_what_is_no_configuration_of_the_kind_is_refused_with_the_path(wanted: JsonObject, said: str) -> None:
    with pytest.raises(ApplyRefused, match=said) as caught:
        apply(made("Tier"), wanted, kind=kinds.kind("Tier"), manager="a", force=False, now=T0)
    assert caught.value.api_error().code == 400


def test_unreadable_managed_fields_are_not_lost_silently() -> None:
    live = made("Tier", managedFields=[{"manager": "a", "operation": "Bogus"}])
    with pytest.raises(ApplyRefused, match=r"managedFields\[0\]: operation.*to start over"):
        applied(live, made("Tier", {"order": 1}))


def test_arguments_are_not_changed() -> None:
    live = applied(None, made("NetworkPolicy", {"types": ["Ingress"], "order": 1.5}), "ann")
    wanted = made("NetworkPolicy", {"types": ["Egress"], "order": None}, labels=None)
    before = json.dumps([live, wanted])
    applied(live, wanted, "bob", force=True)
    updated(live, changed(live, order=2), "bob")
    assert json.dumps([live, wanted]) == before
