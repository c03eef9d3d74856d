"""managedFields as text: entries, their order, the cap, and the names of managers."""

from __future__ import annotations

from typing import Any

import pytest

from services.apiserver.core.fieldset import FieldSet
from services.apiserver.core.owners import (
    ANCIENT_CHANGES,
    MAX_UPDATERS,
    Managed,
    ManagedFieldsError,
    Owned,
    Owner,
    applier,
    cap_updaters,
    decode,
    encode,
    manager_of_user_agent,
    manager_problem,
    updater,
)


def entry(**changes: Any) -> dict[str, Any]:
    found = {
        "manager": "kubectl", "operation": "Apply", "apiVersion": "projectcalico.org/v3",
        "time": "2026-11-28T01:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:order": {}}},
    }  # fmt: skip
    return {name: value for name, value in (found | changes).items() if value is not None}


def test_entries_come_back_as_they_were() -> None:
    entries = [entry(), entry(operation="Update", manager="felix", subresource="status")]
    assert encode(decode(entries)) == entries
    assert encode(decode(None)) == []


def test_who_applies_and_updates_under_one_name_is_two_owners() -> None:
    found = decode([entry(), entry(operation="Update"), entry(operation="Update", subresource="status")])
    assert len(found.owned) == 3


def test_appliers_come_first_then_the_oldest() -> None:
    entries = [
        entry(operation="Update", manager="a", time="2026-11-28T03:00:00Z"),
        entry(operation="Update", manager="c", time="2026-11-28T02:00:00+00:00"),
        entry(operation="Update", manager="b", time="2026-11-28T02:00:00Z"),
        entry(manager="z", time="2026-11-28T09:00:00Z"),
        entry(manager="y", time=None),
    ]
    assert [found["manager"] for found in encode(decode(entries))] == ["y", "z", "b", "c", "a"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("x", "expected a list"),
        (["x"], r"managedFields\[0\]: expected an object"),
        ([entry(operation="Patch")], r"managedFields\[0\]: operation: must be `Apply` or `Update`"),
        ([entry(), entry(apiVersion=None)], r"managedFields\[1\]: apiVersion: must not be empty"),
        ([entry(fieldsType="FieldsV2")], "fieldsType: must be `FieldsV1`"),
        ([entry(fieldsType=None)], "fieldsType: must be `FieldsV1`"),
        ([entry(time="yesterday")], "time: 'yesterday' is no time"),
        ([entry(time="2026-11-28T01:00:00")], "is no time"),
        ([entry(time=5)], "time: expected text"),
        ([entry(manager={"a": 1})], "manager: expected text"),
        ([entry(fieldsV1={"spec": {}})], "'spec' is no path element"),
        ([entry(fieldsV1=[1])], "fieldsV1: expected an object"),
    ],
)
def test_bad_entries_are_refused_with_their_place(bad: object, said: str) -> None:
    with pytest.raises(ManagedFieldsError, match=said):
        decode(bad)


def test_the_oldest_updates_become_one_when_there_are_too_many() -> None:
    managed = Managed()
    for number in range(MAX_UPDATERS + 3):
        fields = FieldSet.of(("f:spec", f"f:{number}"))
        managed.owned[updater(f"m{number:02}")] = Owned(fields, time=f"2026-11-28T01:00:{number:02}Z")
    managed.owned[applier("me")] = Owned(FieldSet.of(("f:spec", "f:a")))
    cap_updaters(managed)
    updates = [owner for owner in managed.owned if owner.operation == "Update"]
    assert len(updates) == MAX_UPDATERS
    ancient = managed.owned[Owner(ANCIENT_CHANGES, "Update", "projectcalico.org/v3")]
    assert ancient.fields == FieldSet.of(*(("f:spec", f"f:{number}") for number in range(4)))
    assert ancient.time == "2026-11-28T01:00:03Z"
    assert applier("me") in managed.owned


@pytest.mark.parametrize(
    ("agent", "manager"),
    [
        ("kubectl/v1.34.1 (linux/amd64) kubernetes/abc", "kubectl"),
        ("curl", "curl"),
        ("", "unknown"),
        ("/x", "unknown"),
        ("a\x00b\x7f/1", "ab"),
        ("x" * 300, "x" * 128),
        ("é" * 100, "é" * 64),
    ],
)
def test_manager_of_a_user_agent(agent: str, manager: str) -> None:
    assert manager_of_user_agent(agent) == manager


def test_names_of_managers() -> None:
    assert not manager_problem("kubectl-edit")
    assert not manager_problem("ä" * 64)
    assert "128" in manager_problem("ä" * 65)
    assert "printable" in manager_problem("a\nb")
