"""How a service of a node follows typha: a sans-IO state machine. Messages and time in, actions out.

What flows in: commits and marks on the node's own subject, contents on shared streams, beats, answers to requests. What
flows out: subscriptions to keep, requests to make, and `Apply`: one atomic change of the node's desired state with the
revision it reaches.

The rules it keeps (design: docs/design/distribution.md):
- a gap in the node's own stream, a new epoch, a reconnect or a slow-consumer error leads to a snapshot, and the
  snapshot is compared with what is held: nothing flaps, nothing is deleted by mistake;
- a commit is applied when everything it needs has arrived, never in part; commits are applied in order, several at once
  if need be;
- contents fetched by request may be newer than the commit that asked: they wait for the commit that names them;
- a node never goes backwards, unless etcd itself did (another cluster id, or a typha with fresh contact to an etcd that
  did);
- what is not understood is never applied in part: the node keeps what it has, says why, and asks again now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from libs.bus import compat, subjects, wire
from libs.bus.compat import NotUnderstood
from libs.bus.subjects import Role
from libs.feed.delta import Delta, NodeState
from libs.feed.streams import apply_content, apply_message, followed, remove_stream, understood
from libs.policy.output import Host, Workload, WorkloadKey

MISSED_BEATS_S = 3.5
STALE_ETCD_S = 15.0
NEED_GRACE_S = (
    0.03  # the content usually arrives just before the commit that needs it; a lost one is fetched after this
)
ASK_AGAIN_S = 0.5
STUCK_S = 5.0
RETRY_S = (0.2, 3.0)
QUICK_RETRIES = 5  # refusals in a row: the typha that answers first need not be of our release while others are
REFUSED_RETRY_S = (10.0, 20.0)  # after these: somebody has to upgrade something


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribe:
    subject: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    subject: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Make this request; answer with `hello`, `snapshot`, `failed` or `refuse`. instance "" means whichever typha is
    free.
    """

    instance: str
    request: wire.SnapshotRequest


@dataclass(frozen=True, slots=True)
class Apply:
    """Bring the kernel from the last Apply to this one. The state stands at `rev` then, and the node stream at
    `seq`.
    """

    delta: Delta
    rev: int
    seq: int
    epoch: wire.Epoch


Action = Subscribe | Unsubscribe | Ask | Apply


class Phase(Enum):
    DISCOVERING = "looking for a typha"
    SYNCING = "waiting for a snapshot"
    FOLLOWING = "following"


@dataclass(slots=True)
class Stream:
    """One followed stream: `seq` is committed; `queue` chains on from it; `fetched` replaces it by newer content.

    fetched: (seq, content or None when no longer active, node seq at which that content is consistent).
    """

    seq: int = -1
    queue: deque[wire.StreamMessage] = field(default_factory=deque)
    fetched: tuple[int, wire.Content | None, int] | None = None
    asked_at: float = -1e9

    def received(self) -> int:
        if self.queue:
            return self.queue[-1].seq
        return self.fetched[0] if self.fetched else self.seq


