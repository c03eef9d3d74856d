"""After anything that may happen, in any order, the tables are those that are worked out anew, and every peer has
been told what it should: its messages are read as it would read them, whatever pieces it took them in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from services.bgp.core.wire.context import Context
from tests.properties.bgp_rib_oracle import PlainRib
from tests.unit.services.bgp.speakers import View

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


def attributes(random: Random, family: Family, internal: bool) -> Attributes:
    """Mostly equal, so that each step of the decision comes to decide."""

    def rarely(usual: V, *others: V, share: float = 0.25) -> V:
        return random.choice(others) if random.random() < share else usual

    path = rarely((65000,), (65001,), (65002,), (65000, 65001), (AS,), (), share=0.5)
    made = Attributes(
        origin=rarely(Origin.IGP, Origin.EGP, Origin.INCOMPLETE, share=0.1),
        as_path=((SegmentType.SEQUENCE, path),) if path else (),
        next_hop=random.choice(HOPS[family]),
        med=rarely(None, 0, 5, 10, share=0.5),
        communities=rarely((), *((community,) for community in COMMUNITIES), share=0.3),
    )
    if internal:
        made = replace(
            made,
            local_pref=rarely(100, 200, 2147483647 - 1024, 2147483647 - 512),
            originator_id=rarely(None, 77, 99),
            cluster_list=rarely((), (5,), (7,)),
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


def session(
    peer: PeerSettings, families: frozenset[Family], long_lived: bool, knows: bool, preserved: bool, kept_long: bool
) -> Session:
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
        knows_long_lived=long_lived or knows,
        long_lived_preserved=families if long_lived and kept_long else frozenset(),
        long_lived_only=frozenset((V6,)) if long_lived and not preserved else frozenset(),
    )


def speaker(random: Random, alike: bool) -> SpeakerSettings:
    """alike: all peers have the same settings, so that they share an update group."""
    peers = []
    for peer in PEERS.values():
        names = random.sample([*FILTERS, "missing"], random.choice((0, 0, 1, 2))) if not alike else []
        modes = [NextHopMode.AUTO, NextHopMode.AUTO, NextHopMode.AUTO, NextHopMode.SELF, NextHopMode.KEEP]
        peers.append(
            replace(
                peer,
                filters=tuple(names),
                next_hop_mode=random.choice(modes) if not alike else NextHopMode.AUTO,
                rr_client_cluster=peer.rr_client_cluster if alike or random.random() < 0.8 else None,
                allowed_local_as=random.choice((0, 1)),
            )
        )
    pools = [
        PoolExport(ip_network("10.0.0.0/16"), True, random.choice(("Never", "Always"))),
        PoolExport(ip_network("10.1.0.0/16"), random.choice((True, False)), random.choice(("Never", "CrossSubnet"))),
        PoolExport(ip_network("192.168.0.0/16"), True, "Never", random.choice((True, False))),
        PoolExport(ip_network("fd00::/64")),
    ]
    return SpeakerSettings(
        node="node1",
        router_id=99,
        local_as=AS,
        peers=tuple(peers),
        filters=FILTERS,
        originated=tuple(random.sample(STATIC, random.randint(0, 3))),
        pools=tuple(random.sample(pools, random.choice((1, 3, 4, 4)))),
        own_blocks=random.choice(((), BLOCKS[:1], BLOCKS)),
        addresses=random.choice(((), (), (ip_address("10.9.0.4"),))),
        subnets=(ip_network("10.9.0.0/31"),),
        reject=random.choice(((), (ip_network("10.96.0.0/12"),))),
        reflect=(ip_network("172.16.0.0/24"),),
        route_reflector=random.choice((True, False)),
        encrypted=random.choice(((), (), (ip_address("10.9.0.3"),))),
        advertisements=random.choice(((), ((ip_network("10.0.0.0/16"), ((65000, 9), (1, 2, 3))),))),
        normal_priority=random.choice(({V4: 1024, V6: 1024}, {V4: 400, V6: 1024})),
        program_cluster_routes=random.choice(("Enabled", "EnabledNoEncapOnly", "EnabledIPIPOnly", "Disabled")),
        cluster_id=random.choice((0, 7)),
    )


def unlike(have: dict[K, V], want: dict[K, V]) -> dict[K, tuple[V | None, V | None]]:
    """key -> (what there is, what there should be)."""
    return {key: (have.get(key), want.get(key)) for key in have.keys() | want.keys() if have.get(key) != want.get(key)}


class World:
    """The tables, the plain ones, and everybody around them. Draws by a seed: these sequences have too many parts to be
    drawn and shrunk one by one."""

    def __init__(self, seed: int, alike: bool) -> None:
        self.random = Random(seed)
        self.alike = alike
        self.now = 0.0
        self.views: dict[str, View] = {}
        self.kernel: dict[tuple[Family, Nlri], tuple[tuple[tuple[bytes, bool], ...], int]] = {}
        self.states = {hop: STATES[0] for hops in HOPS.values() for hop in hops}
        settings = speaker(self.random, alike)
        self.rib = Rib(settings, lambda address: self.states[address])
        self.plain = PlainRib(settings, self.states)
        for name in PEERS:
            self.peer_up(name)

    def step(self) -> None:
        weights = MEMBERS if self.alike else ANYTHING
        name = self.random.choices(list(weights), list(weights.values()))[0]
        getattr(self, name)()

    def _family(self) -> Family:
        return self.random.choice((V4, V4, V4, V6))

    def _some(self, family: Family) -> list[Nlri]:
        return self.random.sample(PREFIXES[family], self.random.randint(1, 3))

    def _up(self) -> str | None:
        return self.random.choice(sorted(self.views)) if self.views else None

    def _settings_of(self, name: str) -> PeerSettings:
        return next(peer for peer in self.rib.settings.peers if peer.name == name)

    def peer_up(self, name: str = "") -> None:
        name = name or self.random.choice(sorted(PEERS))
        if name in self.views:
            return
        settings, several = self._settings_of(name), self.alike or self.random.random() < 0.7
        families = frozenset((V4, V6)) if several else frozenset((V4,))
        long_lived = self.random.random() < 0.5 and not self.alike
        kept, kept_long = self.random.random() < 0.7, self.random.random() < 0.7
        knows = self.random.random() < 0.3  # of RFC 9494, and asks for no time
        made = session(settings, families, long_lived, knows, preserved=kept, kept_long=kept_long)
        self.rib.peer_up(settings, made, self.now)
        self.plain.up(settings, made, self.now)
        self.views[name] = View(made)

    def peer_down(self) -> None:
        keep = self.random.choice([(), (V4,), (V4, V6)])
        if (name := self._up()) is not None:
            del self.views[name]
            self.rib.peer_down(name, self.now, keep)
            self.plain.down(name, self.now, keep)

    def announce(self) -> None:
        family = self._family()
        if (name := self._up()) is None or family not in self.plain.peers[name].session.families:
            return
        made = attributes(self.random, family, self.plain.peers[name].internal)
        prefixes = self._some(family)
        ids = [self.random.choice((1, 2)) for _ in prefixes] if name == ADD_PATH else None
        self.rib.receive(name, [Reach(family, made, prefixes, ids)], self.now)
        for prefix, path_id in zip(prefixes, ids or [0] * len(prefixes), strict=True):
            self.plain.reach(name, family, prefix, path_id, made)

    def withdraw(self) -> None:
        family = self._family()
        if (name := self._up()) is None or family not in self.plain.peers[name].session.families:
            return
        prefixes = self._some(family)
        ids = [self.random.choice((1, 2)) for _ in prefixes] if name == ADD_PATH else None
        self.rib.receive(name, [Unreach(family, prefixes, ids)], self.now)
        for prefix, path_id in zip(prefixes, ids or [0] * len(prefixes), strict=True):
            self.plain.unreach(name, family, prefix, path_id)

    def end_of_rib(self) -> None:
        family = self._family()
        if (name := self._up()) is not None:
            self.rib.receive(name, [EndOfRib(family)], self.now)
            self.plain.end_of_rib(name, family)

    def next_hop(self) -> None:
        address, state = self.random.choice([*HOPS[V4], *HOPS[V6]]), self.random.choice(STATES)
        self.states[address] = state
        self.rib.next_hops_changed({address: state})

    def local_route(self) -> None:
        route = self.random.choice(KERNEL_ROUTES)
        self.rib.originate([route])
        self.plain.kernel[route.family, route.prefix] = route

    def local_route_gone(self) -> None:
        route = self.random.choice(KERNEL_ROUTES)
        self.rib.withdraw_originated([(route.family, route.prefix)])
        self.plain.kernel.pop((route.family, route.prefix), None)

    def configure(self) -> None:
        settings = speaker(self.random, self.alike)
        if self.random.random() < 0.7:
            part = self.random.choice(PARTS)
            settings = replace(self.rib.settings, **{part: getattr(settings, part)})
        self.rib.configure(settings)
        self.plain.settings = settings
        for peer in self.plain.peers.values():
            peer.settings = self._settings_of(peer.settings.name)

    def time_passes(self) -> None:
        self.now += self.random.choice((1.0, 101.0, 1001.0))
        waiting = [until for peer in self.plain.peers.values() for until in peer.until.values()]
        assert self.rib.deadline() == min(waiting, default=None)
        self.rib.expire(self.now)
        self.plain.expire(self.now)

    def refresh(self) -> None:
        if (name := self._up()) is not None:
            self.rib.refresh(name, self._family())

    def told_again(self) -> None:
        """A peer answers our refresh between marks (RFC 7313), and leaves some out."""
        family = self._family()
        if (name := self._up()) is None:
            return
        self.rib.begin_refresh(name, family)
        for (f, prefix, path_id), told in list(self.plain.peers[name].told.items()):
            if f is family and self.random.random() < 0.6:
                ids = [path_id] if name == ADD_PATH else None
                self.rib.receive(name, [Reach(family, told.attributes, [prefix], ids)], self.now)
                self.plain.reach(name, family, prefix, path_id, told.attributes)
            elif f is family:
                self.plain.unreach(name, family, prefix, path_id)
        self.rib.end_refresh(name, family)

    def forget(self) -> None:
        name = self.random.choice(sorted(PEERS))
        self.views.pop(name, None)
        self.rib.forget(name)
        self.plain.peers.pop(name, None)

    def take_some(self) -> None:
        """One member of a group goes on, the others stay where they are."""
        if (name := self._up()) is not None:
            self.views[name].feed(self.rib.take_messages(name, self.random.randint(1, 300)))

    def take_fib(self, limit: int = 3) -> None:
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

    def settle(self) -> None:
        """Whoever is up takes everything, and then knows what it should."""
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
            assert sorted(view.ends) == sorted(families), name
        while self.rib.fib_waiting():
            self.take_fib(100)
        routes = {
            (family, prefix): route
            for family, prefixes in PREFIXES.items()
            for prefix in prefixes
            if (route := self.plain.route(family, prefix)) is not None
        }
        assert not unlike(self.kernel, routes)

    def explain(self) -> None:
        family = self._family()
        prefix = self.random.choice(PREFIXES[family])
        found = self.rib.explain(family, prefix)
        chosen = self.plain.chosen(family, prefix)
        equal = (Reason.BEST, Reason.MULTIPATH, Reason.MULTIPATH_LIMIT)
        assert [path.reason for path in found.paths].count(Reason.BEST) == bool(chosen)
        assert sum(path.reason in equal for path in found.paths) == len(chosen)
        for told in found.advertised:
            assert told.attributes == self.plain.told(told.peer, family, prefix)
            assert (told.withheld is not None) == (bool(chosen) and told.attributes is None)

    def count(self) -> None:
        for name in self.views:
            for family in Family:
                told = {prefix for f, prefix, _ in self.plain.peers[name].told if f is family}
                counts = self.rib.counts(name, family)
                assert counts.received == len(told)
                assert counts.advertised == len(list(self.rib.advertised(name, family)))


ANYTHING = {
    "announce": 40,
    "withdraw": 8,
    "peer_up": 4,
    "peer_down": 3,
    "end_of_rib": 4,
    "next_hop": 6,
    "local_route": 4,
    "local_route_gone": 3,
    "configure": 4,
    "time_passes": 2,
    "refresh": 1,
    "told_again": 2,
    "forget": 1,
    "take_some": 15,
    "take_fib": 4,
    "explain": 5,
    "count": 1,
    "settle": 2,
}
MEMBERS = {"announce": 30, "withdraw": 10, "take_some": 60, "refresh": 4, "peer_down": 2, "peer_up": 4, "settle": 1}


@pytest.mark.timeout(600)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_tables_are_those_worked_out_anew(seed: int, steps: int) -> None:
    world = World(seed, alike=False)
    for _ in range(2 * steps):
        world.step()
    world.settle()


@pytest.mark.timeout(600)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_members_of_a_group_each_in_their_own_time(seed: int, steps: int) -> None:
    world = World(seed, alike=True)
    for _ in range(4 * steps):
        world.step()
    world.settle()


@given(st.integers(0, 2**32))
def test_order_of_arrival_does_not_decide(seed: int) -> None:
    random, paths = Random(seed), []
    for n in range(4):
        source = Source(f"peer{n}", remote=True)
        source.internal = random.random() < 0.5
        source.router_id = random.choice((1, 2))
        source.address_key = (4, bytes((n,)))
        made = attributes(random, V4, source.internal)
        paths.append(Path(source, V4, made, made, NextHop(made.next_hop, random.choice(STATES)), 100))
    results = {tuple(decide(list(order))) for order in permutations(paths)}
    assert len(results) == 1
    why: dict[Path, Reason] = {}
    assert decide(paths, why) == list(next(iter(results)))
    assert set(why) == set(paths)
