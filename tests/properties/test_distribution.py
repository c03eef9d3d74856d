"""The real writer (Publisher over Calculator) and the real readers (Feed) with a hostile bus between them: felixes, and
speakers, which follow other streams by the same rules.

Whatever is lost, repeated, reordered or late: each state that a node applies is exactly what the calculation said for
it at one revision, revisions never go backwards, nothing is applied in part, and once the bus heals every node has the
newest state.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import model
from libs.bus import subjects, wire
from libs.bus.subjects import Role
from libs.feed.feed import Apply, Ask, Feed, Phase, Subscribe, Unsubscribe
from libs.model import keys
from libs.policy.calculator import Calculator
from services.typha.core.publisher import Publisher

NODES = ("node1", "node2")
APPS = ("web", "db", "ops")
NAMESPACES = ("ns1", "ns2")


def resource(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **metadata: Any) -> model.Resource:
    value = {"kind": kind, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}
    return model.from_storage(keys.resource_key(kind, name, namespace), msgspec.json.encode(value), 1)


# --- what can happen in the datastore --------------------------------------------------------------------------------

workloads = st.builds(
    lambda pod, node, app, ns, host: (
        keys.resource_key("WorkloadEndpoint", f"{node}-k8s-{pod}-eth0", ns),
        resource(
            "WorkloadEndpoint",
            f"{node}-k8s-{pod}-eth0",
            {
                "orchestrator": "k8s", "node": node, "containerID": "c", "pod": pod, "endpoint": "eth0",
                "ipNetworks": [f"10.65.0.{host}/32"], "profiles": [f"kns.{ns}"], "interfaceName": f"cali{pod}{ns}",
            },
            ns,
            labels={"app": app, "projectcalico.org/namespace": ns, "projectcalico.org/orchestrator": "k8s"},
        ),
    ),
    st.sampled_from(("p1", "p2")),
    st.sampled_from(NODES),
    st.sampled_from(APPS),
    st.sampled_from(NAMESPACES),
    st.integers(1, 6),
)  # fmt: skip
policies = st.builds(
    lambda name, app, peer, order, action: (
        keys.resource_key("GlobalNetworkPolicy", name),
        resource(
            "GlobalNetworkPolicy",
            name,
            {
                "tier": "default", "order": order, "selector": f"app == '{app}'", "types": ["Ingress"],
                "ingress": [{"action": action, "source": {"selector": f"app == '{peer}'"}}],
            },
        ),
    ),
    st.sampled_from(("g1", "g2", "g3")),
    st.sampled_from(APPS),
    st.sampled_from(APPS),
    st.integers(1, 3),
    st.sampled_from(("Allow", "Deny")),
)  # fmt: skip
sets = st.builds(
    lambda name, app, net: (
        keys.resource_key("GlobalNetworkSet", name),
        resource("GlobalNetworkSet", name, {"nets": [f"192.0.2.{net}/32"]}, labels={"app": app}),
    ),
    st.sampled_from(("s1", "s2")),
    st.sampled_from(APPS),
    st.integers(1, 4),
)
profiles = st.builds(
    lambda ns, action: (
        keys.resource_key("Profile", f"kns.{ns}"),
        resource("Profile", f"kns.{ns}", {"ingress": [{"action": action}], "egress": [{"action": "Allow"}]}),
    ),
    st.sampled_from(NAMESPACES),
    st.sampled_from(("Allow", "Deny")),
)
nodes = st.builds(
    lambda name, host: (
        keys.resource_key("Node", name),
        resource("Node", name, {"bgp": {"ipv4Address": f"192.0.2.{host}/24"}}),
    ),
    st.sampled_from((*NODES, "node3")),
    st.integers(10, 12),
)
changes = st.one_of(workloads, workloads, policies, policies, sets, profiles, nodes)


racks = st.sampled_from(("a", "b"))
labelled = st.builds(
    lambda name, host, rack: (
        keys.resource_key("Node", name),
        resource("Node", name, {"bgp": {"ipv4Address": f"192.0.2.{host}/24"}}, labels={"rack": rack}),
    ),
    st.sampled_from((*NODES, "node3")),
    st.integers(10, 12),
    racks,
)
peers = st.builds(
    lambda name, rack, host, whom: (
        keys.resource_key("BGPPeer", name),
        resource("BGPPeer", name, {"nodeSelector": f"rack == '{rack}'", **whom}),
    ),
    st.sampled_from(("p1", "p2", "p3")),
    racks,
    st.integers(1, 3),
    st.sampled_from(
        (
            {"peerIP": "198.51.100.1", "asNumber": 65001}, {"peerIP": "198.51.100.2", "asNumber": 65001},
            {"peerSelector": "rack == 'b'"}, {"peerSelector": "all()"},
            {"localWorkloadSelector": "app == 'web'", "asNumber": 65002},
        )
    ),
)  # fmt: skip
of_speakers = st.one_of(labelled, labelled, peers, peers, workloads)


def beginning() -> list[tuple[str, model.Resource]]:
    """Endpoints on both nodes and policies that use each other's labels, so that every later change matters."""
    made: list[tuple[str, model.Resource]] = []
    for number, (node, app) in enumerate((node, app) for node in NODES for app in APPS):
        pod, ns = f"p{number}", NAMESPACES[number % 2]
        name = f"{node}-k8s-{pod}-eth0"
        spec = {
            "orchestrator": "k8s", "node": node, "containerID": "c", "pod": pod, "endpoint": "eth0",
            "ipNetworks": [f"10.65.1.{number}/32"], "profiles": [f"kns.{ns}"], "interfaceName": f"cali{pod}",
        }  # fmt: skip
        labels = {"app": app, "projectcalico.org/namespace": ns, "projectcalico.org/orchestrator": "k8s"}
        value = resource("WorkloadEndpoint", name, spec, ns, labels=labels)
        made.append((keys.resource_key("WorkloadEndpoint", name, ns), value))
    for name, app, peer in (("g1", "web", "db"), ("g2", "db", "ops")):
        rule = {"action": "Allow", "source": {"selector": f"app == '{peer}'"}}
        spec = {"tier": "default", "order": 1, "selector": f"app == '{app}'", "types": ["Ingress"], "ingress": [rule]}
        made.append((keys.resource_key("GlobalNetworkPolicy", name), resource("GlobalNetworkPolicy", name, spec)))
    return made


