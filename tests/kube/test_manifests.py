"""k8s/apiserver.yaml on a real control plane: every object is accepted, strictly, and says what the server understands.

That its permissions suffice, no more and no less than these, is shown by all tests behind kube-apiserver
(`tests.kube.ways.behind`): there our server is the service account of this file.
"""

from __future__ import annotations

from typing import Any

from libs.testkit.kube.control_plane import ControlPlane
from services.apiserver.config import ApiserverConfig
from services.apiserver.core.request import SERVED
from tests.kube.ways import MANIFEST, NAMESPACE, documents


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == kind]


def test_the_server_accepts_every_object_of_the_manifest(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "namespace", NAMESPACE)
    told = control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(MANIFEST))
    assert told.count("(server dry run)") == len(documents())
    assert control_plane.kubectl.run("get", "apiservice", "v3.projectcalico.org").status != 0


def test_the_servers_flags_are_settings_that_there_are() -> None:
    known = {"--" + name.replace("_", "-") for name in ApiserverConfig.__dataclass_fields__}
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {flag.partition("=")[0] for flag in container["args"]} <= known


def test_all_that_belongs_together_has_the_same_names() -> None:
    """Service and Deployment, APIService and Service, bindings and account: what refers to what."""
    applied = {one["kind"]: one for one in documents()}
    pod = applied["Deployment"]["spec"]["template"]
    assert applied["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert applied["PodDisruptionBudget"]["spec"]["selector"] == applied["Deployment"]["spec"]["selector"]
    target = applied["APIService"]["spec"]["service"]
    service = applied["Service"]
    assert (target["name"], target["namespace"]) == (service["metadata"]["name"], service["metadata"]["namespace"])
    assert target["port"] in [port["port"] for port in service["spec"]["ports"]]
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert pod["spec"]["serviceAccountName"] == applied["ServiceAccount"]["metadata"]["name"]


def test_kube_apiserver_passes_through_exactly_what_tiers_decide_on() -> None:
    (role,) = (one for one in of_kind("ClusterRole") if one["metadata"]["name"] == "calico-tiered-policy-passthrough")
    (rule,) = role["rules"]
    assert set(rule["resources"]) == {plural for plural, kind in SERVED.items() if kind.policy}
