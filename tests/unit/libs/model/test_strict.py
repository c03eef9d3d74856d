"""What users send is refused with the place of every fault."""

from __future__ import annotations

from typing import Any

import pytest

from libs import model
from libs.model import validation
from libs.model.validation import ValidationError, decode_user


def document(kind: str, spec: object, **metadata: object) -> dict[str, Any]:
    return {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "x", **metadata},
        "spec": spec,
    }


def faults(value: object) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        decode_user(value)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_good_documents_are_decoded() -> None:
    value = document(
        "GlobalNetworkPolicy", {"order": 5, "ingress": [{"action": "Allow", "protocol": "6"}]}, labels=None
    )
    policy = decode_user(value)
    assert isinstance(policy, model.GlobalNetworkPolicy)
    assert policy.spec.order == 5
    assert policy.spec.ingress[0].protocol == "6"


@pytest.mark.parametrize(
    ("kind", "spec", "path", "message"),
    [
        ("NetworkPolicy", {"selectr": "a"}, "spec.selectr", "unknown field; did you mean 'selector'?"),
        ("NetworkPolicy", {"Selector": "a"}, "spec.Selector", "unknown field; did you mean 'selector'?"),
        (
            "NetworkPolicy",
            {"ingress": [{"action": "Allow", "source": {"net": []}}]},
            "spec.ingress[0].source.net",
            "unknown field; did you mean 'nets'?",
        ),
        ("NetworkPolicy", {"zzzzzz": 1}, "spec.zzzzzz", "unknown field"),
        ("NetworkPolicy", {"order": "1"}, "spec.order", "expected a number, not text"),
        ("NetworkPolicy", {"ingress": {}}, "spec.ingress", "expected a list, not an object"),
        ("NetworkPolicy", {"ingress": [None]}, "spec.ingress[0]", "expected an object, not null"),
        ("NetworkPolicy", {"selector": 5}, "spec.selector", "expected text, not a number; put it in quotes"),
        (
            "NetworkPolicy",
            {"types": ["Ingress", True]},
            "spec.types[1]",
            "expected text, not a boolean; put it in quotes",
        ),
        (
            "NetworkPolicy",
            {"egress": [{"action": "Deny", "destination": {"ports": [80, "9:8"]}}]},
            "spec.egress[0].destination.ports[1]",
            "port range '9:8' must not have its minimum above its maximum",
        ),
        ("GlobalNetworkPolicy", {"preDNAT": "yes"}, "spec.preDNAT", "expected true or false, not text"),
        (
            "BGPPeer",
            {"asNumber": "x"},
            "spec.asNumber",
            "AS number 'x' must be a number or two numbers with a dot between",
        ),
        ("IPPool", {"blockSize": 26.5}, "spec.blockSize", "expected a whole number, not a number"),
        ("IPPool", {"blockSize": 2**70}, "spec.blockSize", "expected a whole number of at most 64 bits"),
        (
            "FelixConfiguration",
            {"reportingInterval": 30},
            "spec.reportingInterval",
            "expected a duration such as '30s', not 30",
        ),
        (
            "Profile",
            {"labelsToApply": {"a": 1}},
            "spec.labelsToApply[a]",
            "expected text, not a number; put it in quotes",
        ),
        ("Profile", [], "spec", "expected an object, not a list"),
        (
            "StagedKubernetesNetworkPolicy",
            {"ingress": [{"ports": [{"port": []}]}]},
            "spec.ingress[0].ports[0].port",
            "expected text, not a list",
        ),
    ],
)
def test_faults_are_named_by_their_path(kind: str, spec: object, path: str, message: str) -> None:
    assert faults(document(kind, spec)) == [(path, message)]


def test_all_faults_are_reported_at_once() -> None:
    value = document("Tier", {"order": "x", "defaultaction": "Deny"}, annotations={"a": 1}, nme="y")
    assert [path for path, _ in faults(value)] == [
        "metadata.annotations[a]",
        "metadata.nme",
        "spec.order",
        "spec.defaultaction",
    ]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], ""),
        ("text", ""),
        ({}, "kind"),
        ({"kind": "NetworkPolcy", "apiVersion": "projectcalico.org/v3"}, "kind"),
        ({"kind": "Tier"}, "apiVersion"),
        ({"kind": "Tier", "apiVersion": "v1"}, "apiVersion"),
        ({"kind": "Tier", "apiVersion": "projectcalico.org/v3", "metadata": 5}, "metadata"),
        ({"kind": "Tier", "apiVersion": "projectcalico.org/v3", "sepc": {}}, "sepc"),
    ],
)
def test_documents_that_are_no_resources_are_refused(value: object, path: str) -> None:
    assert faults(value)[0][0] == path


def test_unknown_kinds_get_a_suggestion() -> None:
    value = {"kind": "NetworkPolcy", "apiVersion": "projectcalico.org/v3"}
    assert faults(value) == [("kind", "unknown kind of resource; did you mean 'NetworkPolicy'?")]


def test_the_wanted_kind_may_be_left_out_but_not_contradicted() -> None:
    assert isinstance(decode_user({"apiVersion": "projectcalico.org/v3"}, kind="Tier"), model.Tier)
    with pytest.raises(ValidationError):
        decode_user(document("Tier", {}), kind="Profile")


def test_deep_nesting_is_a_fault_of_the_value() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = {"a": deep}
    assert faults(document("Tier", {}, managedFields=[deep])) == [("", "nested too deeply")]


def test_error_text_names_path_expectation_and_value() -> None:
    problem = validation.Problem("spec.order", "must be a number", "ten")
    assert str(problem) == "spec.order: must be a number (is 'ten')"
    assert str(ValidationError([problem, problem])) == f"{problem}; {problem}"


def test_null_in_a_list_stays_where_the_list_may_hold_it() -> None:
    block = decode_user(document("IPAMBlock", {"allocations": [0, None], "unallocated": [1]}))
    assert isinstance(block, model.IPAMBlock)
    assert block.spec.allocations == [0, None]


def test_parts_are_decoded_as_strictly() -> None:
    with pytest.raises(ValidationError):
        validation.decode_part({"actoin": "Allow"}, model.Rule)
    assert validation.decode_part({"action": "Allow"}, model.Rule) == model.Rule(action="Allow")
