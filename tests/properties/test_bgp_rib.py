"""After anything that may happen, in any order, the tables are those that are worked out anew, and every peer has
been told what it should: its messages are read as it would read them, whatever pieces it took them in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.bgp.core.paths import Attributes, EndOfRib, Family, Nlri, Origin, Reach, SegmentType, Unreach, nlri
from services.bgp.core.rib.decision import Reason, decide
from services.bgp.core.rib.path import NextHop, NextHopState, Path, Source
from services.bgp.core.rib.peers import Session
from services.bgp.core.rib.rib import Rib
from services.bgp.core.settings import (
    Filter,
    FilterRule,
    NextHopMode,
    Originated,
    PeerKind,
    PeerSettings,
    PoolExport,
    SpeakerSettings,
)
from services.bgp.core.wire.codes import MessageType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.update import UpdateDecoder
from tests.properties.bgp_rib_oracle import PlainRib

K, V = TypeVar("K"), TypeVar("V")
V4, V6 = Family.IPV4, Family.IPV6
AS = 64512

PREFIXES = {
    V4: [
        nlri(ip_network(text))
        for text in (
            "0.0.0.0/0",
            "10.0.0.0/16",
            "10.0.0.0/26",
            "10.0.0.5/32",
            "10.0.0.64/26",
            "10.0.1.7/32",
            "10.1.0.0/26",
            "10.96.0.0/12",
            "10.96.0.10/32",
            "172.16.0.0/24",
            "192.168.0.0/25",
        )
    ],
    V6: [nlri(ip_network(text)) for text in ("fd00::/64", "fd00::5/128", "fd00:1::/64", "::/0")],
}
HOPS = {
    V4: [ip_address(f"10.9.0.{n}").packed for n in (1, 2, 3, 4)],
    V6: [ip_address(f"fd09::{n}").packed for n in (1, 2)],
}
STATES = [
    NextHopState(True),
    NextHopState(True, 10),
    NextHopState(True, 0, "eth0"),
    NextHopState(True, 0, "vxlan.calico"),
    NextHopState(False),
]
COMMUNITIES = [0xFFFFFF01, 0xFFFFFF02, 0xFFFF0000, 0xFFFF0006, 0xFFFF0007, 65000 << 16 | 100, 65000 << 16 | 42]


@st.composite
def attributes(draw: st.DrawFn, family: Family, internal: bool) -> Attributes:
    path = draw(st.lists(st.sampled_from([65000, 65001, 65002, AS]), max_size=3))
    made = Attributes(
        origin=draw(st.sampled_from(Origin)),
        as_path=((SegmentType.SEQUENCE, tuple(path)),) if path else (),
        next_hop=draw(st.sampled_from(HOPS[family])),
        med=draw(st.sampled_from([None, None, 0, 5, 10])),
        communities=tuple(draw(st.lists(st.sampled_from(COMMUNITIES), max_size=2, unique=True))),
    )
    if internal:
        made = replace(
            made,
            local_pref=draw(st.sampled_from([100, 100, 200, 2147483647 - 1024, 2147483647 - 512])),
            originator_id=draw(st.sampled_from([None, None, 77, 99])),
            cluster_list=draw(st.sampled_from([(), (), (5,), (7,)])),
        )
    return made


def both(*rules: FilterRule) -> dict[Family, tuple[FilterRule, ...]]:
    return {V4: rules, V6: tuple(rule for rule in rules if rule.network is None)}


FILTERS = {
    "none": Filter(),
    "communities": Filter(
        imports=both(
            FilterRule("Accept", communities=((65000, 100),), set_priority=512),
            FilterRule("Reject", communities=((65000, 42),), peer_type="eBGP"),
        ),
        exports=both(
            FilterRule("Accept", priority=512, add_communities=((65000, 7), (65000, 1, 2)), prepend=(65009, 65008)),
            FilterRule("Reject", source="RemotePeers", communities=((65000, 42),)),
        ),
    ),
    "prefixes": Filter(
        imports=both(
            FilterRule("Reject", ip_network("10.0.0.0/16"), "In", 32, 32),
            FilterRule("Accept", ip_network("172.16.0.0/24"), "Equal", prepend=(65003,), set_priority=2000),
            FilterRule("Reject", ip_network("0.0.0.0/0"), "Equal"),
        ),
        exports=both(
            FilterRule("Reject", ip_network("10.96.0.0/12"), "In", source="RemotePeers"),
            FilterRule("Accept", ip_network("10.0.0.0/8"), "NotIn", as_path_prefix=(65000,)),
        ),
    ),
    "interfaces": Filter(
        imports=both(FilterRule("Reject", interface="eth*")),
        exports=both(FilterRule("Accept", interface="eth?"), FilterRule("Accept", interface="cali*")),
    ),
}

KERNEL_ROUTES = [
    Originated(V4, nlri(ip_network("10.0.0.5/32")), Attributes(), interface="cali1"),
    Originated(V4, nlri(ip_network("10.0.0.5/32")), Attributes(), priority=512, interface="cali1"),
    Originated(V4, nlri(ip_network("10.0.1.7/32")), Attributes(), interface="cali2"),
    Originated(V4, nlri(ip_network("10.0.1.7/32")), Attributes(), priority=100, interface="eth0"),
    Originated(V4, nlri(ip_network("10.1.0.0/26")), Attributes(), interface="vxlan.calico"),
    Originated(V6, nlri(ip_network("fd00::5/128")), Attributes(), interface="cali1"),
]
STATIC = [
    Originated(V4, nlri(ip_network("10.0.0.0/26")), Attributes(), block=True),
    Originated(V4, nlri(ip_network("10.96.0.0/12")), Attributes(), service=True),
    Originated(V6, nlri(ip_network("fd00::/64")), Attributes(), block=True),
]
BLOCKS = (ip_network("10.0.0.0/26"), ip_network("fd00::/64"))
PARTS = ("originated", "pools", "own_blocks", "advertisements", "peers")


def peer_settings(n: int, remote_as: int, client: bool) -> PeerSettings:
    return PeerSettings(
        f"Global_{n}",
        PeerKind.GLOBAL,
        ip_address(f"10.9.1.{n}"),
        remote_as,
        AS,
        rr_client_cluster=7 if client else None,
        families=(V4, V6),
    )


PEERS = {
    peer.name: peer
    for peer in (
        peer_settings(1, AS, client=True),
        peer_settings(2, AS, client=True),
        peer_settings(3, AS, client=False),
        peer_settings(4, 65001, client=False),
        peer_settings(5, 65002, client=False),
        peer_settings(6, 65002, client=False),
    )
}
ADD_PATH = "Global_3"  # sends several paths of a prefix


def session(peer: PeerSettings, families: frozenset[Family], long_lived: bool, preserved: bool) -> Session:
    receive = families if peer.name == ADD_PATH else frozenset[Family]()
    return Session(
        Context(internal=peer.internal, families=families, add_path_receive=receive, max_message=200),
        remote_as=peer.remote_as,
        remote_id=10 + int(peer.name[-1]) // 2,
        addresses={V4: ip_address("10.9.9.9").packed, V6: ip_address("fd09::9").packed},
        graceful=families,
        preserved=families if preserved else frozenset(),
        restart_time_s=100,
        long_lived=dict.fromkeys(families, 1000.0) if long_lived else {},
    )


@st.composite
def speakers(draw: st.DrawFn) -> SpeakerSettings:
    modes = st.sampled_from([NextHopMode.AUTO, NextHopMode.AUTO, NextHopMode.SELF, NextHopMode.KEEP])
    lists = st.lists(st.sampled_from([*FILTERS, "missing"]), max_size=2, unique=True)
    peers = []
    for peer in PEERS.values():
        filters = tuple(draw(lists)) if draw(st.booleans()) else ()
        mode = draw(modes) if draw(st.booleans()) else NextHopMode.AUTO
        cluster = peer.rr_client_cluster if draw(st.integers(0, 4)) else None
        peers.append(
            replace(
                peer,
                filters=filters,
                next_hop_mode=mode,
                rr_client_cluster=cluster,
                allowed_local_as=draw(st.integers(0, 1)),
            )
        )
    pools = [
        PoolExport(ip_network("10.0.0.0/16"), True, *draw(st.sampled_from([("Never", False), ("Always", False)]))),
        PoolExport(ip_network("10.1.0.0/16"), draw(st.booleans()), draw(st.sampled_from(["Never", "CrossSubnet"]))),
        PoolExport(ip_network("192.168.0.0/16"), True, "Never", draw(st.booleans())),
        PoolExport(ip_network("fd00::/64")),
    ]
    return SpeakerSettings(
        node="node1",
        router_id=99,
        local_as=AS,
        peers=tuple(peers),
        filters=FILTERS,
        originated=tuple(draw(st.lists(st.sampled_from(STATIC), unique=True, max_size=3))),
        pools=tuple(draw(st.lists(st.sampled_from(pools), unique=True, max_size=4))),
        own_blocks=draw(st.sampled_from([(), BLOCKS[:1], BLOCKS])),
        addresses=(ip_address("10.9.0.4"),) if draw(st.booleans()) else (),
        subnets=(ip_network("10.9.0.0/31"),),
        reject=(ip_network("10.96.0.0/12"),) if draw(st.booleans()) else (),
        reflect=(ip_network("172.16.0.0/24"),),
        route_reflector=draw(st.booleans()),
        encrypted=(ip_address("10.9.0.3"),) if draw(st.booleans()) else (),
        advertisements=draw(st.sampled_from([(), ((ip_network("10.0.0.0/16"), ((65000, 9), (1, 2, 3))),)])),
        normal_priority=draw(st.sampled_from([{V4: 1024, V6: 1024}, {V4: 400, V6: 1024}])),
        program_cluster_routes=draw(st.sampled_from(["Enabled", "EnabledNoEncapOnly", "EnabledIPIPOnly", "Disabled"])),
        cluster_id=draw(st.sampled_from([0, 7])),
    )


class View:
    """What a peer knows after reading its messages."""

    def __init__(self, settings: PeerSettings, session: Session) -> None:
        context = replace(session.context, add_path_receive=frozenset())
        self.reader, self.decoder = MessageReader(), UpdateDecoder(context)
        self.routes: dict[tuple[Family, Nlri], Attributes] = {}
        self.ends: list[Family] = []

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        while (message := self.reader.next()) is not None:
            kind, body = message
            assert kind is MessageType.UPDATE
            for change in self.decoder.decode(body):
                if isinstance(change, Reach):
                    for prefix in change.prefixes:
                        self.routes[change.family, prefix] = change.attributes
                elif isinstance(change, Unreach):
                    for prefix in change.prefixes:
                        self.routes.pop((change.family, prefix), None)
                else:
                    self.ends.append(change.family)


def unlike(have: dict[K, V], want: dict[K, V]) -> dict[K, tuple[V | None, V | None]]:
    """key -> (what there is, what there should be)."""
    return {key: (have.get(key), want.get(key)) for key in have.keys() | want.keys() if have.get(key) != want.get(key)}


families = st.sampled_from([V4, V4, V4, V6])
names = st.sampled_from(sorted(PEERS))


class Tables(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.views: dict[str, View] = {}
        self.kernel: dict[tuple[Family, Nlri], tuple[tuple[tuple[bytes, bool], ...], int]] = {}

    @initialize(settings=speakers())
    def start(self, settings: SpeakerSettings) -> None:
        self.states = {hop: STATES[0] for hops in HOPS.values() for hop in hops}
        self.rib = Rib(settings, lambda address: self.states[address])
        self.plain = PlainRib(settings, self.states)

    def settings_of(self, name: str) -> PeerSettings:
        return next(peer for peer in self.rib.settings.peers if peer.name == name)

    @rule(name=names, both=st.booleans(), long_lived=st.booleans(), preserved=st.booleans())
    def peer_up(self, name: str, both: bool, long_lived: bool, preserved: bool) -> None:
        if name in self.views:
            return
        settings = self.settings_of(name)
        made = session(settings, frozenset((V4, V6)) if both else frozenset((V4,)), long_lived, preserved)
        self.rib.peer_up(settings, made, self.now)
        self.plain.up(settings, made, self.now)
        self.views[name] = View(settings, made)

    @rule(name=names, keep=st.sampled_from([(), (V4,), (V4, V6)]))
    def peer_down(self, name: str, keep: tuple[Family, ...]) -> None:
        if self.views.pop(name, None) is not None:
            self.rib.peer_down(name, self.now, keep)
            self.plain.down(name, self.now, keep)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), family=families)
    def announce(self, data: st.DataObject, family: Family) -> None:
        name = data.draw(st.sampled_from(sorted(self.views)))
        peer = self.plain.peers[name]
        if family not in peer.session.families:
            return
        made = data.draw(attributes(family, peer.internal))
        prefixes = data.draw(st.lists(st.sampled_from(PREFIXES[family]), min_size=1, max_size=5, unique=True))
        ids = [data.draw(st.integers(1, 2)) for _ in prefixes] if name == ADD_PATH else None
        self.rib.receive(name, [Reach(family, made, prefixes, ids)], self.now)
        for prefix, path_id in zip(prefixes, ids or [0] * len(prefixes), strict=True):
            self.plain.reach(name, family, prefix, path_id, made)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), family=families)
    def withdraw(self, data: st.DataObject, family: Family) -> None:
        name = data.draw(st.sampled_from(sorted(self.views)))
        if family not in self.plain.peers[name].session.families:
            return
        prefixes = data.draw(st.lists(st.sampled_from(PREFIXES[family]), min_size=1, max_size=5, unique=True))
        ids = [data.draw(st.integers(1, 2)) for _ in prefixes] if name == ADD_PATH else None
        self.rib.receive(name, [Unreach(family, prefixes, ids)], self.now)
        for prefix, path_id in zip(prefixes, ids or [0] * len(prefixes), strict=True):
            self.plain.unreach(name, family, prefix, path_id)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), family=families)
    def end_of_rib(self, data: st.DataObject, family: Family) -> None:
        name = data.draw(st.sampled_from(sorted(self.views)))
        self.rib.receive(name, [EndOfRib(family)], self.now)
        self.plain.end_of_rib(name, family)

    @rule(address=st.sampled_from([*HOPS[V4], *HOPS[V6]]), state=st.sampled_from(STATES))
    def next_hop(self, address: bytes, state: NextHopState) -> None:
        self.states[address] = state
        self.rib.next_hops_changed({address: state})

    @rule(route=st.sampled_from(KERNEL_ROUTES))
    def local_route(self, route: Originated) -> None:
        self.rib.originate([route])
        self.plain.kernel[route.family, route.prefix] = route

    @rule(route=st.sampled_from(KERNEL_ROUTES))
    def local_route_gone(self, route: Originated) -> None:
        self.rib.withdraw_originated([(route.family, route.prefix)])
        self.plain.kernel.pop((route.family, route.prefix), None)

    @rule(settings=speakers())
    def configure(self, settings: SpeakerSettings) -> None:
        self._configure(settings)

    def _configure(self, settings: SpeakerSettings) -> None:
        self.rib.configure(settings)
        self.plain.settings = settings
        for peer in self.plain.peers.values():
            peer.settings = self.settings_of(peer.settings.name)

    @rule(change=st.sampled_from(PARTS), settings=speakers())
    def configure_one(self, change: str, settings: SpeakerSettings) -> None:
        self._configure(replace(self.rib.settings, **{change: getattr(settings, change)}))  # type: ignore[arg-type]

    @rule(seconds=st.sampled_from([1.0, 101.0, 1001.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.rib.deadline()
        waiting = [until for peer in self.plain.peers.values() for until in peer.until.values()]
        assert deadline == min(waiting, default=None)
        self.rib.expire(self.now)
        self.plain.expire(self.now)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), family=families)
    def refresh(self, data: st.DataObject, family: Family) -> None:
        self.rib.refresh(data.draw(st.sampled_from(sorted(self.views))), family)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), budget=st.integers(1, 300))
    def take_some(self, data: st.DataObject, budget: int) -> None:
        """One member of a group goes on, the others stay where they are."""
        name = data.draw(st.sampled_from(sorted(self.views)))
        self.views[name].feed(self.rib.take_messages(name, budget))

    @rule(limit=st.integers(1, 4))
    def take_fib(self, limit: int) -> None:
        self._take_fib(limit)

    def _take_fib(self, limit: int) -> None:
        changes = self.rib.take_fib(limit)
        assert len(changes) <= limit
        for change in changes:
            key = (change.family, change.prefix)
            before = (tuple(change.before.hops), change.before.metric) if change.before is not None else None
            assert self.kernel.get(key) == before
            if change.route is None:
                del self.kernel[key]
            else:
                self.kernel[key] = (tuple((hop.address, hop.tunnel) for hop in change.route.hops), change.route.metric)

    @rule()
    def settle(self) -> None:
        self._settle()

    def _settle(self) -> None:
        for name, view in self.views.items():
            while self.rib.has_messages(name):
                view.feed(self.rib.take_messages(name, 1000))
            families = self.plain.peers[name].session.families
            wanted = {
                (family, prefix): told
                for family in families
                for prefix in PREFIXES[family]
                if (told := self.plain.told(name, family, prefix)) is not None
            }
            assert not unlike({(f, k): a for f in families for k, a in self.rib.advertised(name, f)}, wanted), name
            assert not unlike(view.routes, wanted), name
            assert sorted(view.ends) == sorted(families)
        while self.rib.fib_waiting():
            self._take_fib(100)
        routes = {
            (family, prefix): route
            for family, prefixes in PREFIXES.items()
            for prefix in prefixes
            if (route := self.plain.route(family, prefix)) is not None
        }
        assert not unlike(self.kernel, routes)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        for name in self.views:
            for family in Family:
                told = {k for f, k, _ in self.plain.peers[name].told if f is family}
                assert self.rib.counts(name, family).received == len(told)

    @rule(family=families, data=st.data())
    def explained(self, family: Family, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(PREFIXES[family]))
        found = self.rib.explain(family, prefix)
        chosen = self.plain.chosen(family, prefix)
        assert len([path for path in found.paths if path.reason is Reason.BEST]) == bool(chosen)
        equal = (Reason.BEST, Reason.MULTIPATH, Reason.MULTIPATH_LIMIT)
        assert len([path for path in found.paths if path.reason in equal]) == len(chosen)
        for told in found.advertised:
            assert told.attributes == self.plain.told(told.peer, family, prefix)
            if chosen and told.attributes is None:
                assert told.withheld is not None
            if told.attributes is not None:
                assert told.withheld is None

    def teardown(self) -> None:
        if hasattr(self, "rib"):
            self._settle()


TestTables = pytest.mark.timeout(600)(Tables.TestCase)
TestTables.settings = settings(stateful_step_count=30)


@given(st.data())
def test_order_of_arrival_does_not_decide(data: st.DataObject) -> None:
    sources = []
    for n in range(4):
        source = Source(f"peer{n}", remote=True)
        source.internal = data.draw(st.booleans())
        source.router_id = data.draw(st.integers(1, 2))
        source.address_key = (4, bytes((n,)))
        sources.append(source)
    paths = []
    for source in sources:
        made = data.draw(attributes(V4, source.internal))
        state = data.draw(st.sampled_from(STATES))
        paths.append(Path(source, V4, made, made, NextHop(made.next_hop, state), 100))
    results = {tuple(decide(list(order))) for order in permutations(paths)}
    assert len(results) == 1
    why: dict[Path, Reason] = {}
    assert decide(paths, why) == list(next(iter(results)))
    assert set(why) == set(paths)
