"""What calicoctl explains against what really happens: packets between pods and nodes, on two nodes, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from libs.netlink.conntrack import delete_connections
from libs.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from libs.testkit.cluster import Pod
from libs.testkit.reach import Flow, Verdict, check
from services.calicoctl.app import cli
from services.calicoctl.session import Environment
from tests.cluster.conftest import ALLOW, DENY, World, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = ((8080, "tcp"), (9090, "tcp"), (8080, "udp"), (0, "icmp"))
Asked = tuple[Pod, Pod, int, str]


@dataclass(frozen=True)
class Pods:
    """ns1: web and db on node1, client on node2. ns2: other on node2."""

    web: Pod
    db: Pod
    client: Pod
    other: Pod

    def all(self) -> list[Pod]:
        return [self.web, self.db, self.client, self.other]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1", labels={"team": "red"})
    await world.cluster.add_namespace("ns2", labels={"team": "blue"})
    add = world.cluster.add_pod
    named = [{"name": "metrics", "port": 9090, "protocol": "TCP"}]
    return Pods(
        await add("node1", "web", namespace="ns1", labels={"app": "web"}, ports=named),
        await add("node1", "db", namespace="ns1", labels={"app": "db"}),
        await add("node2", "client", namespace="ns1", labels={"app": "client"}),
        await add("node2", "other", namespace="ns2", labels={"app": "client"}),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: Pods) -> AsyncIterator[None]:
    yield
    await world.clean()


async def ctl(world: World, *arguments: str, stdin: str | None = None) -> Result:
    environment = Environment(variables=world.cluster.outside_env())
    return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments), input=stdin, obj=environment)


async def traced(world: World, source: str, target: str, *more: str) -> list[dict[str, Any]]:
    """One entry for each family."""
    done = await ctl(world, "trace", source, target, "-o", "json", *more)
    assert done.exit_code == 0, done.output + repr(done.exception)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def name(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


def pairs(pods: Pods) -> list[Asked]:
    return [
        (source, target, port, protocol)
        for source in pods.all()
        for target in pods.all()
        if source is not target
        for port, protocol in SERVICES
    ]


Matrix = dict[tuple[str, str, int, str, int], bool]


async def matrix(world: World, asked: Sequence[Asked], hoped: Matrix | None = None) -> Matrix:
    """By real packets. Echo requests of one process are one connection: what an earlier one was allowed is forgotten
    first. hoped: what is expected; who answers late is waited for where that is an answer, without it everywhere.
    """
    for node in world.cluster.nodes:
        with closing(NetlinkSocket(NETLINK_NETFILTER, node.namespace.path)) as netlink:
            for pod in world.cluster.pods():
                for address in pod.addresses:
                    delete_connections(netlink, address)
    questions: Any = list(asked)

    async def of(family: int) -> Matrix:
        keys = [(source.name, target.name, port, protocol, family) for source, target, port, protocol in asked]
        wanted = [ALLOW if hoped is None or hoped[key] else DENY for key in keys]
        verdicts = await world.cluster.reach(questions, family=family, timeout_s=0.6, wanted=wanted)
        assert set(verdicts) <= {ALLOW, DENY}, verdicts
        return {key: verdict == ALLOW for key, verdict in zip(keys, verdicts, strict=True)}

    first, second = await asyncio.gather(of(4), of(6))
    return first | second


PORTS = """
kind: NetworkPolicy
metadata: {name: web, namespace: ns1}
spec:
  order: 10
  selector: app == 'web'
  types: [Ingress, Egress]
  ingress:
  - {action: Log}
  - {action: Deny, protocol: TCP, source: {selector: app == 'db'}, destination: {ports: [metrics]}}
  - {action: Allow, protocol: TCP, source: {selector: "app in {'db', 'client'}"}, destination: {ports: [8080, metrics]}}
  egress:
  - {action: Allow, protocol: UDP}
"""
TIERS = """
kind: Tier
metadata: {name: first}
spec: {order: 10}
---
kind: Tier
metadata: {name: second}
spec: {order: 20, defaultAction: Pass}
---
kind: GlobalNetworkPolicy
metadata: {name: first.scan}
spec:
  tier: first
  order: 1
  selector: has(app)
  namespaceSelector: team == 'red'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: UDP, source: {namespaceSelector: team == 'blue'}}
  - {action: Pass}
