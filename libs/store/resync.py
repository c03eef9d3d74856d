"""What changed, when history is gone: a listing compared with what a watch had told before."""

from __future__ import annotations

from libs.store.api import Event, Listing, WatchBatch


def resync_batch(known: dict[str, int], listing: Listing) -> WatchBatch:
    """The batch that leads from `known` (key -> mod_revision) to `listing`; `known` is brought up to date.

    A deletion carries the listing's revision: when it really happened is forgotten. Nothing that is still there
    unchanged shows up.
    """
    present = {kv.key: kv.mod_revision for kv in listing.kvs}
    gone = [Event(key, None, listing.revision) for key in sorted(known.keys() - present.keys())]
    changed = [Event(kv.key, kv, kv.mod_revision) for kv in listing.kvs if known.get(kv.key) != kv.mod_revision]
    known.clear()
    known.update(present)
    return WatchBatch(gone + changed, listing.revision, resync=True)


def note(known: dict[str, int] | None, events: list[Event]) -> None:
    """Keep `known` in step with what is being told."""
    if known is None:
        return
    for event in events:
        if event.kv is None:
            known.pop(event.key, None)
        else:
            known[event.key] = event.kv.mod_revision
