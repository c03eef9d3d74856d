"""Kubernetes' RBAC over role documents (rows A07, A12)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services.apiserver.core.attributes import Attributes, refusal, selected_name
from services.apiserver.core.rbac import BUILT_IN, RoleError, Roles, build
from services.apiserver.core.request import User
from services.apiserver.shell.rolefile import RoleFile, read

GROUP = "projectcalico.org"


def roles(*rules: str, subject: str = "{kind: User, name: jane}") -> Roles:
    text = f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: r, labels: {{a: b}}}}
rules: [{", ".join(rules)}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: b}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: r}}
subjects: [{subject}]
"""
    return build(yaml.safe_load_all(text))


def may(found: Roles, verb: str, resource: str, name: str = "", *, user: User | None = None, **more: str) -> bool:
    resource, _, subresource = resource.partition("/")
    asked = Attributes(verb, more.get("group", GROUP), "v3", resource, subresource, more.get("namespace", ""), name)
    return found.decide(user or User("jane", ("devs", "system:authenticated")), asked).allowed


def get(found: Roles, path: str, user: User | None = None, verb: str = "get") -> bool:
    return found.decide(user or User("jane"), Attributes(verb, path=path)).allowed


def rule(verbs: str, resources: str, names: str = "", groups: str = GROUP) -> str:
    extra = f", resourceNames: [{names}]" if names else ""
    return f'{{apiGroups: ["{groups}"], resources: [{resources}], verbs: [{verbs}]{extra}}}'


def test_verbs_groups_and_resources_must_all_match() -> None:
    found = roles(rule("get, list", "networkpolicies"))
    assert may(found, "list", "networkpolicies", namespace="default")
    assert not may(found, "watch", "networkpolicies")
    assert not may(found, "list", "ippools")
    assert not may(found, "list", "networkpolicies", group="networking.k8s.io")
    assert not may(found, "list", "networkpolicies", user=User("joe"))
    assert may(roles(rule('"*"', '"*"', groups="*")), "anything", "things/status", group="other")


def test_subresources_are_resources_of_their_own() -> None:
    plain, exact, any_status = (roles(rule("update", name)) for name in ("ippools", "ippools/status", '"*/status"'))
    assert [may(r, "update", "ippools/status") for r in (plain, exact, any_status)] == [False, True, True]
    assert [may(r, "update", "ippools") for r in (plain, exact, any_status)] == [True, False, False]
    assert not may(any_status, "update", "ippools/scale")


def test_names_are_exact_and_a_collection_has_none() -> None:
    found = roles(rule("get, list, create", "tiers", "a, b"))
    assert may(found, "get", "tiers", "a")
    assert not may(found, "get", "tiers", "c")
    assert not may(found, "list", "tiers")
    assert may(roles(rule("get", "tier.networkpolicies", '"sec.*"')), "get", "tier.networkpolicies", "sec.*")
    assert not may(roles(rule("get", "tier.networkpolicies", '"sec.*"')), "get", "tier.networkpolicies", "sec.web")


def test_paths_match_whole_or_by_their_beginning() -> None:
    found = roles('{nonResourceURLs: ["/metrics", "/debug/*"], verbs: [get]}')
    assert [get(found, path) for path in ("/metrics", "/debug/", "/debug/x/y")] == [True] * 3
    assert [get(found, path) for path in ("/metrics/x", "/debug", "/", "/xmetrics")] == [False] * 4
    assert not get(found, "/metrics", verb="post")
    assert get(roles('{nonResourceURLs: ["*"], verbs: ["*"]}'), "/any/thing", verb="post")
    assert not may(roles('{nonResourceURLs: ["*"], verbs: ["*"]}'), "get", "tiers")
    assert not get(roles(rule('"*"', '"*"', groups="*")), "/metrics"), "a rule of resources says nothing of paths"


