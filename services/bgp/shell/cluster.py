"""The speaker by the cluster's resources: typha's tables, the last good ones on disk, reports and events on the bus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from random import Random

import msgspec

from libs.bus import bgp as told
from libs.bus import compat, subjects, wire
from libs.bus.api import Bus, BusError, Msg
from libs.bus.subjects import Role
from libs.feed.feed import Apply, Phase
from libs.runtime.files import write_atomically
from libs.runtime.release import version
from services.bgp.core.hold import hold
from services.bgp.core.paths import network
from services.bgp.core.plan import plan
from services.bgp.core.rib.fib import FibChange, FibRoute
from services.bgp.core.saved import Saved, SavedError, decode, encode
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.tables import Tables
from services.bgp.shell.feed import TablesFeed

log = logging.getLogger(__name__)

REPORT_S = 10.0
CONNECT_S, ANSWER_S = 1.0, 1.0  # how long a start waits to hear which cluster this is
SAVE_PAUSE_S = 1.0  # in a storm of changes the disk is not written for each
EVENT_ROUTES = 100
FILE = "last-good.json"

Take = Callable[[SpeakerSettings], Awaitable[None]]


class Cluster:
    """take: settings into force. state: what the speaker tells when asked, None before it has settings. connected:
    returns once the bus is, raises BusError when that takes longer (seconds); None: it is.
    """

    def __init__(
        self,
        bus: Bus,
        node: str,
        *,
        router_id: str,
        cluster_ips: tuple[str, ...] = (),
        state_dir: Path,
        take: Take,
        state: Callable[[told.StateRequest], told.State | None],
        random: Random,
        connected: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.feed = TablesFeed(bus, node, self._on_tables, random)
        self.rev = 0
        self._bus, self._node, self._router_id, self._cluster_ips = bus, node, router_id, cluster_ips
        self._file = state_dir / FILE
        self._take, self._state = take, state
        self._connected = connected
        self._good: Tables | None = None  # in force
        self._good_cluster = 0  # etcd's cluster id that they are of; 0: not known
        self._heard_cluster = 0  # the same of what came last
        self._trying: Tables | None = None  # on their way there
        self._failed = False  # the last try: what is in force may be a part of it
        self._pending: tuple[Tables, dict[str, str], Apply] | None = None
        self._reported: tuple[Apply, dict[str, str]] | None = None
        self._news = asyncio.Event()
        self._unsaved = asyncio.Event()

    @property
    def phase(self) -> Phase:
        return self.feed.runner.feed.phase

    async def start_from_disk(self) -> bool:
        """False when nothing usable is saved: then there are no sessions before typha has been heard.

        What is saved may be of a cluster that this node has left, whose peers it must not meet again. So typha is asked
        which one this is; without an answer it counts, as it is for that case.
        """
        try:
            saved = decode(self._node, await asyncio.to_thread(self._file.read_bytes))
        except FileNotFoundError:
            return False
        except (OSError, SavedError) as error:
            log.error("last good input not used", extra={"file": str(self._file), "error": str(error)})
            return False
        if saved.cluster and (here := await self._ask_cluster()) not in (0, saved.cluster):
            log.warning(
                "last good input not used: it is of another cluster",
                extra={"file": str(self._file), "saved": f"{saved.cluster:x}", "here": f"{here:x}"},
            )
            return False
        try:
            await self._take(self._plan(saved.tables))
        except Exception:  # whatever it is: a service that starts again would only find the same file
            log.exception("last good input not used", extra={"file": str(self._file)})
            return False
        self.rev, self._good = saved.rev, saved.tables
        self._good_cluster = self._heard_cluster = saved.cluster
        log.info("started from the last good input", extra={"revision": self.rev})
        return True

    async def _ask_cluster(self) -> int:
        """etcd's cluster id, from any typha that answers soon; 0: none does."""
        request = wire.SnapshotRequest(
            node=self._node, role=Role.BGP, hello=True, protocol=compat.PROTOCOL, version=version()
        )
        try:
            if self._connected is not None:
                await self._connected(CONNECT_S)
            answer = await self._bus.request(subjects.any_snapshot(self._node), wire.encode(request), ANSWER_S)
            reply: wire.SnapshotReply = wire.decoder(wire.SnapshotReply).decode(answer.data)
        except (BusError, msgspec.DecodeError) as error:
            log.info("no typha tells which cluster this is", extra={"error": str(error)})
            return 0
        return reply.epoch.cluster

    async def run(self) -> None:
        subscription = self._bus.subscribe(told.state_subject(self._node), self._answer)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, work in (
                    ("feed", self.feed.runner.run()),
                    ("settings", self._apply_forever()),
                    ("report", self._report_forever()),
                    ("save", self._save_forever()),
                ):
                    tasks.create_task(work, name=name)
        finally:
            subscription.unsubscribe()

    def _on_tables(self, tables: Tables, apply: Apply, _: str | None) -> None:
        """The tables change under us at the next step: `hold` copies them."""
        newest = self._pending[0] if self._pending is not None else self._trying or self._good
        if self._heard_cluster not in (0, apply.epoch.cluster):
            log.warning("this is another cluster than before: nothing of that one is kept")
            newest = None
        elif self._pending is None and self._trying is None and self._good_cluster not in (0, apply.epoch.cluster):
            newest = None  # what came first of this one was not put in force
        self._heard_cluster = apply.epoch.cluster
        kept, problems = hold(tables, newest)
        self._pending = (kept, problems, apply)
        self._news.set()

    async def _apply_forever(self) -> None:
        """Only the newest counts: what came while the last was put in force is skipped. What cannot be put in force is
        reported, and neither kept nor saved: the last good settings stay until something changes."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._pending is None:
                continue
            (tables, held, apply), self._pending = self._pending, None
            if tables != self._good or self._failed:
                self._trying = tables
                try:
                    settings = self._plan(tables)
                    settings.problems.update(held)
                    await self._take(settings)
                except Exception as error:
                    self._failed = True
                    log.exception("settings not in force, the last good ones stay")
                    self._reported = (apply, {**held, "speaker": f"settings not in force: {error!r}"})
                    self._report()
                    continue
                finally:
                    self._trying = None
                self._good, self._good_cluster, self._failed = tables, apply.epoch.cluster, False
                self._unsaved.set()
                for name, problem in settings.problems.items():
                    log.warning("not in force", extra={"resource": name, "problem": problem})
                self._reported = (apply, settings.problems)
            else:
                if self._good_cluster != apply.epoch.cluster:
                    self._good_cluster = apply.epoch.cluster
                    self._unsaved.set()
                self._reported = (apply, {**(self._reported[1] if self._reported else {}), **held})
            self.rev = apply.rev
            self._report()

    def _plan(self, tables: Tables) -> SpeakerSettings:
        return plan(self._node, tables, router_id=self._router_id, cluster_ips=self._cluster_ips)

    def _report(self) -> None:
        if self._reported is not None:
            try:
                self.feed.report(*self._reported)
            except BusError as error:
                log.debug("not reported", extra={"error": str(error)})

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    async def _save_forever(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            assert self._good is not None
            data = encode(Saved(node=self._node, rev=self.rev, cluster=self._good_cluster, tables=self._good))
            try:
                await asyncio.to_thread(self._write, data)
            except OSError as error:
                log.error("last good input not saved", extra={"file": str(self._file), "error": str(error)})
            await asyncio.sleep(SAVE_PAUSE_S)

    def _write(self, data: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, data, mode=0o600)

    # --- what others may know ---

    def _answer(self, message: Msg) -> None:
        try:
            request = msgspec.json.decode(message.data or b"{}", type=told.StateRequest)
        except msgspec.MsgspecError as error:
            log.warning("request not understood", extra={"subject": message.subject, "error": str(error)})
            return
        found = self._state(request) or told.State(node=self._node, ready=False, detail="typha has not been heard yet")
        if refusal := self.feed.runner.feed.refusal:
            found = msgspec.structs.replace(found, problems={**found.problems, "typha": f"refused: {refusal}"})
        if message.reply:
            message.respond(msgspec.json.encode(found))

    def session_changed(self, peer: told.Peer) -> None:
        """A session came up, went down or is not wanted any more (Close)."""
        self._publish(subjects.bgp_peer(self._node, peer.name), peer)

    def routes_changed(self, changes: Sequence[FibChange]) -> None:
        """A slice of what the kernel got. Large ones are only counted: people read these, and there are rpcs."""
        few = changes if len(changes) <= EVENT_ROUTES else ()
        self._publish(
            subjects.bgp_route(self._node),
            told.RoutesChanged(
                node=self._node,
                count=len(changes),
                put={str(network(c.family, c.prefix)): _gateways(c.route) for c in few if c.route is not None},
                dropped=[str(network(c.family, c.prefix)) for c in few if c.route is None],
            ),
        )

    def _publish(self, subject: str, event: msgspec.Struct) -> None:
        if not self._bus.connected:
            return  # events are news: nobody wants them late
        try:
            self._bus.publish(subject, msgspec.json.encode(event))
        except BusError as error:
            log.debug("event not published", extra={"error": str(error)})


def _gateways(route: FibRoute) -> list[str]:
    return [str(ip_address(hop.address)) for hop in route.hops]
