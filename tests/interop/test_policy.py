"""What Calico's BGPFilter, pools, blocks, communities and priorities do, as the router opposite sees it.

Only our speaker has these. Settings are changed while sessions are up, as resources change in a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from libs.testkit.routers.model import Family, Neighbour, Route, Router
from libs.testkit.routers.ours import Ours, Settings
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import RawPeer, announcement
from tests.interop.pairs import OUR_AS, THEIR_AS, Pair, Pairing

feature = pytest.mark.feature

PREFIXES: dict[Family, dict[str, str]] = {
    "ipv4": {"same": "10.48.0.0/16", "inside": "10.48.1.0/24", "outside": "10.60.0.0/16", "above": "10.32.0.0/11"},
    "ipv6": {"same": "fd48::/32", "inside": "fd48:0:1::/64", "outside": "fd60::/32", "above": "fd40::/16"},
}
REJECTED = {
    "Equal": {"same"},
    "NotEqual": {"inside", "outside", "above"},
    "In": {"same", "inside"},
    "NotIn": {"outside", "above"},
}


@pytest.fixture(params=["bird", "frr"])
def opposite(request: pytest.FixtureRequest) -> type[Peer]:
    from tests.interop.pairs import KINDS, subject

    if subject() is not Ours:
        pytest.skip("a feature of our speaker only")
    return KINDS[request.param]


def policed(pair: Pair, change: Callable[[Settings], None]) -> None:
    """Change our settings and have them taken."""
    assert isinstance(pair.ours, Ours)
    pair.ours.adjust = change
    pair.ours.apply()


def with_filter(direction: str, family: Family, *rules: dict[str, Any]) -> Callable[[Settings], None]:
    def change(settings: Settings) -> None:
        settings["filters"]["under-test"] = {direction: {family: list(rules)}}
        for peer in settings["peers"]:
            peer["filters"] = ["under-test"]

    return change


def named(routes: list[Route], family: Family) -> set[str]:
    known = {route.prefix for route in routes}
    return {name for name, prefix in PREFIXES[family].items() if prefix in known}


def sees(peer: Peer, family: Family, wanted: set[str], why: str) -> None:
    until(
        lambda: named(peer.learned(family), family) == wanted, 30,
        lambda: f"{why}: wanted {sorted(wanted)}, {peer.daemon} has {sorted(named(peer.learned(family), family))}",
    )  # fmt: skip


@feature("BGPFilter: 16 cases of direction, family, operator; changed while it runs")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("direction", ["imports", "exports"])
def test_filter_operators(pairing: Pairing, opposite: type[Peer], direction: str, family: Family) -> None:
    routes = tuple(Route(prefix) for prefix in PREFIXES[family].values())
    exporting = direction == "exports"
    pair = pairing.pair(
        opposite, families=(family,), routes=routes if exporting else (), their_routes=() if exporting else routes
    )
    viewer = pair.theirs if exporting else pair.ours
    sees(viewer, family, set(PREFIXES[family]), "without a filter")
    since = session_since(pair)
    for operator, rejected in REJECTED.items():
        rule = {"action": "Reject", "network": PREFIXES[family]["same"], "match_operator": operator}
        policed(pair, with_filter(direction, family, rule))
        sees(viewer, family, set(PREFIXES[family]) - rejected, operator)
    policed(pair, lambda settings: None)
    sees(viewer, family, set(PREFIXES[family]), "the filter taken away")
    assert session_since(pair) == since, "no session was begun again for a filter"


def session_since(pair: Pair) -> str:
    return str(json.loads(pair.ours.session(pair.at_ours).said)["since"])[:16]


@feature("BGPFilter: lengths, order, peer type")
def test_filter_lengths_order_and_peer_type(pairing: Pairing, opposite: type[Peer]) -> None:
    family: Family = "ipv4"
    everything = set(PREFIXES[family])
    pair = pairing.pair(opposite, routes=tuple(Route(prefix) for prefix in PREFIXES[family].values()))
    wide = {"network": "10.0.0.0/8", "match_operator": "In"}
    exactly = {"action": "Accept", "network": "10.48.1.0/24", "match_operator": "Equal"}
    cases: list[tuple[list[dict[str, Any]], set[str]]] = [
        ([{"action": "Reject", **wide, "min_length": 20}], everything - {"inside"}),
        ([{"action": "Reject", **wide, "max_length": 12}], everything - {"above"}),
        ([{"action": "Reject", **wide, "min_length": 16, "max_length": 16}], {"inside", "above"}),
        ([exactly, {"action": "Reject", **wide}], {"inside"}),
        ([{"action": "Reject", **wide, "peer_type": "eBGP"}], set()),
        ([{"action": "Reject", **wide, "peer_type": "iBGP"}], everything),
        ([{"action": "Reject"}], set()),
    ]  # fmt: skip
    for rules, left in cases:
        policed(pair, with_filter("exports", family, *rules))
        sees(pair.theirs, family, left, json.dumps(rules))


@feature("BGPFilter: interface and source")
def test_filter_by_interface_and_source(pairing: Pairing, opposite: type[Peer]) -> None:
    """A pod's route, one of this node's own, one that another peer told: which of them the router opposite hears."""
    a, b, c = (pairing.lab.site(name) for name in "abc")
    pairing.lab.pod("pod", a, 5, "10.65.1.5", "169.254.1.179")
    them = pairing.add(opposite, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),)))
    mine = (Neighbour(b.ipv4, THEIR_AS), Neighbour(c.ipv4, 65010, passive=True))
    ours = pairing.subject(Router(OUR_AS, "10.9.0.1", mine, (Route("10.48.0.0/16"),)), start=True)
    assert isinstance(ours, Ours)
    pod, own, remote = "10.65.1.5/32", "10.48.0.0/16", "10.60.0.0/16"

    def heard(wanted: set[str], why: str) -> None:
        until(
            lambda: {route.prefix for route in them.learned("ipv4")} == wanted, 30,
            lambda: f"{why}: wanted {wanted}, has {[route.prefix for route in them.learned('ipv4')]}",
        )  # fmt: skip

    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(65010, "10.9.0.3")
        raw.send(announcement(Route(remote, as_path=(65010,)), c.ipv4))
        heard({pod, own, remote}, "without a filter")
        for condition, lost in (
            ({"interface": "cali*"}, {pod}),
            ({"interface": "eth0"}, {remote}),
            ({"source": "RemotePeers"}, {remote}),
        ):
            ours.adjust = with_filter("exports", "ipv4", {"action": "Reject", **condition})
            ours.apply()
            heard({pod, own, remote} - lost, str(condition))


@feature("BGPFilter: communities and AS paths of what comes in")
def test_import_by_community_and_path(pairing: Pairing, opposite: type[Peer]) -> None:
    routes = (
        Route("10.48.0.0/16", communities=frozenset({(THEIR_AS, 7)})),
        Route("10.60.0.0/16", large=frozenset({(THEIR_AS, 1, 2)})),
        Route("10.32.0.0/11", as_path=(65010,)),
        Route("10.48.1.0/24"),
    )
    pair = pairing.pair(opposite, their_routes=routes)
    everything = set(PREFIXES["ipv4"])
    sees(pair.ours, "ipv4", everything, "without a filter")
    for rule, lost in (
        ({"communities": [[THEIR_AS, 7]]}, "same"),
        ({"communities": [[THEIR_AS, 1, 2]]}, "outside"),
        ({"as_path_prefix": [THEIR_AS, 65010]}, "above"),
    ):
        policed(pair, with_filter("imports", "ipv4", {"action": "Reject", **rule}))
        sees(pair.ours, "ipv4", everything - {lost}, str(rule))


@feature("BGPFilter: operations")
def test_export_operations(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, routes=(Route("10.48.0.0/16", communities=frozenset({(1, 1)})),))
    pair.theirs.wait_route("10.48.0.0/16")
    rule = {"action": "Accept", "add_communities": [[65000, 9], [65000, 1, 2]], "prepend": [65050, 65051]}
    policed(pair, with_filter("exports", "ipv4", rule))
    got = pair.theirs.wait_route("10.48.0.0/16", like=lambda route: len(route.as_path) == 3)
    assert got.as_path == (OUR_AS, 65050, 65051)
    assert got.communities == {(1, 1), (65000, 9)}
    assert got.large == {(65000, 1, 2)}


@feature("priorities: 1024, settable, by filter")
def test_kernel_metric(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(
        opposite, session={"families": ("ipv4", "ipv6")},
        their_routes=(Route("10.48.0.0/16"), Route("fd48::/32", next_hop="fd09::2")),
    )  # fmt: skip

    def metrics() -> list[int]:
        shown = [
            pair.ours.run("ip", flag, "-j", "route", "show", prefix)
            for flag, prefix in (("-4", "10.48.0.0/16"), ("-6", "fd48::/32"))
        ]
        return [json.loads(text or "[]")[0]["metric"] for text in shown if json.loads(text or "[]")]

    def has(wanted: list[int]) -> None:
        until(lambda: metrics() == wanted, 30, lambda: f"metrics {wanted}; the kernel has {metrics()}")

    has([1024, 1024])

    def other(settings: Settings) -> None:
        settings["normal_priority"] = {"ipv4": 2000, "ipv6": 3000}

    policed(pair, other)
    has([2000, 3000])
    policed(pair, with_filter("imports", "ipv4", {"action": "Accept", "set_priority": 512}))
    has([512, 1024])


@feature("LOCAL_PREF of our priority")
def test_priority_travels_as_local_pref(pairing: Pairing, opposite: type[Peer]) -> None:
    """Inside one AS a metric of 1024 travels as 2147483647 - 1024, so that a lower one wins everywhere."""
    pair = pairing.pair(opposite, their_as=OUR_AS, routes=(Route("10.48.0.0/16"),))
    assert pair.theirs.wait_route("10.48.0.0/16").local_pref == 2147483647 - 1024


@feature("communities by prefix advertisement")
def test_prefix_advertisements(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, routes=(Route("10.48.0.0/16"), Route("10.48.1.0/24"), Route("10.60.0.0/16")))

    def advertise(settings: Settings) -> None:
        settings["advertisements"] = [
            ["10.48.0.0/16", [[65000, 100], [65000, 1, 2]]],
            ["10.48.1.0/24", [[65000, 200]]],
        ]

    policed(pair, advertise)
    got = pair.theirs.wait_route("10.48.0.0/16", like=lambda route: bool(route.communities))
    assert (got.communities, got.large) == ({(65000, 100)}, {(65000, 1, 2)})
    inner = pair.theirs.wait_route("10.48.1.0/24", like=lambda route: bool(route.communities))
    assert inner.communities == {(65000, 100), (65000, 200)}
    assert pair.theirs.wait_route("10.60.0.0/16").communities == frozenset()


@feature("blocks: aggregated, urgent routes inside, nothing of closed pools")
def test_blocks_and_pools(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite)

    def blocks(settings: Settings) -> None:
        def one(prefix: str, **more: Any) -> dict[str, Any]:
            return {"prefix": prefix, "attributes": {}, **more}

        settings["pools"] = [{"network": "10.48.0.0/16"}, {"network": "10.60.0.0/16", "export": False}]
        settings["own_blocks"] = ["10.48.1.0/26"]
        settings["originated"] = [
            one("10.48.1.0/26", block=True),
            one("10.48.1.5/32", interface="cali1", priority=1024),  # a pod of the block: inside it
            one("10.48.1.6/32", interface="cali2", priority=512),  # a virtual machine that has just come here
            one("10.48.9.9/32", interface="cali3", priority=1024),  # a borrowed address, of another's block
            one("10.60.1.0/26", block=True),
            one("10.70.0.0/24", interface="eth1"),
        ]

    policed(pair, blocks)
    wanted = {"10.48.1.0/26", "10.48.1.6/32", "10.48.9.9/32"}
    until(
        lambda: {route.prefix for route in pair.theirs.learned("ipv4")} == wanted, 30,
        lambda: f"wanted {wanted}, has {[route.prefix for route in pair.theirs.learned('ipv4')]}",
    )  # fmt: skip


@feature("services' ranges stay out of the kernel")
def test_rejected_ranges_are_not_installed(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, their_routes=(Route("10.48.0.0/16"), Route("10.60.0.0/16")))
    pair.ours.wait_kernel("10.60.0.0/16", [pair.b.ipv4])

    def reject(settings: Settings) -> None:
        settings["reject"] = ["10.60.0.0/16"]

    policed(pair, reject)
    pair.ours.wait_kernel("10.60.0.0/16", [])
    pair.ours.wait_kernel("10.48.0.0/16", [pair.b.ipv4])


@feature("bad settings never replace good ones")
def test_bad_settings_change_nothing(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, routes=(Route("10.48.0.0/16"),))
    pair.theirs.wait_route("10.48.0.0/16")

    def broken(settings: Settings) -> None:
        settings["originated"] = []
        settings["filters"] = {"f": {"exports": {"ipv4": [{"action": "Reject", "network": "10.48.0.0/99"}]}}}

    since = session_since(pair)
    policed(pair, broken)
    assert "settings not taken" in pair.ours.log_tail(400)
    policed(
        pair,
        lambda settings: settings["originated"].append({"prefix": "10.60.0.0/16", "attributes": {}, "service": True}),
    )
    pair.theirs.wait_route("10.60.0.0/16")
    assert {route.prefix for route in pair.theirs.learned("ipv4")} == {"10.48.0.0/16", "10.60.0.0/16"}
    assert session_since(pair) == since


@feature("peers reachable by a gateway (reachableBy)")
def test_peer_behind_a_gateway(pairing: Pairing, opposite: type[Peer]) -> None:
    """Nothing but the setting leads to the peer's loopback."""
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    b.space.ip(["addr add 10.99.0.2/32 dev lo"])
    theirs = Neighbour(a.ipv4, OUR_AS, local_address="10.99.0.2", multihop=3)
    pairing.add(opposite, "b", Router(THEIR_AS, "10.9.0.2", (theirs,), (Route("10.2.0.0/24"),)))
    router = Router(OUR_AS, "10.9.0.1", (Neighbour("10.99.0.2", THEIR_AS, multihop=3),))
    ours = pairing.subject(router)
    assert isinstance(ours, Ours)

    def by_gateway(settings: Settings) -> None:
        settings["peers"][0]["gateway"] = b.ipv4

    ours.adjust = by_gateway
    ours.start()
    ours.wait_up("10.99.0.2")
    ours.wait_kernel("10.99.0.2/32", [b.ipv4])
    ours.wait_route("10.2.0.0/24")
    ours.wait_kernel("10.2.0.0/24", [b.ipv4])


