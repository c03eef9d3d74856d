"""Which reader moves to which typha: even counts when one joins, none left behind when one leaves. Pure.

Flows in: beats of the other typhas (who there is, and whether it can take readers), and every reader's reports, which
name the typha that it follows; all typhas hear the same ones, so all count alike. Flows out: one move at a time.
Each typha moves only its own readers. What it sends whither follows from the counts alone: all surpluses are laid
end to end, all deficits beside them, so two typhas with too many do not fill the same place.

A move is a request. The reader asks the other typha who it is, and follows it if that one has reached what the reader
holds; then its report shows it there. A reader that does not move in time is counted where it was, and left alone;
a typha that leaves has no other chance, and asks a few times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from libs.bus import compat, wire
from libs.bus.subjects import Role
from libs.feed.feed import MISSED_BEATS_S

PACE_S = 1.0  # between two moves
LISTEN_S = 12.0  # readers report each ten: before, the others look empty
SETTLE_S = 5.0  # of unbroken beats, before a typha is given readers: one that crashes again and again gets none
STALE_ETCD_S = 5.0
SILENT_S = 25.0  # readers
MOVE_S = 10.0  # until a move counts as failed
LEFT_ALONE_S = 300.0  # a reader that did not move
ASKED_AGAIN_S = 3.0  # by a typha that leaves: the other one may just have been some milliseconds behind
ASKED_AT_MOST = 3  # times, by a typha that leaves

Party = tuple[Role, str]
"""A reader: role and node."""


@dataclass(frozen=True, slots=True)
class Move:
    party: Party
    target: str  # instance


@dataclass(slots=True)
class Peer:
    """Another typha. able: it can take readers, without a break since `since`."""

    heard_at: float
    able: bool
    since: float


@dataclass(frozen=True, slots=True)
class Place:
    instance: str
    heard_at: float


@dataclass(frozen=True, slots=True)
class Underway:
    target: str
    until: float


class Balance:
    def __init__(self, instance: str, now: float) -> None:
        self.instance = instance
        self._peers: dict[str, Peer] = {}
        self._places: dict[Party, Place] = {}
        self._moving: dict[Party, Underway] = {}
        self._left_alone: dict[Party, float] = {}  # until
        self._asked: Counter[Party] = Counter()  # since we leave
        self._leaving_since: float | None = None
        self._next_at = now + LISTEN_S

    # --- what is heard ---

    def beat(self, beat: wire.Beat, now: float) -> None:
        instance = beat.epoch.instance
        if instance == self.instance:
            return
        able = not beat.leaving and beat.etcd_age_s <= STALE_ETCD_S and beat.protocol == compat.PROTOCOL
        known = self._peers.get(instance)
        unbroken = known is not None and known.able and now - known.heard_at <= MISSED_BEATS_S
        since = known.since if known is not None and unbroken else now
        self._peers[instance] = Peer(now, able, since)

    def report(self, party: Party, instance: str, now: float) -> None:
        """A reader follows this typha."""
        self._places[party] = Place(instance, now)
        underway = self._moving.get(party)
        if underway is not None and underway.target == instance:
            del self._moving[party]

    # --- what follows from it ---

    def able(self, now: float, *, settled: bool = False) -> list[str]:
        """Other typhas that can take readers."""
        return sorted(
            name for name, peer in self._peers.items()
            if peer.able and now - peer.heard_at <= MISSED_BEATS_S and (not settled or now - peer.since >= SETTLE_S)
        )  # fmt: skip

    def counts(self, now: float) -> dict[str, int]:
        """Readers by the instance that they follow or are on their way to, of those that were heard lately."""
        self._forget(now)
        counted: Counter[str] = Counter()
        for party, place in self._places.items():
            underway = self._moving.get(party)
            counted[place.instance if underway is None else underway.target] += 1
        return dict(counted)

    def even_out(self, own: Collection[Party], now: float) -> Move | None:
        """The next move, if the counts ask for one. own: readers that we serve."""
        if now < self._next_at:
            return None
        counts = self.counts(now)
        members = (self.instance, *self.able(now, settled=True))
        target = next_target({name: counts.get(name, 0) for name in members}, self.instance)
        ready = [party for party in own if self._is_here(party) and party not in self._left_alone]
        return self._move(min(ready), target, now, MOVE_S) if target is not None and ready else None

    def hand_over(self, own: Collection[Party], now: float) -> Move | None:
        """The next move of a typha that leaves: to the one with the fewest. Its caller sets the pace."""
        if self._leaving_since is None:
            self._leaving_since = now
        counts = self.counts(now)
        targets = self.able(now)
        ready = [party for party in own if self._is_here(party) and self._asked[party] < ASKED_AT_MOST]
        if not targets or not ready:
            return None
        party = min(ready, key=lambda one: (self._asked[one], one))
        self._asked[party] += 1
        return self._move(party, min(targets, key=lambda name: (counts.get(name, 0), name)), now, ASKED_AGAIN_S)

    def pending(self, own: Collection[Party], now: float) -> bool:
        """May one of these readers still go from a typha that leaves? It is on its way, or has its first snapshot and
        will soon report that it is here.
        """
        since = now if self._leaving_since is None else self._leaving_since
        reports = now < since + MOVE_S
        return any(party in self._moving or (reports and party not in self._places) for party in own)

    def _move(self, party: Party, target: str, now: float, patience_s: float) -> Move:
        self._moving[party] = Underway(target, now + patience_s)
        self._next_at = now + PACE_S
        return Move(party, target)

    def _is_here(self, party: Party) -> bool:
        place = self._places.get(party)
        return place is not None and place.instance == self.instance and party not in self._moving

    def _forget(self, now: float) -> None:
        for party in [party for party, place in self._places.items() if now - place.heard_at > SILENT_S]:
            del self._places[party]
        for party in [party for party, underway in self._moving.items() if now >= underway.until]:
            del self._moving[party]
            self._left_alone[party] = now + LEFT_ALONE_S
        for party in [party for party, until in self._left_alone.items() if now >= until]:
            del self._left_alone[party]
        for name in [name for name, peer in self._peers.items() if now - peer.heard_at > SILENT_S]:
            del self._peers[name]


def next_target(counts: Mapping[str, int], own: str) -> str | None:
    """Whither `own` sends its next reader so that all counts come to differ by one at most; None: it keeps all.

    Every typha gets the mean, and those that have most already keep the remainder: who has one more than another is
    even with it.
    """
    mean, remainder = divmod(sum(counts.values()), len(counts))
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    surplus = {name: counts[name] - mean - (index < remainder) for index, name in enumerate(ordered)}
    if surplus[own] <= 0:
        return None
    position = sum(max(0, surplus[name]) for name in ordered[: ordered.index(own)])
    for name in ordered:
        if surplus[name] < 0:
            position += surplus[name]
            if position < 0:
                return name
    raise AssertionError("surpluses and deficits add up to nothing")
