"""What the tables keep of each peer: its session's facts, import policy, and which prefixes it has told us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from weakref import WeakValueDictionary

from services.bgp.core.filters import MAX_PRIORITY, Chain, Outcome, RouteFacts, Step, apply, rules_of
from services.bgp.core.paths import Attributes, Family, Nlri
from services.bgp.core.rib.path import Community, NextHop, Path, Preference, Rejected, Source
from services.bgp.core.settings import PeerSettings, SpeakerSettings
from services.bgp.core.wire.context import Context


@dataclass(frozen=True, slots=True)
class Session:
    """What the tables must know of an established session.

    remote_as, remote_id: from its OPEN. addresses: ours towards it, packed, by family: the next hops that stand for us.
    graceful: families it sends End-of-RIB for (RFC 4724). preserved: those whose forwarding state it kept over its
    restart. restarting: it is just back itself, and tells nothing before we have told it ours or its patience is over.
    restart_time_s: how long it may stay away. long_lived: seconds by family (RFC 9494), of those both sides
    announced. knows_long_lived: it announced that capability. long_lived_preserved: as `preserved`, said by that
    capability, for what long-lived graceful restart has begun with. long_lived_only: families that its graceful restart
    capability leaves out; their restart time is 0.
    """

    context: Context
    remote_as: int
    remote_id: int
    addresses: Mapping[Family, bytes] = field(default_factory=dict)
    graceful: frozenset[Family] = frozenset()
    preserved: frozenset[Family] = frozenset()
    restarting: bool = False
    restart_time_s: float = 120
    long_lived: Mapping[Family, float] = field(default_factory=dict)
    knows_long_lived: bool = False
    long_lived_preserved: frozenset[Family] = frozenset()
    long_lived_only: frozenset[Family] = frozenset()

    @property
    def families(self) -> frozenset[Family]:
        return self.context.families

    def next_hop(self, family: Family) -> bytes:
        """What stands for us; IPv4 prefixes go by our IPv6 address where we have no other (RFC 8950). Empty: none."""
        found = self.addresses.get(family, b"")
        return found or (self.addresses.get(Family.IPV6, b"") if self.context.extended_next_hop else b"")


@dataclass(frozen=True, slots=True)
class Import:
    """What import policy makes of attributes: one path, or one for each prefix when a filter looks at prefixes."""

    path: Path | None
    judge: Callable[[Nlri], Path]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a loop shows by: our router id, clusters and addresses. Made once for all peers."""

    router_id: int
    cluster_ids: frozenset[int]
    addresses: frozenset[bytes]

    @classmethod
    def of(cls, speaker: SpeakerSettings) -> Identity:
        clusters = {peer.rr_client_cluster for peer in speaker.peers} | {speaker.cluster_id}
        return cls(
            speaker.router_id,
            frozenset(cluster for cluster in clusters if cluster),
            frozenset(address.packed for address in speaker.addresses),
        )


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """Everything that import depends on; compared by value, so that a change of settings touches whom it concerns."""

    rules: tuple[object, ...]
    internal: bool
    local_as: int
    allowed_local_as: int
    identity: Identity
    normal: int


Resolve: TypeAlias = Callable[[Family, bytes], NextHop]
ImportKey: TypeAlias = tuple[Family, int, int, int, int]
"""(family, id of the attributes as received, path id, generation, which outcome of the filters: 0 for all prefixes).
A path holds its attributes, so the id means the same as long as the path is there."""