---
kind: GlobalNetworkPolicy
metadata: {name: second.some}
spec:
  tier: second
  selector: app == 'web'
  types: [Ingress, Egress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: ['8000:8085']}}]
  egress: [{action: Deny, protocol: ICMP}, {action: Deny, protocol: ICMPv6}]
---
kind: NetworkPolicy
metadata: {name: rest, namespace: ns1}
spec:
  selector: app == 'web' || app == 'db'
  types: [Ingress]
  ingress: [{action: Allow, source: {selector: app == 'client', namespaceSelector: all()}}]
---
kind: StagedGlobalNetworkPolicy
metadata: {name: closed}
spec: {order: 1, selector: app == 'db', types: [Ingress], ingress: [{action: Deny}]}
"""


def nets(pods: Pods) -> str:
    own = [f"{address}/{address.max_prefixlen}" for address in pods.client.addresses]
    return f"""
kind: GlobalNetworkSet
metadata: {{name: known, labels: {{known: "yes"}}}}
spec: {{nets: {own}}}
---
kind: GlobalNetworkPolicy
metadata: {{name: known}}
spec:
  selector: app == 'db'
  types: [Ingress]
  ingress:
  - {{action: Deny, protocol: TCP, notProtocol: UDP, destination: {{notPorts: [8080]}}}}
  - {{action: Allow, source: {{selector: known == 'yes'}}}}
---
kind: GlobalNetworkPolicy
metadata: {{name: web-out}}
spec:
  selector: app == 'web'
  types: [Egress]
  egress:
  - {{action: Allow, destination: {{notNets: [{own[0]}]}}}}
  - {{action: Allow, destination: {{notNets: [{own[1]}]}}}}
"""


@pytest.mark.parametrize("stack", ["none", "ports", "tiers", "nets"])
async def test_trace_and_kernel_and_traffic_agree_on_every_pair(world: World, pods: Pods, stack: str) -> None:
    text = {"none": "", "ports": PORTS, "tiers": TIERS, "nets": nets(pods)}[stack]
    if text:
        await world.apply(text)
    asked = pairs(pods)
    passed = await matrix(world, asked)
    wrong, seen = [], set()
    for source, target, port, protocol in asked:
        options = ["--protocol", protocol, *(["--port", str(port)] if port else [])]
        for family, one in zip((4, 6), await traced(world, name(source), name(target), *options), strict=True):
            really = passed[source.name, target.name, port, protocol, family]
            seen.add(really)
            told = one["verdict"] == "allow"
            agrees = [hop["kernel"]["agrees"] for hop in one["hops"]]
            kernel = all(hop["kernel"]["accepted"] for hop in one["hops"])
            unnamed = [
                step
                for hop in one["hops"]
                if hop["allowed"]  # where one step denies the later ones' rules are not reached
                for step, decider in zip(hop["steps"], hop["kernel"]["deciders"], strict=True)
                if decider is None
            ]
            if told != really or kernel != really or agrees != [True] * len(agrees) or unnamed:
                wrong.append((source.name, target.name, port, protocol, family, really, one))
    assert wrong == []
    assert seen == ({True} if stack == "none" else {True, False})


async def test_the_nodes_own_traffic_and_host_endpoints(world: World, pods: Pods) -> None:
    """Pod to its own node, to another node, node to pod, node to node: with a host endpoint on node2's eth0."""
    await world.apply(
        """
kind: GlobalNetworkPolicy
metadata: {name: guard}
spec:
  order: 5
  selector: guard == 'yes'
  applyOnForward: true
  types: [Ingress, Egress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [9090]}}
  - {action: Allow}
  egress: [{action: Allow}]
"""
    )
    guard = "kind: HostEndpoint\nmetadata: {name: node2-eth0, labels: {guard: 'yes'}}\n"
    guard += "spec: {node: node2, interfaceName: eth0}\n"
    try:
        await world.apply(guard)
        for port in (8080, 9090):
            for target in (pods.client, pods.web):
                source = pods.web if target is pods.client else pods.client
                really = await verdicts([world.cluster.flow(source, target, port, family=family) for family in (4, 6)])
                told = await traced(world, name(source), name(target), "--port", str(port))
                assert [one["verdict"] == "allow" for one in told] == [one == ALLOW for one in really]
                assert all(hop["kernel"]["agrees"] for one in told for hop in one["hops"]), told
        told = await traced(world, name(pods.web), name(pods.client), "--port", "9090", "--family", "4")
        (step,) = [step for step in told[0]["hops"][1]["steps"] if step["host"]]
        assert (step["stage"], step["endpoint"], step["decision"]["action"]) == ("applyOnForward", "node2-eth0", "deny")
        for source, target, port in (
            (name(pods.client), "node2", 8080),  # DefaultEndpointToHostAction
            (name(pods.web), "node2", 8080),
            (name(pods.web), "node2", 9090),
            ("node1", name(pods.client), 9090),
            ("node1", name(pods.client), 8080),
            ("node2", name(pods.client), 9090),
            ("node1", "node2", 9090),
            ("node2", "node1", 22),
            (str(world.cluster.ipv4.ip), name(pods.client), 9090),
        ):
            told = await traced(world, source, target, "--port", str(port))
            measured = source == "node1" and "/" in target
            really = [await node_reaches(world, source, port, one) for one in told] if measured else None
            for place, one in enumerate(told):
                assert all(hop["kernel"]["agrees"] for hop in one["hops"]), one
                if really is not None:
                    assert (one["verdict"] == "allow") is really[place], one
    finally:
        await world.delete("HostEndpoint", "node2-eth0")


