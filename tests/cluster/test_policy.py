"""Policy as users write it, on two nodes, IPv4 and IPv6, real packets. The names of tests say which capability they
show.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_network

import pytest
import pytest_asyncio

from libs.testkit.cluster import Pod
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Pods:
    """ns1: web and db on node1, client on node2. ns2: other on node2."""

    web: Pod
    db: Pod
    client: Pod
    other: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1", labels={"team": "red"})
    await world.cluster.add_namespace("ns2", labels={"team": "blue"})
    add = world.cluster.add_pod
    named = [{"name": "metrics", "port": 9090, "protocol": "TCP"}]
    return Pods(
        await add("node1", "web", namespace="ns1", labels={"app": "web", "tier": "front-end"}, ports=named),
        await add("node1", "db", namespace="ns1", labels={"app": "db"}),
        await add("node2", "client", namespace="ns1", labels={"app": "client"}),
        await add("node2", "other", namespace="ns2", labels={"app": "client"}),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: Pods) -> AsyncIterator[None]:
    yield
    await world.clean()


def ingress(name: str, rules: str, *, selector: str = "app == 'web'", order: str = "10", extra: str = "") -> str:
    return f"""
kind: GlobalNetworkPolicy
metadata: {{name: {name}}}
spec:
  order: {order}
  selector: {selector}
  types: [Ingress]
  {extra}
  ingress: {rules}
"""


async def test_p02_first_matching_rule_decides(world: World, pods: Pods) -> None:
    policy = """
kind: NetworkPolicy
metadata: {name: both, namespace: ns1}
spec:
  selector: app == 'web'
  ingress:
  - {action: %s, protocol: TCP, destination: {ports: [8080]}}
  - {action: %s, protocol: TCP, destination: {ports: [8080]}}
"""
    await world.apply(policy % ("Deny", "Allow"))
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY), (pods.db, pods.web, 8080, "tcp", DENY)])
    await world.apply(policy % ("Allow", "Deny"))
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW), (pods.db, pods.web, 8080, "tcp", ALLOW)])


async def test_p02_log_does_not_decide(world: World, pods: Pods) -> None:
    await world.apply(ingress("logged", "[{action: Log}, {action: Allow, protocol: TCP}]"))
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW), (pods.client, pods.web, 8080, "udp", DENY)])


async def test_p03_global_policy_with_namespace_selector_touches_only_matching_namespaces(
    world: World, pods: Pods
) -> None:
    await world.apply(ingress("red", "[{action: Deny}]", selector="all()", extra="namespaceSelector: team == 'red'"))
    await world.check(
        [
            (pods.other, pods.web, 8080, "tcp", DENY),
            (pods.web, pods.client, 8080, "tcp", DENY),
            (pods.web, pods.other, 8080, "tcp", ALLOW),
        ]
    )


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("app == 'web'", True),
        ("app != 'web'", False),
        ("app in {'web', 'x'}", True),
        ("app not in {'web'}", False),
        ("has(tier)", True),
        ("!has(tier)", False),
        ("tier contains 'nt-e'", True),
        ("tier starts with 'front' && tier ends with 'end'", True),
        ("(app == 'x' || has(tier)) && !(app == 'db')", True),
        ("projectcalico.org/namespace == 'ns1' && app == 'web'", True),
    ],
)
async def test_p04_selector_language(world: World, pods: Pods, selector: str, selected: bool) -> None:
    await world.apply(ingress("sel", "[{action: Deny}]", selector=f'"{selector}"'))
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY if selected else ALLOW)])


async def test_p05_lower_order_wins_nil_is_last_and_names_break_ties(world: World, pods: Pods) -> None:
    flow = (pods.client, pods.web, 8080, "tcp")
    await world.apply(
        ingress("b", "[{action: Deny}]", order="10") + "---" + ingress("a", "[{action: Allow}]", order="20")
    )
    await world.check([(*flow, DENY)])
    await world.apply(ingress("b", "[{action: Deny}]", order="30"))
    await world.check([(*flow, ALLOW)])
    await world.apply(ingress("b", "[{action: Deny}]", order="20"))
    await world.check([(*flow, ALLOW)])  # equal orders: a before b
    await world.apply(ingress("a", "[{action: Allow}]", order="null"))
    await world.check([(*flow, DENY)])


TIER = """
kind: Tier
metadata: {name: %s}
spec: {order: %d, defaultAction: %s}
"""


def tiered(name: str, tier: str, rules: str, direction: str = "Ingress") -> str:
    return f"""
kind: GlobalNetworkPolicy
metadata: {{name: {tier}.{name}}}
spec:
  tier: {tier}
  selector: app == 'web'
  types: [{direction}]
  {direction.lower()}: {rules}
