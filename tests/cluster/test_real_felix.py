"""Rows M15 and N02: a node on which a real Calico's Felix runs, and one of ours, on the same etcd: one network over
VXLAN and IP in IP, the same verdicts from both for the same policies, and the move to ours and back under traffic
(docs/install/migration.md). IP in IP takes a distribution's kernel: ./dev stock-kernel tests/cluster/test_real_felix.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_network
from itertools import permutations

import pytest
import pytest_asyncio
import yaml

from libs.resources import codec
from libs.store.api import Store
from libs.testkit import bootstrap
from libs.testkit.calico.felix import TOOLS, FelixMissing, RealFelix, program
from libs.testkit.cluster import Cluster, Pod, Question
from libs.testkit.netns import kernel_makes
from libs.testkit.patience import patient
from libs.testkit.reach import Flow
from libs.testkit.traffic import Load
from tests.cluster.calico_node import POOLS, CalicoNode, write_cluster
from tests.cluster.conftest import ALLOW, DENY, open_world, until
from tests.cluster.overlays.lab import (
    FAMILIES,
    IPIP,
    ON_STOCK_KERNEL,
    VXLAN,
    Overlay,
    another,
    links,
    pools,
    tunnel_addresses,
    ways,
)
from tests.cluster.test_node_supervised import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABELS = {"web": {"app": "web"}, "friend": {"app": "client", "friend": "yes"}, "other": {"app": "client"}}
POLICIES = {
    "who": """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: who, namespace: default}
spec:
  selector: app == 'web'
  ingress:
    - {action: Allow, protocol: TCP, source: {selector: friend == 'yes'}, destination: {ports: [8080]}}
""",
    "who not, and ranges of ports": """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ranges}
spec:
  order: 10
  selector: has(app)
  types: [Ingress]
  ingress:
    - {action: Deny, protocol: TCP, destination: {notPorts: ['8081:8090']}}
    - {action: Allow, protocol: TCP, source: {notSelector: friend == 'yes'}}
""",
    "where to": """
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: blocks, namespace: default, labels: {kind: blocks}}
spec: {nets: [10.65.0.0/16, 'fd00:65::/48']}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: where-to, namespace: default}
spec:
  selector: app == 'client'
  types: [Egress]
  egress:
    - {action: Deny, protocol: TCP, destination: {selector: kind == 'blocks', ports: [8081]}}
    - {action: Allow, destination: {selector: app == 'web'}}
""",
    "nothing": """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: nothing}
