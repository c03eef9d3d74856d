"""Writes the status of this node's CalicoNodeStatus objects, each in its own period.

The BGP speaker is asked over the bus when a status is due, once for all that are. A status says NotReady when it does
not answer: also that is news, so it is written on time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

import msgspec

from libs.bus import Bus, BusError, wire
from libs.bus.bgp import State, StateRequest, state_subject
from libs.model import CalicoNodeStatus
from libs.model.base import Resource
from libs.model.bgp import CalicoNodeStatusSpec
from libs.resources.client import MAX_TRIES, ResourceClient
from libs.resources.codec import timestamp
from libs.resources.errors import Conflict, NotFound, ResourceError
from libs.resources.mirror import Mirror
from libs.runtime.health import Reporter
from libs.store.api import Store, StoreError
from services.node.core.status import ROUTES, status_of

log = logging.getLogger(__name__)

RETRY_S = 1.0


class StatusReporter:
    """now: wall clock, for what is written."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        node: str,
        random: Random,
        *,
        bgp_timeout_s: float = 5.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._node = node
        self._timeout_s = bgp_timeout_s
        self._now = now
        self._resources = ResourceClient(store)
        self._mirror = Mirror(store, {CalicoNodeStatus.kind}, self._on_change, random, keep=self._is_mine)
        self._changed = asyncio.Event()
        self._due: dict[str, tuple[CalicoNodeStatusSpec, float]] = {}  # name -> what it asks for, when it is due

    @property
    def mirrored(self) -> int:
        """Revision up to which we have seen what others, and we, wrote."""
        return self._mirror.revision

    async def run(self, health: Reporter) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run(), name="mirror")
            tasks.create_task(self._report(health), name="report")

    def _is_mine(self, resource: Resource) -> bool:
        """Every node's objects are written in their periods, with all of its routes."""
        return isinstance(resource, CalicoNodeStatus) and resource.spec.node == self._node

    def _on_change(self, kinds: frozenset[str]) -> None:
        self._changed.set()

    async def _report(self, health: Reporter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            self._take(clock())
            due = [name for name, (_, at) in self._due.items() if at <= clock()]
            if due:
                failures = await self._write(due)
                for name in due:
                    spec, at = self._due[name]
                    period_s = RETRY_S if name in failures else float(spec.update_period_seconds or 0)
                    self._due[name] = (spec, max(at + period_s, clock()))
                said = "; ".join(f"{name}: {why}" for name, why in failures.items())
                health.report(detail=said or f"{len(self._due)} statuses")
            else:
                health.report(detail=f"{len(self._due)} statuses")
            wait_s = min((at for _, at in self._due.values()), default=None)
            try:
                async with asyncio.timeout_at(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _take(self, now: float) -> None:
        """One that is new or asks for something else is due at once; our own writes change nothing."""
        wanted = {
            one.metadata.name: one.spec for one in self._mirror.of(CalicoNodeStatus) if one.spec.update_period_seconds
        }
        for name in self._due.keys() - wanted.keys():
            del self._due[name]
        for name, spec in wanted.items():
            if name not in self._due or self._due[name][0] != spec:
                self._due[name] = (spec, now)

    async def _write(self, names: list[str]) -> dict[str, str]:
        """What could not be written, and why."""
        state = await self._ask(routes=any(ROUTES in self._due[name][0].classes for name in names))
        failures = {}
        for name in names:
            try:
                await self._write_one(name, state)
            except NotFound:
                continue  # the mirror will say so
            except (StoreError, ResourceError) as error:
                failures[name] = str(error)
                log.warning("status not written, trying again", extra={"status": name, "error": str(error)})
        return failures

    async def _write_one(self, name: str, state: State | None) -> None:
        """Raises NotFound, StoreError, ResourceError."""
        for _ in range(MAX_TRIES):
            found = await self._resources.get(CalicoNodeStatus.kind, name)
            assert isinstance(found, CalicoNodeStatus)
            if found.spec.node != self._node:
                return
            status = status_of(found.spec.classes, state, timestamp(self._now()))
            try:
                await self._resources.update(msgspec.structs.replace(found, status=status))
                return
            except Conflict as error:
                last = error
        raise last

    async def _ask(self, *, routes: bool) -> State | None:
        request = wire.encode(StateRequest(routes=routes))
        try:
            answer = await self._bus.request(state_subject(self._node), request, self._timeout_s)
            state: State = wire.decoder(State).decode(answer.data)
        except (BusError, msgspec.MsgspecError) as error:
            log.debug("the BGP speaker did not tell its state", extra={"error": str(error) or type(error).__name__})
            return None
        left_out = sum(state.route_count.values()) - len(state.routes)
        if routes and left_out > 0:
            log.warning("the status does not hold all routes", extra={"left_out": left_out})
        return state
