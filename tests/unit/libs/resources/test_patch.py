from __future__ import annotations

import copy

import pytest

from libs.resources.patch import PatchError, PatchType, apply_patch

POOL = {
    "kind": "IPPool",
    "metadata": {"name": "p", "labels": {"a": "1"}, "finalizers": ["x"]},
    "spec": {"cidr": "10.0.0.0/16", "natOutgoing": True, "allowedUses": ["Workload", "Tunnel"]},
}


@pytest.mark.parametrize("kind", [PatchType.MERGE, PatchType.STRATEGIC])
def test_objects_merge_null_removes_lists_are_replaced(kind: PatchType) -> None:
    patch = {"metadata": {"labels": {"b": "2"}}, "spec": {"natOutgoing": None, "allowedUses": ["Workload"]}}
    before = copy.deepcopy(POOL)
    after = apply_patch(POOL, patch, kind)
    assert after["metadata"]["labels"] == {"a": "1", "b": "2"}
    assert after["spec"] == {"cidr": "10.0.0.0/16", "allowedUses": ["Workload"]}
    assert before == POOL


def test_only_the_strategic_patch_merges_finalizers() -> None:
    patch = {"metadata": {"finalizers": ["y"]}}
    assert apply_patch(POOL, patch, PatchType.STRATEGIC)["metadata"]["finalizers"] == ["x", "y"]
    assert apply_patch(POOL, patch, PatchType.MERGE)["metadata"]["finalizers"] == ["y"]


def test_directives_replace_delete_and_retain() -> None:
    replaced = apply_patch(POOL, {"spec": {"$patch": "replace", "cidr": "10.1.0.0/16"}}, PatchType.STRATEGIC)
    assert replaced["spec"] == {"cidr": "10.1.0.0/16"}
    deleted = apply_patch(POOL, {"spec": {"$patch": "delete"}}, PatchType.STRATEGIC)
    assert "spec" not in deleted
    kept = apply_patch(POOL, {"spec": {"$retainKeys": ["cidr"], "disabled": True}}, PatchType.STRATEGIC)
    assert kept["spec"] == {"cidr": "10.0.0.0/16", "disabled": True}
    less = apply_patch(POOL, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}, PatchType.STRATEGIC)
    assert less["metadata"]["finalizers"] == []


def test_owner_references_merge_by_uid() -> None:
    owned = {"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}, {"uid": "2", "name": "b"}]}}
    patch = {"metadata": {"ownerReferences": [{"uid": "1", "name": "c"}, {"uid": "2", "$patch": "delete"}]}}
    assert apply_patch(owned, patch, PatchType.STRATEGIC)["metadata"]["ownerReferences"] == [{"uid": "1", "name": "c"}]


def test_json_patch_tests_adds_and_removes() -> None:
    patch = [
        {"op": "test", "path": "/spec/cidr", "value": "10.0.0.0/16"},
        {"op": "add", "path": "/spec/disabled", "value": True},
        {"op": "remove", "path": "/spec/allowedUses/0"},
    ]
    after = apply_patch(POOL, patch, PatchType.JSON)
    assert after["spec"]["disabled"] is True
    assert after["spec"]["allowedUses"] == ["Tunnel"]


@pytest.mark.parametrize(
    ("patch", "kind"),
    [
        ([], PatchType.MERGE),
        ("x", PatchType.STRATEGIC),
        ({}, PatchType.JSON),
        ([{"op": "test", "path": "/spec/cidr", "value": "other"}], PatchType.JSON),
        ([{"op": "remove", "path": "/spec/none"}], PatchType.JSON),
        ([{"op": "fly", "path": "/spec"}], PatchType.JSON),
        ([{"path": "/spec"}], PatchType.JSON),
        ([5], PatchType.JSON),
        ([{"op": "replace", "path": "", "value": 5}], PatchType.JSON),
        ({"spec": {"$patch": "explode"}}, PatchType.STRATEGIC),
        ({"spec": {"$unknown": 1}}, PatchType.STRATEGIC),
        ({"$patch": "delete"}, PatchType.STRATEGIC),
    ],
)
def test_patches_that_do_not_fit_are_refused(patch: object, kind: PatchType) -> None:
    with pytest.raises(PatchError):
        apply_patch(POOL, patch, kind)