def test_subjects() -> None:
    for subject, user in (
        ("{kind: Group, name: devs}", User("x", ("devs",))),
        (
            "{kind: ServiceAccount, name: felix, namespace: calico-system}",
            User("system:serviceaccount:calico-system:felix"),
        ),
        ("{kind: User, name: jane, apiGroup: rbac.authorization.k8s.io}", User("jane")),
    ):
        found = roles(rule("get", "tiers"), subject=subject)
        assert may(found, "get", "tiers", user=user)
        assert not may(found, "get", "tiers", user=User("devs", ("jane", "felix")))


def test_a_rolebinding_grants_in_its_namespace_alone() -> None:
    text = """
apiVersion: v1
kind: List
items:
- apiVersion: rbac.authorization.k8s.io/v1
  kind: Role
  metadata: {name: r, namespace: ns1}
  rules:
  - {apiGroups: [projectcalico.org], resources: [networkpolicies], verbs: [get]}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: wide}
  rules:
  - {apiGroups: [projectcalico.org], resources: [networksets, tiers], verbs: [get]}
  - {nonResourceURLs: ["/metrics"], verbs: [get]}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: b, namespace: ns1}
  roleRef: {kind: Role, name: r}
  subjects: [{kind: User, name: jane}, {kind: ServiceAccount, name: sa}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: b2, namespace: ns1}
  roleRef: {kind: ClusterRole, name: wide}
  subjects: [{kind: User, name: jane}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: b3, namespace: ns2}
  roleRef: {kind: Role, name: r}
  subjects: [{kind: User, name: jane}]
"""
    found = build(yaml.safe_load_all(text))
    assert [may(found, "get", "networkpolicies", namespace=ns) for ns in ("ns1", "ns2", "")] == [True, False, False]
    assert [may(found, "get", "networksets", namespace=ns) for ns in ("ns1", "ns2")] == [True, False]
    assert not may(found, "get", "tiers")
    assert not get(found, "/metrics")
    assert may(found, "get", "networkpolicies", namespace="ns1", user=User("system:serviceaccount:ns1:sa"))
    assert found.dangling == ("RoleBinding 'b3': there is no Role 'r'",)


def test_what_everybody_may() -> None:
    known, unknown = User("x", ("system:authenticated",)), User("system:anonymous", ("system:unauthenticated",))
    for found in (BUILT_IN, roles(rule("get", "tiers"))):
        for path in ("/apis", "/apis/projectcalico.org/v3", "/openapi/v3", "/version", "/readyz"):
            assert get(found, path, known), path
        assert [get(found, path, unknown) for path in ("/readyz", "/version", "/apis", "/openapi/v3")] == [
            True, True, False, False
        ]  # fmt: skip
        assert not get(found, "/metrics", known)
        assert not may(found, "list", "tiers", user=unknown)


V = "apiVersion: rbac.authorization.k8s.io/v1\nkind: "
BAD = {
    "kind: Pod": "document 1: kind 'Pod'",
    "[1]": "document 1: kind None",
    "apiVersion: v1\nkind: Role": "apiVersion 'v1' is not rbac.authorization.k8s.io/v1",
    f"{V}ClusterRole\nmetadata: {{}}": "name",
    f"{V}ClusterRole\nmetadata: {{name: a}}\nrules: [{{verbz: [get]}}]": "verb",
    f"{V}ClusterRole\nmetadata: {{name: a}}\nrules: [{{verbs: [get]}}]": "apiGroups",
    f"{V}ClusterRole\nmetadata: {{name: a}}\nrules: [{{verbs: get}}]": "verbs",
    f"{V}Role\nmetadata: {{name: a}}": "metadata.namespace is missing",
    f"{V}ClusterRole\nmetadata: {{name: a, namespace: b}}": "does not belong",
    f"{V}Role\nmetadata: {{name: a, namespace: n}}\naggregationRule: {{}}": "only a ClusterRole",
    f"{V}ClusterRoleBinding\nmetadata: {{name: a}}\nroleRef: {{kind: Role, name: x}}": "roleRef.kind 'Role'",
    f"{V}Role\nmetadata: {{name: a, namespace: b}}\n"
    "rules: [{nonResourceURLs: [/a], verbs: [get]}]": "only a ClusterRole",
    "a: &x [1]\nb: *x": "alias",
    "{": "expected",
    "a: \x00": "",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_role_files_say_what_is_wrong(text: str, tmp_path: Path) -> None:
    path = tmp_path / "roles"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"roles: ") as caught:
        read(path)
    assert BAD[text] in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RoleError) as caught:
        build([{"kind": "A"}, {"kind": "B"}])
    assert len(caught.value.problems) == 2


