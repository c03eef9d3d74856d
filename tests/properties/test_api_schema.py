"""Whatever the API can say, its own OpenAPI schemas take; and they refuse nothing that its rules take."""

from __future__ import annotations

import itertools
import json
import lzma
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from libs import model
from libs.model import validation
from libs.model.kinds import KINDS
from services.apiserver.core import openapi, schema
from services.apiserver.core.request import SERVED
from tests.properties.test_model import MORE, RESOURCES
from tests.unit.services.apiserver.schemas import related, standalone, written

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SAMPLE = SHARED / "facts" / "etcd-sample.txt"
RECORDED = SHARED / "golden" / "validator.jsonl.xz"
NOT_HERE = "recorded samples are not here"
NAMES = sorted(kind.kind for kind in SERVED.values())
NEEDS = {"spec.blockSize": "spec.cidr"}
"""Fields that the rules look at only when another one is good."""
LIMITS = frozenset(
    ("enum", "pattern", "minimum", "maximum", "maxLength", "minItems", "maxItems", "uniqueItems", "required")
)


@cache
def validator(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(standalone(KINDS[name]))


@cache
def shape(name: str) -> jsonschema_rs.Validator:
    """Of types and fields alone."""
    return jsonschema_rs.validator_for(strict(standalone(KINDS[name])))


def strict(value: Any, without: frozenset[str] = LIMITS) -> Any:
    """The schema without some of its words, and with no fields besides those that are named."""
    if isinstance(value, list):
        return [strict(one, without) for one in value]
    if not isinstance(value, dict):
        return value
    # A field may be called like a limit; its schema is then an object.
    found = {key: strict(one, without) for key, one in value.items() if key not in without or isinstance(one, dict)}
    if "properties" in value and isinstance(value.get("type"), str):
        found["additionalProperties"] = False
    return found


@MORE
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_every_resource_has_the_shape_of_its_schema(data: st.DataObject, name: str) -> None:
    resource: model.Resource = data.draw(RESOURCES[name])
    resource.metadata.managed_fields = []  # drawn as maps of anything
    shape(name).validate(json.loads(model.encode(resource)))


@MORE
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_schema_refuses_only_what_the_rules_refuse(data: st.DataObject, name: str) -> None:
    resource: model.Resource = data.draw(RESOURCES[name])
    resource.metadata.managed_fields = []
    refused = [problem.path for problem in validation.validate(resource)]
    document = json.loads(model.encode(resource))
    document.pop("status", None)  # the rules say nothing of it
    for error in validator(name).iter_errors(document):
        place = written(tuple(error.instance_path))
        looked_at = {place, NEEDS.get(place, place)}
        assert any(related(one, path) for one in looked_at for path in refused), f"{place}: {error.message}"


@settings(max_examples=5, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("plural", ["ippools", "felixconfigurations", "bgpfilters", "globalnetworkpolicies"])
def test_what_a_schema_describes_is_understood(data: st.DataObject, plural: str) -> None:
    """Objects made from the document alone have the right fields and types; limits of a text's own form apart."""
    case = data.draw(operation(plural).as_strategy())
    document = case.body | {"kind": SERVED[plural].kind, "apiVersion": "projectcalico.org/v3"}
    problems: list[validation.Problem] = []
    try:
        validation.decode_user(document)
    except validation.ValidationError as error:
        problems = error.problems
    forms = ("port number", "port range", "AS number", "each half of AS number", "duration")
    assert [str(one) for one in problems if not one.message.startswith(forms)] == []


@cache
def operation(plural: str) -> Any:
    """The creation of a kind, in a document that allows no fields but those that it names."""
    document = openapi.document("1")
    document["components"]["schemas"] = strict(document["components"]["schemas"], without=frozenset())
    return schemathesis.openapi.from_dict(document)[f"/apis/projectcalico.org/v3/{plural}"]["POST"]


def test_the_shape_is_strict() -> None:
    """Or the first property would say nothing."""
    good = {"kind": "Tier", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "a"}, "spec": {"order": 1.5}}
    shape("Tier").validate(good)
    for bad in ({"order": "1"}, {"ordre": 1}, {"defaultAction": 1}):
        assert not shape("Tier").is_valid(good | {"spec": bad})
    assert not shape("Tier").is_valid(good | {"metadata": {"labels": {"a": 1}}})


@pytest.mark.skipif(not SAMPLE.exists(), reason=NOT_HERE)
def test_what_a_real_calicoctl_stored_fits() -> None:
    seen: Counter[str] = Counter()
    lines = SAMPLE.read_text().splitlines()
    for key, value in itertools.pairwise(lines):
        if not key.startswith("/calico/resources/v3/") or not value.startswith("{"):
            continue
        resource = json.loads(value)
        if resource["kind"] in NAMES:
            validator(resource["kind"]).validate(resource)
            seen[resource["kind"]] += 1
    assert len(seen) > 12, seen


@pytest.mark.skipif(not RECORDED.exists(), reason=NOT_HERE)
def test_what_calicos_own_validator_takes_the_schemas_take() -> None:
    components = schema.components()
    seen: Counter[bool] = Counter()
    with lzma.open(RECORDED, "rt") as lines:
        for line in lines:
            case = json.loads(line)
            name = case["type"].lstrip("*").rpartition(".")[2]
            component = next((one for one in components if one.rpartition(".")[2] == name), None)
            if component is None:
                continue
            document = {"$ref": f"#/components/schemas/{component}", "components": {"schemas": components}}
            errors = list(jsonschema_rs.validator_for(document).iter_errors(drop_unset(case["input"])))
            assert not (case["valid"] and errors), (case["name"], [(one.message, one.instance_path) for one in errors])
            seen[bool(errors)] += 1
    assert seen[False] > 100
    assert seen[True] > 30, "and they refuse some of what it refuses"


def drop_unset(value: Any) -> Any:
    """Go's zero values, which its encoder leaves out and the samples spell out."""
    if isinstance(value, dict):
        return {key: drop_unset(one) for key, one in value.items() if one not in (None, "", [])}
    return [drop_unset(one) for one in value] if isinstance(value, list) else value
