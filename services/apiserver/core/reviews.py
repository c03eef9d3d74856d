"""What a user may ask of itself at a server that stands alone: SelfSubjectAccessReview and SelfSubjectRulesReview of
authorization.k8s.io/v1, SelfSubjectReview of authentication.k8s.io/v1. Pure.

`kubectl auth can-i`, `can-i --list` and `auth whoami` are these. Behind a kube-apiserver its own answer them. Source:
k8s.io/kubernetes, pkg/registry/authorization and pkg/apis/authorization/validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from services.apiserver.core.attributes import Attributes
from services.apiserver.core.rbac import MASTERS, Rule
from services.apiserver.core.request import User
from services.apiserver.core.status import ApiError, Cause, JsonObject, bad_request

_T = TypeVar("_T")
AUTHORIZATION, AUTHENTICATION = "authorization.k8s.io/v1", "authentication.k8s.io/v1"
ACCESS = f"/apis/{AUTHORIZATION}/selfsubjectaccessreviews"
RULES = f"/apis/{AUTHORIZATION}/selfsubjectrulesreviews"
WHOAMI = f"/apis/{AUTHENTICATION}/selfsubjectreviews"
KINDS = {
    ACCESS: (AUTHORIZATION, "SelfSubjectAccessReview"),
    RULES: (AUTHORIZATION, "SelfSubjectRulesReview"),
    WHOAMI: (AUTHENTICATION, "SelfSubjectReview"),
}
"""(apiVersion, kind) by path."""
EVERYTHING = (Rule(("*",), ("*",), ("*",)), Rule(("*",), nonResourceURLs=("*",)))
"""Of members of system:masters."""


class _Resource(msgspec.Struct):
    namespace: str = ""
    verb: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""


class _Path(msgspec.Struct):
    path: str = ""
    verb: str = ""


class _AccessSpec(msgspec.Struct):
    resourceAttributes: _Resource | None = None
    nonResourceAttributes: _Path | None = None


class _RulesSpec(msgspec.Struct):
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Granted:
    """incomplete: why there may be more than `rules`; "" when these are all."""

    rules: tuple[Rule, ...]
    incomplete: str = ""


def checked(body: object, path: str) -> JsonObject:
    """The review that the body holds. Raises ApiError 400 for another kind."""
    version, kind = KINDS[path]
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a {kind}, not {type(body).__name__}")
    if (found := (body.get("apiVersion", version), body.get("kind", kind))) != (version, kind):
        raise bad_request(f"the body must be a {kind} of {version}, not {found[1]!r} of {found[0]!r}")
    return body


def asked(review: JsonObject) -> Attributes:
    """The question of a SelfSubjectAccessReview. Raises ApiError 400 and 422."""
    spec = _spec(review, _AccessSpec)
    wanted, path = spec.resourceAttributes, spec.nonResourceAttributes
    if (wanted is None) == (path is None):
        message = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        cause = Cause("FieldValueInvalid", message, "spec")
        text = f'SelfSubjectAccessReview.authorization.k8s.io "" is invalid: spec: {message}'
        raise ApiError(422, "Invalid", text, causes=[cause])
    if path is not None:
        return Attributes(path.verb.lower(), path=path.path)
    assert wanted is not None
    if not wanted.resource:  # a question without one would be judged as one about a path
        raise bad_request("spec.resourceAttributes.resource: name the resource, or * for all")
    return Attributes(
        wanted.verb, wanted.group, wanted.version, wanted.resource, wanted.subresource, wanted.namespace, wanted.name
    )


def namespace_of(review: JsonObject) -> str:
    """Of a SelfSubjectRulesReview. Raises ApiError 400."""
    namespace = _spec(review, _RulesSpec).namespace
    if not namespace:
        raise bad_request("no namespace on request")
    return namespace


def of_masters(user: User) -> bool:
    return MASTERS in user.groups


def rules_status(granted: Granted) -> JsonObject:
    """Status of a SelfSubjectRulesReview."""
    resource = [
        {"verbs": rule.verbs, "apiGroups": rule.apiGroups, "resources": rule.resources}
        | ({"resourceNames": rule.resourceNames} if rule.resourceNames else {})
        for rule in granted.rules
        if not rule.nonResourceURLs
    ]
    paths = [
        {"verbs": rule.verbs, "nonResourceURLs": rule.nonResourceURLs} for rule in granted.rules if rule.nonResourceURLs
    ]
    found: JsonObject = {
        "resourceRules": resource, "nonResourceRules": paths, "incomplete": bool(granted.incomplete),
    }  # fmt: skip
    return found | ({"evaluationError": granted.incomplete} if granted.incomplete else {})


def user_status(user: User) -> JsonObject:
    """Status of a SelfSubjectReview."""
    info: JsonObject = {"username": user.name, "groups": user.groups}
    if user.uid:
        info["uid"] = user.uid
    return {"userInfo": info | ({"extra": user.extra} if user.extra else {})}


def together(parts: Iterable[Granted]) -> Granted:
    found = list(parts)
    rules = tuple(rule for part in found for rule in part.rules)
    return Granted(rules, ", ".join(part.incomplete for part in found if part.incomplete))


def _spec(review: JsonObject, of: type[_T]) -> _T:
    try:
        return msgspec.convert(review.get("spec") or {}, of)
    except msgspec.ValidationError as error:
        raise bad_request(f"spec: {error}") from error
