"""The incremental calculation against the plain one, whatever happens to the updates on their way."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from libs import model
from libs.policy.calculator import Calculator
from libs.policy.changes import Changes, NodeView
from libs.policy.output import Host, IPSet, Policy, PolicyKey, Profile, Workload, WorkloadKey
from tests.properties.policy_oracle import Oracle
from tests.unit.libs.policy import build

NODES = ("n1", "n2", "n3")
NAMESPACES = ("ns1", "ns2")
KEYS, VALUES = ("a", "b"), ("1", "2")
ADDRESSES = ("10.0.0.1/32", "10.0.0.2/32", "10.0.1.1/32", "fd00::1/128", "fd00::2/128")
NETWORKS = ("10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "10.0.0.7", "fd00::/64", "fd00::2", "198.51.100.7/24")

LABELS = st.dictionaries(st.sampled_from((*KEYS, "pcns.env", "pcsa.role")), st.sampled_from(VALUES), max_size=3)
ATOMS = st.sampled_from(
    (
        *(f"{key} == '{value}'" for key in KEYS for value in VALUES),
        "a != '1'",
        "b not in {'1', '3'}",
        "a in {'1', '2'}",
        "b in {'2'}",
        "a starts with '1'",
        "b contains '2'",
        "has(a)",
        "!has(b)",
        "all()",
    )
)
SELECTORS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: f"({two[0]}) && ({two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} || {two[1]})"),
        inner.map(lambda one: f"!({one})"),
    ),
    max_leaves=3,
)
NAMESPACE_SELECTORS = st.sampled_from(("all()", "env == '1'", "has(env)"))
PORTS = st.lists(st.sampled_from((("web", "TCP", 80), ("web", "UDP", 53), ("dns", "UDP", 53))), max_size=2).map(tuple)
PROFILES = st.lists(
    st.sampled_from(("kns.ns1", "kns.ns2", "p1", "p2", "missing", "projectcalico-default-allow")),
    unique=True,
    max_size=3,
).map(tuple)


@st.composite
def entities(draw: st.DrawFn, protocol: str | None) -> dict[str, object]:
    optional: dict[str, st.SearchStrategy[object]] = {
        "selector": SELECTORS,
        "not_selector": SELECTORS,
        "namespace_selector": st.one_of(NAMESPACE_SELECTORS, st.just("global()")),
        "accounts": st.just({"names": ["sa"]}),
        "nets": st.just(["10.0.0.0/8"]),
        "not_nets": st.just(["10.0.1.0/24"]),
    }
    if protocol != "ICMPv4":
        optional["ports"] = st.lists(st.sampled_from(("web", "dns", 80, "100:200")), min_size=1, max_size=2)
    return draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def rules(draw: st.DrawFn) -> model.Rule:
    protocol = draw(st.sampled_from((None, "TCP", "UDP")))
    action = draw(st.sampled_from(("Allow", "Deny", "Pass", "Log")))
    return build.rule(action, protocol, draw(entities(protocol)), draw(entities(protocol)))


POLICY_FIELDS = {
    "tier": st.sampled_from(("default", "t1", "t2")),
    "order": st.sampled_from((None, 1.0, 2.0)),
    "types": st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"])),
    "ingress": st.lists(rules(), max_size=2),
    "egress": st.lists(rules(), max_size=1),
}
OPTIONAL_FIELDS = {
    "service_account_selector": st.sampled_from(("all()", "role == '1'")),
    "performance_hints": st.just(["AssumeNeededOnEveryNode"]),
}
GLOBAL_FIELDS = {
    **OPTIONAL_FIELDS,
    "namespace_selector": NAMESPACE_SELECTORS,
    "do_not_track": st.just(True),
    "pre_dnat": st.just(True),
    "apply_on_forward": st.just(True),
}
TEXTS = st.one_of(st.just(""), SELECTORS)


@st.composite
def policies(draw: st.DrawFn) -> model.Resource:
    name = draw(st.sampled_from("pqr"))
    if draw(st.booleans()):
        fields = draw(st.fixed_dictionaries(POLICY_FIELDS, optional=OPTIONAL_FIELDS))
        return build.np(name, draw(st.sampled_from(NAMESPACES)), draw(TEXTS), **fields)
    fields = draw(st.fixed_dictionaries(POLICY_FIELDS, optional=GLOBAL_FIELDS))
    return build.gnp(name, draw(TEXTS), staged=draw(st.sampled_from(("", "", "Set", "Delete"))), **fields)


def fields(**strategies: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(strategies)


NETS = st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2).map(tuple)
WIDE = st.lists(st.sampled_from(NETWORKS), unique=True, max_size=3).map(tuple)
RULES = st.lists(rules(), max_size=1)
RESOURCES = st.one_of(
    fields(
        name=st.sampled_from("wxyz"),
        node=st.sampled_from(NODES),
        namespace=st.sampled_from(NAMESPACES),
        labels=LABELS,
        nets=NETS,
        profiles=PROFILES,
        ports=PORTS,
        account=st.sampled_from(("", "sa")),
    ).map(lambda args: build.wep(**args)),
    fields(
        name=st.sampled_from("gh"),
        node=st.sampled_from(NODES),
        labels=LABELS,
        expected=NETS.map(lambda nets: tuple(one.split("/")[0] for one in nets)),
        profiles=PROFILES,
        ports=PORTS,
    ).map(lambda args: build.hep(**args)),
    policies(),
    policies(),
    fields(name=st.sampled_from(("kns.ns1", "kns.ns2", "p1", "p2")), labels=LABELS, ingress=RULES, egress=RULES).map(
        lambda args: build.profile(**args)
    ),
    fields(name=st.sampled_from("st"), labels=LABELS, nets=WIDE).map(lambda args: build.gns(**args)),
    fields(name=st.sampled_from("st"), namespace=st.sampled_from(NAMESPACES), labels=LABELS, nets=WIDE).map(
        lambda args: build.ns(**args)
    ),
    fields(
        name=st.sampled_from(("default", "t1", "t2")),
        order=st.sampled_from((None, 1.0, 2.0)),
        action=st.sampled_from(("Deny", "Pass")),
    ).map(lambda args: build.tier(**args)),
    fields(name=st.sampled_from(NODES)).map(lambda args: build.node(**args)),
)
# A small cluster in which everything touches something: without it most updates would meet nothing to change.
BASE: tuple[model.Resource, ...] = (
    build.tier("default", 2.0),
    build.tier("t1", 1.0, "Pass"),
    build.profile("kns.ns1", {"pcns.env": "1", "a": "1"}, ingress=[build.rule()], egress=[build.rule()]),
    build.profile("p1", {"a": "2", "b": "1"}, ingress=[build.rule("Deny", None, {"selector": "has(a)"})]),
    build.profile("p2", {"b": "2"}),
    build.wep("w", "n1", "ns1", {"a": "1"}, ("10.0.0.1/32", "fd00::1/128"), ("kns.ns1",), (("web", "TCP", 80),)),
    build.wep("x", "n1", "ns1", {"b": "1"}, ("10.0.0.2/32",), ("p1", "p2"), (("dns", "UDP", 53),), "sa"),
    build.wep("y", "n2", "ns2", {"a": "2", "b": "2"}, ("10.0.0.1/32",), ("p2", "missing"), (("web", "TCP", 80),)),
    build.hep("g", "n1", {"a": "1"}, expected=("10.0.1.1",), profiles=("p1",), ports=(("web", "TCP", 80),)),
    build.gns("s", {"a": "1"}, ("10.0.0.0/24", "fd00::/64")),
    build.ns("s", "ns1", {"b": "1"}, ("10.0.0.0/8",)),
    build.np("p", "ns1", "has(a)", order=1.0, ingress=[build.rule("Allow", "TCP", None, {"ports": ["web"]})]),
    build.gnp("p", "a == '1'", tier="t1", ingress=[build.rule(source={"selector": "has(a)"})]),
    build.gnp("q", "b in {'1', '2'}", tier="t2", egress=[build.rule(destination={"selector": "b == '1' || has(a)"})]),
    build.gnp("r", "has(b)", apply_on_forward=True, ingress=[build.rule("Deny", None, {"not_selector": "has(b)"})]),
)
# An update: a resource, or its removal, and whether the calculation is flushed after it. Removals mostly hit what is
# there.
CHANGES = st.one_of(
    st.tuples(RESOURCES, st.just(False), st.booleans()),
    st.tuples(RESOURCES, st.just(False), st.booleans()),
    st.tuples(st.sampled_from(BASE), st.booleans(), st.booleans()),
)
UPDATES = st.tuples(st.booleans(), st.lists(CHANGES, max_size=12)).map(
    lambda drawn: [*((one, False, False) for one in BASE[:-1]), (BASE[-1], False, drawn[0]), *drawn[1]]
)
EXAMPLES = settings(max_examples=max(200, settings().max_examples))


class Reader:
    """Knows of the world only what flushes report, as typha's readers do."""

    def __init__(self) -> None:
        self.policies: dict[PolicyKey, Policy] = {}
        self.profiles: dict[str, Profile] = {}
        self.sets: dict[str, IPSet] = {}
        self.nodes: dict[str, Node] = {}

    def read(self, changes: Changes) -> None:
        put_all(self.policies, changes.policies)
        put_all(self.profiles, changes.profiles)
        for set_id, change in changes.ipsets.items():
            if change.created is not None:
                assert set_id not in self.sets, "created twice"
                self.sets[set_id] = change.created
            elif change.deleted:
                del self.sets[set_id]
            else:
                old = self.sets[set_id]
                assert change.removed <= old.members, "removed what was not there"
                assert not change.added & old.members, "added what was there"
                self.sets[set_id] = IPSet(old.type, (old.members - change.removed) | change.added)
        for name, change in changes.nodes.items():
            node = self.nodes.setdefault(name, Node())
            put_all(node.workloads, change.workloads)
            put_all(node.hosts, change.hosts)
            for have, added, removed, changed, told in (
                (
                    node.policies,
                    change.policies_added,
                    change.policies_removed,
                    change.policies_changed,
                    changes.policies,
                ),
                (
                    node.profiles,
                    change.profiles_added,
                    change.profiles_removed,
                    change.profiles_changed,
                    changes.profiles,
                ),
                (node.sets, change.sets_added, change.sets_removed, change.sets_changed, changes.ipsets),
            ):
                assert not added & have
                assert removed <= have
                assert changed == {thing for thing in told if thing in have and thing not in removed}
                have -= removed
                have |= added
        for name, node in self.nodes.items():
            if name not in changes.nodes:
                told_of = {*changes.policies, *changes.profiles, *changes.ipsets}
                assert not told_of & {*node.policies, *node.profiles, *node.sets}, "a concerned node was left out"

    def view(self, name: str) -> NodeView:
        node = self.nodes.get(name, Node())
        return NodeView(
            workloads=node.workloads,
            hosts=node.hosts,
            policies={key: self.policies[key] for key in node.policies},
            profiles={key: self.profiles[key] for key in node.profiles},
            ipsets={key: self.sets[key] for key in node.sets},
        )


