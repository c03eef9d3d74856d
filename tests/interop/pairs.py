"""The two routers of most tests: the subject at site a, the one it is held against at site b."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from libs.testkit.routers.bird import Bird
from libs.testkit.routers.exabgp import Exabgp
from libs.testkit.routers.frr import Frr
from libs.testkit.routers.gobgp import Gobgp
from libs.testkit.routers.lab import Lab, Site
from libs.testkit.routers.model import Family, Neighbour, Route, Router
from libs.testkit.routers.ours import Ours
from libs.testkit.routers.peer import Peer

KINDS: dict[str, type[Peer]] = {kind.daemon: kind for kind in (Bird, Frr, Gobgp, Exabgp)}
OUR_AS, THEIR_AS = 64512, 64513


def subject() -> type[Peer]:
    """Whom the tests are about; another daemon than ours shows what the tests themselves are worth."""
    return {"ours": Ours, **KINDS}[os.environ.get("INTEROP_SUBJECT", "ours")]


@dataclass
class Pair:
    ours: Peer
    theirs: Peer
    a: Site
    b: Site
    families: tuple[Family, ...]

    def wait_up(self, timeout_s: float = 40.0) -> None:
        for family in self.families:
            self.ours.wait_up(self.b.address(family), timeout_s)
            self.theirs.wait_up(self.a.address(family), timeout_s)

    @property
    def at_theirs(self) -> str:
        """Our address, as they know us."""
        return self.a.address(self.families[0])

    @property
    def at_ours(self) -> str:
        return self.b.address(self.families[0])


@dataclass
class Pairing:
    """Makes routers at sites. `session` changes both ends' settings, `mine` and `other` one end's."""

    lab: Lab
    made: list[Peer] = field(default_factory=list)

    def pair(
        self,
        kind: type[Peer],
        *,
        our_as: int = OUR_AS,
        their_as: int = THEIR_AS,
        families: tuple[Family, ...] = ("ipv4",),
        routes: tuple[Route, ...] = (),
        their_routes: tuple[Route, ...] = (),
        session: dict[str, Any] | None = None,
        mine: dict[str, Any] | None = None,
        other: dict[str, Any] | None = None,
        our_router: dict[str, Any] | None = None,
        their_router: dict[str, Any] | None = None,
        start: bool = True,
        up: bool = True,
    ) -> Pair:
        """families: one session over addresses of each."""
        a, b = self.lab.site("a"), self.lab.site("b")
        ours = Router(
            our_as, "10.9.0.1",
            tuple(Neighbour(b.address(f), **{"asn": their_as, **(session or {}), **(mine or {})}) for f in families),
            routes, **(our_router or {}),
        )  # fmt: skip
        theirs = Router(
            their_as, "10.9.0.2",
            tuple(Neighbour(a.address(f), **{"asn": our_as, **(session or {}), **(other or {})}) for f in families),
            their_routes, **(their_router or {}),
        )  # fmt: skip
        pair = Pair(self.subject(ours), self.add(kind, "b", theirs, start=False), a, b, families)
        if start:
            pair.theirs.start()
            pair.ours.start()
            if up:
                pair.wait_up()
        return pair

    @property
    def keeps_routes_when_stopped(self) -> bool:
        """Whether SIGTERM leaves routes at peers, as ours does; routing daemons withdraw what they said."""
        return subject().daemon == "ours"

    def subject(self, router: Router, *, start: bool = False) -> Peer:
        return self.add(subject(), "a", router, start=start)

    def add(self, kind: type[Peer], name: str, router: Router, *, start: bool = True) -> Peer:
        peer = self.lab.add(kind, name, router, start=start)
        self.made.append(peer)
        return peer


def without_hop(route: Route, **changes: Any) -> Route:
    """For comparisons that are not about next hops or what each side makes of LOCAL_PREF."""
    return replace(route, **{"next_hop": "", "link_local": "", **changes})