class Peer(Source):
    """A session's end. prefixes: those of which the table holds a path of this peer, by family."""

    __slots__ = (
        "_chains",
        "_imports",
        "_resolve",
        "end_of_rib",
        "llgr",
        "policies",
        "prefixes",
        "session",
        "settings",
        "stale_until",
        "unrepeated",
        "up",
    )

    def __init__(self, settings: PeerSettings, resolve: Resolve) -> None:
        super().__init__(settings.name, remote=True)
        self.settings = settings
        self.session: Session | None = None
        self.up = False
        self.prefixes: dict[Family, set[Nlri]] = {family: set() for family in Family}
        self.end_of_rib: set[Family] = set()  # received on this session
        self.stale_until: dict[Family, float] = {}
        self.unrepeated: dict[
            Family, set[tuple[Nlri, int]]
        ] = {}  # in an enhanced refresh: what the peer has not told again yet
        self.llgr: set[Family] = set()  # long-lived graceful restart has begun there, and no End-of-RIB has ended it
        self.policies: dict[Family, ImportPolicy] = {}
        self._chains: dict[Family, Chain] = {}
        self._imports: WeakValueDictionary[ImportKey, Path] = WeakValueDictionary()
        self._resolve = resolve

    def begin(self, settings: PeerSettings, session: Session) -> None:
        """A new session: what is there already is stale, of an earlier generation."""
        self.settings, self.session = settings, session
        self.up = True
        self.internal = session.remote_as == settings.local_as
        self.router_id = session.remote_id
        self.address_key = (settings.address.version, settings.address.packed)
        self.end_of_rib.clear()
        self.unrepeated.clear()
        self._imports.clear()

    def configure(self, settings: PeerSettings, speaker: SpeakerSettings, identity: Identity) -> set[Family]:
        """New settings of both; returns the families whose paths have to be judged again."""
        self.settings = settings
        self.client = settings.rr_client_cluster is not None and self.internal
        self.cluster_id = settings.rr_client_cluster or speaker.cluster_id
        changed: set[Family] = set()
        for family in Family:
            rules = rules_of(settings.filters, speaker.filters, family, export=False)
            policy = ImportPolicy(
                rules=rules,
                internal=self.internal,
                local_as=settings.local_as,
                allowed_local_as=settings.allowed_local_as,
                identity=identity,
                normal=speaker.normal_priority[family],
            )
            if policy != self.policies.get(family):
                self.policies[family] = policy
                self._chains[family] = Chain(rules, self.internal)
                changed.add(family)
        if changed:
            self._imports.clear()
        return changed

    def admit(self, family: Family, received: Attributes, path_id: int = 0, generation: int | None = None) -> Import:
        """received: as decoded. generation: of the session it came on, when it is judged again later."""
        generation = self.generation if generation is None else generation
        key = (family, id(received), path_id, generation, 0)
        known = self._imports.get(key)
        if known is not None:
            return Import(known, lambda prefix: known)
        policy = self.policies[family]
        next_hop = self._resolve(family, received.next_hop)
        rejected = _unfit(policy, family, received)
        steps = self._chains[family].resolve(RouteFacts(received, True, next_hop.state.interface))
        if rejected is not None or not steps or steps[0][0] is None:
            outcome = steps[0][1] if steps and rejected is None else None
            path = self._path(policy, key, received, next_hop, outcome, rejected)
            return Import(path, lambda prefix: path)
        return Import(None, self._by_prefix(policy, key, received, next_hop, steps))

    def interfaces_changed(self, family: Family) -> bool:
        """Those of next hops, and so what filters said of their paths: are they to be judged again?"""
        if not self._chains[family].asks_interface:
            return False
        self._imports.clear()
        return True

    def _by_prefix(
        self, policy: ImportPolicy, key: ImportKey, received: Attributes, next_hop: NextHop, steps: tuple[Step, ...]
    ) -> Callable[[Nlri], Path]:
        made: dict[int, Path] = {}

        def judge(prefix: Nlri) -> Path:
            at = 0
            for test, _ in steps:
                if test is None or test(prefix):
                    break
                at += 1
            path = made.get(at)
            if path is None:
                outcome = steps[at][1] if at < len(steps) else None
                path = made[at] = self._path(policy, (*key[:4], 1 + at), received, next_hop, outcome, None)
            return path

        return judge

    def _path(
        self,
        policy: ImportPolicy,
        key: ImportKey,
        received: Attributes,
        next_hop: NextHop,
        outcome: Outcome | None,
        rejected: Rejected | None,
    ) -> Path:
        known = self._imports.get(key)
        if known is not None:
            return known
        family, _, path_id, generation, _ = key
        attributes = received
        if outcome is not None and rejected is None:
            if outcome.accept:
                attributes = apply(outcome.rule, received)
            else:
                rejected = Rejected.FILTER
        if not policy.internal and Community.GRACEFUL_SHUTDOWN in attributes.communities:
            attributes = replace(attributes, local_pref=0)  # RFC 8326 section 4.2
        urgent = attributes.local_pref is not None and attributes.local_pref > MAX_PRIORITY - policy.normal
        path = Path(
            self,
            family,
            received,
            attributes,
            next_hop,
            Preference.LEARNED_URGENT if urgent else Preference.LEARNED,
            path_id,
            rejected,
            outcome.where if outcome is not None else "",
        )
        path.generation = generation
        self._imports[key] = path
        return path


def _unfit(policy: ImportPolicy, family: Family, received: Attributes) -> Rejected | None:
    """What no filter can make good."""
    ours = sum(numbers.count(policy.local_as) for _, numbers in received.as_path)
    if ours > policy.allowed_local_as:
        return Rejected.AS_LOOP
    if received.originator_id is not None and received.originator_id == policy.identity.router_id:
        return Rejected.ORIGINATOR_LOOP
    if not policy.identity.cluster_ids.isdisjoint(received.cluster_list):
        return Rejected.CLUSTER_LOOP
    if received.next_hop in policy.identity.addresses:
        return Rejected.OWN_NEXT_HOP
    if len(received.next_hop) not in (4, 16) or (family is Family.IPV6 and len(received.next_hop) == 4):
        return Rejected.NO_NEXT_HOP
    return None
