"""What is stored of Kubernetes' services and slices; tests/kube has the same with a real kube-apiserver."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from libs import model
from libs.kube.objects import ENDPOINT_SLICES, SERVICES, Key
from libs.model.base import Resource
from libs.model.keys import ResourceKey
from services.kube_controllers.core.services import EndpointSlices, Services

META = {"name": "web", "namespace": "ns1"}
AT = Key("ns1", "web")


def value(resource: Resource) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.to_storage(resource, now=datetime(2026, 1, 1, tzinfo=UTC), uid="u"))
    return found


def test_of_a_service_is_stored_what_rules_bgp_and_traces_read() -> None:
    read: dict[str, Any] = {
        "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Cluster", "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353},
        ],
    }  # fmt: skip
    more = {"selector": {"app": "web"}, "sessionAffinity": "None", "ipFamilies": ["IPv4"], "loadBalancerIP": "10.0.0.1"}
    ports = [{**port, "appProtocol": "x"} for port in read["ports"]]
    found = SERVICES.decode({"metadata": META, "spec": {**read, **more, "ports": ports}})
    made = Services().desired(AT, found, {}).resources
    assert value(made[ResourceKey("KubernetesService", "web", "ns1")])["spec"] == read


def test_what_an_older_release_stored_is_written_anew_under_its_uid() -> None:
    key = model.keys.resource_key("KubernetesService", "web", "ns1")
    old = {"kind": "KubernetesService", "metadata": {**META, "uid": "u"}, "spec": {"type": "ClusterIP"}}
    stored = model.from_storage(key, json.dumps(old).encode(), 1)
    spec = {"type": "ClusterIP", "ports": [{"protocol": "TCP", "port": 80, "targetPort": 80}]}
    at = ResourceKey("KubernetesService", "web", "ns1")
    made = Services().desired(AT, SERVICES.decode({"metadata": META, "spec": spec}), {at: stored}).resources[at]
    assert made != stored
    assert (value(made)["metadata"]["uid"], value(made)["spec"]) == ("u", spec)


def test_of_a_slice_are_stored_all_conditions_of_its_endpoints() -> None:
    conditions = [
        {"ready": True, "serving": True, "terminating": False}, {"ready": False, "serving": True, "terminating": True},
        {"ready": False, "serving": False}, {},
    ]  # fmt: skip
    ends = [{"addresses": [f"10.0.0.{at}"], "conditions": one} for at, one in enumerate(conditions)]
    document = {"metadata": META, "addressType": "IPv4", "endpoints": [{**one, "zone": "z"} for one in ends]}
    made = EndpointSlices().desired(AT, ENDPOINT_SLICES.decode(document), {}).resources
    stored = value(made[ResourceKey("KubernetesEndpointSlice", "web", "ns1")])["endpoints"]
    assert [one.get("conditions", {}) for one in stored] == conditions
    assert all("zone" not in one for one in stored)
