"""The parts without a server: key ranges, fragments, and the comparison that replaces lost history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from libs.store import Event, KeyValue, Listing
from libs.store.codec import decode_key, encode_key, prefix_end, prefix_range
from libs.store.resync import note, resync_batch

RAW = st.binary(max_size=6) | st.lists(st.sampled_from([b"\xff", b"\xfe", b"a", b"\0"]), max_size=6).map(b"".join)
STATES = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 50))


@given(RAW, RAW)
def test_prefix_range_holds_exactly_the_keys_with_that_prefix(prefix: bytes, key: bytes) -> None:
    if not key:
        return  # etcd has no empty key
    end = prefix_end(prefix)
    inside = key >= (prefix or b"\0") and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)


def test_empty_prefix_is_everything() -> None:
    assert prefix_range("") == (b"\0", b"\0")


@given(st.binary(max_size=20))
def test_keys_that_are_no_text_survive(raw: bytes) -> None:
    assert encode_key(decode_key(raw)) == raw


def listing_of(state: dict[str, int], revision: int) -> Listing:
    return Listing([KeyValue(key, b"", mod, 1, 1) for key, mod in sorted(state.items())], revision)


@given(STATES, STATES)
def test_resync_leads_from_what_was_known_to_what_is_and_tells_nothing_else(
    before: dict[str, int], after: dict[str, int]
) -> None:
    known = dict(before)
    batch = resync_batch(known, listing_of(after, 100))
    assert known == after
    state = dict(before)
    for event in batch.events:
        if event.kv is None:
            assert event.key in state, "deleted what nobody knew"
            assert event.key not in after, "a false deletion"
            del state[event.key]
        else:
            assert state.get(event.key) != event.kv.mod_revision, "told what was known already"
            state[event.key] = event.kv.mod_revision
    assert state == after
    assert (batch.resync, batch.revision) == (True, 100)
    assert resync_batch(known, listing_of(after, 101)).events == []


def test_note_follows_events() -> None:
    known = {"a": 1, "b": 2}
    note(known, [Event("a", None, 3), Event("c", KeyValue("c", b"", 3, 3, 1), 3), Event("x", None, 3)])
    assert known == {"b": 2, "c": 3}
    note(None, [Event("a", None, 3)])
