"""From what the calculation changed to what goes on the bus: pure, single-threaded, no I/O.

Contents (rules, members, tables) go once to shared streams, whoever follows them. Then every reader that the change
concerns gets one commit on its own subject, naming the seqs it needs and the endpoints that changed; contents it newly
follows ride along when small. Only registered readers (who took a snapshot and still report) get commits, so a
cluster of pretend nodes costs nothing. Sequence numbers of a stream go on for the life of the process, also while
nobody follows it.

Readers of different roles on one node (felix, bgp) have nothing in common but the node's name: each has its own
commits, its own place, its own life.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from libs.bus import subjects, wire
from libs.bus.subjects import Role
from libs.policy.calculator import Calculator
from libs.policy.changes import Changes, NodeChange
from libs.policy.output import PolicyKey

INLINE_BYTES = 16_384
MESSAGE_BYTES = (
    400_000  # NATS refuses 1 MB; a larger commit is replaced by a mark, which makes the reader take a snapshot
)
SINGLE_BYTES = (
    900_000  # a larger message on a shared stream is left out: the commit that needs it makes readers fetch it
)
SET_CHUNK = 8_000  # members per message
TABLE_CHUNK = 1_000  # entries per message
REMEMBERED_FLUSHES = 20_000
REMEMBERED_MARKS = 10_000  # wishes for revisions that have not been reached
READER_TIMEOUT_S = 45.0
LAG_S = 1.0
LAG_MAX_S = 10.0

Outgoing = tuple[str, bytes]


@dataclass(slots=True)
class Reader:
    """A service of a node that follows this instance."""

    role: Role = Role.FELIX
    seq: int = 0
    streams: set[str] = field(default_factory=set)
    seen_at: float = 0.0
    applied_seq: int = -1
    confirmed: bool = False  # it has reported since its last snapshot
    applied_rev: int = 0
    sent_at: float = 0.0
    remind_s: float = LAG_S


@dataclass(frozen=True, slots=True)
class Concern:
    """Whom the revisions from `first` on concern. speakers: None stands for all."""

    first: int
    nodes: frozenset[str]
    speakers: frozenset[str] | None


class Publisher:
    def __init__(self, epoch: wire.Epoch, calculator: Calculator) -> None:
        self.epoch = epoch
        self.rev = 0
        self.readers: dict[str, Reader] = {}  # felixes by node
        self.speakers: dict[str, Reader] = {}
        self.config: dict[str, msgspec.Raw] = {}
        self.messages = 0
        self.bytes = 0
        self.registered = 0  # readers, counted each time
        self.reused = 0  # contents that did not have to be encoded again
        self._calculator = calculator
        self._seqs: dict[str, int] = {}
        self._node_seqs: dict[tuple[Role, str], int] = {}  # of forgotten readers: their streams must not start again
        self._encoded: dict[str, wire.StreamState] = {}
        self._followers: dict[str, set[str]] = {}  # stream of one policy, set or node -> nodes
        self._concerned: OrderedDict[int, Concern] = OrderedDict()  # by the last revision
        self._marks: list[tuple[int, tuple[str, ...]]] = []

    # --- publishing ---

    def publish(self, changes: Changes, config: dict[str, msgspec.Raw | None], rev: int, now: float) -> list[Outgoing]:
        """Messages that carry `changes`, all of etcd's revisions up to `rev`, in the order in which they must be
        sent.
        """
        first, self.rev = self.rev + 1, rev
        for key, value in config.items():
            if value is None:
                self.config.pop(key, None)
            else:
                self.config[key] = value
        out: list[Outgoing] = []
        out += self._policies(changes)
        out += self._sets(changes)
        tables = self._tables(changes, config, out)
        local = self._local(changes, out)
        for_all = {stream: seq for stream, seq in tables.items() if stream in subjects.SHARED[Role.FELIX]}
        concerned = frozenset(self.all_nodes() if for_all else changes.nodes)
        for node in concerned:
            reader = self.readers.get(node)
            if reader is not None:
                out.append(self._commit(node, reader, changes.nodes.get(node), for_all, now))
        for_speakers = {stream: seq for stream, seq in tables.items() if stream in subjects.SHARED[Role.BGP]}
        speakers = None if for_speakers else frozenset(local)
        for node in self.speakers if speakers is None else speakers:
            reader = self.speakers.get(node)
            if reader is not None:
                out.append(self._commit(node, reader, None, for_speakers | local.get(node, {}), now))
        if (concerned or speakers != frozenset()) and rev >= first:
            # not when only a node became known: that is nobody's change
            self._concerned[rev] = Concern(first, concerned, speakers)
            while len(self._concerned) > REMEMBERED_FLUSHES:
                self._concerned.popitem(last=False)
        out += self._due_marks(now)
        return self._count(out)

    def _policies(self, changes: Changes) -> Iterator[Outgoing]:
        for key, policy in changes.policies.items():
            stream = subjects.policy_stream(str(key))
            seq = self._bump(stream)
            if policy is not None and stream in self._followers:
                yield from self._message(stream, wire.PolicyMsg(**self._envelope(seq), policy=policy))
        for name, profile in changes.profiles.items():
            stream = subjects.policy_stream(f"pro/{name}")
            seq = self._bump(stream)
            if profile is not None and stream in self._followers:
                yield from self._message(stream, wire.PolicyMsg(**self._envelope(seq), profile=profile))

    def _sets(self, changes: Changes) -> Iterator[Outgoing]:
        for set_id, change in changes.ipsets.items():
            stream = subjects.ipset_stream(set_id)
            if change.deleted or change.created is not None or stream not in self._followers:
                self._bump(stream)
                continue
            added, removed = sorted(change.added), sorted(change.removed)
            for start in range(0, max(len(added), len(removed)), SET_CHUNK):
                part = slice(start, start + SET_CHUNK)
                seq = self._bump(stream)
                message = wire.SetMsg(**self._envelope(seq), added=added[part], removed=removed[part])
                yield from self._message(stream, message)

    def _tables(self, changes: Changes, config: dict[str, msgspec.Raw | None], out: list[Outgoing]) -> dict[str, int]:
        """Publish changes of the tables that all readers of a role follow; stream -> seq."""
        needs: dict[str, int] = {}
        for stream, column, entries in (
            ("route.blocks", "blocks", list(wire.block_rows(changes.blocks).items())),
            ("route.nodes", "nodes", list(changes.node_infos.items())),
            ("route.pools", "pools", list(changes.pools.items())),
            (
                subjects.CONFIG_STREAM,
                "config",
                [(key, wire.NULL if raw is None else raw) for key, raw in config.items()],
            ),
            (subjects.BGP_STREAM, "bgp", list(changes.bgp.items())),
            (subjects.SERVICE_STREAM, "services", list(changes.services.items())),
        ):
            heard = bool(self.speakers) or stream in subjects.SHARED[Role.FELIX]
            for start in range(0, len(entries), TABLE_CHUNK):
                seq = needs[stream] = self._bump(stream)
                message = wire.TableMsg(**self._envelope(seq))
                setattr(message, column, dict(entries[start : start + TABLE_CHUNK]))
                out += self._message(stream, message) if heard else ()
        return needs

    def _local(self, changes: Changes, out: list[Outgoing]) -> dict[str, dict[str, int]]:
        """Publish what concerns the speaker of one node; node -> its stream -> seq."""
        needs: dict[str, dict[str, int]] = {}
        for node, entries in changes.local.items():
            stream = subjects.local_stream(node)
            seq = self._bump(stream)
            needs[node] = {stream: seq}
            if node in self.speakers:
                out += self._message(stream, wire.TableMsg(**self._envelope(seq), local=dict(entries)))
        return needs

    def _commit(
        self, node: str, reader: Reader, change: NodeChange | None, tables: dict[str, int], now: float
    ) -> Outgoing:
        commit = wire.Commit(**self._envelope(reader.seq + 1), needs=dict(tables))
        if change is not None:
            added = [
                *(subjects.policy_stream(str(key)) for key in change.policies_added),
                *(subjects.policy_stream(f"pro/{name}") for name in change.profiles_added),
                *(subjects.ipset_stream(set_id) for set_id in change.sets_added),
            ]
            removed = [
                *(subjects.policy_stream(str(key)) for key in change.policies_removed),
                *(subjects.policy_stream(f"pro/{name}") for name in change.profiles_removed),
                *(subjects.ipset_stream(set_id) for set_id in change.sets_removed),
            ]
            changed = [
                *(subjects.policy_stream(str(key)) for key in change.policies_changed),
                *(subjects.policy_stream(f"pro/{name}") for name in change.profiles_changed),
                *(subjects.ipset_stream(set_id) for set_id in change.sets_changed),
            ]
            self._follow(node, reader, added, removed)
            budget = MESSAGE_BYTES // 2
            for stream in added:
                state = self.state_of(stream)
                fits = state is not None and len(state.content) <= min(INLINE_BYTES, budget)
                commit.add[stream] = state if fits else None
                if not fits:
                    commit.needs[stream] = self._seqs[
                        stream
                    ]  # a reader that had it once must not take the old for the new
                budget -= len(state.content) if fits and state is not None else 0
            commit.remove = removed
            for stream in changed:
                commit.needs[stream] = self._seqs[stream]
            commit.workloads = {str(key): workload for key, workload in change.workloads.items()}
            commit.hosts = dict(change.hosts)
        reader.seq += 1
        reader.sent_at, reader.remind_s = now, LAG_S
        data = wire.encode(commit)
        if len(data) > MESSAGE_BYTES:
            return self._mark(node, reader)  # a seq ahead of what it has: the reader takes a snapshot, in chunks
        return subjects.node_stream(self.epoch.instance, node, reader.role), data

    def _follow(self, node: str, reader: Reader, added: Iterable[str], removed: Iterable[str]) -> None:
        for stream in removed:
            reader.streams.discard(stream)
            followers = self._followers.get(stream)
            if followers is not None:
                followers.discard(node)
                if not followers:
                    del self._followers[stream]
        for stream in added:
            reader.streams.add(stream)
            self._followers.setdefault(stream, set()).add(node)

    # --- marks: proof of a revision, and finder of lost tails ---

    def want_mark(self, rev: int, nodes: Iterable[str], now: float) -> list[Outgoing]:
        self._marks.append((rev, tuple(nodes)))
        del self._marks[:-REMEMBERED_MARKS]
        return self._count(self._due_marks(now))

    def remind(self, now: float) -> list[Outgoing]:
        """Marks for readers that have not confirmed what they were sent; forgets those that fell silent."""
        out: list[Outgoing] = []
        for node, reader in list(self.all_readers()):
            if now - reader.seen_at > READER_TIMEOUT_S:
                self.forget(node, reader.role)
            elif reader.applied_seq < reader.seq and now - reader.sent_at > reader.remind_s:
                reader.sent_at, reader.remind_s = now, min(LAG_MAX_S, reader.remind_s * 2)
                out.append(self._mark(node, reader))
        return self._count(out)

    def move(self, node: str, role: Role, instance: str) -> list[Outgoing]:
        """Ask a reader to follow another instance. It stays one of ours until it reports from there."""
        reader = self.readers_of(role).get(node)
        return [] if reader is None else self._count([self._mark(node, reader, instance)])

    def _due_marks(self, now: float) -> list[Outgoing]:
        due = [nodes for rev, nodes in self._marks if rev <= self.rev]
        if not due:
            return []
        self._marks = [(rev, nodes) for rev, nodes in self._marks if rev > self.rev]
        wanted = {node for nodes in due for node in nodes}
        everyone = not all(due)
        return [
            self._mark(node, reader)
            for node, reader in sorted(self.all_readers(), key=lambda item: item[0])
            if everyone or node in wanted
        ]

    def _mark(self, node: str, reader: Reader, follow: str = "") -> Outgoing:
        mark = wire.Mark(epoch=self.epoch, rev=self.rev, seq=reader.seq, follow=follow)
        return subjects.node_stream(self.epoch.instance, node, reader.role), wire.encode(mark)

    # --- readers ---

    def readers_of(self, role: Role) -> dict[str, Reader]:
        return self.speakers if role is Role.BGP else self.readers

    def all_readers(self) -> Iterator[tuple[str, Reader]]:
        for role in Role:
            yield from self.readers_of(role).items()

    def applied(self, report: wire.Applied, now: float, role: Role = Role.FELIX) -> list[Outgoing]:
        """Note what a reader says it holds. One that was forgotten meanwhile is told that it missed something; one that
        follows another typha by now is forgotten. Just after a snapshot it may still report what it held before.
        """
        reader = self.readers_of(role).get(report.node)
        if report.epoch != self.epoch:
            if reader is not None and reader.confirmed and report.epoch is not None:
                self.forget(report.node, role)
            return []
        if reader is None:
            place = (role, report.node)
            seq = self._node_seqs[place] = self._node_seqs.get(place, 0) + 1
            return self._count([self._mark(report.node, Reader(role, seq=seq))])
        reader.seen_at, reader.confirmed = now, True
        reader.applied_seq = max(reader.applied_seq, report.seq)
        reader.applied_rev = max(reader.applied_rev, report.rev)
        return []

    def forget(self, node: str, role: Role = Role.FELIX) -> None:
        reader = self.readers_of(role).pop(node, None)
        if reader is not None:
            self._node_seqs[role, node] = reader.seq
            self._follow(node, reader, (), list(reader.streams))

    def snapshot(self, node: str, now: float, role: Role = Role.FELIX) -> wire.Snapshot:
        """Everything the reader of this role on `node` needs, and from now on it is one."""
        readers = self.readers_of(role)
        reader = readers.get(node)
        if reader is None:
            reader = readers[node] = Reader(role, seq=self._node_seqs.get((role, node), 0))
            self.registered += 1
        reader.seen_at, reader.confirmed = now, False
        snapshot = wire.Snapshot(rev=self.rev, seq=reader.seq, full=True)
        streams: set[str] = set()
        if role is Role.FELIX:
            view = self._calculator.view(node)
            streams = {
                *(subjects.policy_stream(str(key)) for key in view.policies),
                *(subjects.policy_stream(f"pro/{name}") for name in view.profiles),
                *(subjects.ipset_stream(set_id) for set_id in view.ipsets),
            }
            snapshot.workloads = {str(key): workload for key, workload in view.workloads.items()}
            snapshot.hosts = dict(view.hosts)
        self._follow(node, reader, streams - reader.streams, reader.streams - streams)
        states = {name: self.state_of(name) for name in (*sorted(streams), *subjects.standing_streams(role, node))}
        snapshot.streams = {name: state for name, state in states.items() if state is not None}
        return snapshot

    def some_streams(self, request: wire.SnapshotRequest) -> wire.Snapshot:
        """Contents of the streams asked for that are newer than what the reader has."""
        reader = self.readers_of(request.role).get(request.node, Reader(request.role))
        standing = subjects.standing_streams(request.role, request.node)
        answer = wire.Snapshot(rev=self.rev, seq=reader.seq, full=False)
        for name, have in request.streams.items():
            state = self.state_of(name) if name in reader.streams or name in standing else None
            if state is None:
                answer.gone.append(name)
            elif state.seq > have:
                answer.streams[name] = state
        return answer

    def state_of(self, stream: str) -> wire.StreamState | None:
        """Current content of a stream, encoded once per seq."""
        seq = self._seqs.setdefault(stream, 0)
        known = self._encoded.get(stream)
        if known is not None and known.seq == seq:
            self.reused += 1
            return known
        content = self._content(stream)
        if content is None:
            return None
        state = self._encoded[stream] = wire.StreamState(seq, msgspec.Raw(wire.encode(content)))
        return state

    def _content(self, stream: str) -> wire.Content | None:
        family, _, ident = stream.partition(".")
        calculator = self._calculator
        if stream == "route.blocks":
            rows = wire.block_rows(calculator.blocks)
            return wire.TableContent(blocks={cidr: row for cidr, row in rows.items() if row is not None})
        if stream == "route.nodes":
            return wire.TableContent(nodes=dict(calculator.node_infos))
        if stream == "route.pools":
            return wire.TableContent(pools=dict(calculator.pools))
        if stream == subjects.CONFIG_STREAM:
            return wire.TableContent(config=dict(self.config))
        if stream == subjects.BGP_STREAM:
            return wire.TableContent(bgp=dict(calculator.bgp.entries))
        if stream == subjects.SERVICE_STREAM:
            return wire.TableContent(services=dict(calculator.bgp.services))
        if family == "local":
            return wire.TableContent(local=dict(calculator.bgp.local.get(ident, {})))
        if family == "ipset":
            ipset = calculator.ipset(ident)
            return None if ipset is None else wire.SetContent(ipset.type, sorted(ipset.members))
        if ident.startswith("pro/"):
            profile = calculator.profiles.get(ident.removeprefix("pro/"))
            return None if profile is None else wire.ProfileContent(profile)
        policy = calculator.policies.get(PolicyKey.parse(ident))
        return None if policy is None else wire.PolicyContent(policy)

    # --- who is concerned ---

    def all_nodes(self) -> set[str]:
        return {*self._calculator.nodes, *self.readers}

    def concerns(self, rev: int, speaking: Iterable[str] = ()) -> wire.ConcernsReply:
        """Nodes that revision `rev` concerns. Call only once `rev` is published. speaking: nodes whose speaker is known
        to live, whichever typha it follows.
        """
        for last, concern in reversed(self._concerned.items()):
            if concern.first <= rev <= last:
                speakers = [node for node in speaking if concern.speakers is None or node in concern.speakers]
                return wire.ConcernsReply(rev=rev, nodes=sorted(concern.nodes), speakers=sorted(speakers))
            if last < rev:
                return wire.ConcernsReply(rev=rev)
        if len(self._concerned) < REMEMBERED_FLUSHES:
            return wire.ConcernsReply(rev=rev)
        return wire.ConcernsReply(rev=rev, nodes=sorted(self.all_nodes()), speakers=sorted(speaking), unknown=True)

    # --- small things ---

    def _bump(self, stream: str) -> int:
        seq = self._seqs[stream] = self._seqs.get(stream, 0) + 1
        self._encoded.pop(stream, None)
        return seq

    def _envelope(self, seq: int) -> Any:
        return {"epoch": self.epoch, "rev": self.rev, "seq": seq, "prev": seq - 1}

    def _message(self, stream: str, message: msgspec.Struct) -> list[Outgoing]:
        data = wire.encode(message)
        return [(subjects.of_stream(self.epoch.instance, stream), data)] if len(data) <= SINGLE_BYTES else []

    def _count(self, out: list[Outgoing]) -> list[Outgoing]:
        self.messages += len(out)
        self.bytes += sum(len(data) for _, data in out)
        return out
