"""The window alone: what is kept, what is told of a change, and when a position has expired."""

from __future__ import annotations

import pytest

from libs.model import kinds
from libs.model.base import ObjectMeta
from libs.model.endpoints import GlobalNetworkSet
from libs.model.storage import to_storage
from libs.store.api import Event, KeyValue
from services.apiserver.core.ports import Change, Stored
from services.apiserver.core.window import (
    Edit,
    EventType,
    Expired,
    Log,
    Window,
    change_of,
    edit,
    read,
    stamped,
    told,
)

KIND = kinds.kind("GlobalNetworkSet")
PREFIX = "/calico/resources/v3/projectcalico.org/globalnetworksets/"


def kv(name: str, revision: int, created: int = 0, **labels: str) -> KeyValue:
    resource = GlobalNetworkSet(
        metadata=ObjectMeta(name=name, uid="u", creation_timestamp="2026-01-01T00:00:00Z", labels=labels)
    )
    created = created or revision
    return KeyValue(PREFIX + name, to_storage(resource), revision, created, 1 if created == revision else 2)


def put(name: str, revision: int, created: int = 0, **labels: str) -> Edit:
    found = kv(name, revision, created, **labels)
    return edit(KIND, found.key, found, revision)


def gone(name: str, revision: int) -> Edit:
    return Edit(PREFIX + name, revision)


def stored(name: str, revision: int, **labels: str) -> Stored:
    found = read(KIND, kv(name, revision, 0, **labels))
    assert found is not None
    return found


def window(max_changes: int = 100, max_bytes: int = 2**20) -> Window:
    return Window(10, max_changes=max_changes, max_bytes=max_bytes)


def after(found: Window, position: int, limit: int = 10) -> list[Change]:
    return list(found.log.since(position, limit)[0])


def names(changes: list[Change]) -> list[tuple[int, str | None, str | None]]:
    return [
        (
            change.revision,
            change.before.resource.name if change.before else None,
            change.after.resource.name if change.after else None,
        )
        for change in changes
    ]


def test_json_is_what_a_client_gets() -> None:
    assert stored("a", 12).json == (
        b'{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"a","uid":"u",'
        b'"resourceVersion":"12","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{}}'
    )


def test_created_changed_deleted_are_told_with_the_object_before() -> None:
    found = window()
    found.apply([put("a", 11)], 11)
    found.apply([put("a", 12, created=11, app="x")], 12)
    found.apply([gone("a", 13)], 13)
    created, changed, deleted = after(found, 10)
    assert (created.before, deleted.after) == (None, None)
    assert changed.before is not None
    assert deleted.before is not None
    assert (changed.before.revision, deleted.before.revision) == (12, 13)
    assert deleted.before.resource.metadata.resource_version == "13"
    assert b'"resourceVersion":"13"' in deleted.before.json
    assert deleted.before.resource.metadata.labels == {"app": "x"}


def test_items_are_sorted_and_shared_until_something_changes() -> None:
    found = window()
    found.apply([put("b", 11), put("a", 11)], 11)
    first = found.items()
    assert [each.resource.name for each in first] == ["a", "b"]
    assert found.items() is first
    found.apply([gone("a", 12)], 12)
    assert [each.resource.name for each in found.items()] == ["b"]
    assert [each.resource.name for each in first] == ["a", "b"]


def test_unreadable_value_hides_the_object_and_still_counts() -> None:
    found = window()
    found.apply([put("a", 11)], 11)
    bad = KeyValue(PREFIX + "a", b"{", 12, 11, 2)
    (change,) = found.apply([edit(KIND, bad.key, bad, 12)], 12)
    assert change.after is None
    assert (found.items(), found.keys) == ((), 1)
    (change,) = found.apply([put("a", 13, created=11)], 13)
    assert change.before is None


def test_built_in_object_is_always_there_whatever_etcd_says() -> None:
    found = Window(10, max_changes=5, max_bytes=2**20, built_in=[stored("a", 1)])
    assert found.apply([put("a", 11)], 11) == []
    assert found.apply([gone("a", 12)], 12) == []
    assert [each.revision for each in found.items()] == [1]


# --- positions -------------------------------------------------------------------------------------------------------


def test_position_at_the_floor_is_served_and_below_it_is_expired() -> None:
    found = window(max_changes=3)
    for revision in range(11, 17):
        found.apply([put("a", revision, created=11)], revision)
    assert found.log.floor == 13
    assert [change.revision for change in after(found, 13)] == [14, 15, 16]
    with pytest.raises(Expired) as refused:
        found.log.since(12, 10)
    assert refused.value.oldest == 13


def test_a_position_before_the_first_listing_is_expired() -> None:
    with pytest.raises(Expired):
        window().log.since(9, 1)
    assert window().log.since(10, 1) == ([], 10)


def test_bytes_bound_the_window_too() -> None:
    found = window(max_bytes=10_000)
    for revision in range(11, 200):
        found.apply([put("a", revision, created=11)], revision)
    assert found.log.bytes <= 10_000
    assert 0 < len(found.log) < 10


def test_a_change_larger_than_the_window_leaves_none() -> None:
    found = window(max_bytes=1_100)
    found.apply([put("a", 11, app="x" * 5_000)], 11)
    assert (len(found.log), found.log.floor, found.log.bytes) == (0, 11, 0)
    assert len(found.items()) == 1


