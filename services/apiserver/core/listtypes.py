"""How the parts of an object may be owned: which lists and maps belong to one manager as a whole, and which by element.

Kubernetes' words, as `x-kubernetes-list-type` and `x-kubernetes-map-type` of its OpenAPI documents: a list is `atomic`,
a `set` of scalars, or a `map` of objects with keys of their own; a map (labels) or a structure is `granular` or
`atomic`. What is not listed here is as Kubernetes has it by default: lists atomic, maps and structures granular.

Sources: the markers of Calico's custom resource definitions (api/config/crd) and Kubernetes' ObjectMeta. Calico also
marks lists of objects as sets (BGPConfiguration's serviceClusterIPs …, BGPFilter's rules). Kubernetes cannot apply such
a list: its merge knows sets of scalars only and refuses the object. Here they are atomic, so that they can be applied.
Calico leaves conditions unmarked; here they are a map by type, as in Kubernetes' own kinds, so that two controllers can
each keep their own.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Union, get_args, get_origin

import msgspec

from libs.model import bgp, cluster, endpoints, policy, pools
from libs.model.base import ObjectMeta, OwnerReference, V3Struct
from libs.model.kinds import Kind

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ListType:
    """kind: atomic, set or map; keys: of a map's elements."""

    kind: str
    keys: tuple[str, ...] = ()


ATOMIC_LIST = ListType("atomic")
SET = ListType("set")
_BY_TYPE = ListType("map", ("type",))
_RULED = (
    policy.NetworkPolicySpec,
    policy.GlobalNetworkPolicySpec,
    policy.StagedNetworkPolicySpec,
    policy.StagedGlobalNetworkPolicySpec,
)
LIST_TYPES: Mapping[tuple[type, str], ListType] = {
    (ObjectMeta, "finalizers"): SET,
    (ObjectMeta, "ownerReferences"): ListType("map", ("uid",)),
    **{(struct, name): SET for struct in _RULED for name in ("types", "performanceHints")},
    (policy.StagedKubernetesNetworkPolicySpec, "policyTypes"): SET,
    (policy.TierStatus, "conditions"): _BY_TYPE,
    (pools.IPPoolSpec, "allowedUses"): SET,
    (pools.IPPoolStatus, "conditions"): _BY_TYPE,
    (pools.IPReservationSpec, "reservedCIDRs"): SET,
    (bgp.BGPConfigurationSpec, "ignoredInterfaces"): SET,
    (endpoints.HostEndpointSpec, "expectedIPs"): SET,
    (endpoints.HostEndpointSpec, "profiles"): SET,
    (endpoints.NetworkSetSpec, "nets"): SET,
    (endpoints.GlobalNetworkSetSpec, "nets"): SET,
    (cluster.HostEndpointTemplate, "interfaceCIDRs"): SET,
}
"""By structure and JSON name; lists that are not here are atomic."""

ATOMIC_STRUCTS: frozenset[type] = frozenset({OwnerReference, bgp.SecretKeySelector, policy.LabelSelector})
"""Owned as a whole. The objects inside atomic lists are so by themselves."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text, number or boolean. Which of them is the business of validation, not of ownership."""


@dataclass(frozen=True, slots=True)
class Atomic:
    """A list (`of` is list) or object (dict) that is owned as a whole."""

    of: type


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with the named fields, each owned by itself."""

    fields: Mapping[str, Shape] = field(hash=False)


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose members are free; each is owned by itself."""

    value: Shape


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose elements are owned by themselves. keys: of its objects; () for a set of scalars."""

    element: Shape
    keys: tuple[str, ...] = ()


Shape = Scalar | Atomic | Fields | MapOf | ListOf


@cache
def shape_of(kind: Kind) -> Fields:
    """The whole object, apiVersion, kind and metadata included."""
    top = _struct_shape(kind.struct)
    return Fields({"apiVersion": Scalar(), "kind": Scalar(), **top.fields})


def openapi_extensions(struct: type, name: str) -> JsonObject:
    """What the OpenAPI schema of a structure's field (by its JSON name) says on how it merges: `{}` for scalars and
    granular objects.
    """
    for member in msgspec.structs.fields(struct):
        if member.encode_name == name:
            return _extensions(_bare(member.type), LIST_TYPES.get((struct, name), ATOMIC_LIST))
    raise KeyError(name)


def _extensions(of: Any, list_type: ListType) -> JsonObject:
    if of in ATOMIC_STRUCTS:
        return {"x-kubernetes-map-type": "atomic"}
    if get_origin(of) is not list:
        return {}
    found: JsonObject = {"x-kubernetes-list-type": list_type.kind}
    return found | ({"x-kubernetes-list-map-keys": list(list_type.keys)} if list_type.keys else {})


@cache
def _struct_shape(struct: type[V3Struct]) -> Fields:
    return Fields(
        {
            member.encode_name: _shape(_bare(member.type), LIST_TYPES.get((struct, member.encode_name), ATOMIC_LIST))
            for member in msgspec.structs.fields(struct)
        }
    )


def _shape(of: Any, list_type: ListType) -> Shape:
    origin = get_origin(of)
    if origin is list:
        if list_type.kind == "atomic":
            return Atomic(list)
        return ListOf(_shape(_bare(get_args(of)[0]), ATOMIC_LIST), list_type.keys)
    if origin is dict:
        return MapOf(_shape(_bare(get_args(of)[1]), ATOMIC_LIST))
    if isinstance(of, type) and issubclass(of, msgspec.Struct):
        return Atomic(dict) if of in ATOMIC_STRUCTS else _struct_shape(of)
    return Scalar()


def _bare(of: Any) -> Any:
    """`X` of `X | None`; other unions (a number or a name) are scalars and stay."""
    if get_origin(of) in (Union, types.UnionType):
        rest = [part for part in get_args(of) if part is not type(None)]
        return rest[0] if len(rest) == 1 else of
    return of
