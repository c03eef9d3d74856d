"""The node service and a real kube-apiserver: internal addresses, kubeadm's subnets, NetworkUnavailable, the token."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.resources.client import ResourceClient
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.servers import EtcdServer, NatsServer, free_port

PROJECT = Path(__file__).resolve().parents[2]
_OURS = ("ETCD", "NATS", "FELIX", "CALICO", "CNI", "NODENAME", "IP", "AS", "KUBE", "CLUSTER_TYPE", "LOG_", "HOSTNAME")


class Stage:
    def __init__(self, cp: ControlPlane, etcd: EtcdServer, directory: Path, kubeconfig: Path) -> None:
        self.cp, self.etcd, self.directory = cp, etcd, directory
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.env = inherited | {
            "ETCD_ENDPOINTS": etcd.endpoint, "KUBECONFIG": str(kubeconfig), "NODENAME": "node1",
            "CALICO_NODENAME_FILE": str(directory / "nodename"),
        }  # fmt: skip

    def node(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.node", *arguments], env=self.env | env, cwd=PROJECT, text=True,
            capture_output=True, timeout=90, check=False,
        )  # fmt: skip

    def get(self, kind: str, name: str) -> Any:
        async def read() -> Any:
            store = EtcdStore(StoreConfig((self.etcd.endpoint,)))
            try:
                return await ResourceClient(store).get(kind, name)
            finally:
                await store.close()

        return asyncio.run(read())

    def condition(self) -> dict[str, str] | None:
        node = json.loads(self.cp.kubectl("get", "node", "node1", "-o", "json"))
        found = [one for one in node["status"].get("conditions", []) if one["type"] == "NetworkUnavailable"]
        return found[0] if found else None


ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: calico-node}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
- {apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [calico-cni-plugin], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: calico-node}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: calico-node}
subjects: [{kind: ServiceAccount, name: calico-node, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: calico-node, namespace: kube-system}
rules:
- {apiGroups: [""], resources: [configmaps], resourceNames: [kubeadm-config], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: calico-node, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: calico-node}
subjects: [{kind: ServiceAccount, name: calico-node, namespace: kube-system}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: calico-node, namespace: kube-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: calico-cni-plugin, namespace: kube-system}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
"""


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    cp = control_plane
    cp.until(lambda: cp.kubectl.run("get", "namespace", "kube-system").status == 0, "the namespace kube-system")
    cp.kubectl("apply", "-f", "-", stdin=ROLE)
    who = "--as=system:serviceaccount:kube-system:calico-node"
    for what in (("get", "nodes"), ("get", "configmaps/kubeadm-config", "-n", "kube-system")):
        asked = ("auth", "can-i", *what, who)
        cp.until(lambda asked=asked: cp.kubectl.run(*asked).status == 0, f"{who} may {what}")  # type: ignore[misc]
    etcd = EtcdServer()
    try:
        etcd.start()
        directory = tmp_path_factory.mktemp("node")
        yield Stage(cp, etcd, directory, cp.service_account("kube-system", "calico-node"))
    finally:
        etcd.close()


def own_address() -> str:
    """Of this machine, as kubelet would report it."""
    shown = json.loads(subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True, text=True).stdout)
    found = [a for link in shown for a in link["addr_info"] if a["scope"] == "global" and link["ifname"] != "docker0"]
    if not found:
        pytest.skip("needs root and network namespaces")
    return str(found[0]["local"])


