"""What only a kube-apiserver in front of ours brings: its namespaces, its users, its trust (rows A01, A07, A12)."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.kubectl import Kubectl, write_kubeconfig
from libs.testkit.pki import KeyPair
from tests.kube.objects import calico, cluster_role, network_policy, network_set, rule
from tests.kube.ways import NAMESPACE, Way, behind

SETS = "/apis/projectcalico.org/v3/globalnetworksets"
NP = "networkpolicies.projectcalico.org"


@pytest.fixture(scope="module")
def way(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    with behind(control_plane, tmp_path_factory.mktemp("behind")) as made:
        yield made


def ask(way: Way, path: str, headers: Mapping[str, str], client: KeyPair | None = None) -> tuple[int, Any]:
    """A request to our own port, past kube-apiserver: status and decoded body."""
    context = ssl.create_default_context(cafile=str(way.apiserver.trusted))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    connection = http.client.HTTPSConnection(way.apiserver.address, way.apiserver.port, timeout=60, context=context)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_our_kinds_stand_beside_kubernetes_own(way: Way) -> None:
    listed = way.kubectl("api-resources", "-o", "name", "--cached=false").split()
    assert {"networkpolicies.networking.k8s.io", NP, "pods", "tiers.projectcalico.org"} <= set(listed)
    assert "projectcalico.org/v3" in way.kubectl("api-versions").split()
    # Who says no group gets Kubernetes' own.
    assert "networking.k8s.io" in way.kubectl("explain", "networkpolicies")
    assert "projectcalico.org" in way.kubectl("explain", "networkpolicies", "--api-version=projectcalico.org/v3")


def test_the_openapi_documents_of_both_are_one(way: Way) -> None:
    index = json.loads(way.kubectl("get", "--raw", "/openapi/v3"))["paths"]
    assert {"apis/projectcalico.org/v3", "apis/apps/v1"} <= set(index)
    document = json.loads(way.kubectl("get", "--raw", index["apis/projectcalico.org/v3"]["serverRelativeURL"]))
    assert f"{SETS}/{{name}}" in document["paths"]
    # Version 2 is merged by kube-apiserver some time after the APIService came.
    way.until(
        lambda: f"{SETS}/{{name}}" in json.loads(way.kubectl("get", "--raw", "/openapi/v2"))["paths"],
        "merged into /openapi/v2",
    )


def test_a_namespace_takes_its_policies_along(way: Way) -> None:
    way.kubectl("create", "namespace", "doomed")
    way.kubectl.apply(
        network_policy("inside", "doomed"), calico("NetworkSet", "inside", {"nets": []}, namespace="doomed"),
        network_policy("outside", "red"),
    )  # fmt: skip
    way.kubectl("delete", "namespace", "doomed", "--timeout=50s")
    assert "doomed" not in way.kubectl("get", "namespaces", "-o", "name")
    assert way.kubectl("get", NP, "-A", "-o", "name") == "networkpolicy.projectcalico.org/outside\n"
    assert way.kubectl("get", "networksets.projectcalico.org", "-A", "-o", "name") == ""
    way.kubectl("delete", NP, "outside", "-n", "red")


def test_the_front_proxys_headers_count_with_its_certificate_alone(way: Way, control_plane: ControlPlane) -> None:
    proxy = KeyPair(
        control_plane.directory / "pki/front-proxy-client.crt", control_plane.directory / "pki/front-proxy-client.key"
    )
    masters = {"X-Remote-User": "mallory", "X-Remote-Group": "system:masters"}
    assert ask(way, SETS, masters, proxy)[0] == 200
    status, body = ask(way, SETS, masters)
    assert (status, body["reason"]) == (401, "Unauthorized")
    bob = control_plane.ca.issue("bob")
    status, body = ask(way, SETS, masters, bob)
    assert (status, body["reason"]) == (403, "Forbidden")
    assert 'User "bob" cannot list' in body["message"]
    impostor = control_plane.front_proxy_ca.issue("somebody-else")
    assert ask(way, SETS, masters, impostor)[0] in (401, 403)


def test_the_clusters_users_are_known_without_the_proxy_too(way: Way, control_plane: ControlPlane) -> None:
    """By certificate (the ConfigMap extension-apiserver-authentication names the CA) and by token (TokenReview)."""
    cp = control_plane
    cp.kubectl("create", "serviceaccount", "reader", "-n", NAMESPACE)
    token = cp.kubectl("create", "token", "reader", "-n", NAMESPACE).strip()
    account = f"system:serviceaccount:{NAMESPACE}:reader"
    for user, client, given in (("carol", cp.ca.issue("carol"), ""), (account, None, token)):
        name = user.replace(":", "-")
        path = write_kubeconfig(
            cp.directory / f"{name}.kubeconfig", server=way.apiserver.url, ca=cp.ca.cert, client=client, token=given
        )
        kubectl = Kubectl(path, cp.directory)
        assert f'User "{user}" cannot list' in kubectl.fails("get", "gns")
        way.grant(*cluster_role(name, rule(["globalnetworksets"], ["list"]), user=user))
        way.until(lambda kubectl=kubectl: kubectl.run("get", "gns").status == 0, f"{user} may list")  # type: ignore[misc]


def test_while_our_server_is_away_kube_apiserver_says_so_and_then_goes_on(way: Way) -> None:
    way.kubectl.apply(network_set("kept"))
    way.apiserver.kill()
    try:
        said = way.kubectl.fails("get", "--raw", SETS)
        assert "ServiceUnavailable" in said or "unable to handle the request" in said, said
        assert way.kubectl("get", "namespaces")
    finally:
        way.apiserver.start()
    way.until(lambda: way.kubectl.run("get", "gns", "kept").status == 0, "served again")
    way.kubectl("delete", "gns", "kept")


def test_while_kube_apiserver_is_away_nobody_gets_in_by_what_was_not_asked_yet(
    way: Way, control_plane: ControlPlane
) -> None:
    """No answer is a no: 403, 500 or 503, never the list."""
    dave = control_plane.ca.issue("dave")
    control_plane.apiserver.pause()
    try:
        status, body = ask(way, SETS, {}, dave)
    finally:
        control_plane.apiserver.resume()
    assert status in (403, 500, 503)
    assert body["kind"] == "Status"
    way.until(lambda: way.kubectl.run("get", "gns").status == 0, "served again")
