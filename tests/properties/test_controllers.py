"""Whatever happens to Kubernetes' objects, to what is stored of them, to connections and to the process: in the end
what is stored is a function of the objects that there are, and nothing of users is touched.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from libs import model
from libs.kube import objects
from libs.kube.objects import Source
from libs.model import keys
from libs.model.base import Resource
from libs.model.codec import convert
from libs.model.policy import StagedKubernetesNetworkPolicySpec
from libs.model.storage import to_storage
from libs.policy import kubernetes
from libs.resources import codec
from libs.runtime.config import load
from libs.runtime.health import Aggregator
from libs.runtime.service import Service
from libs.store.api import Compare
from libs.store.memory import MemoryEtcd, MemoryStore
from libs.testkit import virtual_time
from libs.testkit.kube.memory import MemoryKube
from services.kube_controllers.app import ELECTION_KEY, KubeControllers
from services.kube_controllers.config import KubeControllersConfig

_CALM_S = 700.0  # two periods, and longer than any back-off
NAMES, SPACES, LABELS = ("a", "b.c"), ("x", "y"), ({}, {"l": "1"}, {"l": "2", "m": "3"})
BAD_RULE = {"ports": [{"port": 70000}]}
SPECS: tuple[Any, ...] = (
    {"podSelector": {}},
    {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{}], "policyTypes": ["Ingress", "Egress"]},
    {"podSelector": {}, "ingress": [BAD_RULE, {"ports": [{"port": 80}]}]},
)
UNREADABLE = {"podSelector": 5}
ENDPOINTS = tuple((space, name, node) for space in SPACES for name in NAMES for node in ("n1", "n2"))

name, space, labels = st.sampled_from(NAMES), st.sampled_from(SPACES), st.sampled_from(LABELS)
node = st.sampled_from(("n1", "n2"))
STEPS = st.one_of(
    st.tuples(st.just("policy"), space, name, st.sampled_from((*SPECS, UNREADABLE, None))),
    st.tuples(st.just("namespace"), space, st.one_of(st.none(), labels)),
    st.tuples(st.just("account"), space, name, st.one_of(st.none(), labels)),
    st.tuples(st.just("pod"), space, name, st.one_of(st.none(), st.tuples(node, labels))),
    st.tuples(st.just("node"), node, st.one_of(st.none(), labels)),
    st.tuples(st.just("service"), space, name, st.sampled_from((None, "ClusterIP", "NodePort"))),
    st.tuples(st.just("damage"), st.integers(0, 50), st.sampled_from(("delete", "garbage", "edit"))),
    st.tuples(st.just("stray"), space, name, st.sampled_from(("knp.default.", "kns.", "ksa."))),
    st.tuples(st.just("store fails"), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("api fails"), st.integers(1, 4)),
    st.tuples(st.sampled_from(("watches end", "history is lost", "silence", "restart", "time", "etcd is compacted"))),
    st.tuples(st.just("time")),
    st.tuples(st.just("node comes back unseen"), node),
    st.tuples(st.just("list breaks"), space, name, st.sampled_from(SPECS)),
)


class World:
    """The datastore, the API and the controllers between them; and what should come of it."""

    def __init__(self) -> None:
        self.server = MemoryEtcd()
        self.user = MemoryStore(self.server)
        self.kube = MemoryKube()
        self.policies: dict[tuple[str, str], Any] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        self.accounts: dict[tuple[str, str], dict[str, str]] = {}
        self.pods: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
        self.been: dict[tuple[str, str, str], list[dict[str, str]]] = {}  # what an endpoint's labels may be
        self.nodes: dict[str, dict[str, str]] = {}
        self.services: dict[tuple[str, str], str] = {}
        self.mine: dict[str, bytes] = {}
        self.store = MemoryStore(self.server)
        self.lead: asyncio.Task[None] | None = None

    # --- what happens ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        for space_, name_, node_ in ENDPOINTS:
            spec = model.WorkloadEndpointSpec(
                orchestrator="k8s", pod=name_, node=node_, endpoint="eth0", interface_name="cali1",
                ip_networks=["10.0.0.1/32"], container_id="c",
            )  # fmt: skip
            await self.write(
                model.WorkloadEndpoint(
                    metadata=model.ObjectMeta(name=model.names.workload_endpoint_name(spec), namespace=space_),
                    spec=spec,
                )
            )
        for node_ in ("n1", "n2"):
            self.kube_node(node_, {})
            await self.calico_node(node_)
        user = model.NetworkPolicySpec(tier="default", selector="all()", types=["Ingress"])
        self.mine = dict(
            [
                await self.write(model.NetworkPolicy(metadata=model.ObjectMeta(name="knp.default", namespace="x"),
                                                     spec=user)),
                await self.write(model.NetworkPolicy(metadata=model.ObjectMeta(name="mine", namespace="x"), spec=user)),
                await self.write(model.Profile(metadata=model.ObjectMeta(name="kns"))),
                await self.write(model.Profile(metadata=model.ObjectMeta(name="ksa.nodot"))),
                await self.write(model.Node(metadata=model.ObjectMeta(name="vm"))),
            ]
        )  # fmt: skip
        await self.start()

    async def calico_node(self, name_: str) -> None:
        spec = model.NodeSpec(orch_refs=[model.node.OrchRef(node_name=name_, orchestrator="k8s")])
        await self.write(model.Node(metadata=model.ObjectMeta(name=name_, labels={"u": name_}), spec=spec))

    async def write(self, resource: Resource) -> tuple[str, bytes]:
        stamped = codec.with_metadata(
            codec.with_defaults(resource), uid="u1", creation_timestamp="2026-01-01T00:00:00Z"
        )
        key, value = codec.to_storage(stamped)
        await self.user.put(key, value)
        return key, value

    async def start(self) -> None:
        self.store = MemoryStore(self.server)
        # No looks at everything but the first: each change must be heard of.
        config = load(KubeControllersConfig, [], {"KUBECONFIG": "/memory", "RECONCILER_PERIOD": "0s"}, prog="test")
        service = Service("test", asyncio.TaskGroup(), Aggregator(), CollectorRegistry())
        app = KubeControllers(config, service, self.store, Random(7), self.kube)
        fence = Compare(ELECTION_KEY, await self.user.put(ELECTION_KEY, b"us"))
        self.lead = asyncio.create_task(app.lead(fence), name="lead")

    async def stop(self) -> None:
        assert self.lead is not None
        if self.lead.done():
            self.lead.result()  # it failed: say why
        self.lead.cancel()
        with suppress(asyncio.CancelledError):
            await self.lead

    def kube_node(self, name_: str, given: dict[str, str]) -> None:
        self.nodes[name_] = given
        self.kube.put(objects.NODES, name_, labels=given)

    async def step(self, what: str, *arguments: Any) -> None:
        match what, *arguments:
            case "policy", space_, name_, spec:
                self.put(objects.NETWORK_POLICIES, self.policies, (space_, name_), spec, spec=spec)
            case "namespace", name_, given_:
                self.put(objects.NAMESPACES, self.namespaces, name_, given_, labels=given_)
            case "account", space_, name_, given_:
                self.put(objects.SERVICE_ACCOUNTS, self.accounts, (space_, name_), given_, labels=given_)
            case "pod", space_, name_, pod:
                node_, given_ = pod or ("", {})
                if pod is not None:
                    self.been.setdefault((space_, name_, node_), []).append(_endpoint_labels(space_, given_))
                spec = {"nodeName": node_, "serviceAccountName": "s"}
                self.put(objects.PODS, self.pods, (space_, name_), pod, labels=given_, spec=spec)
            case "node", name_, given_:
                self.put(objects.NODES, self.nodes, name_, given_, labels=given_)
                if given_ is not None:
                    await self.calico_node(name_)  # as the node's agent does when it comes back
            case "service", space_, name_, type_:
                self.put(objects.SERVICES, self.services, (space_, name_), type_, spec={"type": type_})
            case "damage", number, how:
                await self.damage(number, how)
            case "stray", space_, name_, prefix:
                await self.stray(space_, name_, prefix)
            case "store fails", times, applied:
                self.store.fail_next(times, applied=applied)
            case "api fails", times:
                self.kube.failures = times
            case ("watches end",):
                self.kube.end_watches()
            case ("history is lost",):
                self.kube.forget_history()
            case ("silence",):
                self.kube.held = not self.kube.held
                self.kube.end_watches()
            case ("restart",):
                await self.stop()
                await self.start()
            case ("etcd is compacted",):
                await self.user.compact((await self.user.status()).revision)
            case "node comes back unseen", name_:
                self.put(objects.NODES, self.nodes, name_, None)
                await asyncio.sleep(1.0)
                with self.kube.silent():
                    self.kube_node(name_, {})
                    await self.calico_node(name_)
                    await asyncio.sleep(1.0)
            case "list breaks", space_, name_, spec:
                with self.kube.silent():
                    self.put(objects.NETWORK_POLICIES, self.policies, (space_, name_), spec, spec=spec)
                    self.kube.breaks.add(objects.NETWORK_POLICIES.path)
                    self.kube.forget_history()
                    await asyncio.sleep(1.0)
            case ("time",):
                await asyncio.sleep(1.0)
            case other:
                raise AssertionError(other)
        await asyncio.sleep(0)

    def put(self, source: Source[Any], held: dict[Any, Any], key: Any, value: Any, **content: Any) -> None:
        where = key if isinstance(key, tuple) else ("", key)
        if value is None:
            held.pop(key, None)
            self.kube.remove(source, where[1], where[0])
        else:
            held[key] = value
            self.kube.put(source, where[1], where[0], **content)

    async def damage(self, number: int, how: str) -> None:
        """One of the generated objects, or labels of an endpoint."""
        stored = [kv for kv in self.everything().items() if _is_generated(kv[0])]
        if not stored:
            return
        key, value = stored[number % len(stored)]
        if how == "delete":
            await self.user.delete(key)
        elif how == "garbage":
            await self.user.put(key, b'{"spec": 5}')
        else:
            with suppress(ValueError):
                document = json.loads(value)
                document["spec"] = {"selector": "all()"} if "networkpolicies" in key else {}
                await self.user.put(key, json.dumps(document).encode())

    async def stray(self, space_: str, name_: str, prefix: str) -> None:
        if prefix == "knp.default.":
            spec = model.NetworkPolicySpec(tier="default", selector="all()")
            await self.write(
                model.NetworkPolicy(metadata=model.ObjectMeta(name=f"{prefix}{name_}-s", namespace=space_), spec=spec)
            )
        else:
            await self.write(model.Profile(metadata=model.ObjectMeta(name=f"{prefix}{space_}.{name_}-s")))

    # --- what must come of it ----------------------------------------------------------------------------------------

    def everything(self) -> dict[str, bytes]:
        return {kv.key: kv.value for kv in self.server.listing(keys.RESOURCES, 0, keys_only=False).kvs}

    def wrong(self) -> list[str]:
        """What is not as it should be."""
        stored = self.everything()
        found: list[str] = []
        expected = self.expected()
        for key, spec in expected.items():
            if _part(stored.get(key), "spec") != spec:
                found.append(f"{key}: {stored.get(key)!r}, wanted {spec}")
        undecided = {keys.resource_key("NetworkPolicy", f"knp.default.{n}", s)
                     for (s, n), spec in self.policies.items() if spec is UNREADABLE}  # fmt: skip
        for key, value in stored.items():
            if _is_generated(key) and key not in expected and key not in undecided and _readable(key, value):
                found.append(f"{key} is there, and nothing that it is made from")
        found += [
            f"{key}, a user's: {stored.get(key)!r}" for key, value in self.mine.items() if stored.get(key) != value
        ]
        return found + self._wrong_endpoints(stored) + self._wrong_nodes(stored)

    def expected(self) -> dict[str, Any]:
        """Key -> spec."""
        made: dict[str, Any] = {}
        for (space_, name_), spec in self.policies.items():
            if spec is not UNREADABLE:
                converted = kubernetes.network_policy(convert(StagedKubernetesNetworkPolicySpec, spec)).spec
                made[keys.resource_key("NetworkPolicy", f"knp.default.{name_}", space_)] = _plain(converted)
        allow = [{"action": "Allow"}]
        for name_, given_ in self.namespaces.items():
            carried = {f"pcns.{k}": v for k, v in given_.items()} | {"pcns.projectcalico.org/name": name_}
            spec = {"ingress": allow, "egress": allow, "labelsToApply": carried}
            made[keys.resource_key("Profile", f"kns.{name_}")] = spec
        for (space_, name_), given_ in self.accounts.items():
            carried = {f"pcsa.{k}": v for k, v in given_.items()} | {"pcsa.projectcalico.org/name": name_}
            made[keys.resource_key("Profile", f"ksa.{space_}.{name_}")] = {"labelsToApply": carried}
        for (space_, name_), type_ in self.services.items():
            made[keys.resource_key("KubernetesService", name_, space_)] = {"type": type_}
        return made

    def _wrong_endpoints(self, stored: dict[str, bytes]) -> list[str]:
        found = []
        for space_, name_, node_ in ENDPOINTS:
            if node_ not in self.nodes:
                continue  # gone with its node
            endpoint = model.names.workload_endpoint_prefix(node_, "k8s", name_, "eth0").rstrip("-")
            value = stored.get(keys.resource_key("WorkloadEndpoint", endpoint, space_))
            where, given_ = self.pods.get((space_, name_), ("", {}))
            if value is None:
                continue  # deleted with a node that came back
            there = json.loads(value)["metadata"]["labels"]
            plain = _endpoint_labels(space_, {})
            del plain["projectcalico.org/serviceaccount"]
            may = [plain, *self.been.get((space_, name_, node_), ())]
            if there not in ([_endpoint_labels(space_, given_)] if where == node_ else may):
                found.append(f"{endpoint}: {there}, a pod on {where!r} with {given_}, before: {may}")
        return found

    def _wrong_nodes(self, stored: dict[str, bytes]) -> list[str]:
        found = []
        for name_ in ("n1", "n2"):
            value = stored.get(keys.resource_key("Node", name_))
            given_ = self.nodes.get(name_)
            if given_ is None and value is not None:
                found.append(f"node {name_} is gone in Kubernetes alone")
            if given_ is not None and value is None:
                found.append(f"node {name_} was deleted")
            if given_ is not None and value is not None and json.loads(value)["metadata"]["labels"] != {
                "u": name_, **given_
            }:  # fmt: skip
                found.append(f"node {name_}: {value!r}, wanted {given_}")
        return found

    async def judged(self) -> list[str]:
        """Trouble ends, and every back-off with it: no time at all on this clock."""
        self.kube.held = False
        self.kube.failures = 0
        self.kube.end_watches()
        await asyncio.sleep(_CALM_S)
        assert self.lead is not None
        if self.lead.done():
            self.lead.result()
        before = self.server.revision
        if found := self.wrong():
            return found
        await asyncio.sleep(_CALM_S)
        return [] if self.server.revision == before else [f"written without need after revision {before}"]


def _endpoint_labels(space_: str, labels_: dict[str, str]) -> dict[str, str]:
    return labels_ | {
        "projectcalico.org/namespace": space_, "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "s",
    }  # fmt: skip


def _is_generated(key: str) -> bool:
    parsed = keys.parse_key(key)
    if not isinstance(parsed, keys.ResourceKey):
        return False
    if parsed.kind == "Profile":
        return parsed.name.startswith("kns.") or (parsed.name.startswith("ksa.") and parsed.name.count(".") > 1)
    named = parsed.kind == "NetworkPolicy" and parsed.name.startswith("knp.default.")
    return named or parsed.kind == "KubernetesService"


def _readable(key: str, value: bytes) -> bool:
    try:
        model.from_storage(key, value, 1)
    except model.DecodeError:
        return False
    return True


def _part(value: bytes | None, name_: str) -> Any:
    if value is None:
        return None
    with suppress(ValueError):
        return json.loads(value).get(name_)
    return None


def _plain(spec: Any) -> Any:
    return json.loads(to_storage(
        model.NetworkPolicy(metadata=model.ObjectMeta(name="n", uid="u", creation_timestamp="t"), spec=spec)
    ))["spec"]  # fmt: skip


async def _history(steps: list[tuple[Any, ...]], judge: Callable[[World], Any]) -> list[str]:
    world = World()
    await world.begin()
    try:
        for step in steps:
            await world.step(*step)
        found: list[str] = await judge(world)
    finally:
        await world.stop()
    return found


@settings(max_examples=100)
@given(st.lists(STEPS, min_size=1, max_size=40))
def test_the_end_is_a_function_of_what_there_is(steps: list[tuple[Any, ...]]) -> None:
    assert virtual_time.run(_history(steps, World.judged)) == []
