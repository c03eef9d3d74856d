"""Between resources, what users send, and what the datastore holds: the model's functions with our errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from libs import model
from libs.model import defaults, kinds, storage
from libs.model.base import ObjectMeta, Resource
from libs.model.codec import DecodeError
from libs.resources.errors import FieldProblem, Identity, ValidationError
from libs.resources.patch import PatchError, PatchType, apply_patch
from libs.store.api import KeyValue

JsonObject = dict[str, Any]

timestamp = storage.rfc3339


# --- names and keys --------------------------------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """Exact kind for any name that a person may type, in any case. Raises ValidationError."""
    found = kinds.lookup(name)
    if found is None or found.kind in _NOT_STORED:
        raise ValidationError(None, [FieldProblem("kind", f"resource type '{name}' is not supported")])
    return found.kind


_NOT_STORED = ("IPAMBlock", "IPAMHandle")
"""Kinds that Kubernetes' datastore shows; in etcd their content has keys of its own (`libs.ipam`)."""


def is_namespaced(kind: str) -> bool:
    return kinds.kind(kind).namespaced


def identity(resource: Resource) -> Identity:
    return Identity(resource.kind, resource.metadata.name, resource.metadata.namespace)


def identity_of(kind: str, name: str, namespace: str = "") -> Identity:
    return Identity(kind, name, namespace)


def key(of: Identity) -> str:
    """Raises ValidationError for a kind that is not stored, and a namespace that is missing or too much."""
    try:
        return model.keys.resource_key(of.kind, of.name, of.namespace)
    except ValueError as error:
        raise ValidationError(of, [FieldProblem("metadata.namespace", str(error), of.namespace)]) from error


def prefix(kind: str, namespace: str = "") -> str:
    return model.keys.resource_prefix(kind, namespace)


def named(value: Mapping[str, Any]) -> Identity:
    """What a document names, its spec not looked at. Raises ValidationError."""
    kind = value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise ValidationError(None, [FieldProblem("kind", "expected the kind of resource, as in NetworkPolicy", kind)])
    exact = kinds.KINDS.get(kind)
    if exact is None or kind in _NOT_STORED:
        raise ValidationError(None, [FieldProblem("kind", f"unknown kind of resource '{kind}'", kind)])
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        raise ValidationError(None, [FieldProblem("metadata", "expected a mapping with the name of the resource")])
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not name:
        raise ValidationError(None, [FieldProblem("metadata.name", "expected the name of the resource", name)])
    if namespace is not None and not isinstance(namespace, str):
        raise ValidationError(None, [FieldProblem("metadata.namespace", "expected text", namespace)])
    return Identity(kind, name, namespace or "")


# --- changes ---------------------------------------------------------------------------------------------------------


def with_metadata(resource: Resource, **changes: Any) -> Resource:
    """The same resource with some fields of its metadata changed."""
    return msgspec.structs.replace(resource, metadata=msgspec.structs.replace(resource.metadata, **changes))


def with_whole_metadata(resource: Resource, metadata: ObjectMeta) -> Resource:
    return msgspec.structs.replace(resource, metadata=metadata)


def with_added_metadata(resource: Resource, current: Resource) -> Resource:
    """`resource` with the metadata of the one that is there, its own labels and annotations added to those."""
    return with_whole_metadata(
        resource,
        msgspec.structs.replace(
            current.metadata,
            labels={**current.metadata.labels, **resource.metadata.labels},
            annotations={**current.metadata.annotations, **resource.metadata.annotations},
        ),
    )


def patched(current: Resource, patch: object, patch_type: PatchType) -> Resource:
    """patch: decoded JSON. Raises ValidationError, also for a patch that does not fit or names another resource."""
    try:
        after = apply_patch(to_json(current), patch, patch_type)
    except PatchError as error:
        raise ValidationError(identity(current), [FieldProblem("", str(error))]) from error
    changed = from_json(after)
    if identity(changed) != identity(current):
        problem = FieldProblem("metadata", "a patch may not change kind, name or namespace")
        raise ValidationError(identity(current), [problem])
    return changed


def placeholder(of: Identity) -> Resource:
    """A resource of which only the name is known."""
    return kinds.kind(of.kind).struct(metadata=ObjectMeta(name=of.name, namespace=of.namespace))


# --- datastore -------------------------------------------------------------------------------------------------------


def to_storage(resource: Resource) -> tuple[str, bytes]:
    """(key, value)."""
    return key(identity(resource)), storage.to_storage(resource)


def from_kv(kind: str, kv: KeyValue) -> Resource:
    """Raises ValidationError for a value that is no resource of the kind."""
    try:
        return storage.from_storage(kv.key, kv.value, kv.mod_revision)
    except DecodeError as error:
        name = kv.key.rsplit("/", 1)[1]
        raise ValidationError(
            Identity(kind, name), [FieldProblem("", f"what is stored is damaged: {error}")]
        ) from error


def readable(kind: str, kv: KeyValue) -> Resource | None:
    """None for a value that nobody can read, as other readers skip it."""
    try:
        return from_kv(kind, kv)
    except ValidationError:
        return None


def stored(resource: Resource, revision: int) -> Resource:
    """What a reader would get after this resource was written at `revision`."""
    return storage.from_storage(key(identity(resource)), storage.to_storage(resource), revision)


def unstored(resource: Resource) -> Resource:
    """The same for one that is not written after all; it has no resource version."""
    return with_metadata(stored(resource, 0), resource_version="")


# --- what users send -------------------------------------------------------------------------------------------------


def to_json(resource: Resource) -> JsonObject:
    return model.codec.to_dict(resource)


def from_json(value: JsonObject) -> Resource:
    """What a user wrote, every unknown field and wrong type named. Raises ValidationError."""
    from libs.model import validation  # of all kinds: who only reads need not wait for it

    kind, metadata = value.get("kind"), value.get("metadata")
    try:
        resource = validation.decode_user(value)
    except validation.ValidationError as error:
        name = metadata.get("name") if isinstance(metadata, dict) else None
        known = isinstance(kind, str) and isinstance(name, str)
        raise ValidationError(Identity(str(kind), str(name)) if known else None, error.problems) from error
    if resource.kind in _NOT_STORED:
        raise ValidationError(identity(resource), [FieldProblem("kind", "is not stored in this datastore", kind)])
    return resource


def with_defaults(resource: Resource) -> Resource:
    return defaults.apply_defaults(resource)


def problems(resource: Resource) -> list[FieldProblem]:
    """Everything that is wrong with a resource that has its defaults, as far as it alone can tell."""
    from libs.model import validation  # see from_json

    return validation.validate(resource)
