"""The two ways in to projectcalico.org/v3, for one suite: our apiserver alone, and behind a real kube-apiserver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from libs.testkit.apiserver import CalicoApiserver, RoleFile, standing_alone
from libs.testkit.kube.aggregation import Backend, register
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.kubectl import Kubectl, write_kubeconfig
from libs.testkit.pki import Authority
from libs.testkit.servers import EtcdServer, NatsServer

MANIFEST = Path(__file__).resolve().parents[2] / "k8s" / "apiserver.yaml"
NAMESPACE = "calico-system"
NAMESPACES = ("red", "blue", "empty")
_IDENTITY = {"Namespace", "ServiceAccount", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_POLL_S = 0.1


@dataclass
class Way:
    """kubectl: as one who may do everything. grant: takes roles and bindings; revoke: a cluster-wide binding's name."""

    kubectl: Kubectl
    apiserver: CalicoApiserver
    etcd: EtcdServer
    control_plane: ControlPlane | None
    user: Callable[[str, Sequence[str]], Kubectl]
    grant: Callable[..., None]
    revoke: Callable[[str], None]

    @property
    def aggregated(self) -> bool:
        return self.control_plane is not None

    def restart(self) -> None:
        """Our apiserver ends in order and comes back on the same port."""
        self.apiserver.stop()
        self.apiserver.start()
        # kube-apiserver looks again only now and then, and says 503 until it has.
        self.until(lambda: self.kubectl.run("get", "tiers").status == 0, "served again")

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s:g} s\n{self.told()}")
            time.sleep(_POLL_S)

    def told(self) -> str:
        own = f"--- calico-apiserver\n{self.apiserver.log_tail(40)}"
        return f"{self.control_plane.told()}\n{own}" if self.control_plane else own


@contextmanager
def alone(directory: Path) -> Iterator[Way]:
    """Client certificates and a role file."""
    ca = Authority("calico-ca", directory / "pki")
    roles = RoleFile(directory / "roles.yaml")
    with ExitStack() as stack:
        etcd = stack.enter_context(EtcdServer(directory=directory / "etcd"))
        bus = stack.enter_context(NatsServer(directory=directory / "nats"))
        server = stack.enter_context(standing_alone(etcd, ca, roles, bus=bus, directory=directory / "apiserver"))

        def user(name: str, groups: Sequence[str] = ()) -> Kubectl:
            client = ca.issue(name, groups=groups)
            path = client.cert.with_suffix(".kubeconfig")
            return Kubectl(write_kubeconfig(path, server=server.url, ca=ca.cert, client=client), directory)

        yield Way(user("admin", ["system:masters"]), server, etcd, None, user, roles.add, roles.unbind)


@contextmanager
def behind(cp: ControlPlane, directory: Path) -> Iterator[Way]:
    """An APIService; who asks and what is allowed is kube-apiserver's to say."""
    with ExitStack() as stack:
        etcd = stack.enter_context(EtcdServer(directory=directory / "etcd"))
        bus = stack.enter_context(NatsServer(directory=directory / "nats"))
        kubeconfig = _identity(cp)
        serving = cp.ca.issue("calico-apiserver", names=[cp.address, f"calico-api.{NAMESPACE}.svc"])
        flags = {"kubeconfig": str(kubeconfig), "authorization-webhook-cache-unauthorized-ttl": "1"}
        server = stack.enter_context(
            CalicoApiserver(etcd, serving, cp.ca.cert, flags, bus=bus, directory=directory / "apiserver")
        )
        register(cp, Backend(server.port, cp.ca.cert, namespace=NAMESPACE))
        merged = "apis/projectcalico.org/v3"  # without it `kubectl explain` knows nothing of our kinds
        cp.until(lambda: merged in cp.kubectl("get", "--raw", "/openapi/v3"), f"/openapi/v3 names {merged}")
        for name in NAMESPACES:
            cp.kubectl("create", "namespace", name)

        def user(name: str, groups: Sequence[str] = ()) -> Kubectl:
            return cp.as_user(cp.user(name, groups=groups))

        def grant(*documents: Mapping[str, Any]) -> None:
            cp.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

        def revoke(name: str) -> None:
            cp.kubectl("delete", "clusterrolebinding", name)

        yield Way(cp.kubectl, server, etcd, cp, user, grant, revoke)


def documents() -> list[dict[str, Any]]:
    """The objects of k8s/apiserver.yaml."""
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def _identity(cp: ControlPlane) -> Path:
    """The service account that our apiserver is at kube-apiserver, with what the manifest gives it and no more."""
    wanted = [one for one in documents() if one["kind"] in _IDENTITY]
    cp.kubectl.apply(*wanted)
    (account,) = (one["metadata"] for one in wanted if one["kind"] == "ServiceAccount")
    return cp.service_account(account["namespace"], account["name"])
