"""What a watch asks for in its query, and what Kubernetes refuses of it.

Sources: k8s.io/apimachinery, pkg/apis/internalversion/validation (validateWatchOptions); the API concepts' table of
resourceVersion in watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.apiserver.core.request import is_true
from services.apiserver.core.status import ApiError, Cause, bad_request

NOT_OLDER_THAN = "NotOlderThan"
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """revision: None when not given (begin with the newest state), 0 for any state. initial: whether the watch begins
    with all that there is, None when not said. timeout_s: 0 when not given.
    """

    revision: int | None = None
    bookmarks: bool = False
    initial: bool | None = None
    timeout_s: int = 0

    @property
    def begins_with_all(self) -> bool:
        return not self.revision if self.initial is None else self.initial

    @property
    def marks_end_of_initial(self) -> bool:
        """A streamed list ends with a bookmark that says so."""
        return self.initial is True and self.bookmarks


def parse(query: Mapping[str, str]) -> WatchOptions:
    """Raises ApiError 400 for values that cannot be read, 422 for combinations that Kubernetes forbids."""
    initial = is_true(query, "sendInitialEvents") if "sendInitialEvents" in query else None
    _check(query, initial)
    return WatchOptions(
        revision=_revision(query.get("resourceVersion", "")),
        bookmarks=is_true(query, "allowWatchBookmarks"),
        initial=initial,
        timeout_s=_timeout(query.get("timeoutSeconds", "")),
    )


def _check(query: Mapping[str, str], initial: bool | None) -> None:
    match = query.get("resourceVersionMatch", "")
    causes = []
    if initial is not None and match != NOT_OLDER_THAN:
        causes.append(_forbidden(f"sendInitialEvents requires setting resourceVersionMatch to {NOT_OLDER_THAN}"))
    if match and initial is None:
        causes.append(_forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
    if match and match != NOT_OLDER_THAN:
        text = f'Unsupported value: "{match}": supported values: "{NOT_OLDER_THAN}"'
        causes.append(Cause("FieldValueNotSupported", text, "resourceVersionMatch"))
    if match and query.get("continue"):
        causes.append(_forbidden("resourceVersionMatch is forbidden when continue is provided"))
    if causes:
        faults = [f"{cause.field}: {cause.message}" for cause in causes]
        text = faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
        message = f'ListOptions.meta.k8s.io "" is invalid: {text}'
        raise ApiError(422, "Invalid", message, plural="ListOptions", causes=causes)


def _forbidden(message: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {message}", "resourceVersionMatch")


def _revision(text: str) -> int | None:
    if not text:
        return None
    if not _is_number(text):
        raise bad_request(f'invalid resource version "{text[:40]}": expected a number that a list or a watch gave')
    return int(text)


def _timeout(text: str) -> int:
    """0 counts as not given, as Kubernetes reads it."""
    if not text:
        return 0
    if not _is_number(text):
        raise bad_request(f'timeoutSeconds "{text[:40]}" is no number of seconds')
    return int(text)


def _is_number(text: str) -> bool:
    return len(text) <= len(str(_LARGEST)) and text.isascii() and text.isdigit() and int(text) <= _LARGEST
