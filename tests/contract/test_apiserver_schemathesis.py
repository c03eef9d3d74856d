"""schemathesis asks a real server everything that its own OpenAPI document says it can be asked.

What is drawn is a function of the document alone (the gate's profile derandomises), and little of it. With
`APISERVER_UNDER_TEST` the same is asked of another server, by its URL.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from libs.model.kinds import Kind
from libs.testkit.servers import EtcdServer, NatsServer, free_port
from services.apiserver.core.request import API_PREFIX, SERVED
from tests.contract.typha_stage import Child

pytestmark = pytest.mark.servers

DOCUMENT = f"/openapi/v3{API_PREFIX}"
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 3
NAMESPACE = "drawn-ns"
# A good spec of each kind, so that there is something to read, change and delete.
GOOD: dict[str, Any] = {
    "BGPConfiguration": {"listenPort": 179},
    "BGPFilter": {"exportV6": [{"action": "Reject", "cidr": "2001:db8::/32", "matchOperator": "In"}]},
    "BGPPeer": {"peerIP": "2001:db8::1", "asNumber": 65001},
    "BlockAffinity": {"state": "confirmed", "node": "n", "cidr": "10.0.0.0/26", "deleted": False},
    "CalicoNodeStatus": {"node": "n", "classes": ["BGP"], "updatePeriodSeconds": 10},
    "ClusterInformation": {"clusterType": "drawn"},
    "FelixConfiguration": {"nodeSelector": "all()", "wireguardEnabledV6": True},
    "GlobalNetworkPolicy": {"selector": "all()", "ingress": [{"action": "Deny"}]},
    "GlobalNetworkSet": {"nets": ["192.0.2.0/24", "2001:db8::/32"]},
    "HostEndpoint": {"node": "n", "interfaceName": "eth0"},
    "IPAMConfiguration": {"strictAffinity": True, "autoAllocateBlocks": True},
    "IPPool": {"cidr": "fd00:10::/48"},
    "IPReservation": {"reservedCIDRs": ["192.0.2.0/30"]},
    "KubeControllersConfiguration": {"controllers": {"node": {"syncLabels": "Enabled"}}},
    "NetworkPolicy": {"ingress": [{"action": "Allow", "source": {"nets": ["fd00::/8"]}}]},
    "NetworkSet": {"nets": ["2001:db8::1"]},
    "Profile": {"labelsToApply": {"a": "b"}},
    "StagedGlobalNetworkPolicy": {"selector": "all()"},
    "StagedKubernetesNetworkPolicy": {"podSelector": {}, "policyTypes": ["Ingress"]},
    "StagedNetworkPolicy": {"selector": "all()"},
    "Tier": {"order": 7.5},
}
ONLY_DEFAULT = frozenset(kind.kind for kind in SERVED.values() if kind.singleton)
NOT_MADE = frozenset({"ClusterInformation", "BlockAffinity"})
"""Whose objects are made by Calico itself."""
START_TIMEOUT_S = 60
GATE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


APPLY, MERGE, JSON_PATCH = "application/apply-patch+yaml", "application/merge-patch+json", "application/json-patch+json"


@schemathesis.serializer(APPLY, MERGE, JSON_PATCH)
def patches(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """JSON is YAML too."""
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server; one of ours over a real etcd unless the environment names another."""
    if (other := os.environ.get("APISERVER_UNDER_TEST")) is not None:
        yield other
        return
    port, log = free_port(), tmp_path_factory.mktemp("apiserver") / "log"
    with EtcdServer() as etcd, NatsServer() as nats:
        # Everybody on loopback is the administrator here, whose rate is not limited.
        child = Child(
            "services.apiserver", "--development", "--secure-port=none", f"--insecure-port={port}",
            env={"ETCD_ENDPOINTS": etcd.endpoint, "NATS_URL": nats.url, "APISERVER_INSTANCE": "drawn"}, log=log,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(url):
                assert child.process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.05)
            yield url
            assert child.process.poll() is None, "it lives"
            assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
        finally:
            child.kill()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


@cache
def document(url: str) -> Any:
    """As it is served."""
    return schemathesis.openapi.from_url(f"{url}{DOCUMENT}")


def name_of(kind: Kind) -> str:
    return "default" if kind.kind in ONLY_DEFAULT else "drawn"


def there(server: str, kind: Kind) -> str:
    """Makes sure that the object of that name is there, where users may make one; its version, "" without one."""
    url = f"{server}{API_PREFIX}/{f'namespaces/{NAMESPACE}/' if kind.namespaced else ''}{kind.plural}"
    requests.post(url, json={"metadata": {"name": name_of(kind)}, "spec": GOOD[kind.kind]}, timeout=30)
    found = requests.get(f"{url}/{name_of(kind)}", timeout=30)
    return str(found.json()["metadata"].get("resourceVersion", ""))


