"""Which pairs of endpoints would be treated otherwise by another state of the cluster's policy.

Flows in: two calculations, as things are and as they would be. Flows out: the pairs whose verdict differs, with the
services that are concerned (services.py) and who decides then and now.

1,000 endpoints are a million pairs, so pairs are not judged one by one. What an endpoint's policy makes of a peer
depends on the peer's address only by the IP sets and networks that its rules name; peers that are alike in these are
judged once for all. Endpoints whose own policy stays as it is need judging only against those whose does not.

Each endpoint stands for its first address of a family. Host endpoints are not judged: who asks knows their interfaces
(path.py), here are pairs of workloads, and addresses outside that a caller adds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from libs.policy import nets, services
from libs.policy.calculator import Calculator
from libs.policy.changes import NodeView
from libs.policy.nets import Net
from libs.policy.output import Action, IPSet, IPSetType, Rule, Tier, Workload, WorkloadKey
from libs.policy.services import Service
from libs.policy.trace import Direction, Packet, Verdict, decide, decide_tiers, enforced, narrowed

Terms = tuple[tuple[str, ...], tuple[str, ...]]  # IP sets, networks
OUT, IN = Direction.EGRESS, Direction.INGRESS


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint, or (key None) an address outside, whose own policy nobody asks."""

    name: str
    key: WorkloadKey | None
    node: str = ""
    nets4: tuple[str, ...] = ()
    nets6: tuple[str, ...] = ()

    def address(self, version: int) -> str:
        texts = self.nets4 if version == 4 else self.nets6
        return nets.address(texts[0]) if texts else ""


@dataclass(frozen=True, slots=True)
class Change:
    """Every source with every target, but for an endpoint with itself. allowed: whether `services` are from now on.

    before, after: who decides about the first service; direction: on whose side each of the two is.
    """

    version: int
    sources: tuple[Peer, ...]
    targets: tuple[Peer, ...]
    services: tuple[Service, ...]
    allowed: bool
    before: tuple[Direction, Verdict | None]
    after: tuple[Direction, Verdict | None]

    @property
    def pairs(self) -> int:
        return len(self.sources) * len(self.targets) - len(set(self.sources) & set(self.targets))

    def each(self) -> Iterator[tuple[Peer, Peer]]:
        return ((source, target) for source in self.sources for target in self.targets if source != target)


@dataclass(slots=True)
class Report:
    """compared: pairs of both families. pairs: how many of them change. asked: by family, the services that were asked
    about. judged: how often a program had to be. source_ports: rules name some, and these were not told apart.
    """

    changes: list[Change] = field(default_factory=list)
    compared: int = 0
    pairs: int = 0
    judged: int = 0
    asked: dict[int, Sequence[Service]] = field(default_factory=dict)
    source_ports: bool = False


class State:
    """One calculation, ready to be asked. staged: as if staged policies were enforced."""

    def __init__(self, calculator: Calculator, *, staged: bool = False) -> None:
        found = {set_id: calculator.ipset(set_id) for set_id in calculator.ipset_ids()}
        self.staged = staged
        self.workloads = {(node, key): workload for node, key, workload in calculator.workloads()}
        self.view = NodeView(
            workloads={},
            hosts={},
            policies=dict(calculator.policies),
            profiles=dict(calculator.profiles),
            ipsets={set_id: ipset for set_id, ipset in found.items() if ipset is not None},
        )


@dataclass(frozen=True, slots=True)
class Program:
    """What an endpoint's policy is in one direction; equal for all that are treated alike."""

    direction: Direction
    tiers: tuple[Tier, ...]
    profiles: tuple[str, ...]


