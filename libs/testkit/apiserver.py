"""Our own apiserver as a process of its own: real TLS, real etcd, killed and started again at will.

`standing_alone` is one with client certificates and a role file; behind a kube-apiserver give it a kubeconfig of that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from libs.testkit.kube.https_server import HttpsServer
from libs.testkit.pki import Authority, KeyPair
from libs.testkit.servers import EtcdServer, NatsServer

PROJECT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 60.0


class CalicoApiserver(HttpsServer):
    """`python -m services.apiserver`. serving: its certificate, which must be for `address`; trusted: who signed it.
    flags: its further settings (services/apiserver/config.py). bus: without one, audit events go nowhere.
    """

    program = "calico-apiserver"
    well_known_port = 5443

    def __init__(
        self,
        etcd: EtcdServer,
        serving: KeyPair,
        trusted: Path,
        flags: Mapping[str, str],
        *,
        client: KeyPair | None = None,
        bus: NatsServer | None = None,
        address: str = "127.0.0.1",
        netns: str | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__(
            address=address, netns=netns, binary=sys.executable, directory=directory, ready_timeout_s=_START_TIMEOUT_S
        )
        self.trusted, self.client = trusted, client
        self._etcd, self._bus = etcd, bus
        self.flags = {
            "bind-address": self.address,
            "secure-port": str(self.port),
            "tls-cert-file": str(serving.cert),
            "tls-private-key-file": str(serving.key),
            **flags,
        }

    def arguments(self) -> list[str]:
        return ["-m", "services.apiserver", *(f"--{name}={value}" for name, value in self.flags.items())]

    def environment(self) -> dict[str, str]:
        found = {"PYTHONPATH": str(PROJECT), "ETCD_ENDPOINTS": self._etcd.endpoint}
        return found | ({"NATS_URL": self._bus.url} if self._bus else {})


class RoleFile:
    """Who may do what at a server that stands alone; may change while the server runs."""

    def __init__(self, path: Path, documents: Sequence[Mapping[str, Any]] = ()) -> None:
        self.path = path
        self._documents = list(documents)
        self._write()

    def add(self, *documents: Mapping[str, Any]) -> None:
        self._documents += documents
        self._write()

    def unbind(self, name: str) -> None:
        """Without the cluster-wide binding of that name."""
        gone = ("ClusterRoleBinding", name)
        self._documents = [one for one in self._documents if (one["kind"], one["metadata"]["name"]) != gone]
        self._write()

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump_all(self._documents))
        new.rename(self.path)  # the server may look at any time


def standing_alone(
    etcd: EtcdServer,
    ca: Authority,
    roles: RoleFile,
    *,
    bus: NatsServer | None = None,
    address: str = "127.0.0.1",
    directory: Path | None = None,
    flags: Mapping[str, str] | None = None,
) -> CalicoApiserver:
    """Believes the certificates that `ca` signs; members of system:masters may do everything."""
    serving = ca.issue("calico-apiserver", names=[address, "localhost"])
    given = {
        "client-ca-file": str(ca.cert),
        "authorization-role-file": str(roles.path),
        "reload-interval-s": "0.2",
        **(flags or {}),
    }
    return CalicoApiserver(etcd, serving, ca.cert, given, bus=bus, address=address, directory=directory)
