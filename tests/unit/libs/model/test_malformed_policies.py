"""Policies with one mistake each: every one is refused, and the message names the field that a user must mend."""

from __future__ import annotations

from typing import Any

import pytest

from libs.model import validation
from libs.model.defaults import apply_defaults

NP, GNP = "NetworkPolicy", "GlobalNetworkPolicy"
SNP, SGNP, SKNP = "StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy"


def rule(**fields: Any) -> dict[str, Any]:
    return {"ingress": [{"action": "Allow"} | fields]}


def source(**fields: Any) -> dict[str, Any]:
    return rule(source=fields)


def to(protocol: str | int = "TCP", **fields: Any) -> dict[str, Any]:
    return rule(protocol=protocol, destination=fields)


FIRST = "spec.ingress[0]"
SOURCE, DESTINATION = f"{FIRST}.source", f"{FIRST}.destination"
CASES: list[tuple[str, dict[str, Any], str]] = [
    # --- the policy itself ---
    (NP, {"selector": "a == b"}, "spec.selector"),
    (NP, {"selector": "a = 'b'"}, "spec.selector"),
    (NP, {"selector": "a == 'b"}, "spec.selector"),
    (NP, {"selector": "has(a"}, "spec.selector"),
    (NP, {"selector": "a in {'b', 'c'"}, "spec.selector"),
    (NP, {"selector": "(a == 'b'"}, "spec.selector"),
    (NP, {"selector": "a == 'b' &&"}, "spec.selector"),
    (NP, {"selector": "!"}, "spec.selector"),
    (NP, {"selector": "a == 'b' || || c == 'd'"}, "spec.selector"),
    (NP, {"selector": "a contains b"}, "spec.selector"),
    (NP, {"selector": 5}, "spec.selector"),
    (NP, {"serviceAccountSelector": "x =="}, "spec.serviceAccountSelector"),
    (GNP, {"namespaceSelector": "x =="}, "spec.namespaceSelector"),
    (GNP, {"serviceAccountSelector": "!!!"}, "spec.serviceAccountSelector"),
    (NP, {"namespaceSelector": "all()"}, "spec.namespaceSelector"),
    (NP, {"order": "first"}, "spec.order"),
    (NP, {"order": [1]}, "spec.order"),
    (NP, {"types": ["ingress"]}, "spec.types"),
    (NP, {"types": ["Ingress", "Ingress"]}, "spec.types"),
    (NP, {"types": ["Forward"]}, "spec.types"),
    (NP, {"types": "Ingress"}, "spec.types"),
    (NP, {"tier": 7}, "spec.tier"),
    (NP, {"performanceHints": ["BeQuick"]}, "spec.performanceHints"),
    (NP, {"selectors": "all()"}, "spec.selectors"),
    (NP, {"doNotTrack": True}, "spec.doNotTrack"),
    (NP, {"preDNAT": True}, "spec.preDNAT"),
    (NP, {"applyOnForward": True}, "spec.applyOnForward"),
    (GNP, {"doNotTrack": True, "preDNAT": True, "applyOnForward": True}, "spec"),
    (GNP, {"preDNAT": True, "applyOnForward": True, "egress": [{"action": "Allow"}]}, "spec"),
    (GNP, {"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "spec"),
    (GNP, {"doNotTrack": True}, "spec"),
    (GNP, {"doNotTrack": "yes"}, "spec.doNotTrack"),
    (GNP, {"applyOnForward": 1}, "spec.applyOnForward"),
    (NP, {"ingress": {"action": "Allow"}}, "spec.ingress"),
    (NP, {"ingress": ["Allow"]}, FIRST),
    # --- actions and protocols ---
    (NP, {"ingress": [{}]}, f"{FIRST}.action"),
    (NP, rule(action="Permit"), f"{FIRST}.action"),
    (NP, rule(action="allow"), f"{FIRST}.action"),
    (NP, rule(action=1), f"{FIRST}.action"),
    (NP, rule(acton="Deny"), f"{FIRST}.acton"),
    (NP, rule(protocol="TPC"), f"{FIRST}.protocol"),
    (NP, rule(protocol=256), f"{FIRST}.protocol"),
    (NP, rule(protocol=-1), f"{FIRST}.protocol"),
    (NP, rule(protocol=0), f"{FIRST}.protocol"),
    (NP, rule(protocol=["TCP"]), f"{FIRST}.protocol"),
    (NP, rule(notProtocol="nothing"), f"{FIRST}.notProtocol"),
    (NP, rule(notProtocol=300), f"{FIRST}.notProtocol"),
    (NP, rule(ipVersion=5), f"{FIRST}.ipVersion"),
    (NP, rule(ipVersion="four"), f"{FIRST}.ipVersion"),
    # --- ICMP ---
    (NP, rule(protocol="ICMP", icmp={"type": 256}), f"{FIRST}.icmp.type"),
    (NP, rule(protocol="ICMP", icmp={"type": -1}), f"{FIRST}.icmp.type"),
    (NP, rule(protocol="ICMP", icmp={"type": 8, "code": 256}), f"{FIRST}.icmp.code"),
    (NP, rule(protocol="ICMP", icmp={"code": 1}), f"{FIRST}.icmp"),
    (NP, rule(protocol="ICMP", icmp={"type": "echo"}), f"{FIRST}.icmp.type"),
    (NP, rule(protocol="ICMP", notICMP={"type": 999}), f"{FIRST}.notICMP.type"),
    (NP, rule(protocol="ICMP", notICMP={"code": 3}), f"{FIRST}.notICMP"),
    (NP, rule(protocol="TCP", icmp={"type": 8}), FIRST),
    (NP, rule(protocol="TCP", notICMP={"type": 8}), FIRST),
    (NP, rule(protocol="ICMP", ipVersion=6), FIRST),
    (NP, rule(protocol="ICMPv6", ipVersion=4), FIRST),
    # --- networks ---
    (NP, source(nets=["10.0.0.0/33"]), f"{SOURCE}.nets[0]"),
    (NP, source(nets=["10.0.0/8"]), f"{SOURCE}.nets[0]"),
    (NP, source(nets=["10.0.0.0/8", "everywhere"]), f"{SOURCE}.nets[1]"),
    (NP, source(nets=[""]), f"{SOURCE}.nets[0]"),
    (NP, source(nets=["fd00::/129"]), f"{SOURCE}.nets[0]"),
    (NP, source(nets="10.0.0.0/8"), f"{SOURCE}.nets"),
    (NP, source(nets=[10]), f"{SOURCE}.nets[0]"),
    (NP, source(notNets=["10.0.0.300/32"]), f"{SOURCE}.notNets[0]"),
    (NP, source(notNets=["::g/64"]), f"{SOURCE}.notNets[0]"),
    (NP, rule(destination={"nets": ["1.2.3.4/-1"]}), f"{DESTINATION}.nets[0]"),
    (NP, rule(ipVersion=4, source={"nets": ["fd00::/64"]}), FIRST),
    (NP, rule(ipVersion=6, source={"nets": ["10.0.0.0/8"]}), FIRST),
    (NP, rule(source={"nets": ["10.0.0.0/8"]}, destination={"nets": ["fd00::/64"]}), FIRST),
    # --- ports ---
    (NP, to(ports=[65536]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=[-1]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=["90:80"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=["80:"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=[":80"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=["1:2:3"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=["80:65536"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=["with space"]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=[""]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=[80, "http!"]), f"{DESTINATION}.ports[1]"),
    (NP, to(ports=[1.5]), f"{DESTINATION}.ports[0]"),
    (NP, to(ports=80), f"{DESTINATION}.ports"),
    (NP, to(notPorts=["90:80"]), f"{DESTINATION}.notPorts[0]"),
    (NP, rule(destination={"ports": [80]}), FIRST),
    (NP, rule(protocol="ICMP", destination={"ports": [80]}), FIRST),
    (NP, rule(protocol=47, destination={"ports": [80]}), FIRST),
    (NP, rule(protocol="ICMP", source={"notPorts": [80]}), FIRST),
    (NP, rule(protocol="TCP", source={"ports": [70000]}), f"{SOURCE}.ports[0]"),
    # --- selectors, accounts, services of an entity ---
    (NP, source(selector="a =="), f"{SOURCE}.selector"),
    (NP, source(notSelector="in {}"), f"{SOURCE}.notSelector"),
    (NP, source(namespaceSelector="(("), f"{SOURCE}.namespaceSelector"),
    (NP, source(serviceAccounts={"selector": "??"}), f"{SOURCE}.serviceAccounts.selector"),
    (NP, source(serviceAccounts={"names": ["Bad Name"]}), f"{SOURCE}.serviceAccounts.names[0]"),
    (NP, source(serviceAccounts={"names": "one"}), f"{SOURCE}.serviceAccounts.names"),
    (NP, source(serviceAccount={"names": ["x"]}), f"{SOURCE}.serviceAccount"),
    (NP, source(services={"namespace": "ns"}), FIRST),
    (NP, source(services={"name": "web"}, selector="all()"), FIRST),
    (NP, {"egress": [{"action": "Allow", "source": {"services": {"name": "web"}}}]}, "spec.egress[0]"),
    (NP, {"ingress": [{"action": "Allow", "destination": {"services": {"name": "web"}}}]}, FIRST),
    (GNP, {"egress": [{"action": "Allow", "destination": {"services": {"name": "web"}}}]}, "spec.egress[0]"),
    (NP, to(services={"name": "web"}, ports=[80]), FIRST),
    # --- HTTP ---
    (NP, rule(http={"methods": ["GET", "GET"]}), f"{FIRST}.http"),
    (NP, rule(http={"paths": [{"exact": "/a", "prefix": "/b"}]}), f"{FIRST}.http"),
    (NP, rule(http={"paths": [{"exact": "/a?b"}]}), f"{FIRST}.http"),
    (NP, rule(protocol="UDP", http={"methods": ["GET"]}), FIRST),
    (NP, rule(action="Deny", http={"methods": ["GET"]}), FIRST),
    # --- second and later rules are named by their number ---
    (NP, {"ingress": [{"action": "Allow"}, {"action": "Deny", "protocol": "XXX"}]}, "spec.ingress[1].protocol"),
    (NP, {"egress": [{"action": "Allow"}] * 3 + [{"action": "No"}]}, "spec.egress[3].action"),
    # --- staged ---
    (SNP, {"stagedAction": "Remove"}, "spec.stagedAction"),
    (SNP, {"stagedAction": "Delete", "selector": "all()"}, "spec"),
    (SGNP, {"stagedAction": "set"}, "spec.stagedAction"),
    (SGNP, {"selector": "a ="}, "spec.selector"),
    (SKNP, {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Equals"}]}}, "spec.podSelector"),
    (SKNP, {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}]}, "spec.ingress[0].from[0].ipBlock"),
    (SKNP, {"policyTypes": ["Both"]}, "spec.policyTypes"),
    # --- tiers ---
    ("Tier", {"defaultAction": "Allow"}, "spec.defaultAction"),
    ("Tier", {"order": "last"}, "spec.order"),
    ("Tier", {"colour": "red"}, "spec.colour"),
]


def refusal(kind: str, spec: dict[str, Any], **metadata: Any) -> str:
    given: dict[str, Any] = {"name": "x"} | metadata
    if kind in (NP, SNP, SKNP):
        given.setdefault("namespace", "ns")
    value = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": given, "spec": spec}
    with pytest.raises(validation.ValidationError) as caught:
        validation.check(apply_defaults(validation.decode_user(value)))
    return str(caught.value)


@pytest.mark.parametrize(("kind", "spec", "path"), CASES, ids=[f"{n}-{path}" for n, (_, _, path) in enumerate(CASES)])
def test_refused_with_the_path_of_the_field(kind: str, spec: dict[str, Any], path: str) -> None:
    message = refusal(kind, spec)
    assert path in message, message


def test_there_are_at_least_a_hundred() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", ["", "UPPER", "under_score", "a b", "-a", "a-", "a..b", "a/b", "x" * 254])
def test_names_of_policies(name: str) -> None:
    assert "metadata.name" in refusal(GNP, {}, name=name)
