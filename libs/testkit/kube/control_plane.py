"""etcd, kube-apiserver and kube-controller-manager, started for one test or one module, ended with it.

What it is: authorisation by Node and RBAC, a CA for servers and clients, a second one for the front proxy (which
kube-apiserver is when it passes requests on to other API servers), service accounts with tokens. A scheduler on demand;
nodes are made by `cluster`.

    with ControlPlane() as cp:
        alice = cp.user("alice", groups=["dev"])
        cp.kubectl("create", "namespace", "red")
        cp.kubectl.fails(...)                       # as cluster-admin
        cp.as_user(alice).run("get", "pods")

address: where everything listens; on loopback only this machine's processes reach it. In a namespace (`netns`) the
ports are the well-known ones, and kubectl is run inside.
Passing requests on (see `aggregation`): to loopback through a Service of type ExternalName, which needs aggregator
routing off; to any other address through an EndpointSlice, which needs it on (EndpointSlices refuse loopback).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from libs.testkit.kube.https_server import HttpsServer
from libs.testkit.kube.kubectl import Kubectl, write_kubeconfig
from libs.testkit.kube.programs import program
from libs.testkit.patience import patient
from libs.testkit.pki import Authority, KeyPair, signing_keys
from libs.testkit.servers import EtcdServer, Server

SERVICE_NETWORKS = {4: ip_network("10.96.0.0/16"), 6: ip_network("fd00:10:96::/112")}
"""Of Services, by the family of the control plane's address; the first address is the Service `kubernetes`."""
_ISSUER = "https://kubernetes.default.svc"
CONTROLLERS = (
    "namespace-controller", "serviceaccount-controller", "serviceaccount-token-controller",
    "garbage-collector-controller", "root-ca-certificate-publisher-controller", "clusterrole-aggregation-controller",
)  # fmt: skip
"""Those that an API needs; what runs pods is not among them."""
_START_TIMEOUT_S = patient(120.0)
"""Three seconds when nothing else runs; two cores that many share take their time."""
_POLL_S = 0.1