class Node:
    def __init__(self) -> None:
        self.workloads: dict[WorkloadKey, Workload] = {}
        self.hosts: dict[str, Host] = {}
        self.policies: set[PolicyKey] = set()
        self.profiles: set[str] = set()
        self.sets: set[str] = set()


def put_all(known: dict, changes: dict) -> None:
    for key, value in changes.items():
        if value is None:
            del known[key]
        else:
            known[key] = value


Update = tuple[model.Resource, bool, bool]


def run(updates: Iterable[Update], reader: Reader | None = None) -> Calculator:
    calculator = Calculator()
    calculator.know_node("n3")
    reader = reader or Reader()
    for resource, gone, flush in updates:
        calculator.update(build.key_of(resource), None if gone else resource)
        if flush:
            reader.read(calculator.flush())
    reader.read(calculator.flush())
    return calculator


def final(updates: Iterable[Update]) -> dict[str, model.Resource]:
    state: dict[str, model.Resource] = {}
    for resource, gone, _ in updates:
        state.pop(build.key_of(resource), None)
        if not gone:
            state[build.key_of(resource)] = resource
    return state


@EXAMPLES
@given(UPDATES)
def test_every_node_sees_what_the_plain_calculation_says(updates: list[Update]) -> None:
    calculator, oracle = run(updates), Oracle(final(updates), {"n3"})
    for node in NODES:
        assert calculator.view(node) == oracle.view(node)
    views = [oracle.view(node) for node in oracle.nodes]
    assert dict(calculator.policies) == {key: one for view in views for key, one in view.policies.items()}
    assert set(calculator.ipset_ids()) == {set_id for view in views for set_id in view.ipsets}
    assert calculator.nodes == oracle.nodes