class Feed:
    def __init__(self, node: str, random: Random, role: Role = Role.FELIX) -> None:
        self.node = node
        self.role = role
        self.state = NodeState()
        self.phase = Phase.DISCOVERING
        self.instance = ""
        self.epoch: wire.Epoch | None = None
        self.rev = 0  # of the last Apply
        self.seq = -1  # of the node stream, committed
        self.in_sync = False  # one snapshot was applied since start
        self.refused = 0  # snapshots older than what is applied
        self.refusal = ""  # why no typha is followed, when that is a matter of releases
        self.snapshots = 0
        self.etcd_age_s = 0.0
        self._random = random
        self._standing = subjects.standing_streams(role, node)
        self._streams: dict[str, Stream] = {}
        self._commits: deque[wire.Commit] = deque()
        self._early: dict[int, wire.Commit] = {}  # arrived while a snapshot is on its way
        self._mark: wire.Mark | None = None
        self._waiting_since: float | None = None
        self._last_beat = 0.0
        self._next_try = 0.0
        self._next_look = 0.0  # for a typha with fresher contact to etcd
        self._asked_at = 0.0
        self._rev_at = 0.0  # when `rev` was reached
        self._failures = 0
        self._refusals = 0  # in a row
        self._asking = False
        self._applied_cluster = 0

    # --- requests and their answers ---

    def start(self, now: float) -> list[Action]:
        self._last_beat = now
        return self._discover(now)

    def hello(self, reply: wire.SnapshotReply, now: float) -> list[Action]:
        """Some typha answered: follow it, unless the one we have is as good."""
        self._asking = False
        if why := compat.difference(reply.protocol, reply.version, f"typha {reply.epoch.instance}"):
            return self.refuse(why, now, looking=True)
        if self.phase is not Phase.DISCOVERING:
            if reply.epoch.instance == self.instance or reply.etcd_age_s > STALE_ETCD_S:
                return []
            if reply.rev < self.rev and self.etcd_age_s <= STALE_ETCD_S:
                return []  # we were asked to move, and can wait until it has what we hold
            self._streams_forget()
        actions = self._pin(reply.epoch, now)
        return [*actions, *self._ask_snapshot(now)]

    def snapshot(self, reply: wire.SnapshotReply, snapshot: wire.Snapshot, now: float) -> list[Action]:
        if snapshot.full:
            self._asking = False
        if reply.epoch.instance != self.instance:
            return []
        try:
            contents = _contents(snapshot.streams)
        except NotUnderstood as error:
            return self.refuse(_by(reply, error), now)
        if not snapshot.full:
            return self._some_streams(reply, snapshot, contents, now)
        if snapshot.rev < self.rev and not self._restored(reply):
            self.refused += 1
            self._failures += 1  # look for another one at once
            return self._back_off(now)
        self._failures = 0
        return self._install(reply, snapshot, contents, now)

    def failed(self, request: wire.SnapshotRequest, now: float) -> list[Action]:
        if request.streams:
            return []  # asked again by tick()
        self._asking = False
        if self.phase is Phase.FOLLOWING:
            return []  # only looked for a fresher typha
        return self._back_off(now)

    def refuse(self, why: str, now: float, *, looking: bool = False) -> list[Action]:
        """A typha and we do not understand each other. What was applied stays; nothing more is taken from that typha.

        looking: it was only asked who it is, which costs nothing while another one is followed or about to be.
        """
        self._asking = False
        if looking and self.phase is not Phase.DISCOVERING:
            return []
        self.refusal = why
        self._refusals += 1
        wait_s = RETRY_S if self._refusals <= QUICK_RETRIES else REFUSED_RETRY_S
        self._next_try = now + self._random.uniform(*wait_s)
        actions = self._leave()
        self.instance, self.epoch = "", None
        self._streams_forget()
        self.phase = Phase.DISCOVERING
        return actions

    @property
    def standing(self) -> str:
        """For people: the phase, or why it does not get on."""
        return f"refused: {self.refusal}" if self.refusal else self.phase.value

    def resync(self, now: float) -> list[Action]:
        """After a reconnect, a slow-consumer error or anything else that may have lost messages."""
        if self.phase is Phase.DISCOVERING:
            return []
        return self._ask_snapshot(now)

    # --- published messages ---

    def beat(self, beat: wire.Beat, now: float) -> list[Action]:
        if beat.epoch.instance != self.instance:
            return []
        self._last_beat = now
        self.etcd_age_s = beat.etcd_age_s
        if beat.epoch != self.epoch and self.phase is Phase.FOLLOWING:
            return self._ask_snapshot(now)
        return []

    def node_message(self, message: wire.NodeMessage, now: float) -> list[Action]:
        if self.epoch is None or message.epoch != self.epoch:
            if message.epoch.instance == self.instance and self.phase is Phase.FOLLOWING:
                return self._ask_snapshot(now)
            return []
        if isinstance(message, wire.Mark):
            if self._mark is None or message.rev >= self._mark.rev:
                self._mark = message
            if self.phase is Phase.FOLLOWING and message.seq > self._received_seq():
                return self._ask_snapshot(now)
            return [*self._advance(now), *self._move(message.follow, now)]
        if self.phase is not Phase.FOLLOWING:
            self._early[message.seq] = message
            return []
        received = self._received_seq()
        if message.seq <= received:
            return []
        if message.prev != received:
            self._early[message.seq] = message
            return self._ask_snapshot(now)
        return [*self._accept(message, now), *self._advance(now)]

    def stream_message(self, name: str, message: wire.StreamMessage, now: float) -> list[Action]:
        stream = self._streams.get(name)
        if stream is None or message.epoch != self.epoch or message.seq <= stream.received():
            return []
        if message.prev != stream.received():
            return self._ask_streams([name], now)  # a gap: fetch the whole, wherever the lost message went
        stream.queue.append(message)
        return self._advance(now)

    # --- time ---

    def deadline(self, now: float) -> float:
        """When tick() wants to run next, at the latest."""
        due = self._last_beat + MISSED_BEATS_S if self.phase is Phase.FOLLOWING else now + 1.0
        if not self._asking and self.phase is not Phase.FOLLOWING:
            due = min(due, self._next_try)
        if self._waiting_since is not None:
            due = min(due, now + NEED_GRACE_S)
        return max(due, now + 0.001)

    def tick(self, now: float) -> list[Action]:
        if self.phase is not Phase.FOLLOWING:
            if self._asking or now < self._next_try:
                return []
            return self._discover(now) if self.phase is Phase.DISCOVERING else self._ask_snapshot(now)
        if now - self._last_beat > MISSED_BEATS_S:
            self._last_beat = now  # the next one counts from here
            self._next_try = now + self._random.uniform(0, RETRY_S[0])
            self.phase = Phase.DISCOVERING
            return []
        if self.etcd_age_s > STALE_ETCD_S and now >= self._next_look and not self._asking:
            self._next_look = now + self._random.uniform(*RETRY_S) + STALE_ETCD_S
            return self._ask("", wire.SnapshotRequest(node=self.node, role=self.role, hello=True), now)
        if self._waiting_since is not None:
            if now - self._waiting_since > STUCK_S:
                self._waiting_since = now
                return self._ask_snapshot(now)
            if now - self._waiting_since >= NEED_GRACE_S:
                return self._ask_streams(self._missing(), now)
        return []

    # --- inside ---

    def _received_seq(self) -> int:
        return self._commits[-1].seq if self._commits else self.seq

    def _ask(self, instance: str, request: wire.SnapshotRequest, now: float) -> list[Action]:
        self._asking, self._asked_at = True, now
        return [Ask(instance, request)]

    def _discover(self, now: float) -> list[Action]:
        self.phase = Phase.DISCOVERING
        return self._ask("", wire.SnapshotRequest(node=self.node, role=self.role, hello=True), now)

    def _move(self, instance: str, now: float) -> list[Action]:
        """We are asked to follow another one: it is asked first, and until it answers all goes on."""
        if instance in ("", self.instance) or self.phase is not Phase.FOLLOWING or self._asking:
            return []
        return self._ask(instance, wire.SnapshotRequest(node=self.node, role=self.role, hello=True), now)

    def _ask_snapshot(self, now: float) -> list[Action]:
        self.phase = Phase.SYNCING
        if self._asking or now < self._next_try:
            return []
        return self._ask(self.instance, wire.SnapshotRequest(node=self.node, role=self.role), now)

    def _back_off(self, now: float) -> list[Action]:
        self._failures += 1
        low, high = RETRY_S
        self._next_try = now + self._random.uniform(0.5, 1.0) * min(high, low * 2 ** min(self._failures, 8))
        if self._failures >= 2:
            self.phase = Phase.DISCOVERING
        return []

    def _restored(self, reply: wire.SnapshotReply) -> bool:
        """Did etcd itself go back? Its cluster id changed, or it answered a quorum read with a lower revision.

        Only a read made after we reached our revision proves that: until then any typha's head may be lower than ours.
        """
        if self.epoch is not None and reply.epoch.cluster != self._applied_cluster:
            return True
        read_after_ours = self._asked_at - reply.etcd_age_s > self._rev_at
        return reply.etcd_age_s < MISSED_BEATS_S and read_after_ours and reply.head < self.rev

    def _streams_forget(self) -> None:
        self._commits.clear()
        self._early.clear()
        self._mark = None
        self._waiting_since = None

    def _leave(self) -> list[Action]:
        """Unsubscribe from all that the instance publishes."""
        if not self.instance:
            return []
        own = subjects.node_stream(self.instance, self.node, self.role), subjects.beat(self.instance)
        names = sorted({*self._streams, *self._standing})
        shared = [subjects.of_stream(self.instance, name) for name in names]
        return [Unsubscribe(subject) for subject in (*own, *shared)]

    def _pin(self, epoch: wire.Epoch, now: float) -> list[Action]:
        """Follow this instance: subscribe first, the snapshot comes after."""
        actions: list[Action] = []
        if epoch.instance != self.instance:
            names = {*self._streams, *self._standing}
            actions += self._leave()
            self.instance = epoch.instance
            actions += [
                Subscribe(subjects.beat(epoch.instance)),
                Subscribe(subjects.node_stream(epoch.instance, self.node, self.role)),
            ]
            actions += [Subscribe(subjects.of_stream(epoch.instance, name)) for name in sorted(names)]
        self._streams_forget()
        self.epoch = epoch
        self._last_beat = now
        self._next_try = 0.0
        return actions

    def _install(
        self, reply: wire.SnapshotReply, snapshot: wire.Snapshot, contents: Mapping[str, Stated], now: float
    ) -> list[Action]:
        """Make the snapshot the state, emitting only what differs."""
        delta = Delta()
        actions: list[Action] = []
        for name in [name for name in self._streams if name not in contents]:
            remove_stream(self.state, name, delta)
            del self._streams[name]
            actions.append(Unsubscribe(subjects.of_stream(self.instance, name)))
        for name, (seq, content) in contents.items():
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = Stream()
                if name not in self._standing:
                    actions.append(Subscribe(subjects.of_stream(self.instance, name)))
            stream.seq, stream.fetched = seq, None
            stream.queue = _chain_on(seq, stream.queue, reply.epoch)
            apply_content(self.state, name, content, delta)
        apply_endpoints(self.state, snapshot.workloads, snapshot.hosts, delta, whole=True)
        if self._mark is not None and self._mark.epoch != reply.epoch:
            self._mark = None  # its seq and revision do not compare with the new ones
        self.epoch, self._applied_cluster = reply.epoch, reply.epoch.cluster
        self.seq, self.rev, self._rev_at = snapshot.seq, snapshot.rev, now
        self.in_sync = True
        self.refusal = ""
        self._refusals = 0
        self.snapshots += 1
        self.phase = Phase.FOLLOWING
        self._waiting_since = None
        self._commits.clear()
        actions.append(Apply(delta, self.rev, self.seq, reply.epoch))
        early = sorted(
            (seq, commit) for seq, commit in self._early.items() if seq > self.seq and commit.epoch == self.epoch
        )
        self._early.clear()
        for _, commit in early:
            actions += self.node_message(commit, now)
        return actions + self._advance(now)

    def _accept(self, commit: wire.Commit, now: float) -> list[Action]:
        """Take a commit into the queue and begin to follow what it adds."""
        actions: list[Action] = []
        fetch: list[str] = []
        if not all(map(followed, commit.add)):
            commit.add = {name: stated for name, stated in commit.add.items() if followed(name)}
        try:
            contents = _contents({name: stated for name, stated in commit.add.items() if stated is not None})
        except NotUnderstood as error:
            return self.refuse(f"typha {self.instance}: {error}", now)
        self._commits.append(commit)
        for name, stated in commit.add.items():
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = Stream()
                actions.append(Subscribe(subjects.of_stream(self.instance, name)))
            if stated is None:
                fetch.append(name)
            elif stated.seq > stream.seq or stream.seq < 0:
                stream.fetched = (*contents[name], commit.seq)
                stream.queue.clear()
        return actions + (self._ask_streams(fetch, now) if fetch else [])

    def _some_streams(
        self, reply: wire.SnapshotReply, snapshot: wire.Snapshot, contents: Mapping[str, Stated], now: float
    ) -> list[Action]:
        if reply.epoch != self.epoch:
            return []
        for name, (seq, content) in contents.items():
            stream = self._streams.get(name)
            if stream is not None and seq > stream.received():
                stream.fetched = (seq, content, snapshot.seq)
                stream.queue.clear()
        readded = {name for commit in self._commits if commit.seq > snapshot.seq for name in commit.add}
        for name in snapshot.gone if snapshot.seq >= self.seq else ():
            stream = self._streams.get(name)
            if stream is not None and name not in readded:  # a late answer says nothing about what came after it
                stream.fetched = (stream.received(), None, snapshot.seq)
                stream.queue.clear()
        if snapshot.seq > self._received_seq():
            # The answer already knows of commits that have not come yet. They follow, or a mark tells that they were
            # lost.
            self._waiting_since = self._waiting_since if self._waiting_since is not None else now
        return self._advance(now)

    def _satisfied(self, commit: wire.Commit) -> bool:
        for name in commit.add:
            stream = self._streams.get(name)
            if stream is None or (stream.fetched is None and stream.seq < 0):
                return False
        for name, seq in commit.needs.items():
            stream = self._streams.get(name)
            if stream is None:
                continue  # dropped by a later snapshot
            if stream.received() < seq and not (stream.fetched and stream.fetched[1] is None):
                return False
        return True

    def _missing(self) -> list[str]:
        names: set[str] = set()
        for commit in self._commits:
            if self._satisfied(commit):
                continue
            for name in commit.add:
                stream = self._streams.get(name)
                if stream is not None and stream.fetched is None and stream.seq < 0:
                    names.add(name)
            for name, seq in commit.needs.items():
                stream = self._streams.get(name)
                if stream is not None and stream.received() < seq:
                    names.add(name)
        return sorted(names)

    def _ask_streams(self, names: Iterable[str], now: float) -> list[Action]:
        wanted: dict[str, int] = {}
        for name in names:
            stream = self._streams[name]
            if now - stream.asked_at >= ASK_AGAIN_S:
                stream.asked_at = now
                wanted[name] = stream.received()
        if not wanted:
            return []
        return [Ask(self.instance, wire.SnapshotRequest(node=self.node, role=self.role, streams=wanted))]

    def _ready(self) -> int:
        """How many commits can be applied now, as one change."""
        horizon = -1  # contents fetched ahead demand the commits up to here
        best = 0
        for count, commit in enumerate(self._commits, start=1):
            if not self._satisfied(commit):
                break
            for name in (*commit.add, *commit.needs):
                stream = self._streams.get(name)
                if stream is not None and stream.fetched is not None:
                    horizon = max(horizon, stream.fetched[2])
            if commit.seq >= horizon:
                best = count
        return best

    def _advance(self, now: float) -> list[Action]:
        """Apply every commit that is complete; then a mark, if it was waiting for them."""
        if self.phase is not Phase.FOLLOWING:
            return []
        actions: list[Action] = []
        ready = self._ready()
        if ready:
            actions += self._apply([self._commits.popleft() for _ in range(ready)], now)
            self._waiting_since = None
        if self._commits and self._waiting_since is None:
            self._waiting_since = now
        mark = self._mark
        if mark is not None and not self._commits and mark.seq <= self.seq:
            self._mark = None
            if mark.seq == self.seq and mark.rev > self.rev:
                self.rev, self._rev_at = mark.rev, now
            # Reported even when nothing is new: whoever asked for the mark waits for the answer.
            actions.append(Apply(Delta(), self.rev, self.seq, mark.epoch))
        return actions

    def _apply(self, commits: list[wire.Commit], now: float) -> list[Action]:
        delta = Delta()
        actions: list[Action] = []
        touched: dict[str, int] = {}
        dropped: set[str] = set()
        workloads: dict[str, Workload | None] = {}
        hosts: dict[str, Host | None] = {}
        for commit in commits:
            dropped.update(commit.remove)
            for name in commit.add:
                dropped.discard(name)
                touched.setdefault(name, -1)
            for name, seq in commit.needs.items():
                touched[name] = max(seq, touched.get(name, -1))
            workloads.update(commit.workloads)
            hosts.update(commit.hosts)
        for name, seq in touched.items():
            stream = self._streams.get(name)
            if stream is None or name in dropped:
                continue
            if stream.fetched is not None:
                fetched_seq, content, _ = stream.fetched
                stream.seq, stream.fetched = fetched_seq, None
                if content is not None:
                    apply_content(self.state, name, content, delta)
            while stream.queue and stream.queue[0].seq <= seq:
                message = stream.queue.popleft()
                apply_message(self.state, name, message, delta)
                stream.seq = message.seq
        apply_endpoints(self.state, workloads, hosts, delta, whole=False)
        again = {name for commit in self._commits for name in commit.add}
        for name in dropped:
            remove_stream(self.state, name, delta)
            stream = self._streams.get(name)
            if stream is None:
                continue
            if name in again:
                stream.seq = -1
            else:
                del self._streams[name]
                actions.append(Unsubscribe(subjects.of_stream(self.instance, name)))
        last = commits[-1]
        self.seq, self.rev, self._rev_at = last.seq, max(self.rev, last.rev), now
        return [*actions, Apply(delta, self.rev, self.seq, last.epoch)]