class ControlPlane:
    """extra_args: for kube-apiserver. controllers: of kube-controller-manager, ("*",) for all; without any, no
    namespace goes away and no service account appears. scheduler: kube-scheduler too. etcd: one that runs already (its
    keys are `/registry/…`), else one of its own. directory: where everything is kept; made and removed when not given.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        etcd: EtcdServer | None = None,
        controllers: tuple[str, ...] = CONTROLLERS,
        extra_args: tuple[str, ...] = (),
        scheduler: bool = False,
        directory: str | Path | None = None,
    ) -> None:
        self.address = str(ip_address(address))
        self._own_directory = directory is None
        self._controllers = controllers
        apiserver, manager = program("kube-apiserver"), program("kube-controller-manager") if controllers else None
        scheduling = program("kube-scheduler") if scheduler else None
        program("kubectl")  # before anything starts
        self.directory = Path(tempfile.mkdtemp(prefix="kubernetes-")) if directory is None else Path(directory)
        self._netns = Path("/run/netns") / netns if netns else None
        self.ca = Authority("cluster-ca", self.directory / "pki")
        self.front_proxy_ca = Authority("front-proxy-ca", self.directory / "pki")
        self._keys = signing_keys(self.directory / "pki", "service-accounts")
        self._own_etcd = etcd is None
        self.etcd = etcd or EtcdServer(address=address, netns=netns, directory=self.directory / "etcd")
        self.apiserver = KubeApiserver(
            address=address, netns=netns, binary=apiserver, directory=self.directory / "kube-apiserver",
            ready_timeout_s=_START_TIMEOUT_S, extra_args=extra_args,
        )  # fmt: skip
        self.apiserver.flags = self._apiserver_flags()
        self.apiserver.trusted = self.ca.cert
        self.server = self.apiserver.url
        self.admin = self.user("kubernetes-admin", groups=["system:masters"])
        self.kubectl = self.as_user(self.admin)
        self.manager: ControllerManager | None = None
        if manager is not None:
            self.manager = ControllerManager(
                address=address, netns=netns, binary=manager, directory=self.directory / "kube-controller-manager",
                ready_timeout_s=_START_TIMEOUT_S,
            )  # fmt: skip
            self.manager.flags = self._manager_flags()
        self.scheduler: Scheduler | None = None
        if scheduling is not None:
            self.scheduler = Scheduler(
                address=address, netns=netns, binary=scheduling, directory=self.directory / "kube-scheduler",
                ready_timeout_s=_START_TIMEOUT_S,
            )  # fmt: skip
            self.scheduler.flags = self._client_flags(self.scheduler, "system:kube-scheduler")

    # --- who asks --------------------------------------------------------------------------------------------------

    def user(self, name: str, *, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a certificate of that user; it may do what RBAC says."""
        return self.kubeconfig(self.ca.issue(name, groups=groups))

    def kubeconfig(self, client: KeyPair, *, server: str = "") -> Path:
        """server: by another way than its own address; its certificate is for `localhost` too."""
        path = client.cert.with_suffix(".outside.kubeconfig" if server else ".kubeconfig")
        return write_kubeconfig(path, server=server or self.server, ca=self.ca.cert, client=client)

    def service_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a token of that service account, which must exist."""
        token = self.kubectl("create", "token", name, "--namespace", namespace, "--duration", "24h").strip()
        path = self.directory / "pki" / f"{namespace}-{name}.kubeconfig"
        return write_kubeconfig(path, server=self.server, ca=self.ca.cert, token=token, namespace=namespace)

    def as_user(self, kubeconfig: Path) -> Kubectl:
        return Kubectl(kubeconfig, self.directory, netns=self._netns)

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Blocks until requests are served, and the namespace `default` is there and, with controllers, has its service
        account.
        Raises ServerError or TimeoutError with the end of the logs.
        """
        if self._own_etcd:
            self.etcd.start()
        self.apiserver.start()
        self.until(lambda: self.kubectl.run("get", "namespace", "default").status == 0, "the namespace default")
        if self.manager is not None:
            self.manager.start()
            self.until(
                lambda: self.kubectl.run("get", "serviceaccount", "default", "-n", "default").status == 0,
                "the service account of the namespace default",
            )
        if self.scheduler is not None:
            self.scheduler.start()
        return self

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """Poll until the condition holds. Raises TimeoutError, which tells what was waited for and the logs' ends."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s:g} s\n{self.told()}")
            time.sleep(_POLL_S)

    def told(self) -> str:
        """The ends of the servers' logs, for the report of a failure."""
        servers = [one for one in (self.apiserver, self.manager, self.scheduler) if one is not None]
        return "\n".join(f"--- {server.program}\n{server.log_tail(15)}" for server in servers)

    def close(self) -> None:
        if self.scheduler is not None:
            self.scheduler.close()
        if self.manager is not None:
            self.manager.close()
        self.apiserver.close()
        if self._own_etcd:
            self.etcd.close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- command lines ---------------------------------------------------------------------------------------------

    @property
    def aggregator_routing(self) -> bool:
        return not ip_address(self.address).is_loopback

    def _apiserver_flags(self) -> dict[str, str]:
        services = SERVICE_NETWORKS[ip_address(self.address).version]
        names = (
            self.address, str(services[1]), "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )  # fmt: skip
        serving = self.ca.issue("kube-apiserver", names=names)
        proxy = self.front_proxy_ca.issue("front-proxy-client")
        kubelet = self.ca.issue("kube-apiserver-kubelet-client", groups=["system:masters"])
        private, public = self._keys
        return {
            "etcd-servers": self.etcd.endpoint,
            "bind-address": self.address,
            "advertise-address": self.address,
            # What a loopback address would be refused as is the endpoint of the Service `kubernetes`.
            "endpoint-reconciler-type": "lease" if self.aggregator_routing else "none",
            "secure-port": str(self.apiserver.port),
            "tls-cert-file": str(serving.cert),
            "tls-private-key-file": str(serving.key),
            "client-ca-file": str(self.ca.cert),
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "service-cluster-ip-range": str(services),
            "service-account-issuer": _ISSUER,
            "service-account-signing-key-file": str(private),
            "service-account-key-file": str(public),
            "requestheader-client-ca-file": str(self.front_proxy_ca.cert),
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": str(proxy.cert),
            "proxy-client-key-file": str(proxy.key),
            "enable-aggregator-routing": str(self.aggregator_routing).lower(),
            "kubelet-client-certificate": str(kubelet.cert),
            "kubelet-client-key": str(kubelet.key),
            "kubelet-preferred-address-types": "InternalIP,Hostname",
            "profiling": "false",
            "shutdown-delay-duration": "0s",
            # Asks etcd for progress as releases before 3.5.8 do not answer, and logs that without end.
            "feature-gates": "SizeBasedListCostEstimate=false",
        }

    def _manager_flags(self) -> dict[str, str]:
        assert self.manager is not None
        return self._client_flags(self.manager, "system:kube-controller-manager") | {
            "controllers": ",".join(self._controllers),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": str(self._keys[0]),
            "root-ca-file": str(self.ca.cert),
            "cluster-signing-cert-file": str(self.ca.pair.cert),
            "cluster-signing-key-file": str(self.ca.pair.key),
        }

    def _client_flags(self, server: Server, user: str) -> dict[str, str]:
        """What kube-controller-manager and kube-scheduler have in common."""
        kubeconfig = str(self.user(user))
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": self.address,
            "secure-port": str(server.port),
            "cert-dir": str(server.directory),
            "leader-elect": "false",
            "profiling": "false",
        }


class KubeApiserver(HttpsServer):
    """`/readyz` is open to everybody by the role system:public-info-viewer, which is there once start-up is over."""

    program = "kube-apiserver"
    well_known_port = 6443
    flags: Mapping[str, str] = MappingProxyType({})

    def arguments(self) -> list[str]:
        return _flags(self.flags)


class ControllerManager(Server):
    program = "kube-controller-manager"
    well_known_port = 10257
    ready_line = b"Serving securely on"
    flags: Mapping[str, str] = MappingProxyType({})

    def arguments(self) -> list[str]:
        return _flags(self.flags)


class Scheduler(Server):
    program = "kube-scheduler"
    well_known_port = 10259
    ready_line = b"Serving securely on"
    flags: Mapping[str, str] = MappingProxyType({})

    def arguments(self) -> list[str]:
        return _flags(self.flags)


def _flags(flags: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]