@feature("pods that peer with their node")
def test_pod_peers_with_its_node(pairing: Pairing, opposite: type[Peer]) -> None:
    """What a pod tells lands in the node's kernel by way of the pod, stays there, and is told to others when a pool
    has it."""
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    pod = pairing.lab.pod("pod", a, 5, "10.65.1.5", "169.254.1.179")
    them = pairing.add(opposite, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),)))
    mine = (Neighbour(b.ipv4, THEIR_AS), Neighbour(pod.ipv4, 65100, passive=True))
    ours = pairing.subject(Router(OUR_AS, "10.9.0.1", mine))
    assert isinstance(ours, Ours)

    def local(settings: Settings) -> None:
        peer = settings["peers"][1]
        peer.update(kind="Local_Workload", name="Local_Workload_10_65_1_5", interface="cali5")

    ours.adjust = local
    ours.start()
    ours.wait_up(b.ipv4)
    with RawPeer.dial(pod, "169.254.1.179", local=pod.ipv4) as raw:
        raw.handshake(65100, "10.65.1.5")
        raw.send(announcement(Route("10.77.0.0/24", as_path=(65100,)), pod.ipv4))
        ours.wait_kernel("10.77.0.0/24", [pod.ipv4])
        assert them.wait_route("10.77.0.0/24").as_path == (OUR_AS, 65100)
        assert them.wait_route("10.65.1.5/32").next_hop == a.ipv4  # the pod's own address, from the kernel
        ours.apply()
        assert ours.kernel("10.77.0.0/24") == [pod.ipv4]
    them.wait_gone("10.77.0.0/24")
    ours.wait_kernel("10.77.0.0/24", [])