class _Side:
    """A state's programs: their rules, and what these ask of addresses."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._members = _Members(state.view.ipsets)

    def program(self, workload: Workload | None, direction: Direction) -> Program | None:
        if workload is None:
            return None
        empty: tuple[()] = ()
        tiers = tuple(
            Tier(
                name=tier.name,
                default_action=tier.default_action,
                ingress=tier.ingress if direction is IN else empty,
                egress=tier.egress if direction is OUT else empty,
            )
            for tier in workload.tiers
            if (tier.ingress if direction is IN else tier.egress)
        )
        return Program(direction, tiers, workload.profiles)

    def lists(self, program: Program) -> list[tuple[str, list[tuple[Rule, ...]]]]:
        """(default action, each policy's rules) by tier; profiles last. Says all that decides, but for the sets."""
        view, inbound = self.state.view, program.direction is IN
        found = []
        for tier in program.tiers:
            keys = enforced(tier.ingress if inbound else tier.egress, self.state.staged)
            policies = [view.policies[key] for key in keys]
            if policies:
                rules = [policy.inbound if inbound else policy.outbound for policy in policies]
                found.append((tier.default_action, rules))
        profiles = [view.profiles[name] for name in program.profiles]
        return [*found, ("", [profile.inbound if inbound else profile.outbound for profile in profiles])]

    def rules(self, program: Program | None) -> Iterator[Rule]:
        if program is not None:
            yield from (rule for _, lists in self.lists(program) for rules in lists for rule in rules)

    def terms(self, program: Program | None) -> tuple[Terms, Terms]:
        """What is asked of the source, and of the destination."""
        src: tuple[set[str], set[str]] = set(), set()
        dst: tuple[set[str], set[str]] = set(), set()
        for rule in self.rules(program):
            src[0].update(rule.src_sets, rule.not_src_sets, rule.src_named_port_sets, rule.not_src_named_port_sets)
            dst[0].update(rule.dst_sets, rule.not_dst_sets, rule.dst_named_port_sets, rule.not_dst_named_port_sets)
            dst[0].update(rule.dst_ip_port_sets)
            src[1].update(rule.src_nets, rule.not_src_nets)
            dst[1].update(rule.dst_nets, rule.not_dst_nets)
        return (tuple(sorted(src[0])), tuple(sorted(src[1]))), (tuple(sorted(dst[0])), tuple(sorted(dst[1])))

    def signature(self, address: Net, terms: Terms) -> tuple[object, ...]:
        """Equal for addresses that no rule with these terms can tell apart."""
        sets, networks = terms
        member = self._members.of(address)
        return (
            tuple(member.get(set_id) for set_id in sets),
            tuple(nets.parse(text).contains(address) for text in networks),
        )

    def judge(self, program: Program | None, src: str, dst: str, service: Service, src_port: int) -> Verdict | None:
        """None where nobody is asked, which lets the packet through."""
        if program is None:
            return None
        packet = service.packet(src, dst, src_port)
        return decide_tiers(
            program.tiers, program.profiles, self.state.view, packet, program.direction, staged=self.state.staged
        )

    def actions(self, program: Program, packets: Sequence[Packet]) -> Iterator[Action]:
        """The same for many packets between two addresses."""
        view, staged, direction = self.state.view, self.state.staged, program.direction
        if not packets:
            return
        tiers, left = narrowed(program.tiers, program.profiles, view, packets[0], direction, staged=staged)
        for packet in packets:
            yield decide_tiers(tiers, program.profiles, left, packet, direction, staged=staged).action


class _Members:
    """Which sets an address is in; of named ports, with which ports. Each address is looked up once."""

    def __init__(self, ipsets: Mapping[str, IPSet]) -> None:
        self._networks: dict[tuple[int, int], dict[int, list[str]]] = {}
        self._ports: dict[str, dict[str, set[str]]] = {}
        for set_id, ipset in ipsets.items():
            for member in ipset.members:
                if ipset.type is IPSetType.NET:
                    net = nets.parse(member)
                    self._networks.setdefault((net.version, net.length), {}).setdefault(net.base, []).append(set_id)
                else:
                    address, _, port = member.partition(",")
                    self._ports.setdefault(address, {}).setdefault(set_id, set()).add(port)
        self._known: dict[Net, dict[str, object]] = {}

    def of(self, address: Net) -> dict[str, object]:
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = {}
            bits = nets.BITS[address.version]
            for (version, length), bases in self._networks.items():
                if version == address.version:
                    shift = bits - length
                    found.update(dict.fromkeys(bases.get(address.base >> shift << shift, ()), True))
            ports = self._ports.get(nets.address(nets.text(address)), {})
            found.update({set_id: frozenset(those) for set_id, those in ports.items()})
        return found


@dataclass(frozen=True, slots=True)
class Flow:
    """One recorded connection, and what became of it and would. before, after: as in `Change`."""

    source: Peer
    target: Peer
    packet: Packet
    allowed: tuple[bool, bool]
    before: tuple[Direction, Verdict | None]
    after: tuple[Direction, Verdict | None]


def judge_flow(states: tuple[State, State], source: Peer, target: Peer, packet: Packet) -> Flow:
    """Raises KeyError for an endpoint that is not in both states."""
    deciders = []
    for state in states:
        out, into = (
            None
            if peer.key is None
            else decide(state.workloads[peer.node, peer.key], state.view, packet, direction, staged=state.staged)
            for peer, direction in ((source, OUT), (target, IN))
        )
        denied = out is not None and out.action is Action.DENY
        deciders.append((OUT, out) if denied or into is None else (IN, into))
    first, second = (verdict is None or verdict.action is Action.ALLOW for _, verdict in deciders)
    return Flow(source, target, packet, (first, second), deciders[0], deciders[1])


def compare(
    before: State,
    after: State,
    peers: Sequence[Peer],
    *,
    asked: Mapping[int, Sequence[Service]] | None = None,
    selected: Collection[Peer] | None = None,
) -> Report:
    """peers: those whose pairs are of interest; those that are not in both states are left out. selected: at least one
    end of each pair is among them.

    asked: by family, the services of interest; None: all that the rules tell apart.
    """
    report = Report()
    both = before.workloads.keys() & after.workloads.keys()
    known = [one for one in peers if one.key is None or (one.node, one.key) in both]
    sides = _Side(before), _Side(after)
    for version in (4, 6):
        here = [one for one in known if one.address(version)]
        if here:
            services_asked = None if asked is None else asked.get(version, ())
            _Comparison(sides, here, version, services_asked, report, selected).run()
    return report


Masks = tuple[int, int]


class _Programs:
    """An endpoint's policy in one direction in both states. terms: what is asked of the source, of the destination, by
    state. Compared by identity: there is one object for all endpoints that are treated alike.
    """

    def __init__(self, sides: tuple[_Side, _Side], before: Program | None, after: Program | None) -> None:
        self.each = before, after
        one, two = sides[0].terms(before), sides[1].terms(after)
        self.terms = (one[0], two[0]), (one[1], two[1])
        self.changed = self._differs(sides)
        self.masks: dict[tuple[object, object], Masks] = {}

    def _differs(self, sides: tuple[_Side, _Side]) -> bool:
        """Whether anything that decides is another thing: rules, or what is in a set that they name."""
        before, after = self.each
        if before is None or after is None:
            return before is not after
        if sides[0].lists(before) != sides[1].lists(after):
            return True
        first, second = (side.state.view.ipsets for side in sides)
        needed = {set_id for rule in sides[0].rules(before) for set_id in rule.set_ids()}
        return any(first[set_id] != second[set_id] for set_id in needed)


@dataclass(slots=True)
class _Class:
    """Peers that nobody can tell apart; the first one stands for all. own: what its own policy asks of it. others:
    what the policy of those asks that it may meet.
    """

    programs: _Programs
    own: object
    others: dict[_Programs, object]
    selected: bool
    peers: list[Peer] = field(default_factory=list)


class _Comparison:
    """Of one family."""

    def __init__(
        self,
        sides: tuple[_Side, _Side],
        peers: Sequence[Peer],
        version: int,
        asked: Sequence[Service] | None,
        report: Report,
        selected: Collection[Peer] | None,
    ) -> None:
        self._sides = sides
        self._selected = None if selected is None else frozenset(selected)
        self._peers = peers
        self._version = version
        self._report = report
        self._known: dict[tuple[Program | None, Program | None], _Programs] = {}
        self._out = [self._programs(peer, OUT) for peer in peers]
        self._in = [self._programs(peer, IN) for peer in peers]
        found = {
            id(rule): rule  # shared by all whose policy it is
            for programs in self._known.values()
            for side, program in zip(sides, programs.each, strict=True)
            for rule in side.rules(program)
        }
        rules = list(found.values())
        self._services = list(asked) if asked is not None else services.all_of(rules, self._ipsets(), version)
        self._src_port, named = services.source_port(rules)
        report.source_ports |= named
        report.asked[version] = self._services

    def _ipsets(self) -> dict[str, IPSet]:
        """Of both states, with the members of either."""
        first, second = (side.state.view.ipsets for side in self._sides)
        found = {**first, **second}
        for set_id in first.keys() & second.keys():
            if first[set_id] != second[set_id]:
                found[set_id] = IPSet(first[set_id].type, first[set_id].members | second[set_id].members)
        return found

    def _programs(self, peer: Peer, direction: Direction) -> _Programs:
        key: tuple[Program | None, Program | None] = (None, None)
        if peer.key is not None:
            first, second = (side.state.workloads[peer.node, peer.key] for side in self._sides)
            key = self._sides[0].program(first, direction), self._sides[1].program(second, direction)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _Programs(self._sides, *key)
        return found

    def _signature(self, net: Net, programs: _Programs, *, destination: bool) -> object:
        return tuple(
            side.signature(net, terms) if terms != ((), ()) else ()
            for side, terms in zip(self._sides, programs.terms[destination], strict=True)
        )

    def _classes(self, *, destination: bool) -> list[_Class]:
        own, other = (self._in, self._out) if destination else (self._out, self._in)
        every = list(dict.fromkeys(other))
        changed = [one for one in every if one.changed]
        found: dict[object, _Class] = {}
        for peer, programs in zip(self._peers, own, strict=True):
            net = nets.parse(peer.address(self._version))
            mine = self._signature(net, programs, destination=destination)
            # A peer whose own policy stays as it is meets only those whose does not.
            met = every if programs.changed else changed
            theirs = {one: self._signature(net, one, destination=destination) for one in met}
            selected = self._selected is None or peer in self._selected
            key = programs, mine, tuple(theirs.values()), selected
            if key not in found:
                found[key] = _Class(programs, mine, theirs, selected)
            found[key].peers.append(peer)
        return list(found.values())

    def run(self) -> None:
        count = len(self._peers)
        left_out = 0 if self._selected is None else sum(peer not in self._selected for peer in self._peers)
        self._report.compared += count * (count - 1) - left_out * (left_out - 1)
        if not any(programs.changed for programs in self._known.values()):
            return
        sources, targets = self._classes(destination=False), self._classes(destination=True)
        changed = [target for target in targets if target.programs.changed]
        found: dict[tuple[bool, int], list[tuple[_Class, _Class]]] = {}
        for source in sources:
            for target in targets if source.programs.changed else changed:
                if not (source.selected or target.selected):
                    continue
                if source.peers == target.peers and len(source.peers) == 1:
                    continue
                out = self._mask(source.programs, source.own, target.others[source.programs], source, target)
                into = self._mask(target.programs, source.others[target.programs], target.own, source, target)
                now, then = out[0] & into[0], out[1] & into[1]
                if now != then:
                    same = len({*source.peers} & {*target.peers})
                    self._report.pairs += len(source.peers) * len(target.peers) - same
                if opened := then & ~now:
                    found.setdefault((True, opened), []).append((source, target))
                if closed := now & ~then:
                    found.setdefault((False, closed), []).append((source, target))
        for (allowed, mask), pairs in found.items():
            self._tell(allowed, mask, pairs)

    def _mask(self, programs: _Programs, src: object, dst: object, source: _Class, target: _Class) -> Masks:
        """Bit n is set when service n is let through; before, after."""
        known = programs.masks.get((src, dst))
        if known is None:
            first, second = (self._bits(state, programs, source.peers[0], target.peers[0]) for state in (0, 1))
            known = programs.masks[src, dst] = first, second
        return known

    def _bits(self, state: int, programs: _Programs, source: Peer, target: Peer) -> int:
        program = programs.each[state]
        if program is None:
            return (1 << len(self._services)) - 1
        src, dst = source.address(self._version), target.address(self._version)
        packets = [service.packet(src, dst, self._src_port) for service in self._services]
        self._report.judged += len(packets)
        mask = 0
        for place, action in enumerate(self._sides[state].actions(program, packets)):
            if action is Action.ALLOW:
                mask |= 1 << place
        return mask

    def _judge(self, state: int, programs: _Programs, source: Peer, target: Peer, service: Service) -> Verdict | None:
        src, dst = source.address(self._version), target.address(self._version)
        return self._sides[state].judge(programs.each[state], src, dst, service, self._src_port)

    def _tell(self, allowed: bool, mask: int, pairs: Iterable[tuple[_Class, _Class]]) -> None:
        """Sources with the same targets become one change, then targets with the same sources."""
        concerned = tuple(service for place, service in enumerate(self._services) if mask >> place & 1)
        by_source: dict[int, tuple[_Class, list[_Class]]] = {}
        for source, target in pairs:
            by_source.setdefault(id(source), (source, []))[1].append(target)
        by_targets: dict[tuple[int, ...], tuple[list[_Class], list[_Class]]] = {}
        for source, targets in by_source.values():
            key = tuple(id(one) for one in targets)
            by_targets.setdefault(key, ([], targets))[0].append(source)
        for sources, targets in by_targets.values():
            self._report.changes.append(
                Change(
                    version=self._version,
                    sources=tuple(peer for one in sources for peer in one.peers),
                    targets=tuple(peer for one in targets for peer in one.peers),
                    services=concerned,
                    allowed=allowed,
                    before=self._decider(0, sources[0], targets[0], concerned[0]),
                    after=self._decider(1, sources[0], targets[0], concerned[0]),
                )
            )

    def _decider(
        self, state: int, source: _Class, target: _Class, service: Service
    ) -> tuple[Direction, Verdict | None]:
        """Who denies it, the sender's side first; else who lets it in, or out where nobody is asked there."""
        first, second = source.peers[0], target.peers[0]
        out = self._judge(state, source.programs, first, second, service)
        into = self._judge(state, target.programs, first, second, service)
        if (out is not None and out.action is Action.DENY) or into is None:
            return OUT, out
        return IN, into
