"""What every manifest of k8s/ has to have (row M14), and that the variants are what their parts make (row M01)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from services.apiserver.config import ApiserverConfig
from services.calicoctl.app import cli
from services.kube_controllers.config import KubeControllersConfig
from services.node.__main__ import _services
from services.typha.config import TyphaConfig

K8S = Path(__file__).resolve().parents[3] / "k8s"
FILES = sorted(K8S.glob("*.yaml"))
VARIANTS = [K8S / f"{name}.yaml" for name in ("calico", "calico-vxlan", "calico-policy-only", "calico-large")]
JsonObject = dict[str, Any]
WORKLOADS = ("Deployment", "DaemonSet", "StatefulSet")
ON_THE_HOST = {"calico-node", "calico-etcd"}  # those that need root on it for anything


def objects(path: Path) -> list[JsonObject]:
    return list(yaml.safe_load_all(path.read_text()))


def workloads() -> Iterator[tuple[str, JsonObject]]:
    for path in FILES:
        for one in objects(path):
            if one["kind"] in WORKLOADS:
                yield f"{path.stem}/{one['metadata']['name']}", one


ALL = dict(workloads())
each = pytest.mark.parametrize("workload", ALL.values(), ids=ALL.keys())


def pod_of(workload: JsonObject) -> JsonObject:
    found: JsonObject = workload["spec"]["template"]["spec"]
    return found


def containers(workload: JsonObject) -> list[JsonObject]:
    return [*pod_of(workload).get("initContainers", []), *pod_of(workload)["containers"]]


def node_of(path: Path) -> JsonObject:
    (found,) = (one for one in objects(path) if one["kind"] == "DaemonSet")
    return found


def settings(path: Path, name: str) -> dict[str, str]:
    (found,) = (o for o in objects(path) if o["kind"] == "ConfigMap" and o["metadata"]["name"] == name)
    data: dict[str, str] = found["data"]
    return data


def test_variants_are_what_their_parts_make() -> None:
    done = subprocess.run(
        [sys.executable, str(K8S / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(path in FILES for path in VARIANTS)


def test_nothing_secret_no_charts_no_kinds_of_our_own() -> None:
    for path in FILES:
        for one in objects(path):
            assert one["kind"] not in ("Secret", "CustomResourceDefinition"), path.name
            assert one["metadata"].get("namespace", "calico-system") in ("calico-system", "kube-system")
        assert "PRIVATE KEY" not in path.read_text()
        assert "{{" not in path.read_text()
        assert "${" not in path.read_text()


@each
def test_images_have_a_version_and_containers_their_share(workload: JsonObject) -> None:
    for one in containers(workload):
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", one["image"]), one["image"]
        assert set(one["resources"]["requests"]) == {"cpu", "memory"}


@each
def test_containers_may_do_what_they_must_and_no_more(workload: JsonObject) -> None:
    name, pod = workload["metadata"]["name"], pod_of(workload)
    for one in containers(workload):
        context = pod["securityContext"] | one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        if name == "calico-node":
            assert context["privileged"] is True
            continue
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in context
        if one in pod["containers"]:
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert "add" not in context["capabilities"]
    host = [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert bool(host) == (name in ON_THE_HOST)


@each
def test_what_the_cluster_needs_is_placed_first_and_everywhere(workload: JsonObject) -> None:
    name, pod = workload["metadata"]["name"], pod_of(workload)
    critical = "system-node-critical" if workload["kind"] == "DaemonSet" else "system-cluster-critical"
    assert pod["priorityClassName"] == critical
    assert pod["hostNetwork"] is True, f"{name} must run before there is a network of pods"
    tolerations = pod["tolerations"]
    if workload["kind"] == "DaemonSet" or name == "calico-typha":
        for effect in ("NoSchedule", "NoExecute"):
            assert {"effect": effect, "operator": "Exists"} in tolerations
    assert {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"} in tolerations or {
        "effect": "NoSchedule", "operator": "Exists"
    } in tolerations  # fmt: skip


@each
def test_probes_tell_the_living_from_the_ready(workload: JsonObject) -> None:
    for one in pod_of(workload)["containers"]:
        if "ports" not in one:
            assert one["name"] == "reloader"  # serves nobody
            continue
        assert one["readinessProbe"]["periodSeconds"] <= 10
        assert one["livenessProbe"]["periodSeconds"] >= 10
        assert one["livenessProbe"] != one["readinessProbe"]
        ports = {port["name"] for port in one["ports"]}
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            action = one.get(probe, {}).get("httpGet") or one.get(probe, {}).get("tcpSocket")
            assert action is None or action["port"] in ports


@each
def test_a_replacement_fits_on_the_hosts_ports(workload: JsonObject) -> None:
    """All are on the host's network: a second pod of a kind fits on no node, so one must be allowed to go first."""
    if workload["kind"] == "DaemonSet":
        update = workload["spec"]["updateStrategy"]
        assert update["type"] == "RollingUpdate"
        assert update["rollingUpdate"]["maxUnavailable"] in (1, "5%")
        assert "maxSurge" not in update["rollingUpdate"]
    else:
        assert workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1