Stated = tuple[int, wire.Content]  # a stream's seq, and what it amounts to then


def _contents(streams: Mapping[str, wire.StreamState]) -> dict[str, Stated]:
    """Decoded before anything is applied. Those of unknown families are left out. Raises NotUnderstood."""
    return {name: (stated.seq, understood(name, stated.content)) for name, stated in streams.items() if followed(name)}


def _by(reply: wire.SnapshotReply, error: NotUnderstood) -> str:
    return f"typha {reply.epoch.instance} ({reply.version or 'version unknown'}): {error}"


def _chain_on(seq: int, queue: deque[wire.StreamMessage], epoch: wire.Epoch) -> deque[wire.StreamMessage]:
    """The messages of `queue` that continue a stream standing at `seq`."""
    kept: deque[wire.StreamMessage] = deque()
    for message in queue:
        if message.epoch == epoch and message.prev == seq:
            kept.append(message)
            seq = message.seq
    return kept


def apply_endpoints(
    state: NodeState,
    workloads: Mapping[str, Workload | None],
    hosts: Mapping[str, Host | None],
    delta: Delta,
    *,
    whole: bool,
) -> None:
    """Fold endpoints into the state. whole: they are all there are, the others go."""
    named = {WorkloadKey.parse(text): workload for text, workload in workloads.items()}
    if whole:
        for key in [key for key in state.workloads if key not in named]:
            del state.workloads[key]
            delta.workloads[key] = None
        for name in [name for name in state.hosts if name not in hosts]:
            del state.hosts[name]
            delta.hosts[name] = None
    for key, workload in named.items():
        if workload is None:
            if state.workloads.pop(key, None) is not None:
                delta.workloads[key] = None
        elif state.workloads.get(key) != workload:
            state.workloads[key] = delta.workloads[key] = workload
    for name, host in hosts.items():
        if host is None:
            if state.hosts.pop(name, None) is not None:
                delta.hosts[name] = None
        elif state.hosts.get(name) != host:
            state.hosts[name] = delta.hosts[name] = host