async def node_reaches(world: World, node: str, port: int, told: dict[str, Any]) -> bool:
    netns = world.cluster.node(node).namespace.path
    (verdict,) = await verdicts([Flow(netns, ip_address(told["packet"]["dst"]), port, "tcp")])
    return verdict == Verdict.ALLOW


async def test_the_text_names_tier_policy_rule_and_what_the_kernel_says(world: World, pods: Pods) -> None:
    await world.apply(PORTS)
    done = await ctl(world, "trace", name(pods.client), name(pods.web), "--port", "8080", "--family", "4")
    assert done.exit_code == 0
    assert "ALLOWED" in done.stdout
    assert "by tier default, policy np/ns1/web, rule 2" in done.stdout
    assert "kernel: agrees (evaluated the ruleset read back from the kernel)" in done.stdout
    assert "logged by np/ns1/web/0" in done.stdout


async def test_counters_of_the_deciding_rule_are_those_of_nft(world: World, pods: Pods) -> None:
    await world.apply(PORTS)
    flow = world.cluster.flow(pods.client, pods.web, 8080)

    async def connect(times: int) -> None:  # a second try would be counted as well
        assert await asyncio.to_thread(check, [flow] * times, timeout_s=20, tries=1) == [ALLOW] * times

    await connect(1)

    async def counted() -> int:
        (one,) = await traced(world, name(pods.client), name(pods.web), "--port", "8080", "--family", "4")
        kernel = one["hops"][1]["kernel"]
        rule = kernel["rules"][kernel["deciders"][0]]
        assert rule["comment"] == "np/ns1/web/2 allow"
        listed = world.run("node1", "nft", "-j", "list", "chain", "ip", "calico", "pi-np/ns1/web")
        in_nft = [
            expr["counter"]["packets"]
            for item in json.loads(listed)["nftables"]
            if item.get("rule", {}).get("comment") == "np/ns1/web/2 allow"
            for expr in item["rule"]["expr"]
            if "counter" in expr
        ]
        assert rule["packets"] in in_nft
        packets: int = rule["packets"]
        return packets

    before = await counted()
    await connect(2)
    assert await counted() == before + 2


async def test_a_staged_policy_is_told_and_not_enforced(world: World, pods: Pods) -> None:
    await world.apply(TIERS)
    (one,) = await traced(world, name(pods.client), name(pods.db), "--port", "8080", "--family", "4")
    assert one["verdict"] == "allow"
    assert one["hops"][1]["steps"][0]["staged"]["policy"] == "sgnp/closed"
    (one,) = await traced(world, name(pods.client), name(pods.db), "--port", "8080", "--family", "4", "--staged")
    assert one["verdict"] == "deny"
    assert one["hops"][1]["kernel"]["agrees"] is True  # with what is enforced


async def test_without_the_bus_the_datastore_alone_is_asked_and_that_is_said(world: World, pods: Pods) -> None:
    await world.apply(PORTS)
    done = await ctl(world, "trace", "ns1/db", "ns1/web", "--port", "metrics", "--datastore-only", "--family", "6")
    assert done.exit_code == 0
    assert "DENIED" in done.stdout
    assert "kernel: not asked" in done.stdout
    assert "calculated from the datastore at revision" in done.stdout


