"""What the command line refuses the API refuses, naming the same fields (rows A08 and P30)."""

from __future__ import annotations

from typing import Any

import pytest

from libs.model import kinds
from libs.resources import codec
from libs.resources.errors import ResourceError, ValidationError
from tests.contract.verbs_stage import API_VERSION, Stage

pytestmark = pytest.mark.servers

ALLOW = {"action": "Allow"}


def rule(**fields: object) -> dict[str, Any]:
    return {"ingress": [{**ALLOW, **fields}]}


BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("NetworkPolicy", "a.b.c", {}, "metadata.name"),
    ("NetworkPolicy", "Upper", {}, "metadata.name"),
    ("GlobalNetworkPolicy", "a.b.c", {}, "metadata.name"),
    ("Tier", "has.dot", {}, "metadata.name"),
    ("Tier", "x" * 64, {}, "metadata.name"),
    ("Tier", "t", {"defaultAction": "Log"}, "spec.defaultAction"),
    ("Tier", "t", {"order": "first"}, "spec.order"),
    ("NetworkPolicy", "p", {"selector": "a ="}, "spec.selector"),
    ("NetworkPolicy", "p", {"selector": "global()"}, "spec.selector"),
    ("NetworkPolicy", "p", {"selector": "a" * 1025}, "spec.selector"),
    ("NetworkPolicy", "p", {"serviceAccountSelector": "!!"}, "spec.serviceAccountSelector"),
    ("NetworkPolicy", "p", {"types": ["Ingres"]}, "spec.types[0]"),
    ("NetworkPolicy", "p", {"types": ["Ingress", "Ingress"]}, "spec.types"),
    ("NetworkPolicy", "p", {"performanceHints": ["Fast"]}, "spec.performanceHints[0]"),
    ("NetworkPolicy", "p", {"ingress": {}}, "spec.ingress"),
    ("NetworkPolicy", "p", {"ingress": [{"action": "Permit"}]}, "spec.ingress[0].action"),
    ("NetworkPolicy", "p", {"ingress": [{}]}, "spec.ingress[0].action"),
    ("NetworkPolicy", "p", rule(protocol="TPC"), "spec.ingress[0].protocol"),
    ("NetworkPolicy", "p", rule(protocol=0), "spec.ingress[0].protocol"),
    ("NetworkPolicy", "p", rule(ipVersion=5), "spec.ingress[0].ipVersion"),
    ("NetworkPolicy", "p", rule(protocol="ICMP", icmp={"type": 255}), "spec.ingress[0].icmp.type"),
    ("NetworkPolicy", "p", rule(protocol="ICMPv6", ipVersion=4), "spec.ingress[0]"),
    ("NetworkPolicy", "p", rule(destination={"ports": [80]}), "spec.ingress[0]"),
    ("NetworkPolicy", "p", rule(protocol="TCP", destination={"ports": [0]}), "spec.ingress[0].destination.ports[0]"),
    ("NetworkPolicy", "p", rule(protocol="TCP", destination={"ports": ["9:8"]}), "spec.ingress[0].destination.ports"),
    ("NetworkPolicy", "p", rule(source={"nets": ["10.0.0.1"]}), "spec.ingress[0].source.nets[0]"),
    ("NetworkPolicy", "p", rule(source={"nets": ["10.0.0.1/8"]}), "spec.ingress[0].source.nets[0]"),
    ("NetworkPolicy", "p", rule(source={"nets": ["fd00::1/64"]}), "spec.ingress[0].source.nets[0]"),
    ("NetworkPolicy", "p", rule(source={"notNets": ["0.0.0.0/0"]}), "spec.ingress[0].source.notNets[0]"),
    ("NetworkPolicy", "p", rule(source={"notNets": ["::/0"]}), "spec.ingress[0].source.notNets[0]"),
    ("NetworkPolicy", "p", rule(ipVersion=6, source={"nets": ["10.0.0.0/8"]}), "spec.ingress[0]"),
    ("NetworkPolicy", "p", rule(source={"nets": ["10.0.0.0/8", "fd00::/8"]}), "spec.ingress[0]"),
    ("NetworkPolicy", "p", rule(source={"selector": "has(a"}), "spec.ingress[0].source.selector"),
    ("NetworkPolicy", "p", rule(source={"services": {}}), "spec.ingress[0].source.services"),
    ("NetworkPolicy", "p", {"egress": [{**ALLOW, "http": {"methods": ["GET"]}}]}, "spec.egress[0]"),
    ("NetworkPolicy", "p", rule(http={"paths": [{"exact": "a b"}]}), "spec.ingress[0].http.paths[0]"),
    ("GlobalNetworkPolicy", "p", {"doNotTrack": True, "preDNAT": True, "applyOnForward": True}, "spec"),
    ("GlobalNetworkPolicy", "p", {"doNotTrack": True}, "spec"),
    ("GlobalNetworkPolicy", "p", {"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "spec"),
    ("GlobalNetworkPolicy", "p", {"namespaceSelector": "global()"}, "spec.namespaceSelector"),
    ("StagedNetworkPolicy", "p", {"stagedAction": "Remove"}, "spec.stagedAction"),
    ("StagedNetworkPolicy", "p", {"stagedAction": "Delete", "selector": "all()"}, "spec"),
    ("StagedKubernetesNetworkPolicy", "p", {"policyTypes": ["In"]}, "spec.policyTypes[0]"),
    ("IPPool", "p", {}, "spec.cidr"),
    ("IPPool", "p", {"cidr": "10.0.0.1/16"}, "spec.cidr"),
    ("IPPool", "p", {"cidr": "10.300.0.0/16"}, "spec.cidr"),
    ("IPPool", "p", {"cidr": "169.254.0.0/24"}, "spec.cidr"),
    ("IPPool", "p", {"cidr": "fe80::/64"}, "spec.cidr"),
    ("IPPool", "p", {"cidr": "10.0.0.0/16", "blockSize": 33}, "spec.blockSize"),
    ("IPPool", "p", {"cidr": "fd00::/48", "blockSize": 26}, "spec.blockSize"),
    ("IPPool", "p", {"cidr": "10.0.0.0/16", "vxlanMode": "always"}, "spec.vxlanMode"),
    ("IPPool", "p", {"cidr": "10.0.0.0/16", "vxlanMode": "Always", "ipipMode": "Always"}, "spec"),
    ("IPPool", "p", {"cidr": "fd00::/48", "ipipMode": "Always"}, "spec.ipipMode"),
    ("IPPool", "p", {"cidr": "10.0.0.0/16", "allowedUses": ["Pods"]}, "spec.allowedUses[0]"),
    ("IPReservation", "r", {"reservedCIDRs": ["x"]}, "spec.reservedCIDRs[0]"),
    ("BGPPeer", "p", {"peerIP": "10.0.0", "asNumber": 1}, "spec.peerIP"),
    ("BGPPeer", "p", {"peerIP": "10.0.0.1", "asNumber": -1}, "spec.asNumber"),
    ("BGPPeer", "p", {"peerIP": "10.0.0.1", "node": "a", "nodeSelector": "all()"}, "spec"),
    ("BGPPeer", "p", {"peerIP": "10.0.0.1", "asNumber": 1, "filters": ["none"]}, "spec.filters[0]"),
    ("BGPConfiguration", "default", {"listenPort": 70000}, "spec.listenPort"),
    ("BGPConfiguration", "default", {"logSeverityScreen": "Loud"}, "spec.logSeverityScreen"),
    ("BGPFilter", "f", {"exportV4": [{"action": "Allow"}]}, "spec.exportV4[0].action"),
    ("HostEndpoint", "h", {"interfaceName": "eth0"}, "spec.node"),
    ("HostEndpoint", "h", {"node": "n", "expectedIPs": ["x"]}, "spec.expectedIPs[0]"),
    ("GlobalNetworkSet", "s", {"nets": ["10.0.0.0/33"]}, "spec.nets[0]"),
    ("FelixConfiguration", "default", {"routeRefreshInterval": "soon"}, "spec.routeRefreshInterval"),
    ("KubeControllersConfiguration", "other", {}, "metadata.name"),
    ("CalicoNodeStatus", "s", {"node": "n", "classes": ["Disk"]}, "spec.classes[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "spec", "field"), BAD)
async def test_bad_manifest_is_refused_as_the_command_line_does(
    stage: Stage, kind: str, name: str, spec: dict[str, Any], field: str
) -> None:
    of = kinds.kind(kind)
    metadata = {"name": name, **({"namespace": "shop"} if of.namespaced else {})}
    manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    before = (await stage.store.list("/calico/")).kvs
    with pytest.raises(ResourceError) as by_client:
        await stage.resources.create(codec.from_json(manifest))
    assert isinstance(by_client.value, ValidationError)
    wanted = {problem.path for problem in by_client.value.problems}
    path = f"namespaces/shop/{of.plural}" if of.namespaced else of.plural
    answer = await stage.call("POST", path, manifest)
    assert answer.status in (400, 422), answer.text
    assert answer.json["reason"] == {400: "BadRequest", 422: "Invalid"}[answer.status]
    found = {cause.get("field", "") for cause in answer.json["details"]["causes"]}
    assert found == wanted
    assert any(each.startswith(field) for each in found), found
    assert all(each in answer.message for each in found)
    assert (await stage.store.list("/calico/")).kvs == before


async def test_defaults_are_those_of_the_command_line(stage: Stage) -> None:
    for kind, name, spec in (
        ("IPPool", "p", {"cidr": "10.0.0.0/16"}),
        ("IPPool", "p6", {"cidr": "fd00::/48"}),
        ("FelixConfiguration", "default", {}),
        ("BGPConfiguration", "default", {}),
        ("GlobalNetworkPolicy", "g", {"egress": [ALLOW]}),
        ("Tier", "t", {}),
        ("KubeControllersConfiguration", "default", {}),
    ):
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        written = await stage.resources.create(codec.from_json(manifest))
        await stage.resources.delete(kind, name)
        made = await stage.make(kinds.kind(kind).plural, name, spec)
        assert made["spec"] == codec.to_json(written.resource)["spec"], kind