def test_a_bad_subject_is_a_fault() -> None:
    for subject, words in (("{kind: Robot, name: x}", "Robot"), ("{kind: ServiceAccount, name: x}", "namespace")):
        with pytest.raises(RoleError, match=words):
            roles(rule("get", "tiers"), subject=subject)


async def test_a_bad_file_keeps_the_last_good_one_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "roles"
    path.write_text("")
    found = RoleFile(path)
    assert not found.file.look()
    path.write_text("kind: Pod")
    assert not found.file.look()
    assert "Pod" in found.file.trouble
    assert not found.file.look()
    assert len(caplog.records) == 1
    path.unlink()
    assert not found.file.look()
    assert (await found.authorize(User("x", ("system:authenticated",)), Attributes("get", path="/apis"))).allowed


def test_wording_of_refusals() -> None:
    found = refusal("jane", Attributes("list", GROUP, "v3", "networkpolicies", namespace="default"))
    assert found.message == (
        'networkpolicies.projectcalico.org is forbidden: User "jane" cannot list resource "networkpolicies" in API'
        ' group "projectcalico.org" in the namespace "default"'
    )
    found = refusal("jane", Attributes("get", GROUP, "v3", "tiers", name="a"), "why")
    assert found.message.startswith('tiers.projectcalico.org "a" is forbidden: User "jane" cannot get resource "tiers"')
    assert found.message.endswith("at the cluster scope: why")
    assert found.status()["details"] == {"name": "a", "group": GROUP, "kind": "tiers"}
    found = refusal('o"hara', Attributes("get", path="/x"))
    assert found.message == 'forbidden: User "o\\"hara" cannot get path "/x"'
    assert "details" not in found.status()


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("metadata.name=web", "web"),
        ("a=b,metadata.name==web", "web"),
        ("metadata.name!=web", ""),
        ("", ""),
        ("x=metadata.name", ""),
    ],
)
def test_the_name_that_a_field_selector_fixes(selector: str, name: str) -> None:
    assert selected_name(selector) == name


AGGREGATED = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: viewer}
aggregationRule:
  clusterRoleSelectors:
  - {matchLabels: {to: view}}
  - {matchExpressions: [{key: team, operator: In, values: [a]}, {key: secret, operator: DoesNotExist}]}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: middle, labels: {to: view}}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {to: middle}}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pools, labels: {to: middle, team: b}}
rules: [{apiGroups: [projectcalico.org], resources: [ippools], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sets, labels: {team: a}}
rules: [{apiGroups: [projectcalico.org], resources: [networksets], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: hidden, labels: {team: a, secret: "yes"}}
rules: [{apiGroups: [projectcalico.org], resources: [tiers], verbs: [delete]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: b}
roleRef: {kind: ClusterRole, name: viewer}
subjects: [{kind: User, name: jane}]
"""


def test_aggregated_role_has_the_rules_of_those_it_selects_and_none_of_its_own() -> None:
    found = build(yaml.safe_load_all(AGGREGATED))
    assert may(found, "get", "ippools")
    assert may(found, "list", "networksets")
    assert not may(found, "delete", "tiers")
    assert not may(found, "delete", "networksets")


def test_roles_that_aggregate_each_other_end() -> None:
    text = AGGREGATED.replace("metadata: {name: viewer}", "metadata: {name: viewer, labels: {to: middle}}")
    assert may(build(yaml.safe_load_all(text)), "get", "ippools")
