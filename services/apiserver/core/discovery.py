"""What the server tells clients of itself: groups, resources, version, paths.

Both forms of discovery: one document for each group and version (k8s.io/apimachinery, pkg/apis/meta/v1: APIGroupList,
APIResourceList), and the aggregated one that says all at once (k8s.io/api, apidiscovery/v2 and v2beta1).
"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Iterable

from libs.model.kinds import Kind
from services.apiserver.core import reviews
from services.apiserver.core.accept import MediaType
from services.apiserver.core.request import API_PREFIX, SERVED, VERSION, WITH_STATUS
from services.apiserver.core.status import GROUP, JsonObject

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")
DISCOVERY_GROUP = "apidiscovery.k8s.io"
AGGREGATED = {
    version: MediaType(
        "application", "json", {"g": DISCOVERY_GROUP, "v": version, "as": "APIGroupDiscoveryList"}
    )
    for version in ("v2", "v2beta1")
}  # fmt: skip
"""The content types of aggregated discovery; parameters in the order that clients compare them in."""
KUBERNETES = (1, 34)
"""The Kubernetes version whose API the server follows; clients decide by it what they may ask for."""

_GROUP_VERSION = f"{GROUP}/{VERSION}"
REVIEWS = tuple(sorted({version for version, _ in reviews.KINDS.values()}))
"""Groups and versions of what users ask about themselves, as in authorization.k8s.io/v1. Behind a kube-apiserver nobody
sees them: it has its own.
"""


def api_versions() -> JsonObject:
    """`/api`: the core group, of which nothing is served here."""
    return {"kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": []}


def api_group(group_version: str = _GROUP_VERSION) -> JsonObject:
    """`/apis/projectcalico.org`."""
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(group_version)


def api_group_list() -> JsonObject:
    """`/apis`."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(one) for one in (_GROUP_VERSION, *REVIEWS)]}


def _group(group_version: str) -> JsonObject:
    name, _, version = group_version.partition("/")
    only = {"groupVersion": group_version, "version": version}
    return {"name": name, "versions": [only], "preferredVersion": only}


def api_resource_list() -> JsonObject:
    """`/apis/projectcalico.org/v3`."""
    resources = [resource for kind in _by_plural() for resource in _resources(kind)]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": _GROUP_VERSION, "resources": resources}


def review_resource_list(group_version: str) -> JsonObject:
    """`/apis/authorization.k8s.io/v1` and its like."""
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": False, "kind": kind, "verbs": ["create"]}
        for plural, kind in _reviews(group_version)
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _reviews(group_version: str) -> list[tuple[str, str]]:
    """(plural, kind)."""
    found = reviews.KINDS.items()
    return sorted((path.rpartition("/")[2], kind) for path, (version, kind) in found if version == group_version)


def _resources(kind: Kind) -> Iterable[JsonObject]:
    found: JsonObject = {
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": list(VERBS),
    }  # fmt: skip
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    yield found | {"storageVersionHash": storage_version_hash(kind)}
    if kind.kind in WITH_STATUS:
        yield {
            "name": f"{kind.plural}/status", "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": list(STATUS_VERBS),
        }  # fmt: skip


def storage_version_hash(kind: Kind) -> str:
    """Changes when objects of the kind are stored in another version (k8s.io/apiserver, pkg/endpoints/discovery)."""
    digest = hashlib.sha256(f"{_GROUP_VERSION}/{kind.kind}".encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def aggregated(version: str, *, core: bool) -> JsonObject:
    """All groups at once, as `/apis` answers; core: as `/api` does, where there are none. version: v2 or v2beta1."""
    groups = [
        _aggregated_group(_GROUP_VERSION, [_aggregated(kind) for kind in _by_plural()]),
        *(_aggregated_group(one, _aggregated_reviews(one)) for one in REVIEWS),
    ]
    return {
        "kind": "APIGroupDiscoveryList", "apiVersion": f"{DISCOVERY_GROUP}/{version}", "metadata": {},
        "items": [] if core else groups,
    }  # fmt: skip


def _aggregated_group(group_version: str, resources: list[JsonObject]) -> JsonObject:
    name, _, version = group_version.partition("/")
    return {
        "metadata": {"name": name, "creationTimestamp": None},
        "versions": [{"version": version, "resources": resources, "freshness": "Current"}],
    }


def _aggregated_reviews(group_version: str) -> list[JsonObject]:
    group, _, version = group_version.partition("/")
    return [
        {
            "resource": plural, "responseKind": {"group": group, "version": version, "kind": kind}, "scope": "Cluster",
            "singularResource": kind.lower(), "verbs": ["create"],
        }
        for plural, kind in _reviews(group_version)
    ]  # fmt: skip


def _aggregated(kind: Kind) -> JsonObject:
    response = {"group": GROUP, "version": VERSION, "kind": kind.kind}
    found: JsonObject = {
        "resource": kind.plural, "responseKind": response, "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular, "verbs": list(VERBS),
    }  # fmt: skip
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    if kind.kind in WITH_STATUS:
        found["subresources"] = [{"subresource": "status", "responseKind": response, "verbs": list(STATUS_VERBS)}]
    return found


def _by_plural() -> list[Kind]:
    return [SERVED[plural] for plural in sorted(SERVED)]


def version_info(version: str) -> JsonObject:
    """`/version`: k8s.io/apimachinery, pkg/version.Info. version: this program's own, which stands as build metadata
    behind the version of Kubernetes, where clients neither compare nor trip over it.
    """
    major, minor = KUBERNETES
    own = re.sub(r"[^0-9A-Za-z.-]", "-", version)
    return {
        "major": str(major),
        "minor": str(minor),
        "gitVersion": f"v{major}.{minor}.0+calico-py.{own}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "none",
        "compiler": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system().lower()}/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
    }


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def root_paths(others: Iterable[str] = ()) -> JsonObject:
    """`/`: where to go on. others: paths that somebody else serves, such as /healthz."""
    groups = (path for one in REVIEWS for path in (f"/apis/{one.partition('/')[0]}", f"/apis/{one}"))
    own = (
        "/api",
        "/apis",
        *groups,
        f"/apis/{GROUP}",
        API_PREFIX,
        "/openapi/v2",
        "/openapi/v3",
        f"/openapi/v3{API_PREFIX}",
        "/version",
    )
    return {"paths": sorted({*own, *others})}
