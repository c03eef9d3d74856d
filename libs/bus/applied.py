"""Wait until every node that a change concerns has it in its kernel: `calicoctl --wait`, and CNI ADD for a pod's peers.

Order matters: who wants to hear of failures as well subscribes to the nodes' reports before writing, or the report of
a fast node is missed. After the writes, typha says which nodes each revision concerns; a node is done when it reports
an applied revision that is at least the highest one that concerns it. Nodes not heard of yet are asked to report again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec

from libs.bus import Bus, BusError, BusNoResponders, BusUnavailable, Msg, subjects, wire
from libs.bus.subjects import Role

NO_ANSWER_S = 5.0


class WaitProblem(Exception):
    """The writes stand, but it is not known that all nodes enforce them."""


@dataclass(slots=True)
class Progress:
    """Who has to reach which revision, and how far each has come. Pure: fed with reports in any order. A speaker counts
    apart from its node's felix, as `node1 (bgp)`.
    """

    wanted: dict[str, int] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)

    def concern(self, nodes: Iterable[str], revision: int, role: Role = Role.FELIX) -> None:
        for node in nodes:
            name = _party(node, role)
            self.wanted[name] = max(revision, self.wanted.get(name, 0))

    def heard(self, report: wire.Applied, role: Role = Role.FELIX) -> None:
        """An older report that arrives late changes nothing."""
        name = _party(report.node, role)
        if report.rev >= self.reached.get(name, 0):
            self.reached[name] = report.rev
            self.failures[name] = report.failures

    def missing(self) -> list[str]:
        return sorted(node for node, revision in self.wanted.items() if self.reached.get(node, 0) < revision)

    def failed(self) -> list[str]:
        """`node2: ipset s:abc: no space left`, of the nodes concerned."""
        return [
            f"{node}: {name}: {reason}"
            for node in sorted(self.wanted)
            for name, reason in sorted(self.failures.get(node, {}).items())
        ]


def _party(node: str, role: Role) -> str:
    return node if role is Role.FELIX else f"{node} ({role})"


class Waiter:
    """Open from before the first write until all nodes have reported. Made by `listening`."""

    def __init__(self, bus: Bus, deadline: float) -> None:
        self.progress = Progress()
        self._bus = bus
        self._deadline = deadline
        self._news = asyncio.Event()

    def heard(self, message: Msg, role: Role = Role.FELIX) -> None:
        try:
            report = wire.decoder(wire.Applied).decode(message.data)
        except msgspec.MsgspecError:
            return  # a report of another version must not end the wait; that node will be named if it matters
        self.progress.heard(report, role)
        self._news.set()

    def ask_again(self) -> None:
        """Reports may have been missed while the bus was away: let typha mark those nodes, which makes them report."""
        if missing := self.progress.missing():
            highest = max(self.progress.wanted[name] for name in missing)
            nodes = sorted({name.partition(" ")[0] for name in missing})
            self._bus.publish(subjects.TYPHA_MARK, wire.encode(wire.MarkRequest(rev=highest, nodes=nodes)))

    async def until_applied(self, revisions: Iterable[int]) -> list[str]:
        """Wait for every node that these revisions concern; returns their names. A node that reports failures of
        objects is done, but the change may not be enforced there: that, too, raises WaitProblem.
        """
        await self.until_reached(revisions, speakers=True)
        if failed := self.progress.failed():
            raise WaitProblem("not everything could be programmed:\n  " + "\n  ".join(failed))
        return sorted({name.partition(" ")[0] for name in self.progress.wanted})

    async def until_reached(
        self,
        revisions: Iterable[int],
        *,
        leave_out: Collection[str] = (),
        only_alive: bool = False,
        speakers: bool = False,
    ) -> None:
        """leave_out: nodes that are not waited for. only_alive: nor are those that typha has not heard of lately.
        speakers: those that live must have the revision as well. Raises WaitProblem.
        """
        for revision in sorted(set(revisions)):
            reply = await self._concerned(revision)
            skipped = {*leave_out, *(reply.silent if only_alive else ())}
            self.progress.concern((node for node in reply.nodes if node not in skipped), revision)
            if speakers:
                self.progress.concern(reply.speakers, revision, Role.BGP)
        try:
            self.ask_again()
            async with asyncio.timeout_at(self._deadline):
                while self.progress.missing():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise WaitProblem(self._late()) from None
        except BusError as error:
            raise WaitProblem(f"written, but the bus is away: {error}") from error

    def _late(self) -> str:
        lines = [
            f"{node}: has revision {self.progress.reached[node]}, needs revision {self.progress.wanted[node]}"
            if node in self.progress.reached
            else f"{node}: no report, needs revision {self.progress.wanted[node]}"
            for node in self.progress.missing()
        ]
        return "timed out; written, but not known to be applied on:\n  " + "\n  ".join(lines)

    async def _ask(self, request: bytes, left_s: float) -> Msg:
        """Nobody answering may be the moment after a restart of NATS or typha: worth a few tries."""
        patience = asyncio.get_running_loop().time() + min(left_s, NO_ANSWER_S)
        while True:
            try:
                return await self._bus.request(subjects.TYPHA_CONCERNS, request, left_s)
            except (BusNoResponders, BusUnavailable):
                if asyncio.get_running_loop().time() > patience:
                    raise
                await asyncio.sleep(0.1)

    async def _concerned(self, revision: int) -> wire.ConcernsReply:
        left_s = self._deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise WaitProblem(f"timed out; written, but typha did not say which nodes revision {revision} concerns")
        request = wire.ConcernsRequest(rev=revision, timeout_s=left_s)
        unknown = f"written, but it is not known which nodes revision {revision} concerns"
        try:
            answer = await self._ask(wire.encode(request), left_s)
            reply: wire.ConcernsReply = wire.decoder(wire.ConcernsReply).decode(answer.data)
        except BusError as error:
            raise WaitProblem(f"{unknown}: no typha answers ({error or type(error).__name__})") from error
        except msgspec.MsgspecError as error:
            raise WaitProblem(f"{unknown}: typha's answer is not understood ({error})") from error
        if reply.error:
            raise WaitProblem(f"{unknown}: {reply.error}")
        return reply


@asynccontextmanager
async def listening(bus: Bus, timeout_s: float) -> AsyncIterator[Waiter]:
    """Subscribed to all reports, as the server has confirmed; the time limit runs from here. Raises BusError."""
    waiter = Waiter(bus, asyncio.get_running_loop().time() + timeout_s)
    subscriptions = [bus.subscribe(subjects.all_applied(role), partial(waiter.heard, role=role)) for role in Role]
    bus.on_reconnect.append(waiter.ask_again)
    try:
        await bus.barrier(min(timeout_s, 10.0))
        yield waiter
    finally:
        bus.on_reconnect.remove(waiter.ask_again)
        for subscription in subscriptions:
            subscription.unsubscribe()
