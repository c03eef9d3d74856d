"""Validation of a resource or a part of one by the name of its type in Go, as recorded verdicts name them."""

from __future__ import annotations

from typing import Any

from libs.model import bgp, codec, kinds
from libs.model.base import Resource, V3Struct
from libs.model.problems import At, ValidationError
from libs.model.scalars import DSCP, SCALARS, Port, Protocol, decode_scalar
from libs.model.validation import checks
from libs.model.validation.bgp import check_filter_rule
from libs.model.validation.registry import PARTS, SPECS, Check, check_resource

# Go's name where ours differs.
_RENAMED = {"Template": "HostEndpointTemplate"}

_SCALAR_CHECKS: dict[type, Check] = {Protocol: checks.protocol, Port: checks.port, DSCP: checks.dscp}
_SCALARS: dict[str, type] = {scalar.__name__: scalar for scalar in SCALARS}
_FILTER_RULES = {"BGPFilterRuleV4": 4, "BGPFilterRuleV6": 6}
_PARTS: dict[str, tuple[type[V3Struct], Check]] = {
    struct.__name__: (struct, check) for struct, check in (*SPECS.items(), *PARTS.items())
}


class UnknownType(KeyError):
    """No such type, or not one that is checked alone."""


def validate_typed(type_name: str, value: Any) -> tuple[bool, str]:
    """(valid, what is wrong). type_name: with or without `*` and package: `*v3.NetworkPolicy`. Raises UnknownType."""
    name = type_name.lstrip("*").rpartition(".")[2]
    at = At()
    try:
        _check(at, _RENAMED.get(name, name), value, type_name)
    except (codec.DecodeError, ValueError) as error:
        return False, str(error)
    return not at.problems, str(ValidationError(at.problems))


def _check(at: At, name: str, value: Any, type_name: str) -> None:
    if scalar := _SCALARS.get(name):
        decoded = decode_scalar(scalar, value)
        if check := _SCALAR_CHECKS.get(scalar):
            check(at, decoded)
    elif version := _FILTER_RULES.get(name):
        check_filter_rule(at, codec.convert(bgp.BGPFilterRule, codec.drop_nulls(value)), version)
    elif part := _PARTS.get(name):
        struct, check = part
        check(at, codec.convert(struct, codec.drop_nulls(value)))
    elif entry := kinds.KINDS.get(name):
        resource: Resource = codec.convert(entry.struct, codec.drop_nulls(value))
        check_resource(at, resource)
    else:
        raise UnknownType(type_name)
