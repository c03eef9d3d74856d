"""Tokens by which a client fetches a long list in pieces, all of one revision: opaque to it, base64 of
`{"v": "meta.k8s.io/v1", "rv": revision, "start": last key, relative to the collection}` (k8s.io/apiserver,
pkg/storage/continue.go).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from services.apiserver.core.status import ApiError, bad_request

_VERSION = "meta.k8s.io/v1"
NO_REVISION = -1
TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class Continue:
    """revision NO_REVISION: whatever is the newest, the list is then not of one moment."""

    revision: int
    last: str


class _Wire(msgspec.Struct):
    v: str
    rv: int
    start: str


def encode(token: Continue) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Wire(_VERSION, token.revision, token.last))).decode()


def decode(text: str) -> Continue:
    """Raises ApiError 400."""
    try:
        padded = text + "=" * (-len(text) % 4)
        wire = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Wire)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error
    if wire.v != _VERSION:
        raise bad_request(f'continue key is not valid: server does not recognize this encoded version "{wire.v}"')
    if wire.rv == 0 or wire.rv < NO_REVISION or wire.rv >= 2**63:
        raise bad_request("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
    if not wire.start or wire.start.startswith("/") or "\0" in wire.start or ".." in wire.start.split("/"):
        raise bad_request("continue key is not valid: encoded start key empty or outside of the collection")
    return Continue(wire.rv, wire.start)


def too_old(last: str) -> ApiError:
    """410 when the token's revision is compacted, with a token to go on all the same."""
    error = ApiError(410, "Expired", TOO_OLD)
    error.continue_token = encode(Continue(NO_REVISION, last))
    return error
