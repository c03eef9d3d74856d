"""What the shell makes of the tables: status calls, answered on the event loop beside keepalives; refreshes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from libs.bus import bgp as told
from services.bgp.core.paths import Family
from services.bgp.core.rib.explain import Explanation
from services.bgp.shell import control, report
from services.bgp.shell.peer import Peer
from services.bgp.shell.speaker import Speaker as RunningSpeaker
from tests.unit.services.bgp.speakers import V4, V6, Speaker, external, internal, key, peer


def running(speaker: Speaker) -> RunningSpeaker:
    """As much of a running speaker as tables are shown by: nothing is in the kernel."""
    peers = {one.name: SimpleNamespace(name=one.name, settings=one) for one in speaker.settings.peers}
    kernel = SimpleNamespace(fib=SimpleNamespace(held={family: {} for family in Family}))
    found = SimpleNamespace(
        rib=speaker.rib, peers=peers, dynamic={}, kernel=kernel, all_peers=lambda: list(peers.values())
    )
    return cast(RunningSpeaker, found)


class Marked:
    """A peer that notes the answers to its refreshes."""

    name = "Global_1"

    def __init__(self) -> None:
        self.answers: list[Family] = []

    def answer_refresh(self, family: Family) -> None:
        self.answers.append(family)


def test_no_marks_around_nothing_while_our_own_restart_lasts() -> None:
    """RFC 7313: between the marks is all that we have, and what was not repeated is dropped at the second."""
    speaker = Speaker(peer(1), deferral_s=100.0)
    speaker.up()
    asking, shell = Marked(), SimpleNamespace(rib=speaker.rib, wake=lambda: None)
    RunningSpeaker.refresh_requested(cast(RunningSpeaker, shell), cast(Peer, asking), V4)
    assert asking.answers == []
    speaker.end_of_rib("Global_1", V4)
    for family in (V4, V6):
        RunningSpeaker.refresh_requested(cast(RunningSpeaker, shell), cast(Peer, asking), family)
    assert asking.answers == [V4]


def prefixes(count: int) -> list[str]:
    return [f"10.{1 + n // 250}.{n % 250}.0/24" for n in range(count)]


def test_tables_leave_out_what_each_peer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every prefix the answer for every peer: tens of seconds with a hundred peers, and no row shows it."""
    speaker = Speaker(*(peer(n) for n in range(1, 6)))
    speaker.up()
    speaker.tell("Global_1", internal(), *prefixes(4))
    assert len(speaker.rib.explain(V4, key(prefixes(1)[0])).advertised) == 5
    given: list[Explanation] = []
    ask = speaker.rib.explain

    def recorded(*args: object, **options: object) -> Explanation:
        given.append(ask(*args, **options))  # type: ignore[arg-type]
        return given[-1]

    monkeypatch.setattr(speaker.rib, "explain", recorded)
    rows = list(report.rib(running(speaker), family=V4, table="loc", peer=""))
    assert [row["prefix"] for row in rows] == prefixes(4)
    assert len(list(report._routes(running(speaker), 3))) == 3
    assert len(given) == 7
    assert [one.advertised for one in given] == [()] * 7


def test_routes_are_the_first_and_never_more_than_the_limit() -> None:
    speaker = Speaker(peer(1))
    speaker.up()
    speaker.tell("Global_1", internal(), *reversed(prefixes(told.ROUTES_LIMIT + 20)))
    shown = [route.destination for route in report._routes(running(speaker), 10)]
    assert shown == prefixes(10)
    everything = list(report._routes(running(speaker), 10**9))
    assert [route.destination for route in everything] == prefixes(told.ROUTES_LIMIT)


def test_long_tables_are_made_in_turns() -> None:
    """Between rows of a table others run, and what goes meanwhile is no error."""
    speaker = Speaker(peer(1))
    speaker.up()
    many = prefixes(control.ROWS * 4)
    speaker.tell("Global_1", internal(), *many)

    async def ask() -> int:
        async def others() -> None:
            speaker.withdraw("Global_1", *many)  # on the first turn that is not the table's

        task = asyncio.create_task(others())
        rows = await control._in_turns(report.rib(running(speaker), family=V4, table="loc", peer=""))
        await task
        return len(rows)

    assert asyncio.run(ask()) == control.ROWS


def test_accepted_counts_paths_that_import_took() -> None:
    """Beside other peers' paths of the same prefix, and none that loops."""
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001), *prefixes(3))
    speaker.tell("Global_2", external(65002), *prefixes(2))
    speaker.tell("Global_2", external(65002, 64512), *prefixes(1), "10.77.0.0/24")
    first, second = (speaker.rib.counts(name, V4) for name in ("Global_1", "Global_2"))
    assert (first.received, first.accepted) == (3, 3)
    assert (second.received, second.accepted) == (3, 1)
    assert speaker.rib.counts("Global_3", V4).accepted == 0
