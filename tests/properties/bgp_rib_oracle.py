"""A BGP speaker's tables the plain way: everything is kept as it came and worked out anew, one prefix after the other.

Written from the RFCs and the facts about Calico's filters, with address objects and no caches, and sharing with the
real one nothing but the values that go in and out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from services.bgp.core import paths as p
from services.bgp.core.paths import Attributes, Family, IPNetwork, Nlri, SegmentType
from services.bgp.core.rib.path import NextHopState
from services.bgp.core.rib.peers import Session
from services.bgp.core.settings import FilterRule, NextHopMode, Originated, PeerSettings, SpeakerSettings

MAX = 2147483647
NO_EXPORT, NO_ADVERTISE, NO_EXPORT_SUBCONFED = 0xFFFFFF01, 0xFFFFFF02, 0xFFFFFF03
GRACEFUL_SHUTDOWN, LLGR_STALE, NO_LLGR = 0xFFFF0000, 0xFFFF0006, 0xFFFF0007


@dataclass
class Told:
    """What a peer said about a prefix."""

    attributes: Attributes
    generation: int
    llgr: bool = False


@dataclass
class PlainPeer:
    settings: PeerSettings
    session: Session
    up: bool = True
    generation: int = 0
    told: dict[tuple[Family, Nlri, int], Told] = field(default_factory=dict)
    until: dict[Family, float] = field(default_factory=dict)
    llgr: set[Family] = field(default_factory=set)

    @property
    def internal(self) -> bool:
        return self.session.remote_as == self.settings.local_as

    @property
    def client(self) -> bool:
        return self.internal and self.settings.rr_client_cluster is not None


STATIC = 210
"""Preference of blocks and services (facts section 4.2: what is configured beats everything)."""


@dataclass
class Candidate:
    """A path of one prefix, judged."""

    peer: PlainPeer | None
    attributes: Attributes
    preference: int
    state: NextHopState
    stale: bool
    path_id: int = 0


class PlainRib:
    def __init__(self, settings: SpeakerSettings, states: dict[bytes, NextHopState]) -> None:
        self.settings = settings
        self.states = states
        self.peers: dict[str, PlainPeer] = {}
        self.kernel: dict[tuple[Family, Nlri], Originated] = {}

    # --- what happens ---

    def up(self, settings: PeerSettings, session: Session, now: float) -> None:
        peer = self.peers.get(settings.name)
        if peer is None:
            peer = self.peers[settings.name] = PlainPeer(settings, session)
        peer.settings, peer.session, peer.up = settings, session, True
        peer.generation += 1
        for family in Family:
            preserved = session.long_lived_preserved if family in peer.llgr else session.preserved
            if family not in session.graceful or family not in preserved or not self._has(peer, family):
                self._drop(peer, family)
            elif family not in peer.llgr:
                peer.until[family] = now + 360

    def down(self, name: str, now: float, keep: Iterable[Family]) -> None:
        peer = self.peers[name]
        for family in Family:
            if family in keep and family in peer.llgr and family in peer.until:
                self._mark(peer, family)
            elif family in keep and family not in peer.llgr:
                for key in [
                    k for k, told in peer.told.items() if k[0] is family and told.generation != peer.generation
                ]:
                    del peer.told[key]
                peer.until.pop(family, None)
                if self._has(peer, family):
                    only = family in peer.session.long_lived_only
                    peer.until[family] = now + (0 if only else peer.session.restart_time_s)
            else:
                self._drop(peer, family)
        peer.up = False
        peer.generation += 1

    def reach(self, name: str, family: Family, prefix: Nlri, path_id: int, attributes: Attributes) -> None:
        peer = self.peers[name]
        peer.told[family, prefix, path_id] = Told(attributes, peer.generation)

    def unreach(self, name: str, family: Family, prefix: Nlri, path_id: int) -> None:
        self.peers[name].told.pop((family, prefix, path_id), None)

    def end_of_rib(self, name: str, family: Family) -> None:
        self.peers[name].llgr.discard(family)
        self._sweep(self.peers[name], family)

    def _sweep(self, peer: PlainPeer, family: Family) -> None:
        peer.until.pop(family, None)
        for key in [k for k, told in peer.told.items() if k[0] is family and told.generation != peer.generation]:
            del peer.told[key]

    def expire(self, now: float) -> None:
        for peer in self.peers.values():
            for family, until in list(peer.until.items()):
                if now < until:
                    continue
                seconds = peer.session.long_lived.get(family, 0)
                if peer.up:
                    self._sweep(peer, family)
                elif seconds and family not in peer.llgr:
                    peer.llgr.add(family)
                    peer.until[family] = now + seconds
                    self._mark(peer, family)
                else:
                    self._drop(peer, family)
            if not peer.up and not peer.told:
                peer.until.clear()  # nothing of it is left
                peer.llgr.clear()

    def _mark(self, peer: PlainPeer, family: Family) -> None:
        for key, told in list(peer.told.items()):
            if key[0] is family:
                told.llgr = True
                judged = self._import(peer, family, key[1], told)
                communities = judged.attributes.communities if judged else told.attributes.communities
                if NO_LLGR in communities:
                    del peer.told[key]

    def _has(self, peer: PlainPeer, family: Family) -> bool:
        return any(key[0] is family for key in peer.told)

    def _drop(self, peer: PlainPeer, family: Family) -> None:
        peer.until.pop(family, None)
        peer.llgr.discard(family)
        for key in [key for key in peer.told if key[0] is family]:
            del peer.told[key]

    # --- filters ---

    def _filter(
        self, names: Iterable[str], family: Family, prefix: Nlri, internal: bool, export: bool, route: dict[str, Any]
    ) -> tuple[str, Attributes | None]:
        network = p.network(family, prefix)
        for name in names:
            if name not in self.settings.filters:
                continue
            found = self.settings.filters[name]
            rules = (found.exports if export else found.imports).get(family, ())
            for rule in rules:
                if self._matches(rule, network, internal, route):
                    if rule.action != "Accept":
                        return "reject", None
                    return "accept", operate(rule, route["attributes"])
        return "none", None

    def _matches(self, rule: FilterRule, network: IPNetwork, internal: bool, route: dict[str, Any]) -> bool:
        attributes: Attributes = route["attributes"]
        if (rule.peer_type == "iBGP" and not internal) or (rule.peer_type == "eBGP" and internal):
            return False
        if rule.network is not None:
            low = rule.min_length if rule.min_length is not None else 0
            high = rule.max_length if rule.max_length is not None else rule.network.max_prefixlen
            fits = low <= network.prefixlen <= high
            equal = network == rule.network and fits
            within = subnet(network, rule.network) and fits
            answers = {"Equal": equal, "NotEqual": not equal, "In": within, "NotIn": not within}
            if not answers[rule.match_operator]:
                return False
        if rule.source and not route["remote"]:
            return False
        if rule.interface and not (route["interface"] and fnmatchcase(route["interface"], rule.interface)):
            return False
        for community in rule.communities:
            if len(community) == 2 and community[0] * 65536 + community[1] not in attributes.communities:
                return False
            if len(community) == 3 and community not in attributes.large:
                return False
        flat = [{n} for kind, seg in attributes.as_path if kind is SegmentType.SEQUENCE for n in seg]
        if any(kind is not SegmentType.SEQUENCE for kind, _ in attributes.as_path):
            flat = []
            for kind, seg in attributes.as_path:
                flat += [{n} for n in seg] if kind is SegmentType.SEQUENCE else [set(seg)]
        if len(flat) < len(rule.as_path_prefix):
            return False
        if any(number not in place for number, place in zip(rule.as_path_prefix, flat, strict=False)):
            return False
        return rule.priority is None or (
            attributes.local_pref is not None and MAX - attributes.local_pref == rule.priority
        )

    # --- import ---

    def _import(self, peer: PlainPeer, family: Family, prefix: Nlri, told: Told, path_id: int = 0) -> Candidate | None:
        attributes, settings = told.attributes, self.settings
        numbers = [n for _, segment in attributes.as_path for n in segment]
        if numbers.count(peer.settings.local_as) > peer.settings.allowed_local_as:
            return None
        clusters = {x.rr_client_cluster for x in settings.peers if x.rr_client_cluster} | {settings.cluster_id}
        if attributes.originator_id == settings.router_id or (clusters - {0}) & set(attributes.cluster_list):
            return None
        if attributes.next_hop in {address.packed for address in settings.addresses}:
            return None
        state = self.states[attributes.next_hop]
        route = {"attributes": attributes, "remote": True, "interface": state.interface}
        verdict, changed = self._filter(peer.settings.filters, family, prefix, peer.internal, False, route)
        if verdict == "reject":
            return None
        attributes = changed if changed is not None else attributes
        if not peer.internal and GRACEFUL_SHUTDOWN in attributes.communities:
            attributes = replace(attributes, local_pref=0)
        normal = settings.normal_priority[family]
        urgent = attributes.local_pref is not None and MAX - attributes.local_pref < normal
        stale = told.llgr or LLGR_STALE in attributes.communities
        return Candidate(peer, attributes, 200 if urgent else 100, state, stale, path_id)

    def candidates(self, family: Family, prefix: Nlri) -> list[Candidate]:
        found = []
        for peer in self.peers.values():
            for (f, key, path_id), told in peer.told.items():
                if f is family and key == prefix:
                    judged = self._import(peer, family, prefix, told, path_id)
                    if judged is not None and judged.state.reachable:
                        found.append(judged)
        normal = self.settings.normal_priority[family]
        here = NextHopState(True)
        found += [
            Candidate(None, replace(route.attributes, local_pref=MAX - normal), 210, here, False)
            for route in self.settings.originated
            if (route.family, route.prefix) == (family, prefix)
        ]
        kernel = self.kernel.get((family, prefix))
        if kernel is not None:
            metric = kernel.priority if kernel.priority is not None else normal
            preference = 150 if metric < normal and kernel.interface.startswith("cali") else 10
            state = NextHopState(True, 0, kernel.interface)
            attributes = replace(kernel.attributes, local_pref=MAX - metric)
            found.append(Candidate(None, attributes, preference, state, False))
        return found

    def chosen(self, family: Family, prefix: Nlri) -> list[Candidate]:
        """The best, then the others of its ECMP set."""
        left = self.candidates(family, prefix)

        def only(key: Any) -> None:
            if left:
                best = min(key(c) for c in left)
                left[:] = [c for c in left if key(c) == best]

        only(lambda c: c.stale)
        only(lambda c: -c.preference)
        only(lambda c: -(100 if c.attributes.local_pref is None else c.attributes.local_pref))
        only(lambda c: length(c.attributes))
        only(lambda c: c.attributes.origin)
        left[:] = [
            c
            for c in left
            if not any(
                neighbour(o.attributes) == neighbour(c.attributes) and (o.attributes.med or 0) < (c.attributes.med or 0)
                for o in left
            )
        ]
        only(lambda c: 1 if c.peer is not None and c.peer.internal else 0)
        only(lambda c: c.state.metric)

        def last(c: Candidate) -> tuple[Any, ...]:
            if c.peer is None:
                return (0, 0, 0, b"", 0)
            router = c.peer.session.remote_id
            originator = c.attributes.originator_id if c.attributes.originator_id is not None else router
            address = c.peer.settings.address
            return (originator, len(c.attributes.cluster_list), address.version, address.packed, c.path_id)

        return sorted(left, key=last)

    # --- kernel ---

    def route(self, family: Family, prefix: Nlri) -> tuple[tuple[tuple[bytes, bool], ...], int] | None:
        chosen, settings = self.chosen(family, prefix), self.settings
        if not chosen:
            return None
        network = p.network(family, prefix)
        own = chosen[0].peer is None
        if own and (chosen[0].preference != STATIC or network.prefixlen == network.max_prefixlen):
            return None  # a workload has a route of its own
        if any(subnet(network, reject) for reject in settings.reject):
            return None
        hops: dict[bytes, bool] = {}
        for candidate in () if own else chosen:  # a blackhole
            if len(hops) < 16:
                hops[candidate.attributes.next_hop] = False
        if any(address.packed in hops for address in settings.encrypted):
            return None
        for pool in settings.pools:
            if not subnet(network, pool.network):
                continue
            ours = settings.program_cluster_routes
            if pool.vxlan:
                return None
            if pool.ipip_mode == "Never":
                if ours not in ("Enabled", "EnabledNoEncapOnly"):
                    return None
                continue
            if ours not in ("Enabled", "EnabledIPIPOnly"):
                return None
            for hop in hops:
                near = any(subnet(p.network(family, bytes((len(hop) * 8,)) + hop), s) for s in settings.subnets)
                hops[hop] = pool.ipip_mode == "Always" or not near
        local_pref = None if own else chosen[0].attributes.local_pref
        metric = settings.normal_priority[family] if local_pref is None else MAX - local_pref
        return tuple(sorted(hops.items())), metric

    # --- export ---

    def told(self, name: str, family: Family, prefix: Nlri) -> Attributes | None:
        """What a peer is to be told about a prefix."""
        peer, settings = self.peers[name], self.settings
        chosen = self.chosen(family, prefix)
        if not chosen or chosen[0].peer is peer:
            return None
        best = chosen[0]
        communities, source = best.attributes.communities, best.peer
        if NO_ADVERTISE in communities:
            return None
        if not peer.internal and (NO_EXPORT in communities or NO_EXPORT_SUBCONFED in communities):
            return None
        if source is not None and source.internal and peer.internal and not (source.client or peer.client):
            return None
        if best.stale and not peer.session.knows_long_lived:
            return None
        next_hop = peer.session.addresses.get(family, b"")
        mode = peer.settings.next_hop_mode
        keeps = peer.internal or mode is NextHopMode.KEEP or peer.settings.keep_ebgp_next_hop
        if source is not None and keeps and mode is not NextHopMode.SELF:
            next_hop = best.attributes.next_hop
        if not next_hop:
            return None
        attributes = best.attributes
        if attributes.local_pref is None:
            attributes = replace(attributes, local_pref=MAX - settings.normal_priority[family])
        route = {"attributes": attributes, "remote": source is not None, "interface": best.state.interface}
        verdict, changed = self._filter(peer.settings.filters, family, prefix, peer.internal, True, route)
        if verdict == "reject":
            return None
        if verdict == "none":
            changed = self._calico_export(family, prefix, peer.internal, route)
            if changed is None:
                return None
        assert changed is not None
        return self._outgoing(peer, best, changed, next_hop)

    def _calico_export(self, family: Family, prefix: Nlri, internal: bool, route: dict[str, Any]) -> Attributes | None:
        settings, network = self.settings, p.network(family, prefix)
        attributes: Attributes = route["attributes"]
        if any(subnet(network, pool.network) for pool in settings.pools if not pool.export):
            return None
        devices = ["*.cali", "*.calico"]
        if settings.program_cluster_routes in ("EnabledNoEncapOnly", "Disabled"):
            devices.append("tunl0")
        if internal and any(fnmatchcase(route["interface"], device) for device in devices):
            return None
        if fnmatchcase(route["interface"], "bpf*.cali"):
            return None
        for cidr, added in settings.advertisements:
            if subnet(network, cidr):
                attributes = with_communities(attributes, added)
        urgent = MAX - (attributes.local_pref or 0) < settings.normal_priority[family]
        for block in settings.own_blocks:
            if network == block or (subnet(network, block) and urgent):
                return attributes
            if subnet(network, block):
                return None
        services = [p.network(family, o.prefix) for o in settings.originated if o.service and o.family is family]
        reflected = settings.reflect if settings.route_reflector else ()
        pools = [pool.network for pool in settings.pools if pool.export]
        if any(subnet(network, told) for told in (*services, *reflected, *pools)):
            return attributes
        return None

    def _outgoing(self, peer: PlainPeer, best: Candidate, attributes: Attributes, next_hop: bytes) -> Attributes:
        source = best.peer
        result = replace(attributes, next_hop=next_hop, link_local=b"")
        if peer.internal:
            if source is not None and source.internal:
                if result.originator_id is None:
                    result = replace(result, originator_id=source.session.remote_id)
                cluster = source.settings.rr_client_cluster if source.client else peer.settings.rr_client_cluster
                result = replace(result, cluster_list=(cluster or self.settings.cluster_id, *result.cluster_list))
        else:
            result = replace(result, local_pref=None, originator_id=None, cluster_list=())
            result = replace(result, as_path=put_before(result.as_path, [peer.settings.local_as]))
            if source is not None:
                result = replace(result, med=None)
        if best.stale and LLGR_STALE not in result.communities:
            result = replace(result, communities=(*result.communities, LLGR_STALE))
        return result


def subnet(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def neighbour(attributes: Attributes) -> object:
    if not attributes.as_path or attributes.as_path[0][0] is not SegmentType.SEQUENCE:
        return None
    return attributes.as_path[0][1][0]


def length(attributes: Attributes) -> int:
    total = 0
    for kind, numbers in attributes.as_path:
        total += len(numbers) if kind is SegmentType.SEQUENCE else 1
    return total


def put_before(path: Any, numbers: list[int]) -> Any:
    for number in reversed(numbers):
        if path and path[0][0] is SegmentType.SEQUENCE:
            path = ((SegmentType.SEQUENCE, (number, *path[0][1])), *path[1:])
        else:
            path = ((SegmentType.SEQUENCE, (number,)), *path)
    return path


def with_communities(attributes: Attributes, added: Iterable[tuple[int, ...]]) -> Attributes:
    for community in added:
        if len(community) == 2:
            number = community[0] * 65536 + community[1]
            if number not in attributes.communities:
                attributes = replace(attributes, communities=(*attributes.communities, number))
        elif community not in attributes.large:
            attributes = replace(attributes, large=(*attributes.large, community))  # type: ignore[arg-type]
    return attributes


def operate(rule: FilterRule, attributes: Attributes) -> Attributes:
    attributes = with_communities(attributes, rule.add_communities)
    attributes = replace(attributes, as_path=put_before(attributes.as_path, list(rule.prepend)))
    if rule.set_priority is not None:
        attributes = replace(attributes, local_pref=MAX - rule.set_priority)
    return attributes