def test_no_limit_tears_a_revision() -> None:
    found = window()
    found.apply([put("a", 11), put("b", 12), put("c", 12), put("d", 12), put("e", 13)], 13)
    assert [change.revision for change in after(found, 10, 2)] == [11, 12, 12, 12]
    assert found.log.since(10, 2)[1] == 12
    assert [change.revision for change in after(found, 12, 2)] == [13]


def test_half_a_revision_dropped_expires_those_who_need_it() -> None:
    found = window(max_changes=2)
    found.apply([put("a", 11), put("b", 11), put("c", 11)], 11)
    with pytest.raises(Expired):
        found.log.since(10, 5)
    assert found.log.since(11, 5) == ([], found.log.revision)


def test_changes_that_the_log_has_passed_are_not_told() -> None:
    found = window()
    found.log.advance(20)
    found.apply([put("a", 15)], 15)
    found.apply([gone("a", 16)], 16)
    for position in (10, 20):
        assert found.log.since(position, 5) == ([], 20)
    assert (found.log.since(20, 5), found.log.revision, found.items()) == (([], 20), 20, ())


@pytest.mark.parametrize("bounds", [(0, 1), (1, 0)])
def test_a_window_of_nothing_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="one change"):
        Log(1, max_changes=bounds[0], max_bytes=bounds[1])


# --- listing again ---------------------------------------------------------------------------------------------------


def test_resync_tells_only_what_differs_in_order() -> None:
    found = window()
    found.apply([put("a", 11), put("b", 11), put("c", 11)], 11)
    changes = found.resync([put("d", 18), put("b", 15, created=11), put("c", 11)], 20)
    assert names(changes) == [(15, "b", "b"), (18, None, "d"), (20, "a", None)]
    assert found.log.since(11, 9) == (changes, 20)
    assert found.log.since(11, 1) == (changes, 20), "a reader would be left between, where nothing is true"


def test_object_replaced_unseen_is_deleted_and_added() -> None:
    found = window()
    found.apply([put("a", 11)], 11)
    assert names(found.resync([put("a", 17, created=15)], 20)) == [(14, "a", None), (17, None, "a")]


def test_deletions_found_by_a_listing_have_revisions_of_their_own() -> None:
    found = window()
    found.apply([put(name, 11) for name in "abcd"], 11)
    changes = found.resync([put("d", 19, created=11), put("e", 18)], 20)
    assert names(changes) == [(16, "a", None), (17, "b", None), (18, None, "e"), (19, "d", "d"), (20, "c", None)]


def test_more_deletions_than_revisions_share_the_first() -> None:
    found = window()
    found.apply([put(name, 11) for name in "abcd"], 11)
    assert names(found.resync([put("e", 13)], 13)) == [(12, name, None) for name in "abcd"] + [(13, None, "e")]
    found = window()
    found.apply([put("a", 11)], 11)
    assert names(found.resync([put("e", 12)], 12)) == [(12, None, "e"), (12, "a", None)]


def test_position_inside_what_was_not_seen_is_expired() -> None:
    found = window()
    found.apply([put("a", 11)], 11)
    found.resync([put("a", 11)], 20)
    for inside in (12, 19):
        with pytest.raises(Expired):
            found.log.since(inside, 5)
    assert found.log.since(11, 5) == ([], found.log.revision)
    assert found.log.since(20, 5) == ([], 20)


# --- what a watcher is told ------------------------------------------------------------------------------------------


def blue(resource: object) -> bool:
    return isinstance(resource, GlobalNetworkSet) and resource.metadata.labels.get("colour") == "blue"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, "blue", EventType.ADDED),
        (None, "red", None),
        ("blue", "blue", EventType.MODIFIED),
        ("red", "blue", EventType.ADDED),
        ("blue", "red", EventType.DELETED),
        ("red", "red", None),
        ("blue", None, EventType.DELETED),
        ("red", None, None),
    ],
)
def test_selection_decides_what_a_change_looks_like(
    before: str | None, after: str | None, expected: EventType | None
) -> None:
    change = Change(
        12,
        None if before is None else stamped(stored("a", 11, colour=before), 12),
        None if after is None else stored("a", 12, colour=after),
    )
    found = told(change, blue)
    assert (found and found[0]) == expected
    if found is not None:
        assert found[1].resource.metadata.labels["colour"] == "blue"
        assert found[1].resource.metadata.resource_version == "12"


# --- events without the state before them ----------------------------------------------------------------------------


def test_event_alone_makes_the_same_change() -> None:
    first, second = kv("a", 11), kv("a", 12, created=11, app="x")
    found = window()
    assert found.apply([put("a", 11)], 11) == [change_of(KIND, Event(first.key, first, 11))]
    assert found.apply([put("a", 12, created=11, app="x")], 12) == [
        change_of(KIND, Event(first.key, second, 12, first))
    ]
    assert found.apply([gone("a", 13)], 13) == [change_of(KIND, Event(first.key, None, 13, second))]


def test_event_whose_past_is_compacted_is_not_told_as_something_else() -> None:
    with pytest.raises(Expired):
        change_of(KIND, Event(PREFIX + "a", None, 13))
    with pytest.raises(Expired):
        change_of(KIND, Event(PREFIX + "a", kv("a", 12, created=11), 12))


def test_event_between_two_unreadable_values_is_nothing() -> None:
    bad = KeyValue(PREFIX + "a", b"{", 12, 11, 2)
    assert change_of(KIND, Event(bad.key, None, 13, bad)) is None


def test_a_changed_object_has_the_revision_of_its_change() -> None:
    found = read(KIND, kv("a", 12, created=11))
    assert found is not None
    assert (found.revision, found.resource.metadata.resource_version) == (12, "12")
