"""Pods of several namespaces and who of them reaches whom: the picture that upstream's network policy tests compare.

Every pod is a server and a client. A question is (client, server, protocol, port); both families are tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.kube.objects import Key
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.kube.kubelet import Sandbox
from libs.testkit.pods import Pod
from libs.testkit.reach import Flow, Protocol, Verdict, check

JsonObject = dict[str, Any]
Port = tuple[Protocol, int]

NAMESPACES, PODS = ("x", "y", "z"), ("a", "b", "c")
EVERYONE = tuple(f"{namespace}/{pod}" for namespace in NAMESPACES for pod in PODS)
TCP80: Port = ("tcp", 80)
TCP81: Port = ("tcp", 81)
UDP80: Port = ("udp", 80)
PORTS = (TCP80, TCP81, UDP80)


class Picture:
    """Which questions are answered with silence. Everything is reachable until something is denied; a pod always
    reaches itself, so that is not asked.
    """

    def __init__(self, ports: Sequence[Port] = PORTS) -> None:
        self.ports = tuple(ports)
        self.denied: set[tuple[str, str, Port]] = set()

    def deny(self, clients: Iterable[str] | str, servers: Iterable[str] | str, *ports: Port) -> Picture:
        self.denied |= set(self._questions(clients, servers, ports))
        return self

    def allow(self, clients: Iterable[str] | str, servers: Iterable[str] | str, *ports: Port) -> Picture:
        self.denied -= set(self._questions(clients, servers, ports))
        return self

    def _questions(
        self, clients: Iterable[str] | str, servers: Iterable[str] | str, ports: Sequence[Port]
    ) -> list[tuple[str, str, Port]]:
        return [
            (client, server, port) for client in _pods(clients) for server in _pods(servers) for port in ports or PORTS
        ]

    def questions(self) -> list[tuple[str, str, Port]]:
        return [
            (client, server, port) for client in EVERYONE for server in EVERYONE if client != server
            for port in self.ports
        ]  # fmt: skip


def _pods(what: Iterable[str] | str) -> list[str]:
    """ "*" for all, a namespace for its pods, "namespace/pod" for one."""
    names = [what] if isinstance(what, str) else list(what)
    return [pod for pod in EVERYONE if any(name in ("*", pod, pod.split("/")[0]) for name in names)]


@dataclass
class Grid:
    """namespaces: their names in the cluster, by those of the picture."""

    kube: KubeCluster
    prefix: str

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def documents(self) -> list[JsonObject]:
        """Namespaces and pods, spread over the nodes so that each client has servers here and elsewhere."""
        made: list[JsonObject] = []
        nodes = [node.name for node in self.kube.cluster.nodes]
        for n, name in enumerate(NAMESPACES):
            space = self.namespace(name)
            metadata: JsonObject = {"name": space, "labels": {"ns": name}}
            made.append({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
            made += [
                pod_document(pod, space, node=nodes[(n + p) % len(nodes)], labels={"pod": pod})
                for p, pod in enumerate(PODS)
            ]
        return made

    async def make(self) -> None:
        documents = self.documents()
        await asyncio.to_thread(self.kube.kubectl.apply, *documents[:: len(PODS) + 1])
        # The API refuses pods whose service account is not there yet.
        for name in NAMESPACES:
            await self.kube.until(lambda name=name: self._has_account(name), f"service account in {name}")  # type: ignore[misc]
        await asyncio.to_thread(self.kube.kubectl.apply, *documents)
        for name in NAMESPACES:
            await self.kube.until_ready(self.namespace(name), "pod", len(PODS))

    async def _has_account(self, name: str) -> bool:
        arguments = ("get", "serviceaccount", "default", "-n", self.namespace(name))
        return (await asyncio.to_thread(self.kube.kubectl.run, *arguments)).status == 0

    async def remove(self) -> None:
        names = [self.namespace(name) for name in NAMESPACES]
        await asyncio.to_thread(self.kube.kubectl, "delete", "namespace", *names, "--timeout=100s", timeout_s=120)

    def pod(self, name: str) -> Pod:
        """ "x/a"."""
        namespace, _, pod = name.partition("/")
        found = sandbox(self.kube, self.namespace(namespace), pod).pod
        assert found is not None
        return found

    async def seen(self, picture: Picture, family: int, timeout_s: float) -> set[tuple[str, str, Port]]:
        """The questions of the picture that are answered otherwise than it says."""
        questions = picture.questions()
        pods = {name: self.pod(name) for name in EVERYONE}
        flows = [
            Flow(pods[client].netns.path, pods[server].address(family), port, protocol)
            for client, server, (protocol, port) in questions
        ]
        verdicts = await asyncio.to_thread(check, flows, timeout_s=timeout_s, tries=2)
        wanted = [Verdict.DENY if question in picture.denied else Verdict.ALLOW for question in questions]
        return {q for q, seen, want in zip(questions, verdicts, wanted, strict=True) if seen != want}

    async def becomes(self, picture: Picture, what: str, *, timeout_s: float = 90.0) -> None:
        """Until both families look so. Raises AssertionError with what differs."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        for family in (4, 6):
            while wrong := await self.seen(picture, family, 0.5):
                if asyncio.get_running_loop().time() > deadline:
                    shown = [
                        f"{client} -> {server} {port[0]}/{port[1]}: "
                        + ("open" if (client, server, port) in picture.denied else "closed")
                        for client, server, port in sorted(wrong)
                    ]
                    raise AssertionError(f"{what}, IPv{family}: {len(wrong)} differ\n" + "\n".join(shown[:30]))


def sandbox(kube: KubeCluster, namespace: str, pod: str) -> Sandbox:
    """On whichever node it runs. Raises LookupError."""
    for kubelet in kube.kubelets.values():
        if found := kubelet.sandboxes.get(Key(namespace, pod)):
            return found
    raise LookupError(f"{namespace}/{pod}")


def pod_document(
    name: str, namespace: str, *, node: str = "", labels: Mapping[str, str] | None = None,
    ports: Sequence[Port] = PORTS, **spec: Any,
) -> JsonObject:  # fmt: skip
    """Ports are named as upstream's: serve-80-tcp."""
    declared = [
        {"containerPort": port, "protocol": protocol.upper(), "name": f"serve-{port}-{protocol}"}
        for protocol, port in ports
    ]
    container = {"name": "serve", "image": "localhost/probe:1", "ports": declared}
    placed = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **placed, **spec},
    }
