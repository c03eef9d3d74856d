"""The tables of one speaker, and all that may happen to them. Pure: time comes in as `now` (any monotonic seconds).

What arrives is only filed, and its prefixes noted. The decision is made when somebody asks for messages or routes, so a
prefix that changes ten times meanwhile is decided once. Order between the two: take messages first, then routes, so
that peers know before the kernel is busy.

    rib.peer_up(settings, session, now)
    rib.receive(name, decoder.decode(body))         # as often as there is something
    sock.send(rib.take_messages(name, 65536))       # for every peer that can take some
    for change in rib.take_fib(2000): ...           # in slices
    rib.expire(now)                                 # at rib.deadline()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from services.bgp.core.export import ExportPolicy
from services.bgp.core.filters import MAX_PRIORITY, rules_of
from services.bgp.core.paths import Attributes, Change, EndOfRib, Family, IPNetwork, Nlri, Reach, Unreach
from services.bgp.core.prefixes import inside_any
from services.bgp.core.rib.changes import export_touched, kernel_part
from services.bgp.core.rib.explain import Explanation, explain
from services.bgp.core.rib.fib import Fib, FibChange, FibRoute
from services.bgp.core.rib.groups import Group
from services.bgp.core.rib.loc_rib import LocRib
from services.bgp.core.rib.outgoing import Exporter, Terms, keeps_next_hop
from services.bgp.core.rib.path import NextHop, NextHopState, Path, Preference, Source
from services.bgp.core.rib.peers import Identity, Peer, Session
from services.bgp.core.rib.table import of_source
from services.bgp.core.settings import Originated, PeerKind, PeerSettings, SpeakerSettings

STALE_PATH_TIME_S = 360.0
"""How long stale paths wait for End-of-RIB once their peer is back (FRR's default; RFC 4724 section 4.2 asks for a
limit)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one peer and family: prefixes received (rejected ones too) and advertised; paths that import policy took;
    End-of-RIB seen; stale paths kept."""

    received: int
    accepted: int
    advertised: int
    end_of_rib: bool
    stale: bool


class Rib:
    """resolve: what the kernel's routes say about a next hop, asked when one is first seen; later changes come by
    `next_hops_changed`. deferral_s: this speaker has restarted and the kernel still has its routes: nothing is selected
    and told until every peer that restarts gracefully has sent End-of-RIB, or that long (RFC 4724 section 4.1)."""

    def __init__(
        self,
        settings: SpeakerSettings,
        resolve: Callable[[bytes], NextHopState],
        now: float = 0.0,
        deferral_s: float | None = None,
    ) -> None:
        self.settings = settings
        self._resolve = resolve
        self._loc = LocRib()
        self._fibs = {family: Fib(family, settings) for family in Family}
        self._policies = {family: ExportPolicy(settings, family) for family in Family}
        self._groups: dict[Family, dict[Terms, Group]] = {family: {} for family in Family}
        self._joined: dict[Family, dict[str, Group]] = {family: {} for family in Family}
        self._peers: dict[str, Peer] = {}
        self._static = Source("static", remote=False)
        self._kernel = Source("kernel", remote=False)
        self._local: WeakValueDictionary[tuple[Source, Family, Attributes, int, str], Path] = WeakValueDictionary()
        self._next_hops: WeakValueDictionary[bytes, NextHop] = WeakValueDictionary()
        self._kernel_routes: dict[tuple[Family, Nlri], Originated] = {}
        self._deferred = set(Family) if deferral_s is not None else set()
        self._deferred_until = now + (deferral_s or 0.0)
        self._now = now  # the latest that anybody said
        self._held_down: frozenset[str] = frozenset()
        self._originate(settings.originated)
        self._end_deferral(now)

    # --- peers ---

    def peer_up(self, settings: PeerSettings, session: Session, now: float) -> None:
        """A session is established. Its stale paths stay where the peer kept its forwarding state (RFC 4724 4.2)."""
        if settings.name in self._peers:
            self.peer_down(settings.name, now, keep=session.preserved | session.long_lived_preserved)
        peer = self._peers.setdefault(settings.name, Peer(settings, self._next_hop))
        peer.begin(settings, session)
        peer.configure(settings, self.settings, Identity.of(self.settings))
        for family, prefixes in peer.prefixes.items():
            preserved = session.long_lived_preserved if family in peer.llgr else session.preserved
            if prefixes and family in session.graceful and family in preserved:
                if family not in peer.llgr:  # its time goes on until End-of-RIB (RFC 9494 section 4.2)
                    peer.stale_until[family] = now + STALE_PATH_TIME_S
            else:
                self._loc.sweep(peer, family)
                peer.llgr.discard(family)
        for family in session.families - self._deferred:
            self._join(peer, family, greet=True)
        self._end_deferral(now)

    def peer_down(self, name: str, now: float, keep: Iterable[Family] = ()) -> None:
        """The session has ended. keep: families whose paths stay for the peer's restart time; of the others all go."""
        peer = self._peers[name]
        if not peer.up:
            return
        assert peer.session is not None
        self._leave(peer)
        kept = frozenset(keep)
        for family in Family:
            if family in kept and family in peer.llgr and family in peer.stale_until:
                self._begin_llgr(peer, family)  # away again before End-of-RIB: the same time goes on, for all it told
            elif family in kept and family not in peer.llgr:
                self._loc.sweep(peer, family)  # stale from an earlier restart: not a second time (RFC 4724 4.2)
                if peer.prefixes[family]:
                    unlisted = family in peer.session.long_lived_only
                    peer.stale_until[family] = now + (0 if unlisted else peer.session.restart_time_s)
            else:
                self._loc.remove_all(peer, family)
                peer.llgr.discard(family)
        peer.up = False
        peer.generation += 1
        self._forget_if_gone(peer)
        self._end_deferral(now)

    def forget(self, name: str) -> None:
        """A peer that is not wanted any more: nothing of it stays, stale or not. Nothing when it is not known."""
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        if peer.up:
            self._leave(peer)
            peer.up = False
        for family in Family:
            self._loc.remove_all(peer, family)
        self._end_deferral(self._now)

    def hold_down(self, names: Iterable[str]) -> None:
        """The peers, all of them, with whom there are no sessions for the time being: nobody waits for those."""
        self._held_down = frozenset(names)
        self._end_deferral(self._now)

    def receive(self, name: str, changes: Iterable[Change], now: float = 0.0) -> None:
        """What a peer's UPDATE says, as decoded."""
        peer = self._peers[name]
        for change in changes:
            if isinstance(change, Reach):
                self._loc.reach(peer, change)
            elif isinstance(change, Unreach):
                self._loc.unreach(peer, change)
            else:
                self._end_of_rib(peer, change, now)

    def refresh(self, name: str, family: Family) -> None:
        """The peer asks for everything again (RFC 2918)."""
        if (group := self._joined[family].get(name)) is not None:
            group.refresh(name)

    def begin_refresh(self, name: str, family: Family) -> None:
        """The peer tells everything again (RFC 7313): what it does not repeat goes at `end_refresh`."""
        self._loc.begin_refresh(self._peers[name], family)

    def end_refresh(self, name: str, family: Family) -> None:
        self._loc.end_refresh(self._peers[name], family)

    # --- what this node has ---

    def originate(self, routes: Iterable[Originated]) -> None:
        """Routes of the kernel, those of local workloads: added, or changed. Blocks and services come with the
        settings."""
        for route in routes:
            self._kernel_routes[route.family, route.prefix] = route
            self._loc.insert(route.family, route.prefix, self._local_path(route, self._kernel))

    def withdraw_originated(self, prefixes: Iterable[tuple[Family, Nlri]]) -> None:
        """Routes of the kernel that are gone."""
        for family, prefix in prefixes:
            if self._kernel_routes.pop((family, prefix), None) is not None:
                self._loc.remove_local(family, prefix, self._kernel)

    # --- next hops ---

    def next_hops(self) -> frozenset[bytes]:
        """Those that paths have: what the speaker has to know of the kernel's routes."""
        return frozenset(self._next_hops)

    def next_hops_changed(self, changes: Mapping[bytes, NextHopState]) -> None:
        """The kernel leads to them in another way, or not at all any more."""
        moved: set[NextHop] = set()
        turned: set[NextHop] = set()  # by another interface: filters may ask for it
        for address, state in changes.items():
            known = self._next_hops.get(address)
            if known is None or known.state == state:
                continue
            if known.state.interface != state.interface:
                turned.add(known)
            known.state = state
            moved.add(known)
        if not moved:
            return
        for family, table in self._loc.tables.items():
            hit = [
                prefix
                for prefix, entry in table.items()
                if (
                    entry.next_hop in moved
                    if isinstance(entry, Path)
                    else any(path.next_hop in moved for path in entry)
                )
            ]
            if turned:
                self._interfaces_changed(family, hit, turned)
            self._loc.dirty[family].update(dict.fromkeys(hit))

    # --- settings ---

    def configure(self, settings: SpeakerSettings, dynamic: Iterable[PeerSettings] = ()) -> None:
        """New settings, live: sessions stay, what is touched is judged again. dynamic: settings of peers that the
        plan has only as a range of addresses."""
        before, self.settings = self.settings, settings
        self._originate_again(before)
        by_name = {peer.name: peer for peer in (*settings.peers, *dynamic)}
        reflection, identity = False, Identity.of(settings)
        for peer in list(self._peers.values()):
            role = peer.client, peer.cluster_id
            for family in peer.configure(by_name.get(peer.name, peer.settings), settings, identity):
                self._loc.judge_again(peer, family)
            reflection |= role != (peer.client, peer.cluster_id)
        for family in Family:
            touched = None if reflection else export_touched(before, settings, family)
            if touched is None or touched:
                self._policies[family] = ExportPolicy(settings, family)
                self._export_again(family, touched)
            for name in list(self._joined[family]):
                self._move(self._peers[name], family)
            if kernel_part(before) != kernel_part(settings):
                self._fibs[family].configure(settings)
                self._fibs[family].mark(self._loc.tables[family])
        self._end_deferral(self._now)

    # --- what goes out ---

    def has_messages(self, name: str) -> bool:
        for family, joined in self._joined.items():
            if (group := joined.get(name)) is not None:
                self._flush(family)
                if group.waiting(name):
                    return True
        return False

    def take_messages(self, name: str, budget: int) -> bytes:
        """Whole messages for a peer, at least `budget` octets or all there are. The next call goes on from there."""
        sent: list[bytes] = []
        taken = 0
        for family, joined in self._joined.items():
            if (group := joined.get(name)) is not None and taken < budget:
                self._flush(family)
                taken += group.take(name, budget - taken, sent)
        return b"".join(sent)

    def take_fib(self, limit: int) -> list[FibChange]:
        """At most `limit` changes for the kernel; fewer, even none, when that is all."""
        found: list[FibChange] = []
        for family, fib in self._fibs.items():
            if family not in self._deferred and len(found) < limit:
                self._flush(family)
                found += fib.take(self._loc.tables[family], limit - len(found))
        return found

    def fib_waiting(self) -> int:
        """Prefixes whose routes may have changed and were not taken yet."""
        return sum(len(self._loc.dirty[family]) + fib.waiting() for family, fib in self._fibs.items())

    def fib(self, family: Family) -> Mapping[Nlri, FibRoute]:
        """All that was handed out, as it stands: what the kernel should have of ours."""
        return self._fibs[family].installed

    def sweep_allowed(self, family: Family) -> bool:
        """May routes of an earlier life be taken out of the kernel: not before the peers have told theirs again."""
        return family not in self._deferred

    # --- for people ---

    def explain(self, family: Family, prefix: Nlri, *, told: bool = True) -> Explanation:
        """Everything about one prefix (exactly that one). told: also what each peer is told of it, which costs most
        where peers are many."""
        self._flush(family)
        entry = self._loc.tables[family].get(prefix)
        groups = self._joined[family] if told else {}
        return explain(family, prefix, entry, self._fibs[family].installed.get(prefix), groups)

    def prefixes(self, family: Family) -> list[Nlri]:
        """All of which there is a path, rejected ones included; in no order."""
        return list(self._loc.tables[family])

    def received(self, name: str, family: Family) -> Iterator[tuple[Nlri, Path]]:
        """The Adj-RIB-In of a peer."""
        if (peer := self._peers.get(name)) is not None:
            for prefix in peer.prefixes[family]:
                for path in of_source(self._loc.tables[family], prefix, peer):
                    yield prefix, path

    def advertised(self, name: str, family: Family) -> Iterator[tuple[Nlri, Attributes]]:
        """The Adj-RIB-Out of a peer: what it has been told once it has taken all its messages."""
        self._flush(family)
        if (group := self._joined[family].get(name)) is not None:
            source = group.members[name].source
            for prefix, out in group.out.items():
                if out.source is not source and out.attributes is not None:
                    yield prefix, out.attributes

    def counts(self, name: str, family: Family) -> Counts:
        self._flush(family)
        peer, group = self._peers.get(name), self._joined[family].get(name)
        return Counts(
            received=len(peer.prefixes[family]) if peer is not None else 0,
            accepted=self._loc.accepted(peer, family) if peer is not None else 0,
            advertised=group.count(name) if group is not None else 0,
            end_of_rib=peer is not None and family in peer.end_of_rib,
            stale=peer is not None and family in peer.stale_until,
        )

    # --- time ---

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        times = [time for peer in self._peers.values() for time in peer.stale_until.values()]
        if self._deferred:
            times.append(self._deferred_until)
        return min(times, default=None)

    def expire(self, now: float) -> None:
        for peer in list(self._peers.values()):
            for family, until in list(peer.stale_until.items()):
                if now >= until:
                    self._stale_time_over(peer, family, now)
            self._forget_if_gone(peer)
        self._end_deferral(now)

    # --- Adj-RIB-In ---

    def _next_hop(self, family: Family, address: bytes) -> NextHop:
        known = self._next_hops.get(address)
        if known is None:
            known = self._next_hops[address] = NextHop(address, self._resolve(address))
        return known

    def _end_of_rib(self, peer: Peer, change: EndOfRib, now: float) -> None:
        peer.end_of_rib.add(change.family)
        peer.llgr.discard(change.family)
        self._loc.sweep(peer, change.family)
        self._end_deferral(now)

    def _stale_time_over(self, peer: Peer, family: Family, now: float) -> None:
        seconds = peer.session.long_lived.get(family, 0.0) if peer.session is not None else 0.0
        if peer.up:  # still in `llgr`: what it has told again goes, too, if it leaves before End-of-RIB
            self._loc.sweep(peer, family)
        elif seconds and family not in peer.llgr:
            peer.llgr.add(family)
            peer.stale_until[family] = now + seconds
            self._begin_llgr(peer, family)
        else:
            self._loc.remove_all(peer, family)
            peer.llgr.discard(family)

    def _begin_llgr(self, peer: Peer, family: Family) -> None:
        begun = self._loc.begin_llgr(peer, family)
        for group in self._groups[family].values():
            group.forget(begun)

    def _forget_if_gone(self, peer: Peer) -> None:
        if not peer.up and not any(peer.prefixes.values()):
            self._peers.pop(peer.name, None)

    def _interfaces_changed(self, family: Family, prefixes: list[Nlri], turned: set[NextHop]) -> None:
        for peer in self._peers.values():
            if peer.interfaces_changed(family):
                self._loc.judge_again(peer, family, prefixes)
        for group in self._groups[family].values():
            group.forget_by(turned)

    # --- this node's own ---

    def _local_path(self, route: Originated, source: Source) -> Path:
        static = source is self._static
        normal = self.settings.normal_priority[route.family]
        priority = normal if route.priority is None else route.priority
        key = (source, route.family, route.attributes, priority, route.interface)
        path = self._local.get(key)
        if path is None:
            urgent = priority < normal and route.interface.startswith("cali")
            kernel = Preference.KERNEL_URGENT if urgent else Preference.KERNEL
            attributes = replace(route.attributes, local_pref=max(0, MAX_PRIORITY - priority))
            next_hop = NextHop(b"", NextHopState(reachable=True, interface=route.interface))
            preference = Preference.STATIC if static else kernel
            path = self._local[key] = Path(source, route.family, route.attributes, attributes, next_hop, preference)
        return path

    def _originate(self, routes: Iterable[Originated]) -> None:
        for route in routes:
            self._loc.insert(route.family, route.prefix, self._local_path(route, self._static))

    def _originate_again(self, before: SpeakerSettings) -> None:
        old, new = set(before.originated), set(self.settings.originated)
        renumbered = before.normal_priority != self.settings.normal_priority
        stay = {(route.family, route.prefix) for route in new}
        for route in old - new:
            if (route.family, route.prefix) not in stay:
                self._loc.remove_local(route.family, route.prefix, self._static)
        self._originate(new if renumbered else new - old)
        if renumbered:
            self._local.clear()
            self.originate(list(self._kernel_routes.values()))

    # --- decision ---

    def _flush(self, family: Family) -> None:
        dirty = self._loc.dirty[family]
        if not dirty or family in self._deferred:
            return
        self._loc.dirty[family] = {}
        self._fibs[family].mark(dirty)
        groups = self._groups[family]
        if groups:
            best = self._loc.best(family, dirty)
            for group in groups.values():
                group.update(best)

    # --- Adj-RIB-Out ---

    def _terms(self, peer: Peer, family: Family) -> Terms:
        settings, session = peer.settings, peer.session
        assert session is not None
        return Terms(
            family=family,
            context=session.context,
            local_as=settings.local_as,
            client=peer.client,
            cluster_id=peer.cluster_id,
            next_hop=session.next_hop(family),
            keep_next_hop=keeps_next_hop(settings.next_hop_mode, settings.keep_ebgp_next_hop, peer.internal),
            long_lived=session.knows_long_lived,
            rules=rules_of(settings.filters, self.settings.filters, family, export=True),
        )

    def _group(self, family: Family, terms: Terms) -> Group:
        group = self._groups[family].get(terms)
        if group is None:
            group = self._groups[family][terms] = Group(terms)
            group.configure(self._exporter(group))
            group.update(self._loc.best(family, self._loc.tables[family]))
        return group

    def _exporter(self, group: Group) -> Exporter:
        family = group.terms.family
        return Exporter(group.terms, self._policies[family], self.settings.normal_priority[family], group.intern)

    def _join(self, peer: Peer, family: Family, greet: bool, had: Iterable[Nlri] = ()) -> None:
        self._flush(family)
        group = self._group(family, self._terms(peer, family))
        member = group.join(peer, had)
        member.end_of_rib_due = greet
        self._joined[family][peer.name] = group

    def _leave(self, peer: Peer) -> None:
        for family in Family:
            self._leave_group(peer, family)

    def _leave_group(self, peer: Peer, family: Family) -> tuple[set[Nlri], bool]:
        """(what the peer may have been told, whether its End-of-RIB is still due)."""
        group = self._joined[family].pop(peer.name, None)
        if group is None:
            return set(), False
        due = group.members[peer.name].end_of_rib_due
        had = group.leave(peer.name)
        if not group.members:
            del self._groups[family][group.terms]
        return had, due

    def _move(self, peer: Peer, family: Family) -> None:
        """Terms may have changed with the settings."""
        if self._joined[family][peer.name].terms != self._terms(peer, family):
            self._flush(family)
            had, due = self._leave_group(peer, family)
            self._join(peer, family, greet=due, had=had)

    def _export_again(self, family: Family, touched: list[IPNetwork] | None) -> None:
        """Export policy has changed for what lies inside `touched`, or for all."""
        self._flush(family)
        prefixes: Iterable[Nlri] = self._loc.tables[family]
        if touched is not None:
            test = inside_any(touched, family)
            prefixes = [prefix for prefix in prefixes if test(prefix)]
        best = self._loc.best(family, prefixes)
        for group in self._groups[family].values():
            group.configure(self._exporter(group))
            group.update(best)

    # --- our own restart ---

    def _end_deferral(self, now: float) -> None:
        self._now = now = max(now, self._now)
        for family in list(self._deferred):
            if now >= self._deferred_until or self._heard_all(family):
                self._deferred.discard(family)
                for peer in self._peers.values():
                    if peer.up and peer.session is not None and family in peer.session.families:
                        self._join(peer, family, greet=True)

    def _heard_all(self, family: Family) -> bool:
        """Has every peer that restarts gracefully sent all it has, or said that it will not say when. Not waited for:
        those that are back from a restart themselves (RFC 4724 section 4.1: they wait for us), those held down, and
        workloads, which may begin long after their node."""
        for settings in self.settings.peers:
            if settings.prefix is not None or settings.restart_time_s is None or settings.name in self._held_down:
                continue
            if settings.kind is PeerKind.LOCAL_WORKLOAD:
                continue
            if settings.families and family not in settings.families:
                continue
            if not settings.families and (settings.address.version == 4) is not (family is Family.IPV4):
                continue
            peer = self._peers.get(settings.name)
            if peer is None or not peer.up or peer.session is None:
                return False
            if peer.session.restarting:
                continue
            if family in peer.session.families & peer.session.graceful and family not in peer.end_of_rib:
                return False
        return True