@feature("bind mode: only the node's address")
def test_listening_on_one_address(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, other={"passive": True})

    def listening() -> set[str]:
        return {line.split()[3] for line in pair.ours.run("ss", "-tlnH", "sport", "=", "179").splitlines()}

    def bind(settings: Settings) -> None:
        settings["bind"] = [pair.a.ipv4]

    assert len(listening()) == 2
    since = session_since(pair)
    policed(pair, bind)
    until(lambda: listening() == {f"{pair.a.ipv4}:179"}, 20, lambda: f"one listener; there are {listening()}")
    assert session_since(pair) == since


@feature("password: missing secret holds the session down")
def test_missing_secret_holds_the_session_down(pairing: Pairing, opposite: type[Peer]) -> None:
    pair = pairing.pair(opposite, other={"password": "secret"}, mine={"password": "secret"})
    assert isinstance(pair.ours, Ours)

    def elsewhere(settings: Settings) -> None:
        settings["peers"][0]["password"] = {"name": "nowhere", "key": "password"}

    policed(pair, elsewhere)
    pair.ours.wait_down(pair.at_ours)
    assert "missing" in pair.ours.session(pair.at_ours).said
    pair.theirs.change(pair.at_theirs, password="")
    for _ in watched(pair, tries=3):
        assert not pair.ours.session(pair.at_ours).up
    pair.theirs.change(pair.at_theirs, password="secret")
    policed(pair, lambda settings: None)
    pair.wait_up(60)


def watched(pair: Pair, tries: int) -> Iterator[int]:
    """Each time the other end's connection was refused."""
    for number in range(1, tries + 1):
        until(lambda n=number: pair.ours.log_path.read_text().count("connection refused") >= n, 40, f"try {number}")  # type: ignore[misc]
        yield number
