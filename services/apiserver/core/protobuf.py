"""Reviews in Kubernetes' protobuf form, which kubectl sends for the kinds that Kubernetes itself has (no other form for
them); answers are JSON, which it takes as well. Pure.

`k8s\\0`, then runtime.Unknown with the object in it (k8s.io/apimachinery, pkg/runtime/serializer/protobuf). Numbers of
the fields: pkg/runtime/generated.proto there, and authorization/v1/generated.proto of k8s.io/api.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message, message_factory

from services.apiserver.core.status import JsonObject

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
_PACKAGE = "calico.reviews"
_SHAPES: dict[str, dict[str, tuple[int, str]]] = {
    "TypeMeta": {"apiVersion": (1, "string"), "kind": (2, "string")},
    "Unknown": {"typeMeta": (1, "TypeMeta"), "raw": (2, "bytes"), "contentEncoding": (3, "string")},
    "ResourceAttributes": {
        name: (number, "string")
        for number, name in enumerate(
            ("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1
        )
    },
    "NonResourceAttributes": {"path": (1, "string"), "verb": (2, "string")},
    "SelfSubjectAccessReviewSpec": {
        "resourceAttributes": (1, "ResourceAttributes"),
        "nonResourceAttributes": (2, "NonResourceAttributes"),
    },
    "SelfSubjectAccessReview": {"spec": (2, "SelfSubjectAccessReviewSpec")},
    "SelfSubjectRulesReviewSpec": {"namespace": (1, "string")},
    "SelfSubjectRulesReview": {"spec": (2, "SelfSubjectRulesReviewSpec")},
    "SelfSubjectReview": {},
}
"""Message -> field -> (number, type); other fields are passed over."""


def decode(raw: bytes, kind: str) -> JsonObject:
    """The review of this kind as its JSON form. Raises ValueError."""
    if not raw.startswith(MAGIC):
        raise ValueError("it does not begin as Kubernetes' protobuf form does")
    try:
        envelope: Any = _parsed("Unknown", raw[len(MAGIC) :])
        meta = json_format.MessageToDict(envelope.typeMeta)
        if meta.get("kind", kind) != kind:
            return meta  # who reads it tells what is wrong
        if envelope.contentEncoding:
            raise ValueError(f"content encoding {envelope.contentEncoding!r} is not supported")
        return json_format.MessageToDict(_parsed(kind, envelope.raw)) | meta
    except message.DecodeError as error:
        raise ValueError(f"protobuf: {error}") from error


def _parsed(name: str, raw: bytes) -> message.Message:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}")).FromString(raw)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="reviews.proto", package=_PACKAGE, syntax="proto2")
    kind_of = descriptor_pb2.FieldDescriptorProto
    plain = {"string": kind_of.TYPE_STRING, "bytes": kind_of.TYPE_BYTES}
    for name, fields in _SHAPES.items():
        shape = file.message_type.add(name=name)
        for field, (number, type_) in fields.items():
            one = shape.field.add(name=field, json_name=field, number=number, label=kind_of.LABEL_OPTIONAL)
            one.type = plain.get(type_, kind_of.TYPE_MESSAGE)
            if type_ not in plain:
                one.type_name = f".{_PACKAGE}.{type_}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