def test_d01_kubernetes_internal_ip_and_kubeadms_subnets(stage: Stage) -> None:
    address = own_address()
    status = {
        "status": {"addresses": [{"type": "Hostname", "address": "node1"}, {"type": "InternalIP", "address": address}]}
    }
    stage.cp.kubectl("patch", "node", "node1", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubeadm = {"ClusterConfiguration": "networking:\n  podSubnet: 10.244.0.0/16,fd00:10:244::/56\n"}
    document = {"apiVersion": "v1", "kind": "ConfigMap", "data": kubeadm,
                "metadata": {"name": "kubeadm-config", "namespace": "kube-system"}}  # fmt: skip
    stage.cp.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    done = stage.node("startup", IP="autodetect", IP_AUTODETECTION_METHOD="kubernetes-internal-ip", CLUSTER_TYPE="k8s")
    assert done.returncode == 0, done.stderr
    assert stage.get("Node", "node1").spec.bgp.ipv4_address.partition("/")[0] == address
    assert stage.get("IPPool", "default-ipv4-ippool").spec.cidr == "10.244.0.0/16"
    assert stage.get("IPPool", "default-ipv6-ippool").spec.cidr == "fd00:10:244::/56"
    assert stage.get("ClusterInformation", "default").spec.cluster_type == "k8s,kubeadm"


def test_d07_the_network_is_available_once_all_is_well_and_not_at_the_end(stage: Stage) -> None:
    """felix is not there: after the patience is over it goes on all the same, as Calico does."""
    done = stage.node(
        "complete-startup", CALICO_NODE_READY_WAIT_S="0.5", CALICO_NETWORKING_BACKEND="none",
        FELIX_HEALTHPORT=str(free_port()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not well in time" in done.stderr
    good = stage.condition()
    assert good is not None
    assert (good["status"], good["reason"]) == ("False", "CalicoIsUp")
    assert stage.node("shutdown").returncode == 0
    bad = stage.condition()
    assert bad is not None
    assert (bad["status"], bad["reason"]) == ("True", "CalicoIsDown")
    again = stage.node("shutdown")
    assert again.returncode == 0
    assert stage.condition() == bad


def test_a_missing_permission_is_named(stage: Stage) -> None:
    stage.cp.kubectl("create", "serviceaccount", "nobody", "-n", "default")
    done = stage.node("shutdown", KUBECONFIG=str(stage.cp.service_account("default", "nobody")))
    assert done.returncode == 1
    said = done.stderr.replace('\\"', '"')
    assert 'User "system:serviceaccount:default:nobody" cannot get resource "nodes"' in said


def test_x06_d07_supervised_the_plugins_token_is_short_lived_and_rotates(stage: Stage, tmp_path: Path) -> None:
    """The whole of a node but felix and bgp; the API's TokenRequest is real."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text(
        stage.cp.kubectl("create", "token", "calico-node", "-n", "kube-system", "--duration", "1h").strip()
    )
    (account / "namespace").write_text("kube-system")
    (account / "ca.crt").write_bytes(stage.cp.ca.cert.read_bytes())
    host, _, port = stage.cp.server.removeprefix("https://").rpartition(":")
    nats = NatsServer()
    plugin = tmp_path / "plugin"
    plugin.write_bytes(b"\x7fELF")
    process = None
    try:
        nats.start()
        env = {
            "NATS_URL": nats.url, "CALICO_DISABLE_FELIX": "true", "CALICO_NETWORKING_BACKEND": "none",
            "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "CALICO_CNI_ACCOUNT_DIR": str(account),
            "CNI_NET_DIR": str(tmp_path / "net.d"), "CNI_BIN_DIR": str(tmp_path / "bin"), "CNI_BINARY": str(plugin),
            "CNI_TOKEN_REFRESH_INTERVAL": "1",
        }  # fmt: skip
        log = (tmp_path / "log").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "services.node", "run", "--supervise"], env=stage.env | env, cwd=PROJECT,
            stdout=log, stderr=log,
        )  # fmt: skip
        kubeconfig = tmp_path / "net.d" / "calico-kubeconfig"
        stage.cp.until(kubeconfig.exists, "the plugin's kubeconfig")
        first = token(kubeconfig)
        stage.cp.until(lambda: token(kubeconfig) != first, "another token")
        claims = token_claims(token(kubeconfig))
        assert claims["sub"] == "system:serviceaccount:kube-system:calico-cni-plugin"
        assert 0 < claims["exp"] - claims["iat"] <= 24 * 3600
        stage.cp.until(lambda: (stage.condition() or {}).get("status") == "False", "NetworkUnavailable is False")
        process.terminate()
        assert process.wait(40) == 0, (tmp_path / "log").read_text()[-3000:]
        assert (stage.condition() or {}).get("status") == "True"
        assert token(kubeconfig) not in (tmp_path / "log").read_text()
    finally:
        if process is not None:
            process.kill()
            process.wait()
        nats.close()


def token(kubeconfig: Path) -> str:
    return str(json.loads(kubeconfig.read_text())["users"][0]["user"]["token"])


def token_claims(text: str) -> dict[str, Any]:
    body = text.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found
