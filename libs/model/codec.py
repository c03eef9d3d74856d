"""Resources to and from JSON, byte for byte as Calico's Go clients write it.

Decoding here is lenient, for what is already stored: unknown fields are skipped, null counts as absent. What users send
goes through `libs.model.validation.decode_user`, which is not.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from libs.model import kinds
from libs.model.base import Resource, V3Struct
from libs.model.scalars import decode_scalar, encode_scalar

R = TypeVar("R", bound=Resource)
S = TypeVar("S", bound=msgspec.Struct)

# Go escapes these inside strings. Outside strings they cannot occur, so replacing bytes of the finished text is exact.
_GO_ESCAPES = tuple((char.encode(), f"\\u{ord(char):04x}".encode()) for char in "<>&\u2028\u2029")

_encoder = msgspec.json.Encoder(enc_hook=encode_scalar, order="deterministic")
_LARGEST_EXACT = 2.0**53


class DecodeError(ValueError):
    """Not JSON, or not JSON of the wanted shape. The text names the place: `… - at $.spec.ingress[0].action`."""


@cache
def _decoder(struct: type[S]) -> msgspec.json.Decoder[S]:
    decoder: msgspec.json.Decoder[S] = msgspec.json.Decoder(struct, dec_hook=decode_scalar)
    return decoder


def decode(kind: str | type[R], value: bytes) -> Resource:
    """A resource of this kind. Raises DecodeError, UnknownKind."""
    return decode_struct(kinds.kind(kind).struct, value)


def decode_struct(struct: type[S], value: bytes) -> S:
    """Any struct of this package. Raises DecodeError."""
    try:
        found: S = _decoder(struct).decode(value)
        return found
    except RecursionError as error:
        raise DecodeError("nested too deeply") from error
    except (msgspec.DecodeError, ValueError) as first:
        # Go takes null for anything; the fast path does not.
        try:
            plain = msgspec.json.decode(value)
            without = drop_nulls(plain)
        except (msgspec.DecodeError, ValueError) as error:
            raise DecodeError(f"not JSON: {error}") from error
        except RecursionError as error:
            raise DecodeError("nested too deeply") from error
        if without == plain:
            raise DecodeError(str(first)) from first
        return convert(struct, without)


def convert(struct: type[S], value: object) -> S:
    """From decoded JSON without nulls. Raises DecodeError."""
    try:
        return msgspec.convert(value, struct, dec_hook=decode_scalar)
    except (msgspec.ValidationError, ValueError) as error:
        raise DecodeError(str(error)) from error


def drop_nulls(value: Any) -> Any:
    """The same without object members that are null; nulls in lists stay, since they count."""
    if isinstance(value, dict):
        return {name: drop_nulls(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def from_dict(value: dict[str, Any]) -> Resource:
    """From decoded JSON that names its kind. Raises DecodeError, UnknownKind."""
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise DecodeError("kind: expected the kind of resource, as in 'NetworkPolicy'")
    return convert(kinds.kind(kind).struct, drop_nulls(value))


def encode(resource: Resource) -> bytes:
    """One compact document: kind, apiVersion, metadata as it is (resourceVersion included), spec, status."""
    body = encode_struct(resource)
    return b'{"kind":"%b","apiVersion":"%b",%b' % (resource.kind.encode(), resource.api_version.encode(), body[1:])


def encode_struct(value: V3Struct) -> bytes:
    text = _encoder.encode(_whole_order(value))
    for plain, escaped in _GO_ESCAPES:
        if plain in text:
            text = text.replace(plain, escaped)
    return text


def to_dict(resource: Resource) -> dict[str, Any]:
    """As plain JSON values, in the order of `encode`."""
    value: dict[str, Any] = msgspec.json.decode(encode(resource))
    return value


def copy(resource: R) -> R:
    """A deep copy that may be changed."""
    duplicate: R = msgspec.convert(
        msgspec.to_builtins(resource, enc_hook=encode_scalar), type(resource), dec_hook=decode_scalar
    )
    return duplicate


def _whole_order(value: V3Struct) -> V3Struct:
    """Go prints a float without a fraction as an integer; `order` of tiers and policies is the API's only float."""
    if isinstance(value, Resource):
        spec = _whole_order(value.spec)
        return value if spec is value.spec else msgspec.structs.replace(value, spec=spec)
    order = getattr(value, "order", None)
    if isinstance(order, float) and order.is_integer() and abs(order) < _LARGEST_EXACT:
        return msgspec.structs.replace(value, order=int(order))
    return value
