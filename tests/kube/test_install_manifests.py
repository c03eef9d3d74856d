"""k8s/*.yaml on a real kube-apiserver: objects are accepted, strictly; each account may do what is its own, no more.

Rows M01 (every variant applies), X04 (who may do what), X06 (tokens for the plugin alone).
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.kube.api import KubeApi
from libs.testkit.kube.control_plane import ControlPlane

K8S = Path(__file__).resolve().parents[2] / "k8s"
FILES = sorted(K8S.glob("*.yaml"))
NAMESPACE = "calico-system"
ACCOUNTS = ("calico-node", "calico-cni-plugin", "calico-kube-controllers", "calico-typha", "calico-apiserver")
JsonObject = dict[str, Any]
# verb, group, resource, namespace, name
Question = tuple[str, str, str, str, str]
READ = ("get", "list", "watch")

_FACTS = {("get", "", resource, "any", "") for resource in ("pods", "namespaces", "nodes")}
ALLOWED: dict[str, set[Question]] = {
    "calico-typha": set(),
    "calico-cni-plugin": _FACTS,
    "calico-node": _FACTS | {
        ("patch", "", "nodes/status", "", ""),
        ("create", "", "serviceaccounts/token", NAMESPACE, "calico-cni-plugin"),
        ("get", "", "configmaps", "kube-system", "kubeadm-config"),
    },
    "calico-kube-controllers": {
        (verb, group, resource, "any", "") for verb in READ for group, resource in (
            ("", "pods"), ("", "nodes"), ("", "namespaces"), ("", "serviceaccounts"), ("", "services"),
            ("networking.k8s.io", "networkpolicies"), ("discovery.k8s.io", "endpointslices"),
            ("policy.networking.k8s.io", "clusternetworkpolicies"),
        )
    } | {("patch", "", "services/status", "any", ""), ("create", "", "events", "any", "")},
    "calico-apiserver": {
        ("create", "authentication.k8s.io", "tokenreviews", "", ""),
        ("create", "authorization.k8s.io", "subjectaccessreviews", "", ""),
        *((verb, "", "configmaps", "kube-system", "extension-apiserver-authentication") for verb in READ),
    },
}  # fmt: skip

_VERBS = (*READ, "create", "update", "patch", "delete", "deletecollection")
_RESOURCES = (
    ("", "pods"), ("", "pods/status"), ("", "pods/exec"), ("", "pods/eviction"), ("", "nodes"), ("", "nodes/status"),
    ("", "nodes/proxy"), ("", "namespaces"), ("", "serviceaccounts"), ("", "serviceaccounts/token"), ("", "services"),
    ("", "services/status"), ("", "secrets"), ("", "configmaps"), ("", "events"), ("", "persistentvolumes"),
    ("apps", "daemonsets"), ("apps", "deployments"), ("batch", "jobs"), ("coordination.k8s.io", "leases"),
    ("networking.k8s.io", "networkpolicies"), ("discovery.k8s.io", "endpointslices"),
    ("policy.networking.k8s.io", "clusternetworkpolicies"), ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"), ("rbac.authorization.k8s.io", "roles"),
    ("authentication.k8s.io", "tokenreviews"), ("authorization.k8s.io", "subjectaccessreviews"),
    ("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("projectcalico.org", "ippools"), ("crd.projectcalico.org", "ippools"),
)  # fmt: skip
_PLACES = (("any", ""), (NAMESPACE, ""), ("kube-system", ""))
_NAMED: tuple[Question, ...] = tuple(
    (verb, "", resource, namespace, name)
    for verb, resource, namespace, name in itertools.product(
        ("get", "create", "update", "delete"), ("secrets", "configmaps", "serviceaccounts/token"),
        (NAMESPACE, "kube-system", "any"),
        ("calico-cni-plugin", "calico-node", "default", "kubeadm-config", "extension-apiserver-authentication",
         "calico-node-certs", "calico-config"),
    )
)  # fmt: skip


def questions() -> list[Question]:
    """The long list: every verb on what is worth having, in three namespaces, and by names."""
    general = [(v, g, r, *place) for v in _VERBS for g, r in _RESOURCES for place in _PLACES]
    return [*general, *_NAMED, *sorted(set.union(*ALLOWED.values()))]


def expected(account: str, question: Question) -> bool:
    """A rule without a namespace ("any", or of a cluster-wide resource) holds in all; without a name, for all names."""
    verb, group, resource, namespace, name = question
    return any(
        (v, g, r) == (verb, group, resource) and of in ("any", "", namespace) and (not n or n == name)
        for v, g, r, of, n in ALLOWED[account]
    )


def review(account: str, question: Question) -> JsonObject:
    verb, group, resource, namespace, name = question
    plural, _, sub = resource.partition("/")
    attributes = {
        "verb": verb, "group": group, "resource": plural, "subresource": sub, "namespace": namespace, "name": name,
    }  # fmt: skip
    user = f"system:serviceaccount:{NAMESPACE}:{account}"
    # Without system:authenticated: what everybody may do is not what these roles give.
    spec = {"user": user, "groups": [f"system:serviceaccounts:{NAMESPACE}"], "resourceAttributes": attributes}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


async def reviewed(admin: Path, account: str, asked: list[Question]) -> list[bool]:
    """Many at a time: kubectl would take a minute for them."""
    at_once = asyncio.Semaphore(16)

    async def ask(api: KubeApi, question: Question) -> bool:
        async with at_once:
            found = await api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review(account, question))
        return bool(found["status"]["allowed"])

    async with await KubeApi.open(admin) as api:
        return list(await asyncio.gather(*(ask(api, one) for one in asked)))


def objects(path: Path) -> list[JsonObject]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def accounts(control_plane: ControlPlane) -> ControlPlane:
    """The accounts and roles of the default variant and of the apiserver, and nothing that runs."""
    kinds = {"Namespace", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    of = [one for name in ("calico", "apiserver") for one in objects(K8S / f"{name}.yaml") if one["kind"] in kinds]
    control_plane.kubectl.apply(*of)
    return control_plane


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_server_accepts_every_object_strictly(accounts: ControlPlane, path: Path) -> None:
    told = accounts.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(path))
    assert told.count("(server dry run)") == len(objects(path))
    assert "Warning" not in told


def test_strict_validation_would_tell(accounts: ControlPlane, tmp_path: Path) -> None:
    bad = (K8S / "calico.yaml").read_text().replace("terminationGracePeriodSeconds: 300", "terminationGrace: 300")
    (tmp_path / "bad.yaml").write_text(bad)
    said = accounts.kubectl.fails("apply", "--dry-run=server", "--validate=strict", "-f", str(tmp_path / "bad.yaml"))
    assert "terminationGrace" in said


@pytest.mark.parametrize("account", ACCOUNTS)
def test_accounts_may_do_what_is_theirs_and_nothing_else(accounts: ControlPlane, account: str) -> None:
    asked = questions()
    answers = asyncio.run(reviewed(accounts.admin, account, asked))
    assert len(answers) == len(asked)
    wanted = [expected(account, one) for one in asked]
    assert sum(wanted) >= len(ALLOWED[account])
    assert wanted.count(False) > 700
    assert [q for q, got, want in zip(asked, answers, wanted, strict=True) if got != want] == []


def test_the_nodes_token_buys_tokens_of_the_plugin_alone(accounts: ControlPlane) -> None:
    """Row X06, with the token itself instead of a question about it."""
    node = accounts.as_user(accounts.service_account(NAMESPACE, "calico-node"))
    assert node("create", "token", "calico-cni-plugin", "-n", NAMESPACE, "--duration=24h").count(".") == 2
    for other in ("calico-node", "calico-kube-controllers", "default"):
        assert "forbidden" in node.fails("create", "token", other, "-n", NAMESPACE)
    assert "forbidden" in node.fails("get", "secrets", "-n", NAMESPACE)


def test_the_reference_names_no_permission_that_is_missing() -> None:
    text = (K8S.parent / "docs/reference/kube-controllers.md").read_text()
    documented = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    for rule in documented["rules"]:
        for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"]):
            assert expected("calico-kube-controllers", (verb, group, resource, "any", "")), (verb, resource)