spec: {selector: app == 'web', types: [Ingress, Egress]}
""",
}
"""Each is on all pods of both nodes alike."""


class Mixed:
    """node1 is ours from the start, node2 Calico's at first. Pods `web1`, `friend1` … and `web2` …, alike in labels."""

    def __init__(self, stage: Stage, calico: CalicoNode, felix: RealFelix) -> None:
        self.stage, self.calico, self.felix = stage, calico, felix
        self.world, self.cluster = stage.world, stage.cluster
        self.pods: dict[str, Pod] = {}

    async def be_calicos(self) -> None:
        """Calico's felix alone is on node2: docs/install/migration.md, the way back."""
        if not self.stage.nodes["node2"].running:
            return
        assert self.stage.nodes["node2"].stop(patient(40)) == 0
        self.felix.start()
        await self.felix.ready()
        for family in ("ip", "ip6"):
            self.world.run("node2", "nft", "delete", "table", family, "calico")

    async def be_ours(self) -> None:
        """Ours alone is on node2."""
        if self.stage.nodes["node2"].running:
            return
        self.felix.kill()
        self.stage.nodes["node2"].start()
        await self.stage.ready("node2")

        async def nothing_left() -> bool:
            return not self.felix.left()

        await until(nothing_left, 60, "rules and sets of Calico's felix go")

    async def overlay(self, overlay: Overlay) -> None:
        """All traffic between the nodes goes through it."""
        await self.calico.tunnels(self.world.store, *(["ipip"] if overlay is IPIP else ["vxlan", "vxlan-v6"]))
        await self.apply(pools("Always", overlay))
        await tunnel_addresses(self.world, overlay, there=True)
        self.world.run("node2", "ip", "route", "flush", "proto", "bird")
        if overlay is IPIP:
            await self._be_bird()
        pairs = [(f"web{a}", f"web{b}") for a, b in ((1, 2), (2, 1))]
        for family in overlay.families:
            await self.cluster.eventually(self.questions(*pairs), ALLOW, family=family, timeout_s=60)

    async def apply(self, text: str) -> None:
        """Until ours on node1 enforces it; of Calico's nobody hears."""
        for document in yaml.safe_load_all(text):
            await self.world.resources.apply(codec.from_json(document))
        await self.world.known("node1")

    async def _be_bird(self) -> None:
        """What Calico's BIRD makes of the block that node1 tells of."""
        block = ip_network((str(self.pods["web1"].address(4)), 26), strict=False)
        router = self.cluster.node("node1").ipv4.ip

        async def up() -> bool:
            return "tunl0" in links(self.world, "node2")

        await until(up, 60, "Calico's felix makes tunl0")
        self.world.run("node2", *f"ip route replace {block} via {router} dev tunl0 onlink proto bird".split())

    def questions(self, *pairs: tuple[str, str], ports: Sequence[int] = (8080,)) -> list[Question]:
        return [(self.pods[a], self.pods[b], port, "tcp") for a, b in pairs for port in ports]

    async def decided(self, policy: str) -> list[Question]:
        """Applies a policy of POLICIES, and waits until Calico's felix says of each pair of its pods what ours says."""
        await self.apply(POLICIES[policy])
        ours, theirs = (
            self.questions(*((f"{a}{n}", f"{b}{n}") for a, b in permutations(LABELS, 2)), ports=(8080, 8081))
            for n in (1, 2)
        )
        for family in FAMILIES:

            async def same(family: int = family) -> bool:
                said = await self.cluster.reach(ours, family=family)
                return await self.cluster.reach(theirs, family=family, wanted=said) == said

            await until(same, 30, f"both say the same of {policy}, IPv{family}")
        return ours

    def load(self, *pairs: tuple[str, str], denied: Sequence[tuple[str, str]]) -> Load:
        def flows(pairs: Sequence[tuple[str, str]], protocol: str = "tcp") -> list[Flow]:
            return [
                self.cluster.flow(self.pods[a], self.pods[b], 8080, protocol, family=family)  # type: ignore[arg-type]
                for a, b in pairs for family in FAMILIES
            ]  # fmt: skip

        return Load(
            udp=flows(UNJUDGED, "udp"), tcp=flows(pairs), streams=flows(pairs), denied=flows(denied), udp_per_s=200,
            tcp_per_s=50, stream_per_s=50, denied_per_s=50,
        )  # fmt: skip


async def fill(store: Store, cluster: Cluster) -> None:
    await write_cluster(store, cluster)
    for version, size in ((4, 26), (6, 122)):
        name = f"default-ipv{version}-ippool"
        spec = bootstrap.pool_spec(POOLS[version], vxlan_mode="Always", block_size=size)
        await store.put(bootstrap.key("ippools", name), bootstrap.resource("IPPool", name, spec))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed() -> AsyncIterator[Mixed]:
    try:
        program()
    except FelixMissing as error:
        pytest.skip(str(error))
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, services=False, fill=fill)
        world = await open_world(stack, cluster)
        stage = Stage(world, CALICO_NETWORKING_BACKEND="vxlan", **TOOLS)
        node2 = cluster.node("node2")
        felix = RealFelix(
            "node2", node2.namespace, etcd=node2.env["ETCD_ENDPOINTS"], directory=node2.directory,
            address=str(node2.ipv4.ip),
        )  # fmt: skip
        made = Mixed(stage, CalicoNode(cluster, node2), felix)
        for process in stage.nodes.values():
            stack.callback(process.kill)
        await made.calico.tunnels(world.store, "vxlan", "vxlan-v6")
        for name, labels in LABELS.items():
            made.pods[f"{name}2"] = await made.calico.plug(world.store, f"{name}2", labels)
        stack.callback(felix.kill)
        felix.start()
        keeper = asyncio.create_task(felix.keep())
        stack.callback(keeper.cancel)
        for typha in cluster.typhas:
            typha.start()
        stage.nodes["node1"].start()
        await felix.ready()
        await stage.ready("node1")
        for name, labels in LABELS.items():
            made.pods[f"{name}1"] = await cluster.add_pod("node1", f"{name}1", labels=labels)
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def cleaned(mixed: Mixed) -> AsyncIterator[None]:
    yield
    await mixed.world.removed()


