"""What the query of a request (for deletions, its body) says about how to carry it out, with Kubernetes' checks and
wording (k8s.io/apimachinery, pkg/apis/meta/v1/validation and pkg/apis/meta/internalversion/validation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from libs.model.kinds import Kind
from libs.resources.options import Preconditions
from services.apiserver.core import continuation, selectors
from services.apiserver.core.continuation import Continue
from services.apiserver.core.owners import manager_of_user_agent, manager_problem
from services.apiserver.core.request import is_true
from services.apiserver.core.selectors import FieldSelector, FieldTerm, LabelSelector
from services.apiserver.core.status import ApiError, Cause, bad_request

Query = Mapping[str, str]

_LARGEST = 2**63 - 1


class Match(StrEnum):
    """Which revision a list is to have: exactly the given one, or any that is not older."""

    EXACT = "Exact"
    NOT_OLDER = "NotOlderThan"


class FieldValidation(StrEnum):
    IGNORE = "Ignore"
    WARN = "Warn"
    STRICT = "Strict"


@dataclass(frozen=True, slots=True)
class ListOptions:
    """revision None: the newest. `match` is resolved: with a limit and a revision, and nothing said, it is Exact."""

    labels: LabelSelector = ()
    fields: FieldSelector = ()
    revision: int | None = None
    match: Match = Match.NOT_OLDER
    limit: int = 0
    continue_: Continue | None = None


@dataclass(frozen=True, slots=True)
class WriteQuery:
    """Of create, update and patch. manager: who owns the fields; force: only of an apply patch."""

    dry_run: bool = False
    validation: FieldValidation = FieldValidation.WARN
    manager: str = "unknown"
    force: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """Dependents of our objects are left to Kubernetes' garbage collector, whatever the propagation policy: nothing
    here owns anything.
    """

    dry_run: bool = False
    preconditions: Preconditions | None = None


# --- reading ---------------------------------------------------------------------------------------------------------


def revision_of(query: Query) -> int | None:
    """resourceVersion: None when nothing is said, 0: whatever is at hand. Raises ApiError 400."""
    text = query.get("resourceVersion", "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]+", text):
        raise bad_request(
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    if (value := int(text)) > _LARGEST:
        raise bad_request(
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": value out of range'
        )
    return value


def list_options(query: Query, kind: Kind) -> ListOptions:
    """Raises ApiError 400 and 422."""
    labels, fields = selection(query, kind)
    revision, limit = revision_of(query), _integer(query, "limit")
    match = query.get("resourceVersionMatch", "")
    causes = []
    where = "resourceVersionMatch"
    if match:
        if revision is None:
            causes.append(_forbidden(where, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
        if query.get("continue"):
            causes.append(_forbidden(where, "resourceVersionMatch is forbidden when continue is provided"))
        if match not in tuple(Match):
            causes.append(_unsupported(where, match, [*Match, ""]))
        if match == Match.EXACT and revision == 0:
            causes.append(_forbidden(where, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
    if "sendInitialEvents" in query:
        causes.append(_forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if causes:
        raise _invalid("ListOptions", causes)
    token = continuation.decode(query["continue"]) if query.get("continue") else None
    if token is not None and revision:
        raise bad_request("specifying resource version is not allowed when using continue")
    exact = match == Match.EXACT or (not match and limit > 0 and bool(revision))
    return ListOptions(labels, fields, revision, Match.EXACT if exact else Match.NOT_OLDER, max(0, limit), token)


def selection(query: Query, kind: Kind) -> tuple[LabelSelector, FieldSelector]:
    """Raises ApiError 400."""
    labels = selectors.parse_labels(query.get("labelSelector", ""))
    return labels, selectors.parse_fields(query.get("fieldSelector", ""), kind)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_query(query: Query, user_agent: str, *, of: str, applying: bool = False) -> WriteQuery:
    """of: CreateOptions, UpdateOptions or PatchOptions. Raises ApiError 422."""
    causes: list[Cause] = []
    dry_run = _dry_run([query["dryRun"]] if query.get("dryRun") else [], causes)
    manager = query.get("fieldManager", "")
    if applying and not manager:
        causes.append(Cause("FieldValueRequired", "Required value: is required for apply patch", "fieldManager"))
    if problem := manager_problem(manager):
        causes.append(Cause("FieldValueInvalid", f"Invalid value: {manager[:64]!r}: {problem}", "fieldManager"))
    if "force" in query and not applying and of == "PatchOptions":
        causes.append(_forbidden("force", "may not be specified for non-apply patch"))
    validation = query.get("fieldValidation", "") or FieldValidation.WARN
    if validation not in tuple(FieldValidation):
        causes.append(_unsupported("fieldValidation", validation, ["", *FieldValidation]))
    if causes:
        raise _invalid(of, causes)
    return WriteQuery(
        dry_run,
        FieldValidation(validation),
        manager or manager_of_user_agent(user_agent),
        applying and is_true(query, "force"),
    )


def delete_options(query: Query, body: object) -> DeleteOptions:
    """body: decoded, None when there was none; the query counts only then. Raises ApiError 400 and 422."""
    given: Mapping[str, Any]
    if body is None:
        given = {name: query[name] for name in ("propagationPolicy", "gracePeriodSeconds") if query.get(name)}
        given |= {"dryRun": [query["dryRun"]]} if query.get("dryRun") else {}
        if "gracePeriodSeconds" in given:
            given |= {"gracePeriodSeconds": _integer(query, "gracePeriodSeconds")}
        if "orphanDependents" in query:
            given |= {"orphanDependents": is_true(query, "orphanDependents")}
    elif isinstance(body, Mapping):
        given = body
    else:
        raise bad_request("the body of a deletion must be DeleteOptions")
    _check_delete_kind(given)
    causes: list[Cause] = []
    dry_run = _dry_run(_typed(given, "dryRun", list, []), causes)
    policy = _typed(given, "propagationPolicy", str, "")
    orphans = _typed(given, "orphanDependents", bool, None)
    if policy and policy not in (known := ("Foreground", "Background", "Orphan")):
        causes.append(_unsupported("propagationPolicy", policy, [*known, "nil"]))
    if policy and orphans is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(Cause("FieldValueInvalid", f'Invalid value: "{policy}": {text}', "propagationPolicy"))
    _typed(given, "gracePeriodSeconds", int, None)
    if causes:
        raise _invalid("DeleteOptions", causes)
    wanted = _typed(given, "preconditions", dict, {})
    uid, version = _typed(wanted, "uid", str, ""), _typed(wanted, "resourceVersion", str, "")
    return DeleteOptions(dry_run, Preconditions(uid, version) if uid or version else None)


def _check_delete_kind(given: Mapping[str, Any]) -> None:
    kind, version = given.get("kind", "DeleteOptions"), given.get("apiVersion", "v1")
    if kind != "DeleteOptions" or version not in ("v1", "meta.k8s.io/v1", "projectcalico.org/v3"):
        raise bad_request(f"decoded object cannot be converted to DeleteOptions: {version}, Kind={kind}")


def _typed(given: Mapping[str, Any], name: str, wanted: type, default: Any) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise bad_request(f"DeleteOptions: {name}: expected {wanted.__name__}, not {type(value).__name__}")
    return value


# --- parts -----------------------------------------------------------------------------------------------------------


def _integer(query: Query, name: str) -> int:
    text = query.get(name, "")
    if not text:
        return 0
    if not re.fullmatch(r"[-+]?[0-9]+", text):
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if not -_LARGEST <= (value := int(text)) <= _LARGEST:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": value out of range')
    return value


def _dry_run(values: Sequence[object], causes: list[Cause]) -> bool:
    wrong = [value for value in values if value != "All"]
    causes += [_unsupported("dryRun", str(value), ["All"]) for value in wrong]
    return bool(values)


def _forbidden(field: str, message: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {message}", field)


def _unsupported(field: str, value: str, known: Sequence[str]) -> Cause:
    shown = ", ".join(f'"{item}"' for item in sorted(known))
    return Cause("FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {shown}', field)


def _invalid(kind: str, causes: Sequence[Cause]) -> ApiError:
    faults = [f"{cause.field}: {cause.message}" for cause in causes]
    text = faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
    return ApiError(422, "Invalid", f'{kind}.meta.k8s.io "" is invalid: {text}', causes=causes)


def only(name: str) -> FieldSelector:
    """The object of that name alone: a watch of one object."""
    return (FieldTerm(selectors.NAME, name),)