async def test_a_felix_that_is_away_is_said(world: World, pods: Pods) -> None:
    world.cluster.kill_felix("node2")
    try:
        done = await ctl(world, "trace", "ns1/client", "ns1/web", "--port", "8080", "--family", "4", "--timeout", "5s")
        assert done.exit_code == 0
        assert "not asked: its felix" in done.stdout
        assert "kernel: agrees" in done.stdout  # of the other one
        # What is taken out of the kernel while nobody looks after it is back when the agent is asked again.
        world.run("node2", "nft", "flush", "chain", "ip", "calico", "pri-kns.ns1")
    finally:
        await world.cluster.start_felix("node2")
    told = await traced(world, "ns1/web", "ns1/client", "--port", "8080")
    assert all(hop["kernel"]["agrees"] for one in told for hop in one["hops"])


# --- what-if ---------------------------------------------------------------------------------------------------------


async def predicted(world: World, pods: Pods, text: str, *more: str) -> dict[tuple[str, str, int, str, int], bool]:
    """What changes for the pairs of the matrix, by `what-if` of each of its services."""
    by_name = {name(pod): pod for pod in pods.all()}
    found: dict[tuple[str, str, int, str, int], bool] = {}
    for port, protocol in SERVICES:
        options = ["--protocol", protocol, *(["--port", str(port)] if port else [])]
        done = await ctl(world, "what-if", *(["-f", "-"] if text else []), *more, *options, "-o", "json", stdin=text)
        assert done.exit_code in (0, 3), done.output + repr(done.exception)
        told = json.loads(done.stdout)
        assert (done.exit_code == 3) is bool(told["changed"])
        for change in told["changes"]:
            for source in change["from"]:
                for target in change["to"]:
                    if source == target:
                        continue
                    for family in change["families"]:
                        key = by_name[source].name, by_name[target].name, port, protocol, family
                        assert key not in found
                        found[key] = change["verdict"] == "allow"
        assert told["changed"] == sum(key[2:4] == (port, protocol) for key in found)
    return found


def documents(text: str) -> str:
    return "---".join(f"\napiVersion: projectcalico.org/v3\n{one.strip()}\n" for one in text.split("---"))


@pytest.mark.parametrize("stack", ["ports", "tiers", "nets", "from tiers to ports"])
async def test_what_if_predicts_the_matrix_that_comes_true(world: World, pods: Pods, stack: str) -> None:
    stacks = {"ports": PORTS, "tiers": TIERS, "nets": nets(pods), "from tiers to ports": PORTS}
    if stack.startswith("from"):
        await world.apply(TIERS)
    asked = pairs(pods)
    now = await matrix(world, asked)
    changes = await predicted(world, pods, documents(stacks[stack]))
    assert changes
    assert all(now[key] is not verdict for key, verdict in changes.items())
    assert await matrix(world, asked, now) == now  # nothing was written
    done = await ctl(world, "apply", "-f", "-", "--wait", stdin=documents(stacks[stack]))
    assert done.exit_code == 0, done.output
    assert await matrix(world, asked, now | changes) == now | changes
    # What is taken away again changes it all back.
    gone = ["--delete", "np/ns1/web"] if stack in ("ports", "from tiers to ports") else []
    if gone:
        back = await predicted(world, pods, "", *gone)
        assert back == {key: now[key] for key in changes}


async def test_what_if_of_staged_policies_is_what_their_enforcement_brings(world: World, pods: Pods) -> None:
    await world.apply(TIERS)
    asked = pairs(pods)
    now = await matrix(world, asked)
    changes = await predicted(world, pods, "", "--staged")
    assert {key[1] for key in changes} == {"db"}
    enforced = TIERS.replace("StagedGlobalNetworkPolicy", "GlobalNetworkPolicy").split("---")[-1]
    await world.apply(enforced)
    assert await matrix(world, asked, now | changes) == now | changes


async def test_live_connections_are_flows_for_what_if(world: World, pods: Pods) -> None:
    await matrix(world, [(pods.client, pods.web, 8080, "tcp")])
    deny = documents(PORTS.replace("8080, metrics", "9091"))
    done = await ctl(world, "what-if", "-f", "-", "--connections", "--protocol", "udp", "--port", "1", "-o", "json",
                     "--in", "ns2", stdin=deny)  # fmt: skip
    assert done.exit_code == 3, done.output
    told = json.loads(done.stdout)["flows"]["changes"]
    assert {("ns1/client", "ns1/web", 8080)} <= {(one["from"], one["to"], one["packet"]["dst_port"]) for one in told}
    line = json.dumps({"src": "ns1/client", "dst": str(pods.web.address(6)), "proto": "tcp", "port": 8080})
    done = await ctl(world, "what-if", "--delete", "np/ns1/nothing", "--flows", "-", stdin=line)
    assert done.exit_code == 1
    assert "nothing" in done.stderr


