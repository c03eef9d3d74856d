"""Everything that can be said in the v3 API survives the wire, and nothing that is not makes the model crash."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from libs import model
from libs.model import codec, defaults, keys, scalars, validation
from libs.model.base import V3Struct

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
SCALARS: dict[type, st.SearchStrategy[Any]] = {
    scalars.Protocol: st.builds(scalars.Protocol, st.sampled_from(["TCP", "UDP", "ICMP"]) | st.integers(0, 255)),
    scalars.Port: st.builds(scalars.Port, st.sampled_from(["http", "1:2", "80:80", "0:65535"]) | st.integers(0, 65535)),
    scalars.ASNumber: st.builds(scalars.ASNumber, st.integers(0, 2**32 - 1)),
    scalars.DSCP: st.builds(scalars.DSCP, st.sampled_from(["EF", "AF11"]) | st.integers(0, 63)),
    scalars.Duration: st.builds(lambda ns: scalars.Duration(scalars.format_duration(ns)), st.integers(-(2**62), 2**62)),
}
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def values(of: inspect.Type, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any value that a field of this type can hold."""
    match of:
        case inspect.StructType():
            if depth > 6:
                return st.builds(of.cls)
            fields = {field.name: values(field.type, depth + 1) for field in of.fields}
            return st.fixed_dictionaries({}, optional=fields).map(lambda given: of.cls(**given))
        case inspect.ListType():
            return st.lists(values(of.item_type, depth + 1), max_size=2)
        case inspect.DictType():
            return st.dictionaries(TEXT, values(of.value_type, depth + 1), max_size=2)
        case inspect.UnionType():
            return st.one_of([values(option, depth) for option in of.types])
        case inspect.CustomType():
            return SCALARS[of.cls]
        case inspect.StrType():
            return TEXT
        case inspect.IntType():
            return NUMBERS
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    return st.sampled_from([1, "x"])  # managedFields, which hold no null


KINDS = sorted(model.KINDS)
MORE = settings(max_examples=4 * settings().max_examples)  # there are many kinds
RESOURCES = {name: values(inspect.type_info(kind.struct)) for name, kind in model.KINDS.items()}


@MORE
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_resources_survive_the_wire(data: st.DataObject, kind: str) -> None:
    resource: model.Resource = data.draw(RESOURCES[kind])
    wire = model.encode(resource)
    assert not set(wire) & set(b"<>&"), "escaped as Go escapes them"
    back = model.decode(kind, wire)
    assert back == resource
    assert model.encode(back) == wire
    assert model.copy(resource) == resource
    assert validation.decode_user(json.loads(wire)) == resource


@MORE
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_defaults_and_rules_take_whatever_decodes(data: st.DataObject, kind: str) -> None:
    resource: model.Resource = data.draw(RESOURCES[kind])
    for problem in validation.validate(resource):
        assert problem.message
        assert str(problem)
    filled = defaults.apply_defaults(resource)
    assert defaults.apply_defaults(filled) == filled
    assert validation.validate_update(resource, resource) == []


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(KINDS))
def test_any_bytes_decode_or_raise_our_error(value: bytes, kind: str) -> None:
    try:
        resource = model.decode(kind, value)
    except model.DecodeError:
        return
    assert isinstance(resource, model.KINDS[kind].struct)


def mutated(value: Any, path: list[int], replacement: Any) -> Any:
    """`value` with the place that `path` leads to replaced: an index per level, modulo what is there."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return replacement
    result = dict(value) if isinstance(value, dict) else list(value)
    key = list(result)[path[0] % len(result)] if isinstance(result, dict) else path[0] % len(result)
    result[key] = mutated(value[key], path[1:], replacement)
    return result


@given(
    data=st.data(), kind=st.sampled_from(KINDS), path=st.lists(st.integers(0, 20), min_size=1, max_size=5), other=JSON
)
def test_any_document_decodes_or_is_refused_with_paths(
    data: st.DataObject, kind: str, path: list[int], other: object
) -> None:
    document = mutated(json.loads(model.encode(data.draw(RESOURCES[kind]))), path, other)
    problems: list[validation.Problem] | None = None
    try:
        resource = validation.decode_user(document)
    except validation.ValidationError as error:
        problems = error.problems
    if problems is not None:
        assert problems
        assert all(problem.message for problem in problems)
        return
    validation.validate(resource)
    assert msgspec.json.decode(model.encode(resource))["kind"] == document["kind"]


@given(TEXT, TEXT, st.sampled_from(KINDS))
def test_resource_keys_go_both_ways(name: str, namespace: str, kind: str) -> None:
    entry = model.KINDS[kind]
    if any(char in "/%" for char in name + namespace) or not name or not namespace:
        return
    key = keys.ResourceKey(kind, name, namespace if entry.namespaced else "")
    assert keys.parse_key(key.path) == key


@given(st.text(max_size=80) | TEXT.map(lambda rest: "/calico/ipam/v2/" + rest))
def test_any_key_is_parsed_or_nobodys(text: str) -> None:
    key = keys.parse_key(text)
    assert key is None or keys.parse_key(key.path) == key
    keys.parse_status_key(text)


PARTS = st.text("ab-", min_size=1, max_size=6).filter(lambda part: part[0] != "-" and part[-1] != "-")


@given(PARTS, PARTS, PARTS, PARTS)
def test_names_of_workload_endpoints_go_both_ways(node: str, orchestrator: str, workload: str, endpoint: str) -> None:
    spec = model.WorkloadEndpointSpec(node=node, orchestrator=orchestrator, workload=workload, endpoint=endpoint)
    name = model.workload_endpoint_name(spec)
    assert model.parse_workload_endpoint_name(name) == model.WorkloadEndpointName(
        node, orchestrator, workload, endpoint
    )
    assert name.startswith(model.workload_endpoint_prefix(node, orchestrator))


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_durations_print_and_parse_to_the_same(nanoseconds: int) -> None:
    text = scalars.format_duration(nanoseconds)
    assert scalars.parse_duration(text) == nanoseconds
    assert scalars.Duration(text) == text


@pytest.mark.parametrize("scalar", scalars.SCALARS)
@given(value=TEXT | NUMBERS | st.booleans() | st.none() | st.floats() | st.lists(st.integers(), max_size=1))
def test_scalars_take_any_json_or_raise_value_error(scalar: type, value: object) -> None:
    try:
        made = scalars.decode_scalar(scalar, value)
    except ValueError:
        return
    again = scalars.decode_scalar(scalar, scalars.encode_scalar(made))
    assert again == made


def test_every_struct_of_the_model_is_one_of_ours() -> None:
    assert all(issubclass(kind.struct, V3Struct) for kind in model.KINDS.values())
    assert codec.drop_nulls({"a": None, "b": [None, {"c": None}]}) == {"b": [None, {}]}
