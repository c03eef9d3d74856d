"""Parameters of the API's operations (k8s.io/apimachinery, pkg/apis/meta/v1/types.go: ListOptions and its like)."""

from __future__ import annotations

from typing import TypeAlias

from services.apiserver.core.status import JsonObject

Parameters: TypeAlias = tuple[JsonObject, ...]


def _query(name: str, text: str, kind: str = "string", **more: object) -> JsonObject:
    return {"name": name, "in": "query", "description": text, "schema": {"type": kind, "uniqueItems": True, **more}}


def _path(name: str, text: str) -> JsonObject:
    schema = {"type": "string", "uniqueItems": True}
    return {"name": name, "in": "path", "description": text, "required": True, "schema": schema}


NAME: Parameters = (_path("name", "Name of the object."),)
NAMESPACE: Parameters = (_path("namespace", "Namespace of the object."),)
PRETTY: Parameters = (_query("pretty", "If true, the answer is written for people."),)

_VERSION = _query(
    "resourceVersion",
    "How fresh the answer must be. Absent: as fresh as can be; 0: whatever is at hand; a version: not older than that, "
    "or exactly that one, as resourceVersionMatch says.",
    pattern="^[0-9]*$",
)
_TIMEOUT = _query("timeoutSeconds", "How long the call or the watch may last.", "integer")
SELECT: Parameters = (
    _query("continue", "From the metadata of a chunk: asks for the next one."),
    _query("fieldSelector", "Only objects whose fields have these values: metadata.name=a,metadata.namespace!=b."),
    _query("labelSelector", "Only objects with these labels: a=b,c in (d,e),!f."),
    _query("limit", "At most this many objects; the rest by continue.", "integer"),
    _VERSION,
    _query(
        "resourceVersionMatch", "How resourceVersion is meant.", enum=["NotOlderThan", "Exact"]
    ),
    _query(
        "sendInitialEvents",
        "Of a watch: first ADDED for every object that there is, then a bookmark that says so. Needs "
        "resourceVersionMatch NotOlderThan.",
        "boolean",
    ),
    _TIMEOUT,
)  # fmt: skip
LIST: Parameters = (
    _query("allowWatchBookmarks", "Of a watch: tell from time to time how far it is.", "boolean"),
    *SELECT,
    _query("watch", "Tell changes as they happen instead of listing.", "boolean"),
)
_DRY_RUN = _query("dryRun", "All: check everything, store nothing.", enum=["All"])
WRITE: Parameters = (
    _DRY_RUN,
    _query("fieldManager", "Who sets the fields: at most 128 printable characters. Required for apply.", maxLength=128),
    _query(
        "fieldValidation",
        "What becomes of fields that do not exist or are given twice: Ignore, Warn (by Warning headers; if absent) or "
        "Strict (the request is refused).",
        enum=["Ignore", "Warn", "Strict"],
    ),
)
FORCE: Parameters = (
    _query("force", "Of apply only: take over fields that others set, instead of a conflict.", "boolean"),
)
DELETE: Parameters = (
    _DRY_RUN,
    _query("gracePeriodSeconds", "How long the object may take to end.", "integer"),
    _query("orphanDependents", "Older form of propagationPolicy.", "boolean"),
    _query(
        "propagationPolicy",
        "What becomes of objects that this one owns.",
        enum=["Orphan", "Background", "Foreground"],
    ),
)