@EXAMPLES
@given(UPDATES)
def test_folded_changes_are_the_view(updates: list[Update]) -> None:
    reader = Reader()
    calculator = run(updates, reader)
    for node in NODES:
        assert reader.view(node) == calculator.view(node)
    assert reader.policies == dict(calculator.policies)
    assert reader.profiles == dict(calculator.profiles)
    assert set(reader.sets) == set(calculator.ipset_ids())


@EXAMPLES
@given(UPDATES, st.randoms(use_true_random=False))
def test_any_order_duplication_and_replay_end_the_same(updates: list[Update], random: object) -> None:
    state = final(updates)
    shuffled = list(state.values()) * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    replayed = [*updates, *((one, False, False) for one in state.values())]
    squashed = [(one, False, False) for one in state.values()]
    first = run(updates)
    for other in (
        run((one, False, random.random() < 0.3) for one in shuffled),  # type: ignore[attr-defined]
        run(replayed),
        run(squashed),
    ):
        for node in NODES:
            assert other.view(node) == first.view(node)


@EXAMPLES
@given(UPDATES)
def test_nothing_is_left_when_everything_goes(updates: list[Update]) -> None:
    reader = Reader()
    calculator = run([*updates, *((one, True, True) for one in final(updates).values())], reader)
    assert not calculator.policies
    assert not calculator.profiles
    assert not list(calculator.ipset_ids())
    assert calculator.nodes == {"n3"}
    assert not reader.sets
    assert not calculator.flush().nodes