def test_ports_of_the_host_are_of_one_component_each() -> None:
    taken: dict[int, str] = {}
    for name, workload in ALL.items():
        component = name.partition("/")[2]
        for one in pod_of(workload)["containers"]:
            for port in one.get("ports", []):
                assert taken.setdefault(port["containerPort"], component) == component


def test_what_has_replicas_has_a_budget() -> None:
    for path in FILES:
        of = {one["metadata"]["name"]: one for one in objects(path) if one["kind"] == "PodDisruptionBudget"}
        for one in objects(path):
            if one["kind"] == "Deployment":
                budget = of[one["metadata"]["name"]]["spec"]
                assert budget["maxUnavailable"] == 1
                assert budget["selector"] == one["spec"]["selector"]
                assert one["spec"]["replicas"] >= 2


def test_selectors_accounts_secrets_and_volumes_refer_to_what_there_is() -> None:
    accounts = {one["metadata"]["name"] for path in FILES for one in objects(path) if one["kind"] == "ServiceAccount"}
    for workload in ALL.values():
        name, pod = workload["metadata"]["name"], pod_of(workload)
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels == {"app.kubernetes.io/name": name}
        if "serviceAccountName" in pod:
            assert pod["serviceAccountName"] == name
            assert name in accounts
        else:
            assert pod["automountServiceAccountToken"] is False
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        if name == "calico-node":  # a Secret would give all nodes one identity
            assert volumes["certs"]["hostPath"]["path"] == "/etc/calico/certs"
        else:
            assert volumes["certs"]["secret"] == {"secretName": f"{name}-certs"}
        for one in containers(workload):
            assert {mount["name"] for mount in one["volumeMounts"]} <= set(volumes)


def test_kube_controller_manager_sees_policies_for_its_garbage_collection() -> None:
    """Lists of policies show the tiers that the user may get; its own role has list and watch alone."""
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects(K8S / "apiserver.yaml")}
    role, binding = (named[kind, "calico-tier-getter"] for kind in ("ClusterRole", "ClusterRoleBinding"))
    assert role["rules"] == [{"apiGroups": ["projectcalico.org"], "resources": ["tiers"], "verbs": ["get"]}]
    assert binding["roleRef"]["name"] == "calico-tier-getter"
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"]) == ("User", "system:kube-controller-manager")


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_facts_of_the_node(path: Path) -> None:
    node = node_of(path)
    pod = pod_of(node)
    (one,) = pod["containers"]
    paths = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert paths >= {
        "/lib/modules", "/var/run/calico", "/var/lib/calico", "/run/xtables.lock", "/opt/cni/bin", "/etc/cni/net.d",
        "/var/log/calico",
    }  # fmt: skip
    assert one["livenessProbe"].items() >= {
        "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 10
    }.items()  # fmt: skip
    assert one["readinessProbe"].items() >= {"periodSeconds": 10, "timeoutSeconds": 10}.items()
    assert one["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["node", "shutdown"]
    assert one["resources"]["requests"]["cpu"] == "250m"
    mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
    assert mounts["/run/netns"]["mountPropagation"] == "HostToContainer"
    assert one["args"][1] in _services()


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_network_lists_are_json_once_filled_in(path: Path) -> None:
    data = settings(path, "calico-node-config")
    listed = json.loads(data["CNI_NETWORK_CONFIG"].replace("__CNI_MTU__", data["CNI_MTU"]))
    plugin, portmap = listed["plugins"]
    assert (plugin["type"], portmap["type"]) == ("calico", "portmap")
    assert plugin["policy"] == {"type": "k8s"}
    policy_only = path.stem == "calico-policy-only"
    assert plugin["ipam"]["type"] == ("host-local" if policy_only else "calico-ipam")
    backend = {"calico-vxlan": "vxlan", "calico-policy-only": "none"}.get(path.stem, "bird")
    assert data["CALICO_NETWORKING_BACKEND"] == backend


def test_sizes_of_the_large_variant() -> None:
    (small,), (large,) = (
        [one for one in objects(K8S / f"{name}.yaml") if one["metadata"]["name"] == "calico-typha"
         and one["kind"] == "Deployment"]
        for name in ("calico", "calico-large")
    )  # fmt: skip
    assert large["spec"]["replicas"] > small["spec"]["replicas"]


def test_health_is_where_probes_look() -> None:
    """The variables that set it are settings of the service, and set the port that is probed."""
    prefixes = {
        "calico-typha": TyphaConfig.env_prefix, "calico-kube-controllers": KubeControllersConfig.env_prefix,
        "calico-node": "CALICO_NODE_",
    }  # fmt: skip
    assert ApiserverConfig.env_prefix not in prefixes.values()
    for workload in ALL.values():
        if prefix := prefixes.get(workload["metadata"]["name"]):
            (one,) = pod_of(workload)["containers"]
            values = {variable["name"]: variable.get("value") for variable in one["env"]}
            port = {port["name"]: port["containerPort"] for port in one["ports"]}["health"]
            assert values[f"{prefix}HEALTHPORT"] == str(port)
            assert values[f"{prefix}HEALTHHOST"] == one["livenessProbe"]["httpGet"]["host"] == "127.0.0.1"


def test_nats_permits_by_certificate_and_by_the_table_of_its_version() -> None:
    """A server that verifies certificates without mapping them to users would let every node speak as typha."""
    text = (K8S / "nats.yaml").read_text()
    clients = text.split("cluster {")[0]
    assert "verify_and_map: true" in clients
    assert 'include "../generated/users.conf"' in clients
    assert "no_auth_user" not in text
    nats = ALL["nats/calico-nats"]
    permissions, reloader = (
        next(one for one in containers(nats) if one["name"] == name)["args"][2] for name in ("permissions", "reloader")
    )
    command = "calicoctl trust nats --users-only --nodes-file /etc/nats/config/nodes"
    assert command in permissions
    assert command in reloader
    assert pod_of(nats)["shareProcessNamespace"] is True


IN_THE_OPEN = {
    ("calico-etcd", "client"): "--client-cert-auth",
    ("calico-etcd", "peer"): "--peer-client-cert-auth",
    ("calico-nats", "client"): "verify_and_map: true",
    ("calico-nats", "cluster"): "ca_file: /certs/peer-ca.crt, verify: true",
    ("calico-apiserver", "https"): "--tls-cert-file=/certs/tls.crt",
    ("calico-kube-controllers", "metrics"): '"KUBE_CONTROLLERS_PROMETHEUSMETRICSCLIENTAUTH", "value": "RequireAnd',
}
ON_LOOPBACK = {
    ("calico-etcd", "metrics"): "--listen-metrics-urls=http://127.0.0.1:2381",
    ("calico-nats", "monitor"): r"http: \"127.0.0.1:8222\"",
    ("calico-typha", "health"): '"TYPHA_HEALTHHOST", "value": "127.0.0.1"',
    ("calico-kube-controllers", "health"): '"KUBE_CONTROLLERS_HEALTHHOST", "value": "127.0.0.1"',
    ("calico-node", "health"): '"CALICO_NODE_HEALTHHOST", "value": "127.0.0.1"',
}


@each
def test_every_port_wants_a_certificate_or_is_for_this_host(workload: JsonObject) -> None:
    """Row X01. The whole host's network reaches what listens on more than loopback."""
    name = workload["metadata"]["name"]
    text = " ".join([json.dumps(workload), *configured(workload)])
    for one in containers(workload):
        for port in one.get("ports", []):
            assert (IN_THE_OPEN | ON_LOOPBACK)[name, port["name"]] in text, port


def configured(workload: JsonObject) -> list[str]:
    """The ConfigMaps that its containers read their environment from, as text."""
    named = [one["configMapRef"]["name"] for c in containers(workload) for one in c.get("envFrom", [])]
    return [
        json.dumps(one["data"]) for path in FILES for one in objects(path)
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] in named
    ]  # fmt: skip