"""


async def test_p06_pass_goes_to_the_next_tier(world: World, pods: Pods) -> None:
    await world.apply(TIER % ("first", 10, "Deny") + "---" + TIER % ("second", 20, "Deny"))
    rules = "[{action: Pass, protocol: TCP, destination: {ports: [8080]}}, {action: Allow, protocol: TCP}]"
    await world.apply(tiered("a", "first", rules) + "---" + tiered("b", "second", "[{action: Deny}]"))
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY), (pods.client, pods.web, 9090, "tcp", ALLOW)])


async def test_p07_default_action_of_a_tier_without_a_matching_rule(world: World, pods: Pods) -> None:
    flow = (pods.client, pods.web, 8080, "tcp")
    await world.apply(TIER % ("first", 10, "Deny"))
    await world.apply(tiered("a", "first", "[{action: Allow, protocol: UDP}]"))
    await world.check([(*flow, DENY)])
    await world.apply(TIER % ("first", 10, "Pass"))
    await world.check([(*flow, ALLOW)])  # no other tier applies: the profile allows
    await world.apply(tiered("b", "default", "[{action: Deny}]"))
    await world.check([(*flow, DENY)])


async def test_p11_ports_ranges_negated_and_named(world: World, pods: Pods) -> None:
    rule = "[{action: Allow, protocol: TCP, destination: {ports: %s}}]"
    await world.apply(ingress("ports", rule % "[80, '8000:8085']"))
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW), (pods.client, pods.web, 9090, "tcp", DENY)])
    await world.apply(ingress("ports", rule % "[metrics]"))
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY), (pods.client, pods.web, 9090, "tcp", ALLOW)])
    await world.apply(ingress("ports", rule % "[80, metrics, '8079:8081']"))
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW), (pods.client, pods.web, 9090, "tcp", ALLOW)])
    await world.apply(ingress("ports", "[{action: Allow, protocol: TCP, destination: {notPorts: [metrics, 9091]}}]"))
    await world.check(
        [
            (pods.client, pods.web, 8080, "tcp", ALLOW),
            (pods.client, pods.web, 9090, "tcp", DENY),
            (pods.client, pods.web, 9091, "tcp", DENY),
        ]
    )


@pytest.mark.parametrize("family", [4, 6])
async def test_p13_many_nets_and_negated_nets(world: World, pods: Pods, family: int) -> None:
    length = 32 if family == 4 else 128
    others = [f"192.0.2.{n}/32" if family == 4 else f"2001:db8::{n:x}/128" for n in range(1, 20)]
    client, db = (f"{pod.address(family)}/{length}" for pod in (pods.client, pods.db))
    outside = ["198.51.100.0/24"] if family == 4 else ["2001:db8:1::/64"]
    nets = [*others, client, db]
    rule = f"[{{action: Allow, source: {{nets: {nets}, notNets: {[*outside, db]}}}}}]"
    await world.apply(ingress("nets", rule))
    wanted = [
        (pods.client, pods.web, 8080, "tcp", ALLOW),
        (pods.db, pods.web, 8080, "tcp", DENY),
        (pods.other, pods.web, 8080, "tcp", DENY),
    ]
    await world.check(wanted, families=[family])


async def test_p14_selectors_of_a_rule_stay_in_its_namespace_unless_told(world: World, pods: Pods) -> None:
    def policy(source: str) -> str:
        return f"""
kind: NetworkPolicy
metadata: {{name: from, namespace: ns1}}
spec:
  selector: app == 'web'
  ingress: [{{action: Allow, source: {source}}}]
"""

    rows = [
        ("{selector: app == 'client'}", ALLOW, DENY, DENY),
        ("{selector: app == 'client', namespaceSelector: team == 'blue'}", DENY, ALLOW, DENY),
        ("{selector: app == 'client', namespaceSelector: all()}", ALLOW, ALLOW, DENY),
        ("{namespaceSelector: team == 'red'}", ALLOW, DENY, ALLOW),
        ("{notSelector: app == 'client'}", DENY, DENY, ALLOW),  # the positive side is all of ns1
    ]
    for source, client, other, db in rows:
        await world.apply(policy(source))
        await world.check(
            [
                (pods.client, pods.web, 8080, "tcp", client),
                (pods.other, pods.web, 8080, "tcp", other),
                (pods.db, pods.web, 8080, "tcp", db),
            ]
        )


async def test_p18_network_sets_with_overlapping_nets(world: World, pods: Pods) -> None:
    client4, client6 = pods.client.address(4), pods.client.address(6)
    wide = f"['{client4}/8', '{client6}/32']"
    narrow = f"['{client4}/24', '{client6}/64']"
    the_set = """