def for_speakers() -> list[tuple[str, model.Resource]]:
    """Racks, and peers that are different on each node and change with its workloads."""
    made = [
        (keys.resource_key("Node", n), resource("Node", n, {"bgp": {}}, labels={"rack": r}))
        for n, r in zip(NODES, "ab", strict=True)
    ]
    vm = {"nodeSelector": "rack == 'a'", "localWorkloadSelector": "app == 'web'", "asNumber": 65002}
    tor = {"nodeSelector": "rack == 'b'", "peerIP": "198.51.100.1", "asNumber": 65001}
    made += [(keys.resource_key("BGPPeer", n), resource("BGPPeer", n, spec)) for n, spec in (("p1", vm), ("p2", tor))]
    return made


Script = list[tuple[str, Any]]


def steps_of(happens: st.SearchStrategy[Any]) -> st.SearchStrategy[Script]:
    return st.lists(
        st.one_of(
            st.tuples(st.just("put"), happens),
            st.tuples(st.just("put"), happens),
            st.tuples(st.just("delete"), happens),
            st.tuples(st.sampled_from(("flush", "deliver", "deliver", "time", "time")), st.none()),
            st.tuples(st.sampled_from(("flush", "deliver", "reconnect", "restart typha")), st.none()),
        ),
        min_size=5,
        max_size=80,
    )


