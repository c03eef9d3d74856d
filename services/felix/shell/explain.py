"""Answers to questions about this node (libs/bus/explain.py): one at a time, so that nobody's curiosity costs the node
more than one reading of its kernel at once.

A trace is taken between two passes of the dataplane: the calculation's side from what was applied last, the kernel's
from its own tables, which are read back and walked through. When a pass came in between, it is taken again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec

from libs.bus import explain as asked
from libs.bus import wire
from libs.bus.api import Bus, BusError, Msg, Subscription
from libs.bus.explain import Verb
from libs.feed.delta import NodeState
from libs.feed.runner import FeedRunner
from libs.netlink import conntrack
from libs.netlink.links import list_links
from libs.netlink.routes import TABLE_LOCAL, Route, list_all_routes, lookup
from libs.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from libs.nftables.kernel import KernelRuleset
from libs.nftables.model import Rule, Table
from libs.nftables.readback import Fired, ReadBack
from libs.policy.changes import NodeView
from libs.policy.output import Workload, WorkloadKey
from libs.policy.path import HostRules, Side, Step, allowed, walk
from libs.policy.trace import Packet, protocol_number
from services.felix.core import explain, explain_routes
from services.felix.core.explain import Ways
from services.felix.core.options import V4, V6, RulesetOptions
from services.felix.core.ruleset import RulesetBuilder
from services.felix.drivers.tables import KernelTables
from services.felix.shell.dataplane import Dataplane

log = logging.getLogger(__name__)

SETTLE_S = 5.0  # how long a trace waits for a pass to end
ATTEMPTS = 3
WAITING = 64  # questions that may wait
TABLES = {4: V4.table, 6: V6.table}
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}


@dataclass(frozen=True, slots=True)
class Held:
    """What is applied, as of one moment between two passes. passes: tells whether it still is."""

    passes: int
    rev: int
    view: NodeView
    rules: HostRules
    guards: Mapping[str, str]
    known: Mapping[int, Sequence[Rule]]  # by family: the rules that the table may hold


class Explainer:
    """Run `run()`. version, options, warnings, settings: as of now."""

    def __init__(
        self,
        node: str,
        bus: Bus,
        feed: FeedRunner,
        dataplane: Dataplane,
        builder: RulesetBuilder,
        tables: KernelTables,
        options: Callable[[], RulesetOptions],
        warnings: Callable[[], Sequence[str]],
        settings: Callable[[], Mapping[str, asked.Setting]],
        version: str,
    ) -> None:
        self._node = node
        self._bus = bus
        self._feed = feed
        self._plane = dataplane
        self._builder = builder
        self._tables = tables
        self._options = options
        self._warnings = warnings
        self._settings = settings
        self._version = version
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._queue: asyncio.Queue[tuple[Verb, Msg]] = asyncio.Queue(WAITING)

    async def run(self) -> None:
        subscriptions: list[Subscription] = []
        try:
            for verb in Verb:
                received = partial(self._received, verb)
                subscriptions.append(self._bus.subscribe(asked.subject(self._node, verb), received))
            while True:
                verb, message = await self._queue.get()
                self._respond(message, await self._answer(verb, message.data))
        finally:
            for subscription in subscriptions:
                subscription.unsubscribe()

    def _received(self, verb: Verb, message: Msg) -> None:
        if not message.reply:
            return
        if verb is Verb.STATE:  # asked by many, costs nothing, and tells of a node that is busy
            self._respond(message, self.state())
            return
        try:
            self._queue.put_nowait((verb, message))
        except asyncio.QueueFull:
            self._respond(message, self._error(verb, "too many questions at once: ask again later"))

    def _respond(self, message: Msg, answer: msgspec.Struct) -> None:
        try:
            message.respond(wire.encode(answer))
        except BusError as error:
            log.debug("answer not sent", extra={"subject": message.subject, "error": str(error)})

    async def _answer(self, verb: Verb, data: bytes) -> msgspec.Struct:
        """Never raises: whoever asks is told."""
        try:
            match verb:
                case Verb.TRACE:
                    answer: msgspec.Struct = await self.trace(wire.decoder(asked.TraceRequest).decode(data))
                case Verb.ROUTES:
                    answer = await self.routes(wire.decoder(asked.RoutesRequest).decode(data))
                case _:
                    answer = await self.connections(wire.decoder(asked.ConnectionsRequest).decode(data))
            if len(wire.encode(answer)) > self._bus.max_payload_bytes:
                return self._error(verb, "the answer is larger than the bus takes: ask for less")
            return answer
        except msgspec.MsgspecError as error:
            return self._error(verb, f"the question is not understood: {error}")
        except Exception as error:  # a question must not end the service
            log.exception("question not answered", extra={"verb": str(verb)})
            return self._error(verb, f"{type(error).__name__}: {error}")

    def _error(self, verb: Verb, text: str) -> msgspec.Struct:
        match verb:
            case Verb.TRACE:
                return asked.TraceReply(node=self._node, error=text)
            case Verb.ROUTES:
                return asked.RoutesReply(node=self._node, error=text)
            case Verb.CONNECTIONS:
                return asked.ConnectionsReply(node=self._node, error=text)
            case Verb.STATE:
                return asked.State(node=self._node, error=text)

    def state(self) -> asked.State:
        feed, progress = self._feed.feed, self._plane.progress
        return asked.State(
            node=self._node,
            version=self._version,
            started=self._started,
            rev=progress.rev,
            phase=feed.standing,
            typha=feed.instance,
            failures=progress.failures,
            warnings=tuple(self._warnings()),
            workloads=len(feed.state.workloads),
            policies=len(feed.state.policies),
            settings=dict(self._settings()),
        )

    # --- trace -------------------------------------------------------------------------------------------------------

    async def trace(self, request: asked.TraceRequest) -> asked.TraceReply:
        if len(request.questions) > asked.PACKETS_LIMIT:
            return asked.TraceReply(node=self._node, error=f"more than {asked.PACKETS_LIMIT} packets at once")
        last: asked.TraceReply | None = None
        for _ in range(ATTEMPTS):
            held = await self._held(request)
            if isinstance(held, str):
                return asked.TraceReply(node=self._node, error=held)
            answers = await asyncio.to_thread(_trace, request, held)
            last = asked.TraceReply(
                node=self._node, rev=held.rev, answers=answers, failures=dict(self._plane.progress.failures)
            )
            if not self._plane.passing and self._plane.passes == held.passes:
                return last
        assert last is not None
        moving = asked.KernelVerdict(accepted=None, unknown="the ruleset was being changed all the time")
        return msgspec.structs.replace(
            last, answers=tuple(msgspec.structs.replace(one, kernel=one.kernel and moving) for one in last.answers)
        )

    async def _held(self, request: asked.TraceRequest) -> Held | str:
        """What is applied, reduced to the endpoints of the questions; text: why there is none."""
        plane, feed = self._plane, self._feed.feed

        def settled() -> bool:
            return plane.in_sync and not plane.passing and plane.progress.rev == feed.rev

        if not await plane.until(settled, SETTLE_S) and not plane.in_sync:
            return "the node has not heard from typha yet"
        state = feed.state
        places = [place for one in request.questions for place in (one.sender, one.receiver) if place.workload]
        keys = {WorkloadKey.parse(place.workload) for place in places} & state.workloads.keys()
        guards = explain.guards(self._builder.interfaces_of_hosts())
        desired = {4: self._tables.pair[0].desired, 6: self._tables.pair[1].desired}
        return Held(
            passes=plane.passes,
            rev=plane.progress.rev,
            view=_view(state, sorted(keys), sorted(set(guards.values()) & state.hosts.keys())),
            rules=explain.host_rules(self._options()),
            guards=guards,
            known={
                version: [rule for chain in table.chains.values() for rule in chain.rules]
                for version, table in desired.items()
            },
        )

    # --- routes ------------------------------------------------------------------------------------------------------

    async def routes(self, request: asked.RoutesRequest) -> asked.RoutesReply:
        listed, names = await asyncio.to_thread(_routes, request.families)
        found = explain_routes.in_order(route for route in listed if request.local or route.table != TABLE_LOCAL)
        state = self._feed.feed.state
        reasons = explain_routes.RouteReasons(self._node, state.workloads, state.blocks, state.nodes, names)
        limit = max(0, min(request.limit, asked.ROUTES_LIMIT))
        return asked.RoutesReply(node=self._node, total=len(found), routes=tuple(map(reasons.tell, found[:limit])))

    # --- connections -------------------------------------------------------------------------------------------------

    async def connections(self, request: asked.ConnectionsRequest) -> asked.ConnectionsReply:
        state = self._feed.feed.state
        owners = {
            ip_network(text).network_address: key
            for key, one in state.workloads.items()
            for text in (*one.nets4, *one.nets6)
            if ip_network(text).prefixlen == ip_network(text).max_prefixlen
        }
        limit = max(0, min(request.limit, asked.CONNECTIONS_LIMIT))
        tracked, total, chosen = await asyncio.to_thread(_connections, request, owners, limit)
        keys = sorted({key for _, ends in chosen for key in ends if key is not None} & state.workloads.keys())
        view = _view(state, keys, ())
        rules = explain.host_rules(self._options())
        return asked.ConnectionsReply(
            node=self._node,
            rev=self._plane.progress.rev,
            tracked=tracked,
            total=total,
            connections=tuple(_tell(one, ends, view, rules) for one, ends in chosen),
        )


def _view(state: NodeState, keys: Sequence[WorkloadKey], hosts: Sequence[str]) -> NodeView:
    whole = NodeView(
        workloads=state.workloads, hosts=state.hosts, policies=state.policies, profiles=state.profiles, ipsets={}
    )
    return explain.part_of_view(whole, keys, hosts, state.sets)  # type: ignore[arg-type]  # sets that change, read only


# --- in a thread of their own -----------------------------------------------------------------------------------------


def _trace(request: asked.TraceRequest, held: Held) -> tuple[asked.Answer, ...]:
    netlink = NetlinkSocket(NETLINK_ROUTE)
    kernel = _Kernel(held.known) if request.kernel else None
    try:
        names = {link.index: link.name for link in list_links(netlink)}
        return tuple(_answer(one, request, held, kernel, netlink, names) for one in request.questions)
    finally:
        netlink.close()
        if kernel is not None:
            kernel.close()


def _answer(
    question: asked.Question,
    request: asked.TraceRequest,
    held: Held,
    kernel: _Kernel | None,
    netlink: NetlinkSocket,
    names: Mapping[int, str],
) -> asked.Answer:
    packet, sender, receiver = question.packet, question.sender, question.receiver
    try:
        for place in (sender, receiver):
            if place.workload and WorkloadKey.parse(place.workload) not in held.view.workloads:
                return asked.Answer(error=f"workload endpoint {place.workload} is not on this node (yet)")
        ways = Ways(
            _interface(sender, packet.src, held.view, netlink, names),
            _interface(receiver, packet.dst, held.view, netlink, names),
        )
        here = explain.side(sender, ways.incoming, held.guards), explain.side(receiver, ways.outgoing, held.guards)
        steps = walk(held.view, packet, *here, held.rules, staged=request.staged, before=question.before)
        verdict = None if kernel is None else kernel.judge(question, ways, steps)
    except (ValueError, OSError) as error:
        return asked.Answer(error=str(error))
    return asked.Answer(
        steps=tuple(steps),
        allowed=allowed(steps, staged=request.staged),
        kernel=verdict,
        incoming=ways.incoming,
        outgoing=ways.outgoing,
    )


def _interface(
    place: asked.Place, address: str, view: NodeView, netlink: NetlinkSocket, names: Mapping[int, str]
) -> str:
    """Of a workload its own, of the outside the one that the route to the address leads to. "" without a route."""
    if place.here:
        return ""
    if place.workload:
        workload: Workload = view.workloads[WorkloadKey.parse(place.workload)]
        return workload.name
    route = lookup(netlink, ip_address(address))
    return names.get(route.hops[0].oif, "") if route is not None and route.hops else ""


class _Kernel:
    """Both tables as they are now; each is read when it is first asked for."""

    def __init__(self, known: Mapping[int, Iterable[Rule]]) -> None:
        self._known = known
        self._ruleset = KernelRuleset()
        self._tables: dict[int, ReadBack] = {}
        self._counters: dict[tuple[Table, str], dict[int, tuple[int, int]]] = {}

    def close(self) -> None:
        self._ruleset.close()

    def judge(self, question: asked.Question, ways: Ways, steps: Sequence[Step]) -> asked.KernelVerdict:
        version = ip_address(question.packet.src).version
        table = TABLES[version]
        try:
            if version not in self._tables:
                self._tables[version] = ReadBack(table, self._ruleset.read(table), self._known[version])
            read = self._tables[version]
            if not read.exists:
                return asked.KernelVerdict(accepted=True, unknown=f"there is no table {table}")
            verdict, fired = explain.judge(
                read, question.packet, question.sender, ways, steps, here=question.receiver.here, before=question.before
            )
            rules = tuple(self._counted(table, one, rule) for one, rule in zip(fired, verdict.rules, strict=True))
        except OSError as error:
            return asked.KernelVerdict(accepted=None, unknown=f"the ruleset could not be read: {error}")
        return msgspec.structs.replace(verdict, rules=rules)

    def _counted(self, table: Table, fired: Fired, rule: asked.KernelRule) -> asked.KernelRule:
        place = table, fired.chain
        if place not in self._counters:
            self._counters[place] = self._ruleset.counters(table, fired.chain)
        seen = self._counters[place].get(fired.handle)
        return rule if seen is None else msgspec.structs.replace(rule, packets=seen[0], octets=seen[1])


def _routes(families: Iterable[int]) -> tuple[list[Route], dict[int, str]]:
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        names = {link.index: link.name for link in list_links(netlink)}
        return list_all_routes(netlink, [version for version in families if version in TABLES]), names
    finally:
        netlink.close()


Ends = tuple[WorkloadKey | None, WorkloadKey | None]


def _connections(
    request: asked.ConnectionsRequest, owners: Mapping[IPv4Address | IPv6Address, WorkloadKey], limit: int
) -> tuple[int, int, list[tuple[conntrack.Connection, Ends]]]:
    """How many there are, how many of them are asked for, and the first of these with their local ends."""
    asked_for = request.protocol
    protocol = protocol_number(int(asked_for) if asked_for.isdecimal() else asked_for) if asked_for else None
    address = ip_address(request.address) if request.address else None
    tracked = total = 0
    chosen: list[tuple[conntrack.Connection, Ends]] = []
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for one in conntrack.list_connections(netlink):
            tracked += 1
            ends = owners.get(one.original.src), owners.get(one.reply.src)
            first = one.original
            if ends == (None, None):
                continue
            if request.workload and request.workload not in {key.workload for key in ends if key is not None}:
                continue
            if address is not None and address not in (first.src, first.dst, one.reply.src, one.reply.dst):
                continue
            if protocol is not None and first.protocol != protocol:
                continue
            if request.port and request.port not in (first.src_port, first.dst_port, one.reply.src_port):
                continue
            total += 1
            if len(chosen) < limit:
                chosen.append((one, ends))
    finally:
        netlink.close()
    return tracked, total, chosen


def _tell(one: conntrack.Connection, ends: Ends, view: NodeView, rules: HostRules) -> asked.Connection:
    first, back = one.original, one.reply
    protocol = NAMES.get(first.protocol, str(first.protocol))
    sides = [key if key in view.workloads else None for key in ends]
    packet = Packet(
        src=str(first.src),
        dst=str(back.src),  # policy sees where translation led
        protocol=NAMES.get(first.protocol, first.protocol),
        src_port=first.src_port,
        dst_port=back.src_port,
        icmp_type=first.icmp_type,
        icmp_code=first.icmp_code,
    )
    steps = walk(view, packet, Side(workload=sides[0]), Side(workload=sides[1]), rules)
    return asked.Connection(
        protocol=protocol,
        src=str(first.src),
        dst=str(first.dst),
        src_port=first.src_port,
        dst_port=first.dst_port,
        state=one.state,
        replied=one.replied,
        expires_s=one.expires_s,
        translated_src="" if back.dst == first.src else str(back.dst),
        translated_dst="" if back.src == first.dst else str(back.src),
        translated_dst_port=0 if back.src_port == first.dst_port else back.src_port,
        source="" if ends[0] is None else ends[0].workload,
        destination="" if ends[1] is None else ends[1].workload,
        steps=tuple(steps),
    )
