"""A watch's query: what it means and what is refused."""

from __future__ import annotations

import pytest

from services.apiserver.core.status import ApiError
from services.apiserver.core.watchoptions import WatchOptions, parse

STREAMING = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


@pytest.mark.parametrize(
    ("query", "options", "begins_with_all", "marks_end"),
    [
        ({}, WatchOptions(), True, False),
        ({"resourceVersion": "0"}, WatchOptions(revision=0), True, False),
        ({"resourceVersion": "7"}, WatchOptions(revision=7), False, False),
        ({"allowWatchBookmarks": "true"}, WatchOptions(bookmarks=True), True, False),
        ({"timeoutSeconds": "9"}, WatchOptions(timeout_s=9), True, False),
        ({"timeoutSeconds": "0"}, WatchOptions(), True, False),
        (STREAMING, WatchOptions(initial=True), True, False),
        (STREAMING | {"allowWatchBookmarks": "1"}, WatchOptions(initial=True, bookmarks=True), True, True),
        (STREAMING | {"resourceVersion": "7"}, WatchOptions(revision=7, initial=True), True, False),
        (STREAMING | {"sendInitialEvents": "false"}, WatchOptions(initial=False), False, False),
    ],
)
def test_query_is_read(query: dict[str, str], options: WatchOptions, begins_with_all: bool, marks_end: bool) -> None:
    found = parse(query)
    assert found == options
    assert (found.begins_with_all, found.marks_end_of_initial) == (begins_with_all, marks_end)


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "+1", " 1", "٣", "9" * 20, "9" * 5_000])
def test_numbers_that_are_none_are_bad_requests(text: str) -> None:
    for name in ("resourceVersion", "timeoutSeconds"):
        with pytest.raises(ApiError) as refused:
            parse({name: text})
        assert (refused.value.code, refused.value.reason) == (400, "BadRequest")
        assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"sendInitialEvents": "true"}, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        ({"resourceVersionMatch": "NotOlderThan"}, "forbidden for watch unless sendInitialEvents is provided"),
        ({"resourceVersionMatch": "Exact", "sendInitialEvents": "true"}, 'Unsupported value: "Exact"'),
        (STREAMING | {"continue": "x"}, "forbidden when continue is provided"),
    ],
)
def test_combinations_that_kubernetes_forbids(query: dict[str, str], message: str) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        parse(query)
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert refused.value.causes[0].field == "resourceVersionMatch"