def mounted(workload: JsonObject) -> set[str]:
    """Names of files below /certs that its own text, or the configuration it is given, speaks of."""
    return set(re.findall(r"/certs/([\w.-]+)", " ".join([json.dumps(workload), *configured(workload)])))


def test_trust_secrets_makes_what_pods_mount_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    made: dict[str, set[str]] = {}
    for arguments in (["certs", "--node", "node1"], ["secrets"]):
        done = CliRunner().invoke(cli, ["trust", arguments[0], "-d", str(tmp_path / "pki"), *arguments[1:]])
        assert done.exit_code == 0, done.output
    for one in yaml.safe_load_all(done.output):
        assert one["metadata"]["namespace"] == "calico-system"
        made[one["metadata"]["name"]] = set(one["data"])
    wanted: dict[str, set[str]] = {}
    for workload in ALL.values():
        for volume in pod_of(workload)["volumes"]:
            if "secret" in volume:
                assert set(volume["secret"]) == {"secretName"}, "keys are mounted under their own names"
                wanted.setdefault(volume["secret"]["secretName"], set()).update(mounted(workload))
    assert made == wanted
    node = {path.name for path in (tmp_path / "pki" / "calico-node.node1").iterdir()}
    assert node == mounted(ALL["calico/calico-node"])


def test_servers_know_each_other_by_an_authority_that_signs_nothing_else() -> None:
    """Whoever has any client's certificate would otherwise be a member of etcd, or a route of NATS."""
    config = next(one for one in yaml.safe_load_all((K8S / "nats.yaml").read_text()) if one["kind"] == "ConfigMap")
    clients, routes = config["data"]["nats.conf"].split("cluster {")
    assert "ca_file: /certs/ca.crt" in clients
    assert "ca_file: /certs/peer-ca.crt" in routes
    assert "/certs/peer.crt" in routes
    assert "/certs/tls" not in routes
    flags = re.findall(r"--peer-(?:trusted-ca|cert|key)-file=(\S+)", (K8S / "etcd.yaml").read_text())
    assert flags == ["/certs/peer-ca.crt", "/certs/peer.crt", "/certs/peer.key"]