def meant(server: str, case: schemathesis.Case, kind: Kind) -> schemathesis.Case:
    """The case as somebody could mean it: about an object that is there, with a body of the kind, and lists that end.
    Drawn credentials are left out: nobody knows them.
    """
    case.headers.pop("authorization", None)
    case.query.pop("watch", None)  # a watch is no answer that could be compared; it has tests of its own
    if case.method in ("POST", "PUT", "PATCH"):
        case.query["fieldManager"] = "drawn"
    if case.media_type != APPLY:
        case.query.pop("force", None)  # refused with all others; the drawn ones of the other test keep it
    version = ""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = name_of(kind)
        version = there(server, kind)
    if "namespace" in case.path_parameters:
        case.path_parameters["namespace"] = NAMESPACE
    typed = {"kind": kind.kind, "apiVersion": "projectcalico.org/v3"}
    match case.method, case.body:
        case (("POST" | "PUT"), dict()):
            case.body |= typed | {"metadata": {"name": name_of(kind), "resourceVersion": version}}
        case "PATCH", _ if case.media_type == APPLY:
            case.body = typed | {"metadata": {"name": name_of(kind)}, "spec": GOOD[kind.kind]}
        case "PATCH", dict() if case.media_type == MERGE:
            case.body |= {"metadata": {"labels": {"drawn": "yes"}}}
        case "PATCH", _ if case.media_type == MERGE:
            case.body = {"metadata": {"annotations": {"drawn": "yes"}}}
        case "PATCH", _:
            case.body = [{"op": "add", "path": "/metadata/labels", "value": {"drawn": "yes"}}]
        case "DELETE", dict():
            case.body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
    return case


@pytest.mark.parametrize("plural", sorted(SERVED))
def test_every_operation_answers_as_the_document_says(server: str, plural: str) -> None:
    kind = SERVED[plural]
    asked: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for result in document(server).get_all_operations():
        operation = result.ok()
        if plural not in operation.path.split("/"):
            continue

        @GATE
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            response = meant(server, case, kind).call(base_url=server)
            case.validate_response(response, checks=CHECKS)
            asked[case.method] += 1
            done[case.method] += response.status_code < 400
            assert response.status_code != 401

        ask()
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= asked.keys()
    assert done["GET"] > 0, "not all are refused"
    if kind.kind not in NOT_MADE:
        assert done["PATCH"] > 0
        assert done["DELETE"] > 0
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("plural", ["globalnetworkpolicies", "ippools", "networksets"])
def test_what_the_document_forbids_is_refused_as_it_says(server: str, plural: str) -> None:
    """Wrong types, unknown values, missing fields: never more than an error of the caller."""
    for result in document(server).get_all_operations():
        operation = result.ok()
        if plural not in operation.path.split("/"):
            continue

        @GATE
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
        def ask(case: schemathesis.Case) -> None:
            case.headers.pop("authorization", None)
            case.query.pop("watch", None)
            response = case.call(base_url=server)
            case.validate_response(response, checks=CHECKS)

        ask()


def test_documents_come_through_the_front_as_they_are(server: str) -> None:
    """Tags, packed bodies and redirects are not touched by what stands before them."""
    index = requests.get(f"{server}/openapi/v3", timeout=30).json()
    where = index["paths"][API_PREFIX.lstrip("/")]["serverRelativeURL"]
    whole = requests.get(f"{server}{where}", timeout=30)
    assert whole.headers["Content-Encoding"] == "gzip"
    assert "immutable" in whole.headers["Cache-Control"]
    assert whole.json()["openapi"] == "3.0.0"
    again = requests.get(f"{server}{DOCUMENT}", headers={"If-None-Match": whole.headers["ETag"]}, timeout=30)
    assert (again.status_code, again.content) == (304, b"")
    old = requests.get(f"{server}{DOCUMENT}?hash=OLD", timeout=30)
    assert [one.status_code for one in old.history] == [301]
    assert old.content == whole.content
    refused = requests.get(f"{server}/openapi/v2", headers={"Accept": "application/x-protobuf"}, timeout=30)
    assert (refused.status_code, refused.json()["reason"]) == (406, "NotAcceptable")
    paths = requests.get(f"{server}/", timeout=30).json()["paths"]
    assert [path for path in paths if requests.get(f"{server}{path}", timeout=30).status_code != 200] == []


def test_a_good_object_goes_round(server: str) -> None:
    """So that the drawn ones are not all refused: create, read, list, replace, patch, delete answer with success."""
    path = f"{API_PREFIX}/globalnetworksets"
    body = {"metadata": {"name": "round"}, "spec": {"nets": ["192.0.2.0/24", "2001:db8::/32"]}}
    operations = document(server)

    def ask(method: str, where: str, status: int, sent: Any = None, media: str = "application/json") -> Any:
        operation = operations[path if where == "" else f"{path}/{{name}}"][method]
        parts: dict[str, Any] = {"path_parameters": {"name": "round"}} if where else {}
        if sent is not None:
            parts |= {"body": sent, "media_type": media}
        case = operation.Case(**parts)
        response = case.call(base_url=server)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code == status, response.text
        return response.json()

    made = ask("POST", "", 201, body)
    assert ask("GET", "name", 200)["metadata"]["uid"] == made["metadata"]["uid"]
    assert "round" in [one["metadata"]["name"] for one in ask("GET", "", 200)["items"]]
    made["spec"]["nets"] = ["198.51.100.1"]
    assert ask("PUT", "name", 200, made)["spec"]["nets"] == ["198.51.100.1"]
    patch = {"metadata": {"labels": {"a": "b"}}}
    assert ask("PATCH", "name", 200, patch, MERGE)["metadata"]["labels"] == {"a": "b"}
    assert ask("DELETE", "name", 200)["status"] == "Success"
    ask("GET", "name", 404)
