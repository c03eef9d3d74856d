"""Long-lived graceful restart (RFC 9494) in the tables: what stays, for how long, and who is told."""

from __future__ import annotations

import pytest

from tests.unit.services.bgp.speakers import ROUTE, V4, Speaker, client, external, internal, key, peer, reflector


def test_long_lived() -> None:
    """RFC 9494: after the restart time the paths are the last choice, told to whom knows of that, and marked."""
    speaker = Speaker(client(1), client(2), client(3), client(4), cluster_id=7)
    speaker.up("Global_1", long_lived={V4: 1000.0}, knows_long_lived=True)
    speaker.up("Global_2", knows_long_lived=True)  # it asks for no time of its own
    speaker.up("Global_3", "Global_4")
    speaker.tell("Global_1", internal(local_pref=900), ROUTE, "10.6.0.0/16")
    speaker.tell("Global_1", internal(communities=(0xFFFF0007,)), "10.7.0.0/16")
    speaker.tell("Global_4", internal(), "10.6.0.0/16")
    speaker.rib.peer_down("Global_1", 10.0, keep=[V4])
    assert speaker.read("Global_3").keys() == {ROUTE, "10.6.0.0/16", "10.7.0.0/16"}
    speaker.rib.expire(130.0)
    assert speaker.read("Global_2")[ROUTE].communities == (0xFFFF0006,)
    assert speaker.read("Global_2")["10.6.0.0/16"].local_pref == 100
    assert speaker.read("Global_3").keys() == {"10.6.0.0/16"}
    assert speaker.kernel().keys() == {ROUTE, "10.6.0.0/16"}
    assert speaker.rib.deadline() == 1130.0
    speaker.rib.expire(1130.0)
    assert speaker.kernel().keys() == {"10.6.0.0/16"}
    assert speaker.read("Global_2").keys() == {"10.6.0.0/16"}


def long_lived_away(**session: object) -> Speaker:
    """Global_1, which restarts gracefully for 120 s and then for 1,000 s, has been away for 130 s at 130."""
    speaker = reflector(client(1))
    speaker.rib.peer_down("Global_1", 0.0)
    speaker.up("Global_1", long_lived={V4: 1000.0}, long_lived_preserved=frozenset((V4,)), **session)
    speaker.tell("Global_1", internal(), ROUTE, "10.6.0.0/16")
    speaker.rib.peer_down("Global_1", 10.0, keep=[V4])
    speaker.rib.expire(130.0)
    return speaker


def back(speaker: Speaker, now: float, preserved: bool = True, long_lived: bool = True) -> None:
    speaker.up(
        "Global_1",
        now=now,
        long_lived={V4: 500.0} if long_lived else {},
        long_lived_preserved=frozenset((V4,)) if preserved else frozenset(),
    )


def test_long_lived_time_goes_on_until_end_of_rib() -> None:
    """RFC 9494 section 4.2: neither stopped nor updated by a new session; then what was not told again goes."""
    speaker = long_lived_away()
    back(speaker, 200.0)
    assert speaker.rib.deadline() == 1130.0
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.expire(1130.0)
    assert speaker.kernel().keys() == {ROUTE}


def test_long_lived_consecutive_restarts() -> None:
    """RFC 9494 section 4.2: what was stale before stays, to the end of the same time; so does what was told between."""
    speaker = long_lived_away()
    back(speaker, 200.0)
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.tell("Global_1", internal(communities=(0xFFFF0007,)), "10.7.0.0/16")
    speaker.rib.peer_down("Global_1", 210.0, keep=[V4])
    assert speaker.kernel().keys() == {ROUTE, "10.6.0.0/16"}
    assert [path.llgr_stale for path in speaker.rib.explain(V4, key(ROUTE)).paths] == [True]
    assert speaker.rib.deadline() == 1130.0
    speaker.rib.expire(1130.0)
    assert speaker.kernel() == {}


def test_long_lived_end_of_rib_ends_it() -> None:
    """The next restart is a restart like the first, with its own times."""
    speaker = long_lived_away()
    back(speaker, 200.0)
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.end_of_rib("Global_1", V4, now=201.0)
    assert speaker.kernel().keys() == {ROUTE}
    assert speaker.rib.deadline() is None
    speaker.rib.peer_down("Global_1", 300.0, keep=[V4])
    assert speaker.rib.deadline() == 420.0
    assert [path.llgr_stale for path in speaker.rib.explain(V4, key(ROUTE)).paths] == [False]
    speaker.rib.expire(420.0)
    assert speaker.rib.deadline() == 920.0


def test_long_lived_time_over_before_end_of_rib() -> None:
    """RFC 9494 section 4.2: away again without End-of-RIB, nothing of it stays."""
    speaker = long_lived_away()
    back(speaker, 200.0)
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.expire(1130.0)
    speaker.rib.peer_down("Global_1", 1140.0, keep=[V4])
    assert speaker.kernel() == {}


@pytest.mark.parametrize(("preserved", "long_lived"), [(False, True), (False, False)])
def test_long_lived_peer_that_returns_without_its_forwarding_state(preserved: bool, long_lived: bool) -> None:
    """RFC 9494 section 4.2: what counts is the flag of the long-lived capability, when it is there at all."""
    speaker = long_lived_away()
    back(speaker, 200.0, preserved, long_lived)
    assert speaker.kernel() == {}
    assert speaker.rib.deadline() is None


def test_long_lived_alone_begins_at_once() -> None:
    """RFC 9494 section 4.2: a restart time of 0 for what the graceful restart capability leaves out."""
    speaker = reflector(client(1))
    speaker.rib.peer_down("Global_1", 0.0)
    speaker.up("Global_1", long_lived={V4: 1000.0}, long_lived_only=frozenset((V4,)))
    speaker.tell("Global_1", internal(), ROUTE)
    speaker.rib.peer_down("Global_1", 10.0, keep=[V4])
    speaker.rib.expire(10.0)
    assert [path.llgr_stale for path in speaker.rib.explain(V4, key(ROUTE)).paths] == [True]
    assert speaker.rib.deadline() == 1010.0


def test_heard_as_long_lived_is_the_last_choice() -> None:
    speaker = Speaker(peer(1, 65001), peer(2, 65002))
    speaker.up()
    speaker.tell("Global_1", external(65001, communities=(0xFFFF0006,)), ROUTE)
    speaker.tell("Global_2", external(65002, 65003, 65004), ROUTE)
    assert speaker.rib.explain(V4, key(ROUTE)).paths[0].source == "Global_2"
