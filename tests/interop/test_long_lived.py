"""Long-lived graceful restart (RFC 9494): who does not come back in its restart time, and everybody else.

Four routers: one that leaves and its helper, one being our speaker and the other a router of each kind; and two more
neighbours of the helper: a witness that knows the capability and a stranger that does not.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from libs.testkit.routers.lab import LostRoutes
from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import RawPeer, announcement, capability, end_of_rib
from tests.interop.pairs import OUR_AS, THEIR_AS, Pairing, subject
from tests.interop.test_errors import Opposite, opposite

feature, needs = pytest.mark.feature, pytest.mark.needs

RESTART_S, LONG_S = 3, 30
LLGR_STALE, NO_LLGR = (65535, 6), (65535, 7)
STAYS, FORBIDS, SHARED = "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"
TOLD = (
    Route(STAYS, communities=frozenset({(64999, 1)})),
    Route(FORBIDS, communities=frozenset({NO_LLGR})),
    Route(SHARED),
)
WITNESS_AS, STRANGER_AS = 64601, 64602
SEEN = {
    "ours": '"long_lived": true',
    "bird": r"Neighbor capabilities(.|\n)*Long-lived graceful restart\n +LL stale time: (77|99)",
    "frr": '"longLivedGracefulRestart": "advertisedAndReceived"',
    "gobgp": r'"remote_cap": \[[^\]]*LongLivedGracefulRestartCapability',
}
"""What each says of a session whose other end has the capability."""


@dataclass
class Four:
    """leaver, helper, witness, stranger; at_leaver and so on: their addresses."""

    leaver: Peer
    helper: Peer
    witness: Peer
    stranger: Peer
    at_leaver: str
    at_helper: str
    at_witness: str

    def leave(self) -> None:
        """It crashes, and its restart time passes."""
        assert not self.marked(self.witness, STAYS)
        self.leaver.kill()
        self.helper.wait_down(self.at_leaver)
        self.wait(lambda: self.marked(self.witness, STAYS), f"{STAYS} with LLGR_STALE at the witness")

    @staticmethod
    def marked(peer: Peer, prefix: str) -> bool:
        return any(LLGR_STALE in route.communities for route in peer.routes(prefix))

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = RESTART_S + LONG_S + 30.0) -> None:
        until(condition, timeout_s, lambda: f"{what}; {self.helper.routes(STAYS)}, {self.witness.routes(STAYS)}")


def four(
    pairing: Pairing, leaver: type[Peer], helper: type[Peer], witness: type[Peer], stranger: type[Peer],
    long_s: int = LONG_S,
) -> Four:  # fmt: skip
    """The witness has the shared prefix, too, by a longer path."""
    sites = {name: pairing.lab.site(name).ipv4 for name in ("leaver", "helper", "witness", "stranger")}

    def neighbour(name: str, asn: int, long_lived: bool = True) -> Neighbour:
        if not long_lived:
            return Neighbour(sites[name], asn)
        return Neighbour(sites[name], asn, graceful_restart=RESTART_S, long_lived=long_s)

    to_helper = neighbour("helper", THEIR_AS)
    longer = Route(SHARED, as_path=(65010, 65011, 65012))
    helper_neighbours = (
        neighbour("leaver", OUR_AS), neighbour("witness", WITNESS_AS), neighbour("stranger", STRANGER_AS, False),
    )  # fmt: skip
    made = Four(
        pairing.add(leaver, "leaver", Router(OUR_AS, "10.9.0.1", (to_helper,), TOLD), start=False),
        pairing.add(helper, "helper", Router(THEIR_AS, "10.9.0.2", helper_neighbours), start=False),
        pairing.add(witness, "witness", Router(WITNESS_AS, "10.9.0.3", (to_helper,), (longer,)), start=False),
        pairing.add(
            stranger, "stranger", Router(STRANGER_AS, "10.9.0.4", (neighbour("helper", THEIR_AS, False),)), start=False
        ),
        sites["leaver"], sites["helper"], sites["witness"],
    )  # fmt: skip
    for peer in (made.helper, made.leaver, made.witness, made.stranger):
        peer.start()
    for peer in (made.leaver, made.witness, made.stranger):
        peer.wait_up(made.at_helper)
    for peer in (made.witness, made.stranger):
        for prefix in (STAYS, FORBIDS, SHARED):
            peer.wait_route(prefix, like=lambda route: OUR_AS in route.as_path)
    made.helper.wait_route(SHARED, made.at_witness)
    return made


def check_gone_for_long(here: Four) -> None:
    """From the end of the restart time to the end of the long-lived stale time."""
    here.leave()
    here.wait(lambda: not here.helper.routes(FORBIDS), f"{FORBIDS} gone at the helper, since it has NO_LLGR")
    here.wait(lambda: not here.witness.routes(FORBIDS), f"{FORBIDS} gone at the witness")
    if here.helper.daemon != "frr":  # FRR 8.4 leaves those without the capability what it told them before
        here.wait(lambda: not here.stranger.routes(STAYS), f"{STAYS} gone at the stranger")
    shared = here.stranger.wait_route(SHARED, like=lambda route: WITNESS_AS in route.as_path)
    assert shared.as_path[-1] == 65012, "the longer path, since it is not stale"
    if "kernel" in here.helper.can:
        here.helper.wait_kernel(SHARED, [here.at_witness])
        assert here.helper.kernel(STAYS) == [here.at_leaver]
    assert here.marked(here.witness, STAYS)
    assert (64999, 1) in here.witness.routes(STAYS)[0].communities, "what else it carried"
    here.wait(lambda: not here.witness.routes(STAYS), f"{STAYS} gone after the long-lived stale time")
    here.helper.wait_gone(STAYS)
    if "kernel" in here.helper.can:
        here.helper.wait_kernel(STAYS, [])


def check_comes_back(here: Four) -> None:
    """In the long-lived time: nothing is lost, and the mark goes."""
    with LostRoutes(here.helper.space) as lost:
        here.leave()
        here.leaver.start()
        here.leaver.wait_up(here.at_helper, 60)
        here.helper.wait_route(FORBIDS)
        here.wait(
            lambda: here.witness.routes(STAYS) and not here.marked(here.witness, STAYS), "the mark goes", timeout_s=60
        )
        here.witness.wait_route(SHARED, like=lambda route: OUR_AS in route.as_path)
        here.stranger.wait_route(STAYS)
        if "kernel" in here.helper.can:
            here.helper.wait_kernel(SHARED, [here.at_leaver])
        assert STAYS not in lost.seen()


@feature("long-lived graceful restart (RFC 9494): capability")
@needs("llgr")
def test_capability_is_seen_at_both_ends(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, session={"graceful_restart": 30}, mine={"long_lived": 77}, other={"long_lived": 99})
    for peer, address in ((pair.ours, pair.at_ours), (pair.theirs, pair.at_theirs)):
        assert re.search(SEEN[peer.daemon], peer.session(address).said), peer.session(address).said


@feature("long-lived graceful restart (RFC 9494): the peer does not come back in its restart time")
@needs("llgr")
def test_peer_is_away_for_long(pairing: Pairing, kind: type[Peer]) -> None:
    check_gone_for_long(four(pairing, kind, subject(), kind, kind))


@feature("long-lived graceful restart (RFC 9494): the peer comes back in its long-lived stale time")
@needs("llgr", "kernel")
def test_peer_comes_back_late(pairing: Pairing, kind: type[Peer]) -> None:
    check_comes_back(four(pairing, kind, subject(), kind, kind, 120))


@feature("long-lived graceful restart (RFC 9494): we do not come back in our restart time")
@needs("llgr")
def test_we_are_away_for_long(pairing: Pairing, kind: type[Peer]) -> None:
    check_gone_for_long(four(pairing, subject(), kind, subject(), subject()))


@feature("long-lived graceful restart (RFC 9494): we come back in our long-lived stale time")
@needs("llgr", "kernel")
def test_we_come_back_late(pairing: Pairing, kind: type[Peer]) -> None:
    check_comes_back(four(pairing, subject(), kind, subject(), subject(), 120))


# -- by hand ----------------------------------------------------------------------------------------------------------


def capable(restarted: bool, *, forwarding: bool = True, long_forwarding: bool = True) -> bytes:
    """Graceful restart of 1 s, long-lived of LONG_S, IPv4 unicast, with their flags of forwarding state."""
    graceful = bytes((0x80 if restarted else 0, 1, 0, 1, 1, 0x80 if forwarding else 0))
    long_lived = struct.pack("!HBB", 1, 1, 0x80 if long_forwarding else 0) + LONG_S.to_bytes(3, "big")
    return capability(64, graceful) + capability(71, long_lived)


def gone_for_long(pairing: Pairing) -> Opposite:
    """A peer that told two routes, and whose restart time is over."""
    here = opposite(pairing, graceful_restart=120, long_lived=LONG_S)
    raw = here.up(extra=capable(False))
    tell(raw, STAYS, SHARED)
    raw.send(end_of_rib("ipv4"))
    here.ours.wait_route(STAYS)
    here.ours.wait_route(SHARED)
    raw.close()
    until(lambda: marks(here) == {STAYS: True, SHARED: True}, 20, lambda: f"both are long-lived stale: {marks(here)}")
    return here


def tell(raw: RawPeer, *prefixes: str) -> None:
    raw.send(*(announcement(Route(text, as_path=(THEIR_AS,)), "10.9.0.2") for text in prefixes))


def marks(here: Opposite) -> dict[str, bool]:
    """Prefix -> whether it is long-lived stale."""
    return {route.prefix: LLGR_STALE in route.communities for route in here.ours.learned("ipv4")}


@feature("long-lived graceful restart (RFC 9494): consecutive restarts")
def test_what_was_stale_before_stays_over_another_restart(pairing: Pairing) -> None:
    """And goes with the time that began first (section 4.2), here half of which is over."""
    here = gone_for_long(pairing)
    with here.up(extra=capable(True)) as raw:
        tell(raw, STAYS)
        until(lambda: marks(here) == {STAYS: False, SHARED: True}, 20, lambda: f"one is told again: {marks(here)}")
    here.ours.wait_down(here.address)
    assert marks(here) == {STAYS: True, SHARED: True}
    until(lambda: marks(here) == {}, LONG_S + 30, lambda: f"both go: {marks(here)}")


@feature("long-lived graceful restart (RFC 9494): End-of-RIB ends it")
def test_end_of_rib_ends_it(pairing: Pairing) -> None:
    here = gone_for_long(pairing)
    with here.up(extra=capable(True)) as raw:
        tell(raw, STAYS)
        raw.send(end_of_rib("ipv4"))
        until(lambda: marks(here) == {STAYS: False}, 20, lambda: f"the other is swept: {marks(here)}")


@feature("long-lived graceful restart (RFC 9494): forwarding state not kept by the peer")
def test_flag_of_the_long_lived_capability_counts(pairing: Pairing) -> None:
    here = gone_for_long(pairing)
    with here.up(extra=capable(True, forwarding=True, long_forwarding=False)):
        until(lambda: marks(here) == {}, 20, lambda: f"nothing stays: {marks(here)}")


@feature("long-lived graceful restart (RFC 9494): forwarding state kept, by that capability alone")
def test_flag_of_graceful_restart_does_not_count(pairing: Pairing) -> None:
    here = gone_for_long(pairing)
    with here.up(extra=capable(True, forwarding=False)) as raw:
        tell(raw, STAYS)
        until(lambda: marks(here).get(STAYS) is False, 20, lambda: f"one is told again: {marks(here)}")
        assert marks(here) == {STAYS: False, SHARED: True}