class World:
    """One typha at a time, two readers of a role, and a bus that misbehaves as `rng` says."""

    def __init__(self, seed: int, trouble: float, role: Role = Role.FELIX) -> None:
        self.role = role
        self.rng = random.Random(seed)
        self.trouble = trouble
        self.now = 0.0
        self.rev = 1
        self.data: dict[str, model.Resource] = dict(beginning())
        if role is Role.BGP:
            self.data |= for_speakers()
        self.instances = 0
        self.bus: deque[tuple[str, bytes]] = deque()
        self.subscriptions: dict[str, set[str]] = {node: set() for node in NODES}
        self.asks: deque[tuple[str, Ask]] = deque()
        self.feeds = {node: Feed(node, random.Random(seed + 1), role) for node in NODES}
        self.applied: dict[str, int] = dict.fromkeys(NODES, 0)
        self.history: dict[tuple[str, str, int], Any] = {}  # (instance, node, node seq) -> what was said then
        self.start_typha()
        for node, feed in self.feeds.items():
            self.act(node, feed.start(self.now))
        while any(feed.phase is not Phase.FOLLOWING for feed in self.feeds.values()):
            self.deliver(clean=True)

    def start_typha(self) -> None:
        self.instances += 1
        self.calculator = Calculator()
        self.publisher = Publisher(wire.Epoch(f"t{self.instances}", self.instances, 7), self.calculator)
        for key, value in self.data.items():
            self.calculator.update(key, value)
        self.flush()

    def flush(self) -> None:
        out = self.publisher.publish(self.calculator.flush(), {}, self.rev, self.now)
        self.remember()
        self.bus.extend(out)

    def remember(self) -> None:
        for node in NODES:
            reader = self.publisher.readers_of(self.role).get(node)
            if reader is not None:
                self.history[self.publisher.epoch.instance, node, reader.seq] = said(self.calculator, node, self.role)

    def act(self, node: str, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Subscribe(subject):
                    self.subscriptions[node].add(subject)
                case Unsubscribe(subject):
                    self.subscriptions[node].discard(subject)
                case Ask():
                    self.asks.append((node, action))
                case Apply():
                    self.check_apply(node, action)

    def check_apply(self, node: str, apply: Apply) -> None:
        feed = self.feeds[node]
        assert apply.rev >= self.applied[node], "went backwards"
        self.applied[node] = apply.rev
        expected = self.history[apply.epoch.instance, node, apply.seq]
        assert held(feed) == expected, "not what the calculation said at this place"
        known = set(feed.state.sets)
        for policy in (*feed.state.policies.values(), *feed.state.profiles.values()):
            assert policy.set_ids() <= known, "a policy with a set that is not there"
        for workload in feed.state.workloads.values():
            assert workload.policy_keys() <= feed.state.policies.keys(), "an endpoint with a policy that is not there"

    def deliver(self, *, clean: bool = False) -> None:
        """Everything on the bus and all requests, with or without trouble."""
        batch = list(self.bus)
        self.bus.clear()
        if not clean:
            for index in range(len(batch) - 1):
                if self.rng.random() < self.trouble:
                    batch[index], batch[index + 1] = batch[index + 1], batch[index]
            while batch and self.rng.random() < self.trouble:
                self.bus.append(batch.pop())  # late: overtaken by what is published next
        for subject, data in batch:
            copies = 1
            if not clean and self.rng.random() < self.trouble:
                copies = self.rng.choice((0, 2))
            for node in NODES:
                if subject in self.subscriptions[node]:
                    for _ in range(copies):
                        self.receive(node, subject, data)
        for _ in range(len(self.asks)):
            self.answer(*self.asks.popleft(), clean=clean)

    def receive(self, node: str, subject: str, data: bytes) -> None:
        feed = self.feeds[node]
        family = subject.split(".")[3]
        if family == "beat":
            self.act(node, feed.beat(wire.decoder(wire.Beat).decode(data), self.now))
        elif family in subjects.COMMIT_FAMILIES:
            self.act(node, feed.node_message(wire.decoder(wire.NodeMessage).decode(data), self.now))
        else:
            message = wire.decoder(wire.StreamMessage).decode(data)
            self.act(node, feed.stream_message(subjects.stream_of(subject), message, self.now))

    def answer(self, node: str, ask: Ask, *, clean: bool) -> None:
        feed, publisher = self.feeds[node], self.publisher
        gone = ask.instance not in ("", publisher.epoch.instance)
        if gone or (not clean and self.rng.random() < self.trouble):
            self.act(node, feed.failed(ask.request, self.now))
            return
        reply = wire.SnapshotReply(epoch=publisher.epoch, rev=publisher.rev, etcd_age_s=0, head=publisher.rev)
        if ask.request.hello:
            self.act(node, feed.hello(reply, self.now))
            return
        self.flush()
        snapshot = (
            publisher.some_streams(ask.request)
            if ask.request.streams
            else publisher.snapshot(node, self.now, self.role)
        )
        self.remember()
        copy = wire.decoder(wire.Snapshot).decode(wire.encode(snapshot))
        self.act(node, feed.snapshot(reply, copy, self.now))

    def pass_time(self, seconds: float, *, beats: bool = True) -> None:
        self.now += seconds
        if beats:
            beat = wire.Beat(epoch=self.publisher.epoch, rev=self.publisher.rev, etcd_age_s=0, head=self.publisher.rev)
            self.bus.append((subjects.beat(self.publisher.epoch.instance), wire.encode(beat)))
        for node, feed in self.feeds.items():
            report = wire.Applied(node=node, epoch=feed.epoch, rev=feed.rev, seq=feed.seq)
            self.bus.extend(self.publisher.applied(report, self.now, self.role))
        self.bus.extend(self.publisher.remind(self.now))
        for node, feed in self.feeds.items():
            self.act(node, feed.tick(self.now))

    def heal(self) -> None:
        self.flush()
        for _ in range(60):
            self.deliver(clean=True)
            self.pass_time(1.0)
            done = all(feed.phase is Phase.FOLLOWING and feed.rev >= self.rev for feed in self.feeds.values())
            if done and not self.bus and not self.asks:
                break
            self.bus.extend(self.publisher.want_mark(self.rev, NODES, self.now))
        self.deliver(clean=True)


def held(feed: Feed) -> Any:
    state = feed.state
    if feed.role is Role.BGP:
        return dict(state.nodes), dict(state.bgp), dict(state.local)
    return (
        dict(state.workloads), dict(state.policies), dict(state.profiles),
        {name: frozenset(one.members) for name, one in state.sets.items()}, dict(state.nodes),
    )  # fmt: skip


def said(calculator: Calculator, node: str, role: Role) -> Any:
    if role is Role.BGP:
        return dict(calculator.node_infos), dict(calculator.bgp.entries), dict(calculator.bgp.local.get(node, {}))
    view = calculator.view(node)
    return (
        dict(view.workloads), dict(view.policies), dict(view.profiles),
        {name: one.members for name, one in view.ipsets.items()}, dict(calculator.node_infos),
    )  # fmt: skip


@given(steps_of(changes), st.integers(0, 2**32), st.sampled_from((0.15, 0.3, 0.5)))
@settings(max_examples=max(300, settings().max_examples))
def test_every_applied_state_was_said_at_one_revision_and_all_converge(
    script: Script, seed: int, trouble: float
) -> None:
    play(World(seed, trouble), script)


@given(steps_of(of_speakers), st.integers(0, 2**32), st.sampled_from((0.15, 0.3, 0.5)))
@settings(max_examples=max(150, settings().max_examples))
def test_speakers_keep_the_same_promises(script: Script, seed: int, trouble: float) -> None:
    play(World(seed, trouble, Role.BGP), script)


def play(world: World, script: Script) -> None:
    trouble = world.trouble
    for verb, what in script:
        if verb == "put":
            key, value = what
            world.data[key] = value
            world.rev += 1
            world.calculator.update(key, value)
            if world.rng.random() < 0.7:
                world.flush()
        elif verb == "delete":
            key, _ = what
            if world.data.pop(key, None) is not None:
                world.rev += 1
                world.calculator.update(key, None)
                world.flush()
        elif verb == "flush":
            world.flush()
        elif verb == "deliver":
            world.deliver()
        elif verb == "reconnect":
            for node, feed in world.feeds.items():
                world.act(node, feed.resync(world.now))
        elif verb == "time":
            world.pass_time(world.rng.choice((0.04, 0.6, 1.5)), beats=world.rng.random() > trouble)
        else:
            world.start_typha()
    world.heal()
    for node, feed in world.feeds.items():
        assert feed.phase is Phase.FOLLOWING
        assert feed.rev == world.rev
        assert held(feed) == said(world.calculator, node, world.role)
