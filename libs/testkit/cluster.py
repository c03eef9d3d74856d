"""A whole cluster on one machine: nodes and pods are network namespaces, services are real processes, packets are real.

    fabric namespace                      node1 namespace            pod namespaces
    ┌──────────────────────────┐   veth   ┌──────────────────┐       ┌───────────┐
    │ br0 172.31.0.1           ├──────────┤ eth0 172.31.0.11 │ cali… │ client    │
    │     fd00:172:31::1       │          │ felix            ├───────┤ probe     │
    │ etcd, NATS, typha        ├────── …  └──────────────────┘       └───────────┘

Nodes may stand in a second subnet (`far`), behind br1 of the fabric, which routes between the two and knows no pods.

Nothing is made in the root namespace; two relay ports on its loopback lead to etcd and NATS. Clusters have an id of
their own and may run side by side; since each has its own fabric, all use the same addresses. Pods are plugged by
running the compiled CNI plugin with the environment and stdin that a container runtime would give it.

    async with Cluster.create(nodes=3) as cluster:
        web = await cluster.add_pod("node1", "web", labels={"app": "web"})
        client = await cluster.add_pod("node2", "client")
        assert await cluster.reach([(client, web, 8080, "tcp")]) == [Verdict.ALLOW]
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from libs.runtime.compile_c import compile_c
from libs.testkit import bootstrap
from libs.testkit.http_probe import Answer, http_get
from libs.testkit.netns_relay import NetnsRelay
from libs.testkit.patience import patient
from libs.testkit.pods import CniError, Pod, cni_environment, cni_stdin
from libs.testkit.processes import Probe, Process, ProcessError, nsrun, probe_program
from libs.testkit.reach import Flow, Protocol, Verdict, check
from libs.testkit.servers import EtcdServer, NatsServer
from libs.testkit.sweep import RUN_DIR, claim, release, sweep_stale
from libs.testkit.topology import Namespace, remove
from libs.testkit.trusted import LOOPBACK, EtcdFiles, Trust
from libs.trust import identities

if TYPE_CHECKING:
    from libs.store.etcd import EtcdStore

__all__ = ["Cluster", "CniError", "Node", "Pod", "sweep_stale"]

PROJECT = Path(__file__).resolve().parents[2]
SHIM = PROJECT / "services" / "cni" / "shim.c"
FELIX_PORT, TYPHA_PORT = 9099, 9098  # health and metrics
DAEMONS = {"bgp": ("services.bgp", "CALICO_BGP_", 9097), "node": ("services.node", "CALICO_NODE_", 9096)}
"""What may run on every node beside felix: module, prefix of its environment, port of health and metrics."""
_OURS = ("ETCD", "NATS", "FELIX", "TYPHA", "CALICO", "CNI", "KUBE", "NODENAME", "LOG_", "HEALTH")

Address = IPv4Address | IPv6Address
Target = Pod | Address | str
Question = tuple[Pod, Target, int, Protocol]


@dataclass
class Node:
    """A pretend host. `felix` is its process; `env` what that is started with (change it before a restart). daemons:
    those of `DAEMONS` that the cluster was asked for.
    """

    name: str
    namespace: Namespace
    ipv4: IPv4Interface
    ipv6: IPv6Interface
    directory: Path
    env: dict[str, str]
    felix: Process
    daemons: dict[str, Process] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)

    @property
    def cni_socket(self) -> Path:
        return self.directory / "cni.sock"


class Cluster:
    """See the module. Methods that start processes are called from the main thread."""

    @classmethod
    def create(
        cls,
        nodes: int = 3,
        *,
        typhas: int = 1,
        felix: Sequence[str] = (sys.executable, "-m", "services.felix"),
        typha: Sequence[str] = (sys.executable, "-m", "services.typha"),
        services: bool = True,
        env: Mapping[str, str] | None = None,
        fill: Callable[[EtcdStore, Cluster], Awaitable[None]] | None = None,
        tcp_ports: Sequence[int] = (8080, 8081),
        udp_ports: Sequence[int] = (8080, 8081),
        log_level: str = "info",
        keep: bool = False,
        run_dir: Path = RUN_DIR,
        etcd_binary: str | Path | None = None,
        far: Sequence[str] = (),
        daemons: Sequence[str] = (),
        tls: bool = False,
    ) -> Cluster:
        """Nothing runs before `start`.

        felix, typha: commands of the services; services False starts neither. env: added to every service's
        environment.
        fill: fills etcd before the services start; by default Node resources, tiers, pools and ClusterInformation.
        etcd_binary: for tests that crash etcd (it then syncs its writes).
        far: names of the nodes in the second subnet. daemons: of `DAEMONS`, on every node. tcp_ports, udp_ports: what
        every pod serves.
        tls: etcd and NATS over mutual TLS, with roles and permissions; every service has its own identity (`trust`).
        keep: leave logs and data in `directory` after `stop`.
        """
        return cls(
            nodes, typhas, tuple(felix), tuple(typha), services, dict(env or {}), fill, tuple(tcp_ports),
            tuple(udp_ports), log_level, keep, run_dir, etcd_binary, frozenset(far), tuple(daemons),
            tls,
        )  # fmt: skip

    def __init__(
        self, nodes: int, typhas: int, felix: tuple[str, ...], typha: tuple[str, ...], services: bool,
        env: dict[str, str], fill: Callable[[EtcdStore, Cluster], Awaitable[None]] | None, tcp_ports: tuple[int, ...],
        udp_ports: tuple[int, ...], log_level: str, keep: bool, run_dir: Path,
        etcd_binary: str | Path | None, far: frozenset[str], daemons: tuple[str, ...],
        tls: bool = False,
    ) -> None:  # fmt: skip
        if not 1 <= nodes <= 200:
            raise ValueError("a cluster has 1 to 200 nodes")
        self.id, self.directory = claim(run_dir)
        self.fabric = Namespace(f"cal-{self.id}-fabric")
        self.ipv4, self.ipv6 = IPv4Interface("172.31.0.1/24"), IPv6Interface("fd00:172:31::1/64")
        self._far = far
        self._far_gateways = IPv4Interface("172.31.1.1/24"), IPv6Interface("fd00:172:31:1::1/64")
        self.trust: Trust | None = None
        if tls:
            names = [f"node{number}" for number in range(1, nodes + 1)]
            self.trust = Trust(self.directory / "trust", names, addresses=(*LOOPBACK, str(self.ipv4.ip)))
        self.etcd = EtcdServer(
            address=str(self.ipv4.ip), netns=self.fabric.name, directory=self.directory / "etcd", binary=etcd_binary,
            fsync=etcd_binary is not None, **(self.trust.etcd_files() if self.trust else EtcdFiles()),
        )  # fmt: skip
        self.nats = NatsServer(
            address=str(self.ipv4.ip), netns=self.fabric.name, directory=self.directory / "nats",
            config=self.trust.nats_text() if self.trust else "",
        )  # fmt: skip
        self._services, self._keep = services, keep
        self._fill = fill or bootstrap.defaults
        self.tcp_ports, self.udp_ports = tcp_ports, udp_ports
        self._plugged: dict[Namespace, Pod] = {}
        self.on_plugged: Callable[[], Awaitable[None]] | None = None  # awaited after each pod that is there
        self._relay: NetnsRelay | None = None
        self._namespaces: list[Namespace] = [self.fabric]
        # Without a routing daemon plain routes to other nodes are felix's, unless a test says otherwise.
        routes = {} if "bgp" in daemons else {"FELIX_PROGRAMCLUSTERROUTES": "Enabled"}
        self._daemons = daemons
        self.env = self._base_env() | {"LOG_LEVEL": log_level, "LOG_FORMAT": "json"} | routes | env
        self.nodes = [self._make_node(i, felix) for i in range(1, nodes + 1)]
        self.typhas = [self._make_typha(i, typha) for i in range(typhas)]
        atexit.register(self._remove)  # a test run that is interrupted leaves nothing either

    def _base_env(self) -> dict[str, str]:
        # A developer's own ETCD_ENDPOINTS or FELIX_… would send our services to another cluster.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        return inherited | {"ETCD_ENDPOINTS": self.etcd.endpoint, "NATS_URL": self.nats.url}

    def _make_node(self, number: int, felix: tuple[str, ...]) -> Node:
        name = f"node{number}"
        directory = self.directory / name
        directory.mkdir()
        subnets = (gateway.network for gateway in self._gateways(name))
        ipv4, ipv6 = (ip_interface((net[10 + number], net.prefixlen)) for net in subnets)
        assert isinstance(ipv4, IPv4Interface)
        assert isinstance(ipv6, IPv6Interface)
        env = (
            self.env
            | self._identity(identities.node(name))
            | {
                "NODENAME": name,
                "FELIX_HEALTHHOST": str(ipv4.ip),
                "FELIX_HEALTHPORT": str(FELIX_PORT),
                "FELIX_STATE_DIR": str(directory / "state"),
                "FELIX_MTU_FILE": str(directory / "mtu"),
                "FELIX_ENDPOINTSTATUSPATHPREFIX": str(directory),
                "CALICO_CNI_SOCKET": str(directory / "cni.sock"),
            }
        )
        namespace = Namespace(f"cal-{self.id}-{name}")
        self._namespaces.append(namespace)
        process = Process(
            f"felix on {name}", felix, netns=namespace, log_path=directory / "felix.log", env=env, cwd=PROJECT
        )
        node = Node(name, namespace, ipv4, ipv6, directory, process.env, process)
        for daemon in self._daemons:
            module, prefix, port = DAEMONS[daemon]
            node.daemons[daemon] = Process(
                f"{daemon} on {name}", (sys.executable, "-m", module), netns=namespace,
                log_path=directory / f"{daemon}.log", cwd=PROJECT,
                env=env | {
                    f"{prefix}HEALTHHOST": str(ipv4.ip),
                    f"{prefix}HEALTHPORT": str(port),
                    f"{prefix}STATE_DIR": str(directory / daemon),
                    f"{prefix}CONTROL_SOCKET": str(directory / f"{daemon}.sock"),
                    f"{prefix}SECRETS_DIR": str(directory / "secrets"),
                },
            )  # fmt: skip
        return node

    def _identity(self, name: str) -> dict[str, str]:
        return self.trust.env(name) if self.trust else {}

    def _gateways(self, node: str) -> tuple[IPv4Interface, IPv6Interface]:
        return self._far_gateways if node in self._far else (self.ipv4, self.ipv6)

    def _make_typha(self, number: int, typha: tuple[str, ...]) -> Process:
        env = self.env | self._identity(identities.TYPHA)
        env |= {"TYPHA_HEALTHHOST": str(self.ipv4.ip), "TYPHA_HEALTHPORT": str(TYPHA_PORT + number * 10)}
        log = self.directory / f"typha{number}.log"
        return Process(f"typha {number}", typha, netns=self.fabric, log_path=log, env=env, cwd=PROJECT)

    # --- life
    # ----------------------------------------------------------------------------------------------------------

    async def start(self, *, ready_timeout_s: float = 60.0) -> Self:
        """Until every service is ready. Raises ProcessError with a log's tail, ServerError; then call `stop`."""
        for program in (nsrun, probe_program):
            program()
        self._wire()
        await asyncio.gather(self.etcd.start_async(), self.nats.start_async())
        self._relay = NetnsRelay(
            self.fabric.path, [(str(self.ipv4.ip), self.etcd.port), (str(self.ipv4.ip), self.nats.port)]
        )
        if self.trust:
            await self.trust.enable_auth(self.outside_env()["ETCD_ENDPOINTS"])
        async with self.store() as store:
            await self._fill(store, self)
        if self._services:
            await self.start_services(ready_timeout_s=ready_timeout_s)
        return self

    def startup_env(self, node: Node) -> dict[str, str]:
        """For `calico-node startup` on that node: addresses are detected, pools are those of `bootstrap`."""
        return node.env | {
            "WAIT_FOR_DATASTORE": "true",  # a busy machine's etcd may take its time
            "IP": "autodetect",
            "IP6": "autodetect",
            "CALICO_IPV4POOL_CIDR": bootstrap.POOL_V4,
            "CALICO_IPV6POOL_CIDR": bootstrap.POOL_V6,
            "CALICO_IPV4POOL_NAT_OUTGOING": "false",
            "CALICO_NODENAME_FILE": str(node.directory / "nodename"),
        }

    async def start_services(self, *, ready_timeout_s: float = 60.0) -> None:
        """typhas, felixes and daemons, until they are ready; for a cluster that was created without them. Raises
        ProcessError.
        """
        for process in self._processes():
            process.start()
        await self.wait_ready(timeout_s=ready_timeout_s)

    def _wire(self) -> None:
        for namespace in self._namespaces:
            namespace.create()
        quiet = {"ipv6/conf/default/accept_dad": 0, "ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_ra": 0}
        # Frames that the bridge forwards are the underlay's business: they must not meet conntrack a second time.
        plain = {"bridge/bridge-nf-call-iptables": 0, "bridge/bridge-nf-call-ip6tables": 0}
        self.fabric.sysctl(quiet | plain)
        # A bridge without an address of its own takes its lowest port's: a port that comes or goes may change it, and
        # what neighbours still send to the old one is dropped, over IPv6 for up to 45 s.
        bridge = "link add {} address 02:00:00:00:00:0{} type bridge mcast_snooping 0 forward_delay 0"
        commands = [
            bridge.format("br0", 1),
            f"addr add {self.ipv4} dev br0",
            f"addr add {self.ipv6} dev br0 nodad",
            "link set br0 up",
        ]
        if self._far:
            self.fabric.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
            commands += [bridge.format("br1", 2), "link set br1 up"]
            commands += [f"addr add {gateway} dev br1" for gateway in self._far_gateways]
        for node in self.nodes:
            node.namespace.sysctl(
                quiet | {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv6/conf/default/forwarding": 1}
            )
            commands += [
                f"link add {node.name} type veth peer name eth0 netns {node.namespace.name}",
                f"link set {node.name} master {'br1' if node.name in self._far else 'br0'} up",
            ]
        self.fabric.ip(commands)
        for node in self.nodes:
            gateway4, gateway6 = self._gateways(node.name)
            node.namespace.ip([
                f"addr add {node.ipv4} dev eth0",
                f"addr add {node.ipv6} dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {gateway4.ip}",
                f"route add ::/0 via {gateway6.ip}",
            ])  # fmt: skip

    async def wait_ready(self, *, timeout_s: float = 60.0, nodes: Sequence[Node] | None = None) -> None:
        """Until every typha and all that runs on nodes (or on `nodes` alone) answers /readiness well. Raises
        ProcessError.
        """
        waits = []
        for node in self.nodes if nodes is None else nodes:
            waits.append(self._wait_ready(node.felix, str(node.ipv4.ip), FELIX_PORT, timeout_s))
            for name, daemon in node.daemons.items():
                waits.append(self._wait_ready(daemon, str(node.ipv4.ip), DAEMONS[name][2], timeout_s))
        if nodes is None:
            waits += [
                self._wait_ready(typha, str(self.ipv4.ip), int(typha.env["TYPHA_HEALTHPORT"]), timeout_s)
                for typha in self.typhas
            ]
        await asyncio.gather(*waits)

    async def _wait_ready(self, process: Process, host: str, port: int, timeout_s: float) -> None:
        timeout_s = patient(timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        said = "nothing"
        while True:
            process.require_running()
            with contextlib.suppress(OSError):
                answer = await http_get(process.netns, host, port, "/readiness", timeout_s=patient(5))
                if answer.status in (200, 204):
                    return
                said = answer.text
            if asyncio.get_running_loop().time() > deadline:
                raise ProcessError(
                    f"{process.name} not ready within {timeout_s:g} s; it says:\n{said}\n{process.log_tail()}"
                )
            await asyncio.sleep(0.03)

    async def stop(self) -> None:
        """End every process, remove every namespace and, unless told to keep it, the directory. May be called twice."""
        running = [process for process in self._processes() if process.running]
        await asyncio.gather(*(asyncio.to_thread(p.stop, 3.0) for p in running))
        await asyncio.to_thread(self._remove)

    def discard(self) -> None:
        """Of a cluster that is never started."""
        self._remove()

    def _remove(self) -> None:
        atexit.unregister(self._remove)
        for pod in self._plugged.values():
            if pod.probe is not None:
                pod.probe.stop()
        for process in self._processes():
            process.kill()
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        self.etcd.close()
        self.nats.close()
        remove([n for n in self._namespaces if n.exists()])
        release(self.directory)
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

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

    # --- access and faults -----------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes for pod in node.pods.values()]

    def outside_env(self, identity: str = identities.OPERATOR) -> dict[str, str]:
        """ETCD_ENDPOINTS and NATS_URL for a program in the root namespace, such as calicoctl, and who it is."""
        if self._relay is None:
            raise ProcessError("the cluster is not started")
        etcd, nats = self._relay.ports
        scheme = "https" if self.trust else "http"
        servers = {"ETCD_ENDPOINTS": f"{scheme}://127.0.0.1:{etcd}", "NATS_URL": f"nats://127.0.0.1:{nats}"}
        return servers | self._identity(identity)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[EtcdStore]:
        """The cluster's datastore, connected from here."""
        from libs.store.config import StoreConfig
        from libs.store.etcd import EtcdStore

        store = EtcdStore(StoreConfig.from_env(self.outside_env(identities.ROOT)))
        try:
            yield store
        finally:
            await store.close()

    def _processes(self) -> list[Process]:
        daemons = [daemon for node in self.nodes for daemon in node.daemons.values()]
        return [*self.typhas, *(node.felix for node in self.nodes), *daemons]

    async def restart_daemon(self, node: str, daemon: str, *, timeout_s: float = 60.0) -> None:
        """SIGKILL, then a new one, until it is ready."""
        process = self.node(node).daemons[daemon]
        process.kill()
        process.start()
        await self._wait_ready(process, str(self.node(node).ipv4.ip), DAEMONS[daemon][2], timeout_s)

    def kill_felix(self, node: str) -> None:
        """SIGKILL."""
        self.node(node).felix.kill()

    async def start_felix(self, node: str, *, timeout_s: float = 60.0) -> None:
        self.node(node).felix.start()
        await self.wait_ready(timeout_s=timeout_s, nodes=[self.node(node)])

    def kill_typha(self, number: int = 0) -> None:
        self.typhas[number].kill()

    async def start_typha(self, number: int = 0, *, timeout_s: float = 60.0) -> None:
        typha = self.typhas[number]
        typha.start()
        await self._wait_ready(typha, str(self.ipv4.ip), int(typha.env["TYPHA_HEALTHPORT"]), timeout_s)

    async def felix_get(self, node: str, path: str) -> Answer:
        """An HTTP GET of a felix's /liveness, /readiness or /metrics. Raises OSError."""
        at = self.node(node)
        return await http_get(at.namespace, str(at.ipv4.ip), FELIX_PORT, path)

    async def typha_get(self, path: str, number: int = 0) -> Answer:
        return await http_get(self.fabric, str(self.ipv4.ip), int(self.typhas[number].env["TYPHA_HEALTHPORT"]), path)

    async def add_namespace(
        self, name: str, *, labels: Mapping[str, str] | None = None, service_accounts: Sequence[str] = ()
    ) -> None:
        """What kube-controllers make of a namespace: the profile that its pods refer to, and one for each account."""
        async with self.store() as store:
            for key, value in bootstrap.namespace_profiles(name, labels or {}, service_accounts).items():
                await store.put(key, value)

    # --- pods ------------------------------------------------------------------------------------------------------

    async def add_pod(
        self,
        node: str,
        name: str,
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        ports: Sequence[Mapping[str, Any]] = (),
        annotations: Mapping[str, str] | None = None,
        service_account: str = "",
        probe: bool = True,
    ) -> Pod:
        """An empty network namespace, then CNI ADD.

        namespace: of Kubernetes; other than "default" it needs `add_namespace` first, or the pod's profile is missing
        and everything denied. ports: named ports, {"name", "protocol", "port"}. config: goes over the plugin's
        configuration. Raises CniError with the plugin's error object; the namespace is removed then.
        """
        at = self.node(node)
        if name in at.pods:
            raise ValueError(f"{node} has a pod {name} already")
        pod = Pod(name, namespace, node, Namespace(f"cal-{self.id}-{node}-{namespace}-{name}-pod"), dict(labels or {}))
        pod.config, pod.service_account = dict(config or {}), service_account
        pod.ports = [dict(port) for port in ports]
        pod.annotations = dict(annotations or {})
        at.pods[name] = pod
        try:
            await self.plug(pod, probe=probe)
        except BaseException:
            at.pods.pop(name, None)
            raise
        return pod

    async def plug(
        self, pod: Pod, *, probe: bool = True, tcp: Sequence[int] | None = None, udp: Sequence[int] | None = None
    ) -> None:
        """Its namespace, CNI ADD, its server; nothing is left of them when one fails. tcp, udp: what it serves, in
        place of the cluster's usual. Raises CniError, ProcessError.
        """
        pod.netns.create()
        self._namespaces.append(pod.netns)
        self._plugged[pod.netns] = pod
        try:
            pod.result = await self.cni("ADD", pod)
            if probe:
                pod.probe = Probe(
                    pod.name, pod.netns, self.tcp_ports if tcp is None else tcp, self.udp_ports if udp is None else udp
                )
        except BaseException:
            self._forget(pod)
            raise
        if self.on_plugged is not None:
            await self.on_plugged()

    def adopt(self, pod: Pod) -> None:
        """Take over a pod that somebody else plugged: it serves, and its namespace goes with the cluster. Raises
        ProcessError.
        """
        self._namespaces.append(pod.netns)
        self._plugged[pod.netns] = pod
        self.node(pod.node).pods[pod.name] = pod
        pod.probe = Probe(pod.name, pod.netns, self.tcp_ports, self.udp_ports)

    async def unplug(self, pod: Pod) -> None:
        """CNI DEL, then the namespace goes. Raises CniError, and the pod stays."""
        await self.cni("DEL", pod)
        self._forget(pod)

    async def remove_pod(self, pod: Pod) -> None:
        """The other end of `add_pod`. Raises CniError, and the pod stays."""
        await self.unplug(pod)
        self.node(pod.node).pods.pop(pod.name, None)

    def _forget(self, pod: Pod) -> None:
        if pod.probe is not None:
            pod.probe.stop()
            pod.probe = None
        if self._plugged.pop(pod.netns, None) is not None:
            remove([pod.netns])
            self._namespaces.remove(pod.netns)

    async def cni(self, command: Literal["ADD", "DEL", "CHECK", "STATUS", "GC"], pod: Pod) -> dict[str, Any]:
        """Run the plugin as a container runtime does; its result, {} when it says nothing. Raises CniError."""
        shim = compile_c(SHIM)
        plugin = await asyncio.create_subprocess_exec(
            shim,
            env=cni_environment(command, pod, shim.parent) | {"CALICO_CNI_SOCKET": str(self.node(pod.node).cni_socket)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, noise = await plugin.communicate(json.dumps(cni_stdin(command, pod)).encode())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                plugin.kill()
            await plugin.wait()
            raise
        if plugin.returncode != 0:
            raise CniError.from_output(output, noise)
        answer = json.loads(output) if output.strip() else {}
        if not isinstance(answer, dict):
            raise CniError(999, f"the plugin printed {output!r}")
        return answer

    # --- reachability ----------------------------------------------------------------------------------------------

    def flow(self, source: Pod, target: Target, port: int, protocol: Protocol = "tcp", *, family: int = 4) -> Flow:
        """family: 4 or 6, which address of a target pod is meant."""
        if isinstance(target, Pod):
            address = target.address(family)
        else:
            address = ip_address(target) if isinstance(target, str) else target
        return Flow(source.netns.path, address, port, protocol)

    async def reach(
        self,
        questions: Sequence[Question],
        *,
        family: int = 4,
        timeout_s: float = 1.0,
        wanted: Sequence[Verdict] | None = None,
    ) -> list[Verdict]:
        """All at once; a verdict for each (source, target, port, protocol). wanted: as of `check`."""
        flows = [self.flow(s, t, port, protocol, family=family) for s, t, port, protocol in questions]
        return await asyncio.to_thread(check, flows, timeout_s=timeout_s, wanted=wanted)

    async def passes(self, questions: Sequence[Question], *, family: int = 4) -> bool:
        """Whether all are allowed now; who answers may take a while (`check`)."""
        want = [Verdict.ALLOW] * len(questions)
        return await self.reach(questions, family=family, wanted=want) == want

    async def eventually(
        self,
        questions: Sequence[Question],
        wanted: Sequence[Verdict] | Verdict,
        *,
        family: int = 4,
        timeout_s: float = 30.0,
    ) -> None:
        """Ask again until the verdicts are the wanted ones. Raises AssertionError with what was seen last."""
        want = [wanted] * len(questions) if isinstance(wanted, Verdict) else list(wanted)
        deadline = asyncio.get_running_loop().time() + patient(timeout_s)
        while (seen := await self.reach(questions, family=family, timeout_s=0.6)) != want:
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(
                    "\n".join(
                        f"{s.name} -> {t.name if isinstance(t, Pod) else t} {protocol}/{port}: {is_}, wanted {should}"
                        for (s, t, port, protocol), is_, should in zip(questions, seen, want, strict=True)
                        if is_ != should
                    )
                )
