"""What a request asks for, read from its method, path and query as a Kubernetes API server does it.

Paths: `/apis/projectcalico.org/v3[/namespaces/NS]/PLURAL[/NAME[/status]]`; all others are non-resource requests
(`/openapi/v3`, `/healthz`), which are authorised by path and verb alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from libs.model import kinds
from libs.model.kinds import Kind
from services.apiserver.core.status import GROUP, bad_request, method_not_allowed, not_found_path

VERSION = "v3"
API_PREFIX = f"/apis/{GROUP}/{VERSION}"
NOT_SERVED = frozenset({"IPAMBlock", "IPAMHandle", "LiveMigration", "Node", "WorkloadEndpoint"})
"""Kinds of the model that the API does not have: IPAM's own, and libcalico's internal ones."""
SERVED: dict[str, Kind] = {kind.plural: kind for kind in kinds.KINDS.values() if kind.kind not in NOT_SERVED}
"""By plural, in the order of the registry."""
WITH_STATUS = frozenset({"CalicoNodeStatus", "IPPool", "KubeControllersConfiguration", "Tier"})
"""Kinds with a status subresource (facts/datamodel.md section 1.1)."""


class Verb(StrEnum):
    """As RBAC names them."""

    GET = "get"
    LIST = "list"
    WATCH = "watch"
    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"
    DELETE_COLLECTION = "deletecollection"


@dataclass(frozen=True, slots=True)
class User:
    """Who asks, after authentication. extra: as TokenReview and request headers carry it, keys in lower case."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """The resource of a request. name "" for collections; subresource "" or "status"."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """target None: not about a resource, `verb` is then the HTTP method in lower case."""

    verb: str
    path: str
    target: Target | None = None


_OBJECT_VERBS = {"GET": Verb.GET, "HEAD": Verb.GET, "PUT": Verb.UPDATE, "PATCH": Verb.PATCH, "DELETE": Verb.DELETE}
_COLLECTION_VERBS = {"GET": Verb.LIST, "HEAD": Verb.LIST, "POST": Verb.CREATE, "DELETE": Verb.DELETE_COLLECTION}
_TRUE = frozenset({"1", "true", "True", "TRUE", "t", "T"})


def is_true(query: Mapping[str, str], name: str) -> bool:
    """A boolean of the query; present and empty counts as true, as Kubernetes reads it."""
    return name in query and (not query[name] or query[name] in _TRUE)


def parse(method: str, path: str, query: Mapping[str, str]) -> RequestInfo:
    """Raises ApiError 404 (no such path), 405 (not with that method), 400 (a namespace that does not belong)."""
    if path != API_PREFIX and not path.startswith(API_PREFIX + "/"):
        return RequestInfo(method.lower(), path)
    if path in (API_PREFIX, API_PREFIX + "/"):
        return RequestInfo(method.lower(), path)
    # Exactly as written: what two readers of a path could take for different things must not be served.
    parts = path[len(API_PREFIX) + 1 :].removesuffix("/").split("/")
    if not all(parts):
        raise not_found_path()
    namespace = ""
    if parts[0] == "namespaces" and len(parts) >= 3:
        namespace, parts = parts[1], parts[2:]
    kind = SERVED.get(parts[0])
    if kind is None or len(parts) > 3:
        raise not_found_path()
    name = parts[1] if len(parts) > 1 else ""
    subresource = parts[2] if len(parts) > 2 else ""
    if subresource and not (subresource == "status" and kind.kind in WITH_STATUS):
        raise not_found_path()
    if bool(namespace) and not kind.namespaced:
        raise not_found_path()
    target = Target(kind, namespace, name, subresource)
    verb = _verb(method, query, target)
    if kind.namespaced and not namespace and (name or verb is Verb.CREATE):
        raise bad_request("the namespace of the object is missing in the path") if name else method_not_allowed()
    return RequestInfo(verb, path, target)


def _verb(method: str, query: Mapping[str, str], target: Target) -> Verb:
    verbs = _OBJECT_VERBS if target.name else _COLLECTION_VERBS
    verb = verbs.get(method)
    if verb is None or (target.subresource and verb is Verb.DELETE):
        raise method_not_allowed()
    # One object is watched as a collection with a field selector; `watch` on a name is the same thing.
    if verb in (Verb.LIST, Verb.GET) and not target.subresource and is_true(query, "watch"):
        return Verb.WATCH
    return verb
