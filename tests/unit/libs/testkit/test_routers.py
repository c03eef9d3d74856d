"""The kit for real routers: what daemons say is read right, and what is sent by hand is what the RFCs show."""

from __future__ import annotations

from libs.testkit.routers import bird, frr, raw
from libs.testkit.routers.model import Neighbour, Route, Router

SHOWN = """\
BIRD 2.0.12 ready.
Table master4:
10.2.0.0/24          unicast [p_10_9_0_2 22:10:00.123] * (100) [AS65010?]
	via 10.9.0.2 on eth0
	Type: BGP univ
	BGP.origin: Incomplete
	BGP.as_path: 64513 65010 {7 8} 65011
	BGP.next_hop: fd09::2 fe80::9:2
	BGP.med: 7
	BGP.local_pref: 100
	BGP.atomic_aggr:
	BGP.aggregator: 10.20.0.1 AS65020
	BGP.community: (64512,1) (64512,2)
	BGP.ext_community: (rt, 64512, 100) (ro, 64512, 7)
	BGP.large_community: (64512, 1, 2)
	BGP.originator_id: 10.9.0.3
	BGP.cluster_list: 10.77.0.1 10.77.0.2
	BGP.63 [t]: c0 ff ee
                     unicast [p_10_9_0_3 22:10:01.000] (100s) [AS64513i]
	via 10.9.0.3 on eth0
	Type: BGP univ
	BGP.origin: IGP
	BGP.as_path: 64513
	BGP.next_hop: 10.9.0.3
	BGP.local_pref: 100
10.1.0.0/24          blackhole [s4 22:10:00.000] * (200)
	Type: static univ
"""


def test_birds_routes_are_read_with_everything() -> None:
    best, stale = (route for _, route in bird.parse(SHOWN))
    assert best == Route(
        "10.2.0.0/24", "fd09::2", "fe80::9:2", "incomplete", (64513, 65010, frozenset({7, 8}), 65011), 7, 100,
        frozenset({(64512, 1), (64512, 2)}), frozenset({"rt:64512:100", "soo:64512:7"}), frozenset({(64512, 1, 2)}),
        True, (65020, "10.20.0.1"), "10.9.0.3", ("10.77.0.1", "10.77.0.2"), frozenset({(99, "c0ffee")}),
    )  # fmt: skip
    assert (best.best, best.stale, best.neighbour) == (True, False, "p_10_9_0_2")
    assert (stale.prefix, stale.best, stale.stale, stale.as_path) == ("10.2.0.0/24", False, True, (64513,))


def test_frr_is_changed_by_what_differs() -> None:
    peer = Neighbour("10.9.0.1", 64512)
    before = Router(64513, "10.9.0.2", (peer,), (Route("10.2.0.0/24", med=1), Route("10.3.0.0/24")))
    after = Router(64513, "10.9.0.2", (peer,), (Route("10.2.0.0/24", med=2),))
    commands = frr.difference(frr.render(before), frr.render(after))
    assert commands == [
        "router bgp 64513", "address-family ipv4 unicast",
        "no network 10.3.0.0/24 route-map r_10_3_0_0_24", "exit", "exit",
        "no route-map r_10_3_0_0_24 permit 10",
        "no route-map r_10_2_0_0_24 permit 10",
        "route-map r_10_2_0_0_24 permit 10", "set origin igp", "set metric 2", "exit",
    ]  # fmt: skip
    assert frr.difference(frr.render(after), frr.render(after)) == []


def test_update_by_hand_is_the_one_of_rfc_4271() -> None:
    """ORIGIN IGP, AS_PATH 65001 as four octets, NEXT_HOP 10.9.0.2, NLRI 10.2.0.0/24; lengths counted by hand."""
    sent = raw.announcement(Route("10.2.0.0/24", as_path=(65001,)), "10.9.0.2")
    attributes = bytes.fromhex("400101004002060201" + "0000fde9" + "4003040a090002")
    assert sent == b"\xff" * 16 + (19 + 4 + 20 + 4).to_bytes(2) + b"\x02\0\0\0\x14" + attributes + bytes.fromhex(
        "180a0200"
    )


def test_what_is_written_by_hand_is_read_again() -> None:
    path = (65010, 65011, frozenset({65020, 65021}), 65012)
    for text, hop in (("10.2.0.0/24", "10.9.0.2"), ("fd02::/61", "fd09::2"), ("10.2.0.0/15", "fd09::2")):
        heard = raw.read_update(
            raw.announcement(Route(text, as_path=path, unknown=frozenset({(99, "c0ffee")})), hop)[19:]
        )
        assert (heard.announced, heard.withdrawn, heard.next_hop, heard.numbers()) == ((text,), (), hop, path)
        assert heard.attributes[99] == (0xC0, b"\xc0\xff\xee")
    gone = raw.read_update(raw.withdrawal("10.2.0.0/24", "fd02::/61")[19:])
    assert gone.withdrawn == ("10.2.0.0/24", "fd02::/61")
