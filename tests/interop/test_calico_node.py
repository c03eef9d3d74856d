"""A node of a real Calico cluster and one of ours in the same mesh."""

from __future__ import annotations

import pytest

from libs.testkit.routers.lab import LostRoutes
from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.peer import until
from tests.interop.calico_bird import CalicoBird
from tests.interop.pairs import OUR_AS, Pairing

feature = pytest.mark.feature
THEIR_BLOCKS = ("10.65.2.0/26", "fd65:0:0:2::/122")
OUR_BLOCKS = ("10.65.1.0/26", "fd65:0:0:1::/122")


def mesh(pairing: Pairing, *, start: bool = True) -> tuple[CalicoBird, Router]:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    theirs = pairing.lab.add(
        CalicoBird, "b",
        Router(
            OUR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS), Neighbour(a.ipv6, OUR_AS)),
            tuple(Route(prefix) for prefix in THEIR_BLOCKS),
        ),
        start=False,
    )  # fmt: skip
    theirs.pods = ("10.65.2.5/32", "fd65:0:0:2::5/128")
    theirs.start()
    # Of two members of the mesh the one with the higher address (as text) is connected to.
    ours = Router(
        OUR_AS, "10.9.0.1",
        tuple(Neighbour(address, OUR_AS, graceful_restart=120, add_path="both") for address in (b.ipv4, b.ipv6)),
        tuple(Route(prefix) for prefix in OUR_BLOCKS),
    )  # fmt: skip
    return theirs, ours


@feature("a node of Calico's own in the same mesh", router="bird")
def test_blocks_are_exchanged_with_a_calico_node(pairing: Pairing) -> None:
    theirs, router = mesh(pairing)
    ours = pairing.subject(router, start=True)
    for family, own, other in zip(("ipv4", "ipv6"), OUR_BLOCKS, THEIR_BLOCKS, strict=True):
        a, b = (pairing.lab.site(name).address(family) for name in "ab")  # type: ignore[arg-type]
        assert ours.wait_route(other).next_hop == b
        ours.wait_kernel(other, [b])
        assert theirs.wait_route(own).next_hop == a
        theirs.wait_kernel(own, [a])
    assert {route.prefix for family in ("ipv4", "ipv6") for route in ours.learned(family)} == set(THEIR_BLOCKS)  # type: ignore[arg-type]


@feature("a node of Calico's own in the same mesh", router="bird")
def test_routes_stay_while_the_calico_node_restarts(pairing: Pairing) -> None:
    theirs, router = mesh(pairing)
    ours = pairing.subject(router, start=True)
    b = pairing.lab.site("b")
    ours.wait_kernel(THEIR_BLOCKS[0], [b.ipv4])
    ours.wait_kernel(THEIR_BLOCKS[1], [b.ipv6])
    with LostRoutes(pairing.lab.site("a").space) as lost:
        theirs.kill()
        for address in (b.ipv4, b.ipv6):
            ours.wait_down(address)
        theirs.start()
        for address, block in zip((b.ipv4, b.ipv6), THEIR_BLOCKS, strict=True):
            ours.wait_up(address)
            until(lambda block=block: not ours.wait_route(block).stale, 40, f"{block} told again")
        assert [ours.kernel(block) for block in THEIR_BLOCKS] == [[b.ipv4], [b.ipv6]]
        assert lost.seen() == []
