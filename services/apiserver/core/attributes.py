"""What an authoriser is asked about: Kubernetes' attributes of a request, and the words of a refusal.

Wording: k8s.io/apiserver, pkg/endpoints/handlers/responsewriters/errors.go (forbiddenMessage) and apimachinery's
NewForbidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from services.apiserver.core.ports import Decision
from services.apiserver.core.request import VERSION, RequestInfo, User, Verb
from services.apiserver.core.status import GROUP, ApiError


@dataclass(frozen=True, slots=True)
class Attributes:
    """A question without the user. resource "": not about a resource, then `path` decides, and `verb` is the HTTP
    method in lower case.
    """

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        """As rules and messages write it: `ippools/status`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Judge(Protocol):
    """An authoriser that answers about anything, our pseudo-resources and Kubernetes' users included. Raises as
    `ports.Authorizer` does.
    """

    async def authorize(self, user: User, attributes: Attributes) -> Decision: ...


def attributes_of(info: RequestInfo, query: Mapping[str, str] | None = None) -> Attributes:
    """query: a list or watch of one name, by field selector, is authorised for that name, as Kubernetes does it."""
    target = info.target
    if target is None:
        return Attributes(info.verb, path=info.path)
    name = target.name
    if not name and query and info.verb in (Verb.LIST, Verb.WATCH):
        name = selected_name(query.get("fieldSelector", ""))
    return Attributes(
        info.verb, GROUP, VERSION, target.kind.plural, target.subresource, target.namespace, name, info.path
    )


def selected_name(field_selector: str) -> str:
    """The name in `metadata.name=NAME` or `==`; "" when the selector does not fix it."""
    for term in field_selector.split(","):
        key, sign, value = term.partition("=")
        if sign and key.strip() == "metadata.name":
            return value.removeprefix("=").strip()
    return ""


def quoted(text: str) -> str:
    """As Go's %q for what names are made of."""
    return json.dumps(text, ensure_ascii=False)


def sentence(user: str, attributes: Attributes) -> str:
    """`User "jane" cannot list resource …`."""
    start = f"User {quoted(user)} cannot {attributes.verb}"
    if not attributes.resource:
        return f"{start} path {quoted(attributes.path)}"
    what = f"{start} resource {quoted(attributes.full_resource)} in API group {quoted(attributes.group)}"
    if attributes.namespace:
        return f"{what} in the namespace {quoted(attributes.namespace)}"
    return f"{what} at the cluster scope"


def refusal(user: str, attributes: Attributes, reason: str = "") -> ApiError:
    """The 403 of a request that nobody allowed."""
    why = sentence(user, attributes) + (f": {reason}" if reason else "")
    if not attributes.resource:
        return ApiError(403, "Forbidden", f"forbidden: {why}")
    what = f"{attributes.resource}.{attributes.group}" if attributes.group else attributes.resource
    named = f" {quoted(attributes.name)}" if attributes.name else ""
    # `details` of ApiError names our group alone, so a refusal about another one has none.
    plural = attributes.resource if attributes.group == GROUP else ""
    return ApiError(403, "Forbidden", f"{what}{named} is forbidden: {why}", plural=plural, name=attributes.name)