@pytest.mark.parametrize("overlay", [VXLAN, ON_STOCK_KERNEL], ids=["vxlan", "ipip"])
async def test_they_are_one_network_through_tunnels(mixed: Mixed, overlay: Overlay) -> None:
    if not kernel_makes(overlay.kind):
        pytest.skip("this kernel has no IP-in-IP tunnels")
    await mixed.be_calicos()
    await mixed.overlay(overlay)
    for a, b in (("web1", "web2"), ("web2", "web1")):
        for family in overlay.families:
            plain, inside = await ways(mixed.world, mixed.pods[a], mixed.pods[b], family, overlay)
            assert plain == 0
            assert inside >= 4, (a, b, family)


@pytest.mark.parametrize("policy", POLICIES)
async def test_both_decide_alike(mixed: Mixed, policy: str) -> None:
    """Where both ends are on one node, one of them decides alone; between nodes each decides about its end."""
    await mixed.be_calicos()
    await mixed.overlay(VXLAN)
    alone = await mixed.decided(policy)
    between = [
        (mixed.pods[a.name[:-1] + x], mixed.pods[b.name[:-1] + y], port, protocol)  # type: ignore[union-attr]
        for x, y in (("1", "2"), ("2", "1")) for a, b, port, protocol in alone
    ]  # fmt: skip
    for family in FAMILIES:

        async def alike(family: int = family) -> bool:
            said = await mixed.cluster.reach(alone, family=family)
            assert {ALLOW, DENY} <= set(said), "a policy that decides nothing compares nothing"
            twice = [*said, *said]
            return await mixed.cluster.reach(between, family=family, wanted=twice) == twice

        await until(alike, 30, f"between nodes as on one, IPv{family}")


ALLOWED = (("friend1", "web2"), ("friend2", "web1"), ("friend2", "web2"), ("web2", "other1"))
DENIED = (("other1", "web2"), ("other2", "web1"), ("other2", "web2"))
UNJUDGED = (("web2", "other1"), ("web1", "other2"))
"""By policy `who`; UDP flows among the last ones, whose receivers no policy selects."""


async def unharmed_by(move: Callable[[], Awaitable[None]], mixed: Mixed) -> None:
    """Under policy `who` and traffic node2 is moved: it decides the same before, meanwhile and after."""
    load = mixed.load(*ALLOWED, denied=DENIED)
    with load:
        await another(load, 200)
        await move()
        await another(load, 200)
    result = load.result
    assert result.denied_tried > 100
    assert result.streams == 2 * len(ALLOWED)
    assert result.stream_messages > 50
    assert result.lost_nothing, result
    assert result.denied_passed == 0, result
    await mixed.world.check(
        [(*one, ALLOW) for one in mixed.questions(*ALLOWED)] + [(*one, DENY) for one in mixed.questions(*DENIED)]
    )


async def test_the_node_moves_to_ours_under_traffic(mixed: Mixed) -> None:
    await mixed.be_calicos()
    await mixed.overlay(VXLAN)
    await mixed.decided("who")
    devices = mixed.world.run("node2", "ip", "-o", "link", "show", "type", "vxlan")
    await unharmed_by(mixed.be_ours, mixed)
    assert mixed.world.run("node2", "ip", "-o", "link", "show", "type", "vxlan") == devices


async def test_the_node_goes_back_under_traffic(mixed: Mixed) -> None:
    await mixed.be_ours()
    await mixed.overlay(VXLAN)
    await mixed.decided("who")
    await unharmed_by(mixed.be_calicos, mixed)
    assert mixed.felix.left()
    assert "calico" not in mixed.world.run("node2", "nft", "list", "tables")
