"""Which parts are owned how: taken from the kinds, and said so to OpenAPI."""

from __future__ import annotations

import msgspec
import pytest

from libs.model import bgp, kinds, policy, pools
from libs.model.base import ObjectMeta
from services.apiserver.core.listtypes import (
    ATOMIC_LIST,
    LIST_TYPES,
    Atomic,
    Fields,
    ListOf,
    MapOf,
    Scalar,
    Shape,
    openapi_extensions,
    shape_of,
)
from services.apiserver.core.request import SERVED


def at(kind: str, *names: str) -> Shape:
    shape: Shape = shape_of(kinds.kind(kind))
    for name in names:
        assert isinstance(shape, Fields)
        shape = shape.fields[name]
    return shape


def test_every_kind_has_a_shape_with_metadata_and_spec() -> None:
    for kind in SERVED.values():
        fields = shape_of(kind).fields
        assert {"apiVersion", "kind", "metadata", "spec"} <= fields.keys(), kind.kind


def test_metadata_is_as_in_every_kind_of_kubernetes() -> None:
    assert at("Tier", "metadata", "labels") == MapOf(Scalar())
    assert at("Tier", "metadata", "finalizers") == ListOf(Scalar())
    assert at("Tier", "metadata", "ownerReferences") == ListOf(Atomic(dict), ("uid",))


@pytest.mark.parametrize(
    ("kind", "names", "shape"),
    [
        ("NetworkPolicy", ("spec", "types"), ListOf(Scalar())),
        ("NetworkPolicy", ("spec", "ingress"), Atomic(list)),
        ("NetworkPolicy", ("spec", "order"), Scalar()),
        ("HostEndpoint", ("spec", "expectedIPs"), ListOf(Scalar())),
        ("HostEndpoint", ("spec", "ports"), Atomic(list)),
        (
            "BGPConfiguration",
            ("spec", "serviceClusterIPs"),
            Atomic(list),
        ),  # a set of objects upstream, which nobody can apply
        ("BGPConfiguration", ("spec", "nodeMeshPassword", "secretKeyRef"), Atomic(dict)),
        ("StagedKubernetesNetworkPolicy", ("spec", "podSelector"), Atomic(dict)),
        ("Profile", ("spec", "labelsToApply"), MapOf(Scalar())),
        ("FelixConfiguration", ("spec", "bpfLogFilters"), MapOf(Scalar())),
        ("FelixConfiguration", ("spec", "failsafeInboundHostPorts"), Atomic(list)),
        ("NetworkSet", ("spec", "nets"), ListOf(Scalar())),
    ],
)
def test_kinds_are_as_calico_marks_them(kind: str, names: tuple[str, ...], shape: Shape) -> None:
    assert at(kind, *names) == shape


def test_conditions_are_a_map_by_type() -> None:
    shape = at("IPPool", "status", "conditions")
    assert isinstance(shape, ListOf)
    assert shape.keys == ("type",)
    assert isinstance(shape.element, Fields)


def test_every_marked_field_exists() -> None:
    for struct, name in LIST_TYPES:
        assert name in {field.encode_name for field in msgspec.structs.fields(struct)}, (struct, name)


def test_openapi_says_the_same() -> None:
    assert openapi_extensions(pools.IPPoolSpec, "allowedUses") == {"x-kubernetes-list-type": "set"}
    assert openapi_extensions(policy.NetworkPolicySpec, "egress") == {"x-kubernetes-list-type": ATOMIC_LIST.kind}
    keyed = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]}
    assert openapi_extensions(ObjectMeta, "ownerReferences") == keyed
    assert openapi_extensions(bgp.BGPPassword, "secretKeyRef") == {"x-kubernetes-map-type": "atomic"}
    assert openapi_extensions(policy.NetworkPolicySpec, "order") == {}
    with pytest.raises(KeyError):
        openapi_extensions(policy.NetworkPolicySpec, "rder")
