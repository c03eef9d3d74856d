"""Kubernetes with our network, whole, on one machine: a real control plane, etcd, NATS, typha, our apiserver behind
kube-apiserver, kube_controllers, and nodes with felix.

    async with KubeCluster(nodes=3) as kube:                          # nodes and pods are network namespaces
        kube.kubectl("create", "deployment", "web", "--image=any")
        await kube.until_ready("default", "app=web", 1)

    async with KubeCluster(nodes=2, real_kubelets=True) as kube:      # kubelet, containerd, kube-proxy on each node
        await kube.import_image(Path("image.tar"))                    # OCI layout or `docker save`; on every node
        kube.kubectl("apply", "-f", "k8s/calico-node.yaml")

Everything stands in the namespaces of one `libs.testkit.cluster.Cluster` (`kube.cluster`): the control plane in the
fabric's, at its address and the well-known ports. calico=False leaves out all that is ours but the datastore and the
bus, for a test that installs it from manifests: nodes then are NotReady until a network is configured there.
In a node's view of the machine all paths are the usual ones (`real_node.RealNode`; `run` executes a command there).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml

from libs.kube.api import KubeApi
from libs.testkit import bootstrap
from libs.testkit.apiserver import CalicoApiserver
from libs.testkit.cluster import PROJECT, Cluster, Node
from libs.testkit.kube.aggregation import Backend, register
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.images.archive import pause, probe
from libs.testkit.kube.kubectl import Kubectl
from libs.testkit.kube.kubelet import Kubelet
from libs.testkit.kube.real_node import RealNode
from libs.testkit.netns_relay import NetnsRelay
from libs.testkit.processes import Process

if TYPE_CHECKING:
    from libs.store.api import Store

log = logging.getLogger(__name__)

JsonObject = dict[str, Any]

NAMESPACE = "calico-system"
_MANIFEST = PROJECT / "k8s" / "apiserver.yaml"
_IDENTITY = {"Namespace", "ServiceAccount", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_CONTROLLERS_PORT = 9094
_POLL_S = 0.05
SERVICE_RANGES = "10.96.0.0/16,fd00:10:96::/112"

# What the plugin reads of pods; nothing else is felix's business there.
_NODE_ROLE: list[JsonObject] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "test-felix"},
        "rules": [{"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": ["get"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "test-felix"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "test-felix"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "test-felix"}],
    },
]


async def fill(store: Store, cluster: Cluster) -> None:
    """What every datastore begins with, and Nodes that say which node of Kubernetes they are."""
    await bootstrap.defaults(store, cluster)
    for node in cluster.nodes:
        await store.put(bootstrap.key("nodes", node.name), _node_document(node))


class KubeCluster:
    """nodes, real_kubelets, calico: see the module. apiserver, controllers: whether ours run. kube_proxy: mode by node,
    of those with real kubelets; others have nftables. options: for `Cluster.create`.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        real_kubelets: bool = False,
        calico: bool = True,
        apiserver: bool = True,
        controllers: bool = True,
        kube_proxy: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        options.setdefault("fill", fill if calico else _nothing)
        self.cluster = Cluster.create(nodes, services=False, **options)
        self._calico = calico
        self._wants_apiserver, self._wants_controllers = calico and apiserver, calico and controllers
        self._stack = contextlib.AsyncExitStack()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.kubelets: dict[str, Kubelet] = {}
        self.apiserver: CalicoApiserver | None = None
        self.controllers: Process | None = None
        at = self.cluster
        try:
            self.control_plane = ControlPlane(
                address=str(at.ipv4.ip), netns=at.fabric.name, etcd=at.etcd, controllers=("*",), scheduler=True,
                extra_args=(f"--service-cluster-ip-range={SERVICE_RANGES}",), directory=at.directory / "kubernetes",
            )  # fmt: skip
            self.real: dict[str, RealNode] = {}
            if real_kubelets:
                self.real = {
                    node.name: RealNode(
                        node, self.control_plane, at.id, proxy_mode=kube_proxy.get(node.name, "nftables")
                    )
                    for node in at.nodes
                }
        except BaseException:
            at.discard()
            raise

    @property
    def kubectl(self) -> Kubectl:
        return self.control_plane.kubectl

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Until every node is Ready (with calico), all of ours is, and namespaces have their service accounts."""
        cluster, cp = self.cluster, self.control_plane
        await cluster.start()
        log.info("etcd and NATS run")
        for real in self.real.values():
            real.open()
        cp.start()
        log.info("control plane runs")
        self._relay = NetnsRelay(cluster.fabric.path, [(cp.address, cp.apiserver.port)])
        self._stack.callback(self._relay.close)
        if self._calico:
            await self._start_calico()
        for real in self.real.values():
            real.start()
        if self.real:
            for image in (pause(), probe()):
                await self.import_image(image.write(cluster.directory / "image.tar"))
        else:
            for node in cluster.nodes:
                await self.start_kubelet(node.name)
        if self._calico:
            await self.until(self._nodes_ready, "nodes ready")
        if self._wants_controllers:  # not before: they delete Nodes that Kubernetes does not have
            self.start_controllers()
            await self.until(self._controllers_ready, "kube_controllers ready")
        log.info("nodes are ready")
        return self

    async def _start_calico(self) -> None:
        cluster, cp = self.cluster, self.control_plane
        self.kubectl.apply(*_NODE_ROLE)
        felix = cp.user("test-felix")
        for node in cluster.nodes:
            node.env["FELIX_KUBECONFIG"] = node.felix.env["FELIX_KUBECONFIG"] = str(felix)
        await cluster.start_services()
        log.info("typha and felix run")
        if self._wants_apiserver:
            await self._start_apiserver()
        for real in self.real.values():
            self.configure_network(real)

    async def _start_apiserver(self) -> None:
        cluster, cp = self.cluster, self.control_plane
        wanted = [one for one in yaml.safe_load_all(_MANIFEST.read_text()) if one["kind"] in _IDENTITY]
        self.kubectl.apply(*wanted)
        (account,) = (one["metadata"] for one in wanted if one["kind"] == "ServiceAccount")
        flags = {"kubeconfig": str(cp.service_account(account["namespace"], account["name"]))}
        backend = Backend(CalicoApiserver.well_known_port, cp.ca.cert, address=cp.address, namespace=NAMESPACE)
        serving = cp.ca.issue("calico-apiserver", names=[cp.address, backend.server_name])
        self.apiserver = CalicoApiserver(
            cluster.etcd, serving, cp.ca.cert, flags, bus=cluster.nats, address=cp.address, netns=cluster.fabric.name,
            directory=cluster.directory / "apiserver",
        )  # fmt: skip
        self._stack.callback(self.apiserver.close)
        self.apiserver.start()
        register(cp, backend)
        log.info("apiserver runs")

    def start_controllers(self) -> None:
        """services.kube_controllers; again after it was ended."""
        if self.controllers is None:
            cluster, cp = self.cluster, self.control_plane
            env = cluster.env | {
                "KUBECONFIG": str(cp.user("test-kube-controllers", groups=["system:masters"])),
                "KUBE_CONTROLLERS_HEALTHHOST": cp.address,
                "KUBE_CONTROLLERS_HEALTHPORT": str(_CONTROLLERS_PORT),
            }
            self.controllers = Process(
                "kube_controllers", (sys.executable, "-m", "services.kube_controllers"), netns=cluster.fabric,
                log_path=cluster.directory / "kube-controllers.log", env=env, cwd=PROJECT,
            )  # fmt: skip
            self._stack.callback(self.controllers.kill)
        self.controllers.start()

    def configure_network(self, real: RealNode) -> None:
        """Our plugin and its network list on a node, as the installer puts them there."""
        calico = {
            "type": "calico", "nodename": real.name, "policy": {"type": "k8s"},
            "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        }  # fmt: skip
        portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
        network = {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [calico, portmap]}
        env = self.cluster.env | {
            "CNI_BIN_DIR": str(real.programs), "CNI_NET_DIR": str(real.networks), "KUBERNETES_NODE_NAME": real.name,
            "CNI_NETWORK_CONFIG": json.dumps(network), "CALICO_CNI_SOCKET": str(real.node.cni_socket),
        }  # fmt: skip
        command = [sys.executable, "-m", "services.cni", "install"]
        subprocess.run(command, env=env, cwd=PROJECT, check=True, capture_output=True, timeout=120)

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        try:
            for real in self.real.values():
                await asyncio.to_thread(real.close)
            await self._stack.aclose()
            self.control_plane.close()
        finally:
            await self.cluster.stop()

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            await self.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- nodes -----------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return self.cluster.node(name)

    def outside(self, user: str, *, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for whoever is not in one of the namespaces, such as the test itself."""
        server = f"https://localhost:{self._relay.ports[0]}"
        return self.control_plane.kubeconfig(self.control_plane.ca.issue(user, groups=groups), server=server)

    async def register(self, name: str) -> None:
        """The Node of a node that was away, as its start-up writes it."""
        async with self.cluster.store() as store:
            await store.put(bootstrap.key("nodes", name), _node_document(self.node(name)))

    async def start_kubelet(self, name: str) -> None:
        """The light one; its pods of before are still there."""
        if name not in self.kubelets:
            path = self.outside(f"system:node:{name}", groups=["system:nodes"])
            api = await self._stack.enter_async_context(await KubeApi.open(path))
            self.kubelets[name] = Kubelet(self.cluster, self.node(name), api, Random())
        self._tasks[name] = asyncio.create_task(self.kubelets[name].run(), name=f"kubelet-{name}")

    async def stop_kubelet(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def import_image(self, archive: Path) -> None:
        """An image for all nodes: OCI layout or `docker save`, as a tar file. Fully qualified names only, and
        `imagePullPolicy: IfNotPresent` or `Never`: there is no registry.
        """
        await asyncio.gather(*(real.import_image(archive) for real in self.real.values()))

    # --- what is waited for ----------------------------------------------------------------------------------------

    async def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`."""
        return await asyncio.to_thread(self.kubectl.json, "get", *arguments)

    async def until(self, condition: Callable[[], Awaitable[object]], what: str, timeout_s: float = 90.0) -> None:
        """Raises TimeoutError with the ends of the logs; at once what a kubelet of ours died of."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await condition():
            for task in self._tasks.values():
                if task.done() and not task.cancelled():
                    task.result()
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s:g} s\n{self.told()}")
            await asyncio.sleep(_POLL_S)

    async def until_ready(
        self, namespace: str, selector: str, count: int, *, timeout_s: float = 90.0
    ) -> dict[str, JsonObject]:
        """Until exactly so many pods are there and Ready: name -> Pod."""
        found: dict[str, JsonObject] = {}

        async def there() -> bool:
            nonlocal found
            items = (await self.get("pods", "-n", namespace, "-l", selector))["items"]
            found = {one["metadata"]["name"]: one for one in items}
            return len(found) == count and all(map(_pod_ready, items))

        await self.until(there, f"{count} pods {selector} of {namespace} ready", timeout_s)
        return found

    async def _nodes_ready(self) -> bool:
        items = (await self.get("nodes"))["items"]
        return len(items) == len(self.cluster.nodes) and all(_has(one, "Ready") for one in items)

    async def _controllers_ready(self) -> bool:
        from libs.testkit.http_probe import http_get

        assert self.controllers is not None
        self.controllers.require_running()
        with contextlib.suppress(OSError):
            at = self.control_plane.address
            return (await http_get(self.cluster.fabric, at, _CONTROLLERS_PORT, "/readiness", timeout_s=2)).status == 200
        return False

    def told(self) -> str:
        """The ends of all logs, and why pods are not there, for the report of a failure."""
        parts = [self.control_plane.told()]
        parts += [f"--- {one.name}\n{one.log_tail()}" for one in (self.controllers,) if one is not None]
        parts += [f"--- felix on {node.name}\n{node.felix.log_tail(10)}" for node in self.cluster.nodes]
        parts += [real.told(6) for real in self.real.values()]
        for kubelet in self.kubelets.values():
            parts += [f"{kubelet.name}: {'/'.join(key)}: {error}" for key, error in kubelet.errors.items()]
        return "\n".join(parts)


def _node_document(node: Node) -> bytes:
    spec = bootstrap.node_spec(node) | {"orchRefs": [{"nodeName": node.name, "orchestrator": "k8s"}]}
    return bootstrap.resource("Node", node.name, spec, labels={"kubernetes.io/hostname": node.name})


async def _nothing(store: Store, cluster: Cluster) -> None:
    """An empty datastore."""


def _has(document: JsonObject, condition: str) -> bool:
    found = document.get("status", {}).get("conditions", [])
    return any(one["type"] == condition and one["status"] == "True" for one in found)


def _pod_ready(pod: JsonObject) -> bool:
    return _has(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")