kind: GlobalNetworkSet
metadata: {name: %s, labels: {nets: bad}}
spec: {nets: %s}
"""
    await world.apply(the_set % ("wide", wide) + "---" + the_set % ("narrow", narrow))
    await world.apply(ingress("bad", "[{action: Deny, source: {selector: nets == 'bad'}}, {action: Allow}]"))
    flow = (pods.client, pods.web, 8080, "tcp")
    await world.check([(*flow, DENY)])
    await world.delete("GlobalNetworkSet", "wide")
    await world.check([(*flow, DENY)])  # the narrower one still covers it
    await world.delete("GlobalNetworkSet", "narrow")
    await world.check([(*flow, ALLOW)])


async def test_p18_one_more_net_in_a_large_set_writes_no_rule(world: World, pods: Pods) -> None:
    nets = [f"203.{a}.{b}.0/24" for a in range(20) for b in range(250)]
    the_set = "kind: GlobalNetworkSet\nmetadata: {name: large, labels: {nets: bad}}\nspec: {nets: %s}\n"
    await world.apply(the_set % nets)
    await world.apply(ingress("bad", "[{action: Deny, source: {selector: nets == 'bad'}}, {action: Allow}]"))
    before = await world.metric("node1", "felix_nft_rules_written_total")
    await world.apply(the_set % [*nets, str(ip_network(f"{pods.client.address(4)}/31", strict=False))])
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY)], families=[4])
    assert await world.metric("node1", "felix_nft_rules_written_total") == before


async def test_p19_types_default_to_the_directions_that_have_rules(world: World, pods: Pods) -> None:
    await world.apply(
        """
kind: NetworkPolicy
metadata: {name: out, namespace: ns1}
spec:
  selector: app == 'web'
  egress: [{action: Deny}]
"""
    )
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW), (pods.web, pods.client, 8080, "tcp", DENY)])


async def test_p22_profile_decides_where_no_policy_applies(world: World, pods: Pods) -> None:
    flow = (pods.client, pods.other, 8080, "tcp")
    await world.check([(*flow, ALLOW)])
    profile = "kind: Profile\nmetadata: {name: kns.ns2}\nspec: {ingress: [{action: %s}], egress: [{action: Allow}]}\n"
    try:
        await world.apply(profile % "Deny")
        await world.check([(*flow, DENY), (pods.other, pods.client, 8080, "tcp", ALLOW)])
    finally:
        await world.cluster.add_namespace("ns2", labels={"team": "blue"})
    await world.cluster.eventually([flow], ALLOW)


async def test_p27_established_flow_survives_an_unrelated_change_and_new_deny_stops_new_flows(
    world: World, pods: Pods
) -> None:
    flow = world.cluster.flow(pods.client, pods.web, 8080)
    with Load(streams=[flow]) as load:
        await world.apply(ingress("unrelated", "[{action: Deny}]", selector="app == 'nobody'"))
        await world.apply(ingress("deny", "[{action: Deny}]"))
        await world.check([(pods.client, pods.web, 8080, "tcp", DENY)])
    assert load.result.lost_nothing, load.result


async def test_p28_pod_with_a_missing_profile_is_denied_everything(world: World, pods: Pods) -> None:
    stray = await world.cluster.add_pod("node1", "stray", namespace="ns-without-profile", labels={"app": "stray"})
    try:
        await world.check([(pods.client, stray, 8080, "tcp", DENY), (stray, pods.client, 8080, "tcp", DENY)])
    finally:
        await world.cluster.remove_pod(stray)


async def test_p29_same_node_and_cross_node_are_treated_alike(world: World, pods: Pods) -> None:
    rules = "[{action: Allow, protocol: TCP, source: {selector: has(app)}, destination: {ports: [8080]}}]"
    await world.apply(ingress("same", rules, selector="app == 'web' || app == 'client'"))
    wanted = [
        (source, target, port, protocol, ALLOW if (port, protocol) == (8080, "tcp") else DENY)
        for source, target in (
            (pods.db, pods.web),
            (pods.client, pods.web),
            (pods.other, pods.client),
            (pods.web, pods.client),
        )
        for port, protocol in ((8080, "tcp"), (9090, "tcp"), (8080, "udp"))
    ]
    await world.check(wanted)


async def test_e08_host_reaches_its_own_pod_under_deny_all(world: World, pods: Pods) -> None:
    await world.apply(ingress("deny-all", "[{action: Deny}]", selector="all()"))
    for family in (4, 6):
        address = pods.web.address(family)
        url = f"http://{address}:8080/" if family == 4 else f"http://[{address}]:8080/"
        code = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=20).status)"
        assert world.run("node1", "python3", "-c", code).strip() == "200"
    await world.check([(pods.client, pods.web, 8080, "tcp", DENY)])
