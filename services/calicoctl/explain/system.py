"""`calicoctl status`: every component that can be heard or asked, its version, how far it is behind the datastore.

etcd tells the revision of the last change of anything of Calico's (its own revision counts everybody's); each typha
beats once a second, as each apiserver does; each node's felix and BGP speaker are asked (libs/bus/explain.py,
libs/bus/bgp.py); who leads among kube-controllers stands in etcd. Typhas and nodes lag by what they have not reached of
that revision, or of the newest one that a typha has reached meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from libs.bus import Bus, BusError, Msg, compat, subjects, wire
from libs.bus import explain as asked
from libs.bus.apiserver import ApiserverBeat
from libs.bus.bgp import PeerState
from libs.bus.bgp import State as BgpState
from libs.bus.explain import State
from libs.model import keys
from libs.store.api import Store
from services.calicoctl.documents import Json
from services.calicoctl.explain import asking
from services.calicoctl.output import boxed
from services.calicoctl.status import gather_bgp

BEATS_S = 2.5  # how long typhas and apiservers are listened to: two beats and a bit
STALE_ETCD_S = 15.0  # a typha that has not heard from etcd for so long is not followed
ELECTION_KEYS = {"kube-controllers": "/calico/election/v1/kube-controllers"}
HEADINGS = ["COMPONENT", "WHERE", "VERSION", "SINCE", "REVISION", "LAG", "STATUS"]
ASK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Row:
    """One component. lag: revisions behind; None where that means nothing. good: nothing is missing or late."""

    component: str
    where: str
    status: str
    version: str = ""
    since: str = ""
    revision: int | None = None
    lag: int | None = None
    good: bool = True


@dataclass(slots=True)
class Seen:
    """What was heard and answered. etcd: (revision, version). changed: revision of Calico's last change that is still
    to be seen. leaders: component -> holder.
    """

    etcd: tuple[int, str] | None = None
    changed: int = 0
    beats: dict[str, wire.Beat] = field(default_factory=dict)
    apiservers: dict[str, ApiserverBeat] = field(default_factory=dict)
    felix: dict[str, State | str] = field(default_factory=dict)
    bgp: dict[str, BgpState] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)
    bus: str = ""

    @property
    def newest(self) -> int:
        return max(self.changed, *(beat.rev for beat in self.beats.values()), 0)


async def of_store(store: Store, seen: Seen) -> None:
    status = await store.status()
    seen.etcd = status.revision, status.version
    listing = await store.list(keys.PREFIX, keys_only=True)
    seen.changed = max((kv.mod_revision for kv in listing.kvs), default=0)
    for component, key in ELECTION_KEYS.items():
        held = await store.get(key)
        if held is not None:
            with contextlib.suppress(ValueError, AttributeError):
                seen.leaders[component] = str(json.loads(held.value).get("holder", ""))


async def of_bus(bus: Bus, nodes: Sequence[str], seen: Seen, timeout_s: float) -> None:
    """Waits for late nodes until they have caught up or the time is up. Raises BusError."""
    beating = asyncio.create_task(_beats(bus, seen), name="beats")
    try:
        seen.bgp = await gather_bgp(bus, nodes, timeout_s)
        await beating
        newest = seen.newest
        if nodes:  # a node whose revision passed it by says so when its typha marks it
            bus.publish(subjects.TYPHA_MARK, wire.encode(wire.MarkRequest(rev=newest, nodes=list(nodes))))
        end = asyncio.get_running_loop().time() + timeout_s
        await asyncio.gather(*(_felix(bus, node, newest, seen, end) for node in nodes))
    finally:
        beating.cancel()


async def _beats(bus: Bus, seen: Seen) -> None:
    def heard(message: Msg) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            beat = wire.decoder(wire.Beat).decode(message.data)
            seen.beats[beat.epoch.instance] = beat

    def heard_apiserver(message: Msg) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            beat = wire.decoder(ApiserverBeat).decode(message.data)
            seen.apiservers[beat.instance] = beat

    subscriptions = [
        bus.subscribe(subjects.ALL_BEATS, heard),
        bus.subscribe(subjects.APISERVER_BEATS, heard_apiserver),
    ]
    try:
        await asyncio.sleep(BEATS_S)
    finally:
        for subscription in subscriptions:
            subscription.unsubscribe()


async def _felix(bus: Bus, node: str, newest: int, seen: Seen, end: float) -> None:
    now = asyncio.get_running_loop().time
    while True:
        try:
            left_s = max(0.1, end - now())
            state = await asking.ask(bus, node, asked.Verb.STATE, asked.StateRequest(), State, left_s)
            seen.felix[node] = state
            if state.rev >= newest or now() >= end:
                return
        except (BusError, msgspec.MsgspecError) as error:
            seen.felix[node] = asking.reason(error)
            return
        await asyncio.sleep(ASK_AGAIN_S)


def rows(seen: Seen, nodes: Sequence[str], cluster_version: str = "") -> list[Row]:
    """cluster_version: of the resources' own word, for the datastore's row."""
    found = []
    if seen.etcd is not None:
        revision, version = seen.etcd
        found.append(Row("etcd", "", "answers", version, revision=revision))
    if cluster_version:
        found.append(Row("cluster", "", "by ClusterInformation", cluster_version))
    if seen.bus:
        found.append(Row("bus", "", seen.bus, good=False))
    newest = seen.newest
    for instance, beat in sorted(seen.beats.items()):
        stale = beat.etcd_age_s > STALE_ETCD_S
        status = f"etcd last heard {beat.etcd_age_s:.0f} s ago" if stale else "beats"
        if beat.protocol != compat.PROTOCOL:
            status += f", protocol {beat.protocol}"
        found.append(
            Row("typha", instance, status, beat.version, _since(beat.epoch.started_ns), beat.rev, newest - beat.rev,
                good=not stale and beat.rev == newest)
        )  # fmt: skip
    if not seen.beats and not seen.bus:
        found.append(Row("typha", "", "no typha is heard", good=False))
    found += [
        Row("apiserver", instance, one.problem or "serves", one.version, one.started, one.rev or None,
            good=not one.problem)
        for instance, one in sorted(seen.apiservers.items())
    ]  # fmt: skip
    found += [_felix_row(node, seen.felix.get(node, "not asked"), newest) for node in nodes]
    found += [_bgp_row(node, state) for node, state in sorted(seen.bgp.items())]
    for component, holder in sorted(seen.leaders.items()):
        found.append(Row(component, holder, "leads"))
    return found


def _felix_row(node: str, state: State | str, newest: int) -> Row:
    if isinstance(state, str):
        return Row("felix", node, state, good=False)
    if state.error:
        return Row("felix", node, state.error, good=False)
    lag = max(0, newest - state.rev)
    failing = len(state.failures)
    problems = [
        *([f"{failing} failure{'s' if failing > 1 else ''}"] if failing else []),
        *([state.phase] if state.phase != "following" else []),
    ]
    status = ", ".join(problems) or ("behind" if lag else "up to date")
    return Row("felix", node, status, state.version, state.started, state.rev, lag, good=not problems and not lag)


def _bgp_row(node: str, state: BgpState) -> Row:
    """A session that is down is told, and is no fault of the node."""
    up = sum(peer.state is PeerState.ESTABLISHED for peer in state.peers)
    status = f"{up} of {len(state.peers)} sessions established"
    resources = [problem if name == "typha" else name for name, problem in state.problems.items()]
    problems = [*([state.detail or "not ready"] if not state.ready else []), *resources]
    if problems:
        status += f"; {', '.join(problems)}"
    return Row("bgp", node, status, state.version, state.started, good=not problems)


def _since(started_ns: int) -> str:
    return datetime.fromtimestamp(started_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")


def text(found: Sequence[Row], seen: Seen) -> str:
    told = boxed([HEADINGS, *map(_cells, found)], right=frozenset({4, 5}))
    for node, state in sorted(seen.felix.items()):
        if isinstance(state, State):
            told += "".join(f"{node}: {name}: {why}\n" for name, why in sorted(state.failures.items()))
            told += "".join(f"{node}: without effect: {warning}\n" for warning in state.warnings)
    return told


def _cells(row: Row) -> list[str]:
    lag = "" if row.lag is None else str(row.lag)
    return [row.component, row.where, row.version, row.since, str(row.revision or ""), lag, row.status]


def document(found: Sequence[Row], seen: Seen) -> Json:
    """Rows, with failures and warnings of nodes beside them."""
    components: list[Json] = []
    for row in found:
        one: dict[str, Json] = {"component": row.component, "good": row.good, "status": row.status}
        more: Mapping[str, Json] = {
            "where": row.where, "version": row.version, "since": row.since, "revision": row.revision, "lag": row.lag,
        }  # fmt: skip
        one |= {name: value for name, value in more.items() if value not in ("", None)}
        state = seen.felix.get(row.where) if row.component == "felix" else None
        if isinstance(state, State):
            one |= {"failures": dict(state.failures), "warnings": list(state.warnings)}
        components.append(one)
    return {"good": all(row.good for row in found), "components": components}
