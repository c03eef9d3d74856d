"""A speaker's tables with peers around them that read what they are sent, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

from services.bgp.core.paths import Attributes, EndOfRib, Family, Nlri, Reach, SegmentType, Unreach, network, nlri
from services.bgp.core.rib.path import NextHopState
from services.bgp.core.rib.peers import Session
from services.bgp.core.rib.rib import Rib
from services.bgp.core.settings import PeerKind, PeerSettings, PoolExport, SpeakerSettings
from services.bgp.core.wire.codes import MessageType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.update import UpdateDecoder

V4, V6 = Family.IPV4, Family.IPV6
AS = 64512
OURS = {V4: ip_address("10.9.9.9").packed, V6: ip_address("fd09::9").packed}
HOP = ip_address("10.9.0.1").packed
ROUTE = "10.5.0.0/16"


def key(text: str) -> Nlri:
    return nlri(ip_network(text))


def path(*numbers: int) -> tuple[tuple[SegmentType, tuple[int, ...]], ...]:
    return ((SegmentType.SEQUENCE, numbers),) if numbers else ()


class View:
    """What a peer knows after reading its messages."""

    def __init__(self, session: Session) -> None:
        context = replace(session.context, add_path_receive=frozenset())
        self.reader, self.decoder = MessageReader(), UpdateDecoder(context)
        self.routes: dict[tuple[Family, Nlri], Attributes] = {}
        self.ends: list[Family] = []
        self.messages = 0
        self.reached: list[list[Nlri]] = []
        self.withdrawn: list[list[Nlri]] = []

    def feed(self, data: bytes) -> None:
        self.reader.feed(data)
        while (message := self.reader.next()) is not None:
            kind, body = message
            assert kind is MessageType.UPDATE
            self.messages += 1
            for change in self.decoder.decode(body):
                if isinstance(change, Reach):
                    self.reached.append(change.prefixes)
                    for prefix in change.prefixes:
                        self.routes[change.family, prefix] = change.attributes
                elif isinstance(change, Unreach):
                    self.withdrawn.append(change.prefixes)
                    for prefix in change.prefixes:
                        self.routes.pop((change.family, prefix), None)
                else:
                    self.ends.append(change.family)

    def texts(self) -> dict[str, Attributes]:
        return {str(network(family, prefix)): told for (family, prefix), told in self.routes.items()}


class Speaker:
    """settings: pools 10.0.0.0/8 and fd00::/8 unless others are given."""

    def __init__(self, *peers: PeerSettings, deferral_s: float | None = None, **settings: object) -> None:
        made = SpeakerSettings(
            node="node1",
            router_id=99,
            local_as=AS,
            peers=peers,
            pools=(PoolExport(ip_network("10.0.0.0/8")), PoolExport(ip_network("fd00::/8"))),
        )
        self.states: dict[bytes, NextHopState] = {}
        made = replace(made, **settings)  # type: ignore[arg-type]
        self.rib = Rib(made, lambda a: self.states.get(a, NextHopState(True)), 0.0, deferral_s)
        self.views: dict[str, View] = {}

    @property
    def settings(self) -> SpeakerSettings:
        return self.rib.settings

    def up(self, *names: str, now: float = 0.0, **changes: object) -> None:
        for name in names or [peer.name for peer in self.settings.peers]:
            settings = next(peer for peer in self.settings.peers if peer.name == name)
            made = replace(session(settings), **changes)  # type: ignore[arg-type]
            self.rib.peer_up(settings, made, now)
            self.views[name] = View(made)

    def tell(self, name: str, attributes: Attributes, *prefixes: str, now: float = 0.0) -> None:
        """`name` announces."""
        families = {ip_network(text).version for text in prefixes}
        family = V4 if families == {4} else V6
        self.rib.receive(name, [Reach(family, attributes, [key(text) for text in prefixes])], now)

    def withdraw(self, name: str, *prefixes: str) -> None:
        self.rib.receive(name, [Unreach(V4, [key(text) for text in prefixes])])

    def end_of_rib(self, name: str, *families: Family, now: float = 0.0) -> None:
        self.rib.receive(name, [EndOfRib(family) for family in families or Family], now)

    def read(self, name: str) -> dict[str, Attributes]:
        """What `name` knows once it has read everything."""
        while self.rib.has_messages(name):
            self.views[name].feed(self.rib.take_messages(name, 65536))
        return self.views[name].texts()

    def kernel(self) -> dict[str, list[str]]:
        while self.rib.take_fib(1000):
            pass
        return {
            str(network(family, prefix)): [str(ip_address(hop.address)) for hop in route.hops]
            for family in Family
            for prefix, route in self.rib.fib(family).items()
        }


def peer(n: int, remote_as: int = AS, **changes: object) -> PeerSettings:
    made = PeerSettings(f"Global_{n}", PeerKind.GLOBAL, ip_address(f"10.9.0.{n}"), remote_as, AS, families=(V4, V6))
    return replace(made, **changes)  # type: ignore[arg-type]


def session(settings: PeerSettings, families: Sequence[Family] = (V4, V6)) -> Session:
    both = frozenset(families)
    return Session(
        Context(internal=settings.internal, families=both),
        remote_as=settings.remote_as,
        remote_id=int(settings.address) & 0xFF,
        addresses=OURS,
        graceful=both,
        preserved=both,
    )


def internal(**changes: object) -> Attributes:
    """As a peer of our AS sends them."""
    return replace(Attributes(next_hop=HOP, local_pref=100), **changes)  # type: ignore[arg-type]


def external(*numbers: int, **changes: object) -> Attributes:
    return replace(Attributes(next_hop=HOP, as_path=path(*numbers)), **changes)  # type: ignore[arg-type]


def client(n: int, cluster: int = 7) -> PeerSettings:
    return peer(n, rr_client_cluster=cluster)


def reflector(*peers: PeerSettings) -> Speaker:
    found = Speaker(*peers, cluster_id=7)
    found.up()
    return found
