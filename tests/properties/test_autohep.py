"""Automatic host endpoints: one round of changes is enough, in any order, and users' own are never touched."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from libs import model
from libs.model import validation
from libs.model.node import NodeAddress, NodeInterface, NodeSpec
from libs.policy.autohep import CREATED_BY, Changes, changes, desired, is_ours

NAMES = st.sampled_from(("a", "a-b", "b", "c.d", "n" * 250))
LABELS = st.dictionaries(st.sampled_from(("zone", "role", CREATED_BY)), st.sampled_from(("x", "y")), max_size=3)
ADDRESSES = st.sampled_from(("192.0.2.1", "10.0.0.1/8", "2001:db8::1", "fd00::1/64", "fe80::1", "nonsense", ""))
INTERFACES = st.builds(
    NodeInterface,
    name=st.sampled_from(("eth0", "eth1", "eth_2", "b-eth0", "WLAN")),
    addresses=st.lists(ADDRESSES, max_size=3),
)
NODES = st.lists(
    st.builds(
        model.Node,
        metadata=st.builds(model.ObjectMeta, name=NAMES, labels=LABELS),
        spec=st.builds(
            NodeSpec,
            addresses=st.lists(st.builds(NodeAddress, address=ADDRESSES, type=st.just("InternalIP")), max_size=3),
            interfaces=st.lists(INTERFACES, max_size=3, unique_by=lambda one: one.name),
        ),
    ),
    max_size=4,
    unique_by=lambda node: node.metadata.name,
)
TEMPLATES = st.builds(
    model.HostEndpointTemplate,
    generate_name=st.sampled_from(("t", "b", "b-c", "c", "")),
    interface_cidrs=st.lists(st.sampled_from(("10.0.0.0/8", "fd00::/8", "::/0", "10.0.0.0/99")), max_size=2),
    interface_pattern=st.sampled_from(("", "eth", "0$", "(")),
    labels=LABELS,
    node_selector=st.sampled_from(("", "all()", "zone == 'x'", "has(role)", "zone ==")),
)
CONFIGS = st.builds(
    model.AutoHostEndpointConfig,
    auto_create=st.sampled_from(("Enabled", "Enabled", "Enabled", "Disabled")),
    create_default_host_endpoint=st.sampled_from(("", "Enabled", "Disabled")),
    templates=st.lists(TEMPLATES, max_size=3, unique_by=lambda template: template.generate_name),
)
USERS = st.lists(
    st.builds(
        model.HostEndpoint,
        metadata=st.builds(
            model.ObjectMeta,
            name=st.sampled_from(("a-auto-hep", "mine", "a-b-c-auto-hep", "b-auto-hep")),
            labels=st.dictionaries(st.just(CREATED_BY), st.sampled_from(("me", "")), max_size=1),
        ),
        spec=st.builds(model.HostEndpointSpec, node=NAMES, interface_name=st.just("eth0")),
    ),
    max_size=3,
    unique_by=lambda one: one.metadata.name,
)


def written(have: dict[str, model.HostEndpoint], todo: Changes) -> dict[str, model.HostEndpoint]:
    after = {name: one for name, one in have.items() if name not in todo.delete}
    assert not {one.metadata.name for one in todo.create} & have.keys()
    return after | {one.metadata.name: one for one in (*todo.create, *todo.update)}


@given(users=USERS, steps=st.lists(st.tuples(NODES, CONFIGS), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_one_round_is_enough_in_any_order_and_users_own_stay(users, steps, seed) -> None:
    random = Random(seed)
    theirs = {one.metadata.name: one for one in users}
    have = dict(theirs)
    for nodes, config in steps:
        wanted = desired(nodes, config)
        again = desired(random.sample(nodes, len(nodes)), config)
        assert again.endpoints == wanted.endpoints
        for one in wanted.endpoints.values():
            assert is_ours(one)
            assert validation.validate(one) == [], one
        listing = random.sample(sorted(have), len(have))
        todo = changes([have[name] for name in listing], wanted.endpoints)
        have = written(have, todo)
        assert not changes(have.values(), wanted.endpoints)
        assert {name: one for name, one in have.items() if not is_ours(one)} == theirs
        assert {name for name, one in have.items() if is_ours(one)} == wanted.endpoints.keys() - theirs.keys()