# --- routes and connections -----------------------------------------------------------------------------------------


async def test_connections_with_the_policy_that_admits_them(world: World, pods: Pods) -> None:
    await matrix(world, [(pods.client, pods.web, 8080, "tcp"), (pods.client, pods.db, 8080, "udp")])
    done = await ctl(world, "node", "connections", "node1", "--pod", "ns1/web", "--port", "8080", "-o", "json")
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)
    mine = [one for one in answer["connections"] if one["src"] in map(str, pods.client.addresses)]
    assert {one["src"] for one in mine} == set(map(str, pods.client.addresses))
    for one in mine:
        assert (one["destination"], one["dst_port"], one["verdict"]) == ("ns1/web", 8080, "allow")
        assert one["steps"][0]["decision"]["profile"] == "kns.ns1"
    await world.apply(PORTS.replace("8080, metrics", "9091"))
    done = await ctl(world, "node", "connections", "--pod", "web", "-n", "ns1", "--protocol", "tcp")
    assert done.exit_code == 0
    assert "DENIED" in done.stdout  # admitted before, and still there
    assert "np/ns1/web" in done.stdout or "end of tier default" in done.stdout


async def test_routes_with_owner_and_reason(world: World, pods: Pods) -> None:
    done = await ctl(world, "node", "routes", "-o", "json")
    assert done.exit_code == 0, done.output
    answers = {one["node"]: one for one in json.loads(done.stdout)}
    routes = {one["destination"]: one for one in answers["node1"]["routes"] if one["table"] == "main"}
    for pod in pods.all():
        for address in pod.addresses:
            route = routes.get(f"{address}/{address.max_prefixlen}")
            if pod.node == "node1":
                assert route is not None
                assert route["owner"] == "felix"
                assert route["reason"] == f"workload endpoint k8s/ns1/{pod.name}/eth0"
    reasons = [one["reason"] for one in routes.values() if one["owner"] == "felix"]
    assert "block of node node2" in reasons
    assert "block of this node: addresses that are not in use" in reasons
    listed = world.run("node1", "ip", "-4", "route", "show", "table", "main").splitlines()
    assert len(listed) == len([one for one in routes.values() if ":" not in one["destination"]])
    local = await ctl(world, "node", "routes", "node1", "--local", "--family", "6")
    assert local.exit_code == 0
    assert "address of lo" in local.stdout
    done = await ctl(world, "node", "routes", "nobody")
    assert (done.exit_code, done.stderr) == (1, "no such node: nobody\n")


# --- status ----------------------------------------------------------------------------------------------------------


async def test_status_of_all_components_and_of_a_node_that_is_missing(world: World, pods: Pods) -> None:
    revision = await world.apply(PORTS)
    done = await ctl(world, "status", "-o", "json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    rows = {(one["component"], one.get("where", "")): one for one in told["components"]}
    assert told["good"] is True
    assert rows["etcd", ""]["revision"] >= revision
    for node in ("node1", "node2"):
        felix = rows["felix", node]
        assert felix["revision"] >= revision
        assert (felix["lag"], felix["status"], felix["failures"]) == (0, "up to date", {})
        assert felix["version"]
    await world.apply("{kind: FelixConfiguration, metadata: {name: node.node1}, spec: {logPrefix: mine}}")
    done = await ctl(world, "node", "config", "node1", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["node1"]["settings"]["logPrefix"] == {"value": "mine", "source": "node.node1"}
    typhas = [one for (component, _), one in rows.items() if component == "typha"]
    assert [one["lag"] for one in typhas] == [0]
    world.cluster.kill_felix("node2")
    try:
        done = await ctl(world, "status", "--timeout", "1s")
        assert done.exit_code == 1
        (line,) = [line for line in done.stdout.splitlines() if "felix" in line and "node2" in line]
        assert "its felix does not run" in line or "did not answer" in line
    finally:
        await world.cluster.start_felix("node2")
