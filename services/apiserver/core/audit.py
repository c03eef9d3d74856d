"""Audit events in the form of audit.k8s.io/v1, level Metadata: who did what to which object, and how it ended. Bodies
are not in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl, urlencode, urlsplit

from libs.model.kinds import Kind
from services.apiserver.core.request import VERSION, RequestInfo, User
from services.apiserver.core.status import GROUP, JsonObject

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET = re.compile(r"passw|secret|token|key|credential|auth", re.IGNORECASE)
MAX_TEXT = 1024  # of what a client chooses freely


def audit_id(given: str, fresh: str) -> str:
    """A kube-apiserver in front tells its own, so that both have one record; anything odd is replaced."""
    return given if _ID.fullmatch(given) else fresh


def safe_uri(path_qs: str) -> str:
    """Path and query, values of parameters that sound secret masked (a token in a query is a mistake, not a reason to
    publish it).
    """
    parts = urlsplit(path_qs)
    if not parts.query:
        return path_qs[:MAX_TEXT]
    query = [
        (name, "***" if _SECRET.search(name) else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    return f"{parts.path}?{urlencode(query, safe='=,*!():')}"[:MAX_TEXT]


@dataclass(slots=True)
class Record:
    """What is known of a request. impersonator: who sent it, when `user` is whom it wanted to be."""

    audit_id: str
    received: datetime
    uri: str
    user: User | None = None
    impersonator: User | None = None
    info: RequestInfo | None = None
    source_ips: tuple[str, ...] = ()
    user_agent: str = ""
    name: str = ""  # of a created object, which the path does not have
    annotations: dict[str, str] = field(default_factory=dict)


def event(record: Record, stage: str, at: datetime, code: int, status: Mapping[str, str]) -> JsonObject:
    """stage: ResponseStarted or ResponseComplete. status: message and reason of a failure."""
    sender = record.impersonator or record.user
    info = record.info
    found: JsonObject = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": record.audit_id,
        "stage": stage,
        "requestURI": record.uri,
        "verb": str(info.verb) if info else "",
        "user": _user(sender) if sender else {},
    }
    if record.impersonator is not None and record.user is not None:
        found["impersonatedUser"] = _user(record.user)
    if record.source_ips:
        found["sourceIPs"] = list(record.source_ips)
    if record.user_agent:
        found["userAgent"] = record.user_agent[:MAX_TEXT]
    if info is not None and info.target is not None:
        found["objectRef"] = _reference(info.target.kind, info, record.name)
    found["responseStatus"] = {"metadata": {}} | dict(status) | {"code": code}
    found["requestReceivedTimestamp"] = timestamp(record.received)
    found["stageTimestamp"] = timestamp(at)
    if record.annotations:
        found["annotations"] = dict(record.annotations)
    return found


def timestamp(at: datetime) -> str:
    """MicroTime of apimachinery. at: in UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _user(user: User) -> JsonObject:
    found: JsonObject = {"username": user.name}
    if user.uid:
        found["uid"] = user.uid
    if user.groups:
        found["groups"] = list(user.groups)
    if user.extra:
        found["extra"] = {key: list(values) for key, values in user.extra.items()}
    return found


def _reference(kind: Kind, info: RequestInfo, name: str) -> JsonObject:
    assert info.target is not None
    found = {
        "resource": kind.plural,
        "namespace": info.target.namespace,
        "name": info.target.name or name,
        "apiGroup": GROUP,
        "apiVersion": VERSION,
        "subresource": info.target.subresource,
    }
    return {key: value for key, value in found.items() if value}
