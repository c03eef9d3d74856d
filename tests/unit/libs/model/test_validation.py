"""One bad thing at a time, and the path under which it is refused. `{}` in a value stands for nothing else given."""

from __future__ import annotations

from typing import Any

import pytest

from libs import model
from libs.model import validation
from libs.model.defaults import apply_defaults

GOOD: dict[str, dict[str, Any]] = {
    "Tier": {"order": 5},
    "NetworkPolicy": {"selector": "a == 'b'"},
    "GlobalNetworkPolicy": {"selector": "a == 'b'"},
    "StagedNetworkPolicy": {},
    "StagedGlobalNetworkPolicy": {},
    "StagedKubernetesNetworkPolicy": {"podSelector": {}, "policyTypes": ["Ingress"]},
    "Profile": {},
    "NetworkSet": {"nets": ["10.0.0.0/8", "10.0.0.1", "10.0.0.1/8", "fd00::1"]},
    "GlobalNetworkSet": {"nets": ["10.0.0.0/8"]},
    "HostEndpoint": {"node": "n", "interfaceName": "eth0"},
    "WorkloadEndpoint": {
        "orchestrator": "k8s",
        "node": "n",
        "pod": "p",
        "endpoint": "eth0",
        "interfaceName": "cali1",
        "ipNetworks": ["10.0.0.1/32", "fd00::1/128"],
    },
    "Node": {},
    "IPPool": {"cidr": "10.0.0.0/16"},
    "IPReservation": {"reservedCIDRs": ["10.0.0.1", "10.0.0.0/24"]},
    "IPAMConfiguration": {},
    "BlockAffinity": {"state": "confirmed", "node": "n", "cidr": "10.0.0.0/26"},
    "BGPConfiguration": {},
    "BGPPeer": {"peerIP": "192.0.2.1", "asNumber": 64512},
    "BGPFilter": {"exportV4": [{"action": "Accept"}]},
    "CalicoNodeStatus": {"node": "n", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 10},
    "ClusterInformation": {"datastoreReady": True},
    "FelixConfiguration": {},
    "KubeControllersConfiguration": {"controllers": {"node": {}}},
    "LiveMigration": {"source": {"workload": {"name": "w"}}, "target": {"selector": "all()"}},
}
NAMES = {
    "WorkloadEndpoint": "n-k8s-p-eth0",
    "BGPConfiguration": "default",
    "ClusterInformation": "default",
    "FelixConfiguration": "default",
    "IPAMConfiguration": "default",
    "KubeControllersConfiguration": "default",
}


def resource(kind: str, spec: dict[str, Any] | None = None, **metadata: Any) -> model.Resource:
    given: dict[str, Any] = {"name": NAMES.get(kind, "x"), **metadata}
    if model.KINDS[kind].namespaced:
        given.setdefault("namespace", "ns")
    merged = GOOD[kind] | (spec or {})
    return validation.decode_user(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": given, "spec": merged}
    )


def wrong(kind: str, spec: dict[str, Any] | None = None, **metadata: Any) -> list[str]:
    return [problem.path for problem in validation.validate(resource(kind, spec, **metadata))]


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_good_resources_have_no_problems_before_and_after_defaults(kind: str) -> None:
    good = resource(kind)
    assert validation.validate(good) == []
    assert validation.validate(apply_defaults(good)) == []
    validation.check(good)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "metadata", "path"),
    [
        ("Profile", {"name": ""}, "metadata.name"),
        ("Profile", {"name": "UPPER"}, "metadata.name"),
        ("Profile", {"name": "a" * 254}, "metadata.name"),
        ("Profile", {"name": "a..b"}, "metadata.name"),
        ("Profile", {"namespace": "ns"}, "metadata.namespace"),
        ("NetworkSet", {"namespace": ""}, "metadata.namespace"),
        ("NetworkSet", {"namespace": "Bad"}, "metadata.namespace"),
        ("Tier", {"name": "a.b"}, "metadata.name"),
        ("Tier", {"name": "a" * 64}, "metadata.name"),
        ("NetworkPolicy", {"name": "a.b.c"}, "metadata.name"),
        ("GlobalNetworkPolicy", {"name": "knp.default.x"}, "metadata.name"),
        ("ClusterInformation", {"name": "other"}, "metadata.name"),
        ("WorkloadEndpoint", {"name": "other"}, "metadata.name"),
        ("Profile", {"labels": {"a b": ""}}, "metadata.labels[a b]"),
        ("Profile", {"labels": {"/a": ""}}, "metadata.labels[/a]"),
        ("Profile", {"labels": {"a": "b c"}}, "metadata.labels[a]"),
        ("Profile", {"labels": {"a": "b" * 64}}, "metadata.labels[a]"),
        ("Profile", {"annotations": {"-": ""}}, "metadata.annotations[-]"),
        ("Profile", {"annotations": {"a": "x" * 262144}}, "metadata.annotations"),
        (
            "NetworkSet",
            {"labels": {"projectcalico.org/namespace": "x"}},
            "metadata.labels[projectcalico.org/namespace]",
        ),
        (
            "HostEndpoint",
            {"annotations": {"qos.projectcalico.org/dscp": "64"}},
            "metadata.annotations[qos.projectcalico.org/dscp]",
        ),
    ],
)
def test_bad_metadata_is_refused(kind: str, metadata: dict[str, Any], path: str) -> None:
    assert wrong(kind, **metadata) == [path]


@pytest.mark.parametrize("name", ["plain", "sec.a", "default.x", "knp.default.a.b", "ossg.default.x", "a" * 253])
def test_names_of_policies_may_have_a_tier_before_the_dot(name: str) -> None:
    assert wrong("NetworkPolicy", name=name) == []


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"selector": "a == "}, "spec.selector"),
        ({"selector": "a" * 1025}, "spec.selector"),
        ({"selector": "global()"}, "spec.selector"),
        ({"selector": "a == 'b' || !global()"}, "spec.selector"),
        ({"serviceAccountSelector": "global()"}, "spec.serviceAccountSelector"),
        ({"namespaceSelector": "global()"}, "spec.namespaceSelector"),
        ({"types": ["Both"]}, "spec.types[0]"),
        ({"types": ["Egress", "Egress"]}, "spec.types[1]"),
        ({"performanceHints": ["Fast"]}, "spec.performanceHints[0]"),
        ({"order": float("inf")}, "spec.order"),
        ({"preDNAT": True}, "spec.applyOnForward"),
        ({"doNotTrack": True}, "spec.applyOnForward"),
        ({"preDNAT": True, "applyOnForward": True, "doNotTrack": True}, "spec.preDNAT"),
        ({"preDNAT": True, "applyOnForward": True, "egress": [{"action": "Allow"}]}, "spec.egress"),
        ({"preDNAT": True, "applyOnForward": True, "types": ["Egress"]}, "spec.types"),
        ({"ingress": [{"action": "Allow"}] * 1025}, "spec.ingress"),
        (
            {"ingress": [{"action": "Allow", "source": {"services": {"name": "s"}}}]},
            "spec.ingress[0].source.services.namespace",
        ),
    ],
)
def test_bad_global_policies_are_refused(spec: dict[str, Any], path: str) -> None:
    assert wrong("GlobalNetworkPolicy", spec) == [path]
    assert wrong("StagedGlobalNetworkPolicy", spec) == [path]


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"action": "allow"}, "action"),
        ({"action": ""}, "action"),
        ({"ipVersion": 5}, "ipVersion"),
        ({"protocol": "tcp"}, "protocol"),
        ({"protocol": 0}, "protocol"),
        ({"notProtocol": "nothing"}, "notProtocol"),
        ({"protocol": "ICMP", "ipVersion": 6}, "protocol"),
        ({"notProtocol": "ICMPv6", "ipVersion": 4}, "notProtocol"),
        ({"icmp": {"type": 8}}, "icmp"),
        ({"protocol": "TCP", "notICMP": {"type": 8}}, "notICMP"),
        ({"protocol": "ICMP", "icmp": {"type": 255}}, "icmp.type"),
        ({"protocol": "ICMP", "icmp": {"type": 8, "code": 256}}, "icmp.code"),
        ({"protocol": "ICMP", "icmp": {"code": 0}}, "icmp.code"),
        ({"source": {"nets": ["10.0.0.1"]}}, "source.nets[0]"),
        ({"source": {"nets": ["10.0.0.0/8", "10.0.0.1/8"]}}, "source.nets[1]"),
        ({"source": {"nets": ["10.0.0.0/8", "10.0.0.0/8"]}}, "source.nets[1]"),
        ({"source": {"nets": ["10.0.0.0/255.0.0.0"]}}, "source.nets[0]"),
        ({"source": {"nets": ["fe80::%eth0/128"]}}, "source.nets[0]"),
        ({"source": {"nets": [f"10.0.{n}.0/24" for n in range(256)] + ["10.1.0.0/16"]}}, "source.nets"),
        ({"source": {"notNets": ["0.0.0.0/0"]}}, "source.notNets[0]"),
        ({"destination": {"notNets": ["::/0"]}}, "destination.notNets[0]"),
        ({"source": {"nets": ["10.0.0.0/8"]}, "destination": {"notNets": ["fd00::/8"]}}, "destination.notNets[0]"),
        ({"ipVersion": 4, "source": {"nets": ["fd00::/8"]}}, "source.nets[0]"),
        ({"source": {"selector": "global()"}}, "source.selector"),
        ({"source": {"notSelector": "x =="}}, "source.notSelector"),
        ({"source": {"namespaceSelector": "global() && has(x)"}}, "source.namespaceSelector"),
        ({"source": {"nets": ["fd00::/8"]}, "destination": {"nets": ["10.0.0.0/8"]}}, "destination.nets[0]"),
        ({"destination": {"ports": [80]}}, "destination.ports"),
        ({"destination": {"notPorts": ["http", 80]}}, "destination.notPorts"),
        ({"protocol": "ICMP", "destination": {"ports": ["http"]}}, "destination.ports"),
        ({"protocol": "TCP", "destination": {"ports": [0]}}, "destination.ports[0]"),
        ({"protocol": "TCP", "source": {"notPorts": ["0:5"]}}, "source.notPorts[0]"),
        ({"protocol": "TCP", "source": {"ports": list(range(1, 52))}}, "source.ports"),
        ({"source": {"serviceAccounts": {"names": ["Bad!"]}}}, "source.serviceAccounts.names[0]"),
        ({"source": {"serviceAccounts": {"selector": "!"}}}, "source.serviceAccounts.selector"),
        ({"source": {"services": {"namespace": "ns"}}}, "source.services.name"),
        ({"source": {"services": {"name": "s"}, "nets": ["10.0.0.0/8"]}}, "source.nets"),
        ({"source": {"services": {"name": "s"}, "namespaceSelector": "all()"}}, "source.namespaceSelector"),
        ({"destination": {"services": {"name": "s"}}}, "destination.services"),
        ({"protocol": "UDP", "http": {"methods": ["GET"]}}, "http"),
        ({"action": "Deny", "http": {"methods": ["GET"]}}, "http"),
        ({"http": {"methods": ["GET", "GET"]}}, "http.methods[1]"),
        ({"http": {"methods": [str(n) for n in range(21)]}}, "http.methods"),
        ({"http": {"paths": [{"exact": "/a", "prefix": "/b"}]}}, "http.paths[0]"),
        ({"http": {"paths": [{"exact": "/a?b"}]}}, "http.paths[0].exact"),
        ({"http": {"paths": [{"prefix": "a"}]}}, "http.paths[0].prefix"),
        ({"http": {"paths": [{"prefix": "/" + "a" * 1024}]}}, "http.paths[0].prefix"),
        ({"metadata": {"annotations": {"!": "x"}}}, "metadata.annotations[!]"),
    ],
)
def test_bad_rules_are_refused(rule: dict[str, Any], path: str) -> None:
    spec = {"ingress": [{"action": "Log"}, {"action": "Allow", **rule}]}
    assert wrong("NetworkPolicy", spec) == [f"spec.ingress[1].{path}"]


@pytest.mark.parametrize(
    "rule",
    [
        {"destination": {"ports": ["http"]}},
        {"protocol": 132, "destination": {"ports": [80, "8000:8100", "http"], "notPorts": [443]}},
        {"protocol": 58, "icmp": {"type": 128, "code": 0}},
        {"source": {"namespaceSelector": " global() "}},
        {"source": {"nets": ["fd00::/8"]}, "destination": {"nets": ["fd01::/16"]}, "ipVersion": 6},
        {"source": {"services": {"name": "s"}}},
        {"http": {"methods": ["GET"], "paths": [{"exact": "/"}]}, "protocol": 6},
    ],
)
def test_good_rules_are_accepted(rule: dict[str, Any]) -> None:
    assert wrong("NetworkPolicy", {"ingress": [{"action": "Allow", **rule}]}) == []


def test_services_of_egress_rules_are_destinations_and_bring_their_ports() -> None:
    services = {"services": {"name": "s", "namespace": "ns"}}
    assert wrong("GlobalNetworkPolicy", {"egress": [{"action": "Allow", "destination": services}]}) == []
    rule = {"action": "Allow", "source": services}
    assert wrong("GlobalNetworkPolicy", {"egress": [rule]}) == ["spec.egress[0].source.services"]
    rule = {"action": "Allow", "protocol": "TCP", "destination": {**services, "ports": [80]}}
    assert wrong("GlobalNetworkPolicy", {"egress": [rule]}) == ["spec.egress[0].destination.ports"]
    assert wrong("Profile", {"egress": [{"action": "Allow", "http": {}}]}) == ["spec.egress[0].http"]


def test_staged_deletions_say_only_which_policy() -> None:
    spec = {"stagedAction": "Delete", "tier": "t", "order": 1, "types": ["Ingress"]}
    assert wrong("StagedNetworkPolicy", spec) == ["spec.order", "spec.types"]
    assert wrong("StagedKubernetesNetworkPolicy", {"stagedAction": "Delete"}) == ["spec.policyTypes"]
    assert wrong("StagedNetworkPolicy", {"stagedAction": "Remove"}) == ["spec.stagedAction"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"podSelector": {"matchLabels": {"a b": "c"}}}, "spec.podSelector.matchLabels[a b]"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "spec.podSelector.matchExpressions[0].values",
        ),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]}, "spec.ingress[0].from[0].ipBlock.cidr"),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        ({"egress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.egress[0].ports[0].protocol"),
        ({"egress": [{"ports": [{"port": 70000}]}]}, "spec.egress[0].ports[0].port"),
        ({"egress": [{"ports": [{"port": "http", "endPort": 5}]}]}, "spec.egress[0].ports[0].endPort"),
        ({"egress": [{"ports": [{"port": 80, "endPort": 5}]}]}, "spec.egress[0].ports[0].endPort"),
        ({"policyTypes": ["Ingress", "Ingress"]}, "spec.policyTypes[1]"),
    ],
)
def test_bad_staged_kubernetes_policies_are_refused(spec: dict[str, Any], path: str) -> None:
    assert wrong("StagedKubernetesNetworkPolicy", spec) == [path]


@pytest.mark.parametrize(
    ("name", "spec", "path"),
    [
        ("default", {"order": 5}, "spec.order"),
        ("default", {"order": 1e6, "defaultAction": "Pass"}, "spec.defaultAction"),
        ("kube-baseline", {"order": 1e7, "defaultAction": "Deny"}, "spec.defaultAction"),
        ("mine", {"defaultAction": "Allow"}, "spec.defaultAction"),
    ],
)
def test_bad_tiers_are_refused(name: str, spec: dict[str, Any], path: str) -> None:
    assert wrong("Tier", spec, name=name) == [path]


# --- everything else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "paths"),
    [
        ("NetworkSet", {"nets": ["10.0.0.0/33", "x"]}, ["spec.nets[0]", "spec.nets[1]"]),
        ("HostEndpoint", {"node": ""}, ["spec.node"]),
        ("HostEndpoint", {"interfaceName": ""}, ["spec"]),
        ("HostEndpoint", {"interfaceName": "a/b"}, ["spec.interfaceName"]),
        ("HostEndpoint", {"expectedIPs": ["10.0.0.1/32"]}, ["spec.expectedIPs[0]"]),
        ("HostEndpoint", {"profiles": ["A!"]}, ["spec.profiles[0]"]),
        ("HostEndpoint", {"ports": [{"name": "p", "protocol": "ICMP", "port": 1}]}, ["spec.ports[0].protocol"]),
        (
            "HostEndpoint",
            {"ports": [{"name": "", "protocol": "TCP", "port": 0}]},
            ["spec.ports[0].name", "spec.ports[0].port"],
        ),
        ("WorkloadEndpoint", {"ipNetworks": ["10.0.0.0/24"]}, ["spec.ipNetworks[0]"]),
        ("WorkloadEndpoint", {"interfaceName": ""}, ["spec.interfaceName"]),
        ("WorkloadEndpoint", {"mac": "ee:ee"}, ["spec.mac"]),
        ("WorkloadEndpoint", {"ipv4Gateway": "fd00::1"}, ["spec.ipv4Gateway"]),
        ("WorkloadEndpoint", {"containerID": "-a"}, ["spec.containerID"]),
        (
            "WorkloadEndpoint",
            {"ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "fd00::9"}]},
            ["spec.ipNATs[0].externalIP"],
        ),
        (
            "WorkloadEndpoint",
            {"ipNATs": [{"internalIP": "10.0.0.2", "externalIP": "10.9.9.9"}]},
            ["spec.ipNATs[0].internalIP"],
        ),
        ("WorkloadEndpoint", {"ports": [{"protocol": "TCP", "port": 80}]}, ["spec.ports[0].name"]),
        (
            "WorkloadEndpoint",
            {"ports": [{"protocol": "TCP", "port": 80, "hostPort": 8080, "hostIP": "x"}]},
            ["spec.ports[0].hostIP"],
        ),
        ("WorkloadEndpoint", {"qosControls": {"ingressBandwidth": 999}}, ["spec.qosControls.ingressBandwidth"]),
        ("WorkloadEndpoint", {"qosControls": {"egressPacketRate": 10001}}, ["spec.qosControls.egressPacketRate"]),
        ("WorkloadEndpoint", {"qosControls": {"dscp": "AF99"}}, ["spec.qosControls.dscp"]),
        ("WorkloadEndpoint", {"allowSpoofedSourcePrefixes": ["x"]}, ["spec.allowSpoofedSourcePrefixes[0]"]),
        ("Node", {"bgp": {}}, ["spec.bgp"]),
        ("Node", {"bgp": {"ipv4Address": "fd00::1/64"}}, ["spec.bgp.ipv4Address"]),
        ("Node", {"bgp": {"routeReflectorClusterID": "1"}}, ["spec.bgp.routeReflectorClusterID"]),
        ("Node", {"vxlanTunnelMACAddr": "x"}, ["spec.vxlanTunnelMACAddr"]),
        (
            "Node",
            {"addresses": [{"address": "x", "type": "Other"}]},
            ["spec.addresses[0].address", "spec.addresses[0].type"],
        ),
        ("IPPool", {"cidr": "10.0.0.1/16"}, ["spec.cidr"]),
        ("IPPool", {"cidr": "10.0.0.0"}, ["spec.cidr"]),
        ("IPPool", {"cidr": ""}, ["spec.cidr"]),
        ("IPPool", {"cidr": "169.254.0.0/16"}, ["spec.cidr"]),
        ("IPPool", {"cidr": "fe80::/64"}, ["spec.cidr"]),
        ("IPPool", {"cidr": "10.0.0.0/27"}, ["spec.cidr"]),
        ("IPPool", {"blockSize": 33}, ["spec.blockSize"]),
        ("IPPool", {"cidr": "fd00::/64", "blockSize": 26}, ["spec.blockSize", "spec.cidr"]),
        ("IPPool", {"cidr": "fd00::/64", "ipipMode": "Always"}, ["spec.ipipMode"]),
        ("IPPool", {"vxlanMode": "Always", "ipipMode": "CrossSubnet"}, ["spec.vxlanMode"]),
        ("IPPool", {"vxlanMode": "always"}, ["spec.vxlanMode"]),
        ("IPPool", {"nodeSelector": "!global()"}, ["spec.nodeSelector"]),
        ("IPPool", {"nodeSelector": "x"}, ["spec.nodeSelector"]),
        ("IPPool", {"namespaceSelector": "all()", "allowedUses": ["Tunnel"]}, ["spec.namespaceSelector"]),
        ("IPPool", {"allowedUses": ["LoadBalancer", "Workload"]}, ["spec.allowedUses"]),
        ("IPPool", {"allowedUses": ["LoadBalancer"], "disableBGPExport": True}, ["spec.disableBGPExport"]),
        ("IPPool", {"allowedUses": ["LoadBalancer"], "nodeSelector": "has(x)"}, ["spec.nodeSelector"]),
        ("IPPool", {"assignmentMode": "auto"}, ["spec.assignmentMode"]),
        ("IPReservation", {"reservedCIDRs": ["10.0.0.1", "10.0.0.1"]}, ["spec.reservedCIDRs[1]"]),
        ("IPAMConfiguration", {"maxBlocksPerHost": -1}, ["spec.maxBlocksPerHost"]),
        ("IPAMConfiguration", {"ipCooldownSeconds": 1201}, ["spec.ipCooldownSeconds"]),
        ("IPAMConfiguration", {"kubeVirtVMAddressPersistence": "On"}, ["spec.kubeVirtVMAddressPersistence"]),
        ("BlockAffinity", {"state": "lost", "deleted": True}, ["spec.state", "spec.deleted"]),
        ("CalicoNodeStatus", {"node": "", "classes": []}, ["spec.node", "spec.classes"]),
        ("CalicoNodeStatus", {"classes": ["BGP", "BGP", "X"]}, ["spec.classes[2]", "spec.classes[1]"]),
        ("CalicoNodeStatus", {"updatePeriodSeconds": 86401}, ["spec.updatePeriodSeconds"]),
        ("LiveMigration", {"source": {}, "target": {"selector": "x"}}, ["spec.source", "spec.target.selector"]),
        ("KubeControllersConfiguration", {"logSeverityScreen": "Trace"}, ["spec.logSeverityScreen"]),
        ("KubeControllersConfiguration", {"healthChecks": "On"}, ["spec.healthChecks"]),
        (
            "KubeControllersConfiguration",
            {
                "controllers": {
                    "node": {"hostEndpoint": {"templates": [{"generateName": "a"}, {"interfacePattern": "("}]}}
                }
            },
            [
                "spec.controllers.node.hostEndpoint.templates[0]",
                "spec.controllers.node.hostEndpoint.templates[1].interfacePattern",
            ],
        ),
        (
            "KubeControllersConfiguration",
            {"controllers": {"loadBalancer": {"assignIPs": "All"}}},
            ["spec.controllers.loadBalancer.assignIPs"],
        ),
    ],
)
def test_bad_specs_are_refused(kind: str, spec: dict[str, Any], paths: list[str]) -> None:
    assert wrong(kind, spec) == paths


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"logSeverityScreen": "Loud"}, "logSeverityScreen"),
        ({"listenPort": 65536}, "listenPort"),
        ({"serviceClusterIPs": [{"cidr": "10.0.0.1/8"}]}, "serviceClusterIPs[0].cidr"),
        ({"communities": [{"name": "a", "value": "1:1"}]}, "communities"),
        (
            {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["a"]}]},
            "prefixAdvertisements[0].communities[0]",
        ),
        (
            {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["1:65536"]}]},
            "prefixAdvertisements[0].communities[0]",
        ),
        ({"prefixAdvertisements": [{"cidr": "x", "communities": ["1:1"]}]}, "prefixAdvertisements[0].cidr"),
        ({"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "1s"}, "nodeMeshMaxRestartTime"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "s"}}}, "nodeMeshPassword.secretKeyRef.key"),
        ({"bindMode": "All"}, "bindMode"),
        ({"ignoredInterfaces": ["eth*", "*"]}, "ignoredInterfaces[1]"),
        ({"localWorkloadPeeringIPV4": "fd00::1"}, "localWorkloadPeeringIPV4"),
        ({"programClusterRoutes": "Yes"}, "programClusterRoutes"),
        ({"ipv6NormalRoutePriority": 0}, "ipv6NormalRoutePriority"),
    ],
)
def test_bad_bgp_configurations_are_refused(spec: dict[str, Any], path: str) -> None:
    assert wrong("BGPConfiguration", spec) == [f"spec.{path}"]


def test_cluster_wide_bgp_settings_belong_to_the_default_configuration() -> None:
    spec = {"asNumber": 64512, "nodeToNodeMeshEnabled": False, "logSeverityScreen": "debug"}
    assert wrong("BGPConfiguration", spec, name="node.n") == ["spec.nodeToNodeMeshEnabled", "spec.asNumber"]
    assert wrong("BGPConfiguration", spec) == []


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"node": "n", "nodeSelector": "all()"}, "nodeSelector"),
        ({"peerIP": "192.0.2.1:0"}, "peerIP"),
        ({"peerIP": "192.0.2.1:99999999"}, "peerIP"),
        ({"peerIP": "[192.0.2.1]:179"}, "peerIP"),
        ({"peerIP": "fd00::1%eth0"}, "peerIP"),
        ({"peerIP": "", "asNumber": 1, "peerSelector": "has(x)"}, "asNumber"),
        ({"peerIP": "", "asNumber": None, "localWorkloadSelector": "has(x)"}, "asNumber"),
        ({"localWorkloadSelector": "has(x)"}, "peerIP"),
        ({"keepOriginalNextHop": True, "nextHopMode": "Keep"}, "nextHopMode"),
        ({"nextHopMode": "Other"}, "nextHopMode"),
        ({"sourceAddress": "Any"}, "sourceAddress"),
        ({"reversePeering": "Never"}, "reversePeering"),
        ({"maxRestartTime": "-1s"}, "maxRestartTime"),
        ({"ttlSecurity": 256}, "ttlSecurity"),
        ({"reachableBy": "fd00::1"}, "reachableBy"),
        ({"peerIP": "", "reachableBy": "192.0.2.9"}, "reachableBy"),
        ({"filters": ["A"]}, "filters[0]"),
    ],
)
def test_bad_bgp_peers_are_refused(spec: dict[str, Any], path: str) -> None:
    assert wrong("BGPPeer", spec) == [f"spec.{path}"]


@pytest.mark.parametrize("address", ["192.0.2.1", "192.0.2.1:179", "fd00::1", "[fd00::1]:179"])
def test_peers_are_addresses_with_or_without_port(address: str) -> None:
    assert wrong("BGPPeer", {"peerIP": address}) == []


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"action": "accept"}, "action"),
        ({"cidr": "10.0.0.0/8"}, ""),
        ({"cidr": "fd00::/8", "matchOperator": "In"}, "cidr"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "Within"}, "matchOperator"),
        ({"prefixLength": {"min": 8}}, "prefixLength"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 33}}, "prefixLength.max"),
        ({"source": "Local"}, "source"),
        ({"interface": "eth 0"}, "interface"),
        ({"peerType": "ebgp"}, "peerType"),
        ({"communities": {"values": []}}, "communities.values"),
        ({"communities": {"values": ["1"]}}, "communities.values[0]"),
        ({"communities": {"values": ["1:" + "9" * 5000]}}, "communities.values[0]"),
        ({"priority": 0}, "priority"),
        ({"action": "Reject", "operations": [{"setPriority": {"value": 5}}]}, "operations"),
        ({"operations": [{}]}, "operations[0]"),
        ({"operations": [{"setPriority": {"value": 0}}]}, "operations[0].setPriority.value"),
        ({"operations": [{"setPriority": {}}]}, "operations[0].setPriority.value"),
        ({"operations": [{"prependASPath": {"prefix": []}}]}, "operations[0].prependASPath.prefix"),
        ({"operations": [{"addCommunity": {"value": "1:2:3:4"}}]}, "operations[0].addCommunity.value"),
        ({"operations": [{"setPriority": {"value": 5}}] * 11}, "operations"),
    ],
)
def test_bad_bgp_filter_rules_are_refused(rule: dict[str, Any], path: str) -> None:
    place = f"spec.importV4[0].{path}" if path else "spec.importV4[0]"
    assert wrong("BGPFilter", {"importV4": [{"action": "Accept", **rule}]}) == [place]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"awsSrcDstCheck": "enable"}, "awsSrcDstCheck"),
        ({"iptablesBackend": "xtables"}, "iptablesBackend"),
        ({"healthPort": 65536}, "healthPort"),
        ({"wireguardRoutingRulePriority": 32766}, "wireguardRoutingRulePriority"),
        ({"goMaxProcs": -2}, "goMaxProcs"),
        ({"reportingInterval": "-1s"}, "reportingInterval"),
        ({"netlinkTimeout": "5us"}, "netlinkTimeout"),
        ({"mtuIfacePattern": "["}, "mtuIfacePattern"),
        ({"bpfL3IfacePattern": "(?=a)b"}, "bpfL3IfacePattern"),
        ({"bpfL3IfacePattern": r"(a)\1"}, "bpfL3IfacePattern"),
        ({"deviceRouteSourceAddress": "fd00::1"}, "deviceRouteSourceAddress"),
        ({"nodeSelector": "x =="}, "nodeSelector"),
        ({"openstackRegion": "a.b"}, "openstackRegion"),
        ({"featureGates": "a=b,c"}, "featureGates"),
        ({"logActionRateLimit": "0/second"}, "logActionRateLimit"),
        ({"logActionRateLimit": "5/week"}, "logActionRateLimit"),
        ({"prometheusMetricsHost": "a b"}, "prometheusMetricsHost"),
        ({"wireguardInterfaceName": "a" * 16}, "wireguardInterfaceName"),
        ({"bpfForceTrackPacketsFromIfaces": ["docker+", "!"]}, "bpfForceTrackPacketsFromIfaces[1]"),
        ({"failsafeInboundHostPorts": [{"protocol": "ICMP", "port": 1}]}, "failsafeInboundHostPorts[0].protocol"),
        (
            {"failsafeOutboundHostPorts": [{"protocol": "TCP", "port": 1, "net": "x"}]},
            "failsafeOutboundHostPorts[0].net",
        ),
        ({"kubeNodePortRanges": ["http"]}, "kubeNodePortRanges[0]"),
        ({"kubeNodePortRanges": [1] * 8}, "kubeNodePortRanges"),
        ({"bpfPSNATPorts": "0:5"}, "bpfPSNATPorts"),
        ({"externalNodesList": ["fd00::1"]}, "externalNodesList[0]"),
        ({"bpfExcludeCIDRsFromNAT": ["x"]}, "bpfExcludeCIDRsFromNAT[0]"),
        ({"routeTableRange": {"min": 0, "max": 5}}, "routeTableRange.min"),
        ({"routeTableRange": {"min": 6, "max": 5}}, "routeTableRange.max"),
        ({"routeTableRange": {"min": 1, "max": 5}, "routeTableRanges": []}, "routeTableRanges"),
        ({"routeTableRanges": [{"min": 1, "max": 70000}]}, "routeTableRanges"),
        ({"healthTimeoutOverrides": [{"name": "a", "timeout": "-1s"}]}, "healthTimeoutOverrides[0].timeout"),
        ({"bpfConntrackTimeouts": {"tcpSynSent": "soon"}}, "bpfConntrackTimeouts.tcpSynSent"),
        ({"istioDSCPMark": 64}, "istioDSCPMark"),
    ],
)
def test_bad_felix_settings_are_refused(spec: dict[str, Any], path: str) -> None:
    if path == "nodeSelector":
        assert wrong("FelixConfiguration", spec, name="group") == ["spec.nodeSelector"]
    else:
        assert wrong("FelixConfiguration", spec) == [f"spec.{path}"]


@pytest.mark.parametrize(
    "spec",
    [
        {"iptablesBackend": "LEGACY", "defaultEndpointToHostAction": "accept", "logSeverityScreen": "DEBUG"},
        {"bpfConntrackTimeouts": {"tcpSynSent": "Auto", "udpTimeout": "1m30s"}},
        {"mtuIfacePattern": r"^((en|wl)[Pcopsvx].*|(eth|wlan).*|a\+\.[+*]+)"},
        {"featureDetectOverride": "A=true,B=,"},
        {"failsafeInboundHostPorts": [], "kubeNodePortRanges": ["30000:32767"], "logActionRateLimit": "9999/day"},
    ],
)
def test_good_felix_settings_are_accepted(spec: dict[str, Any]) -> None:
    assert wrong("FelixConfiguration", spec) == []


def test_felix_settings_go_by_name_or_by_selector() -> None:
    assert wrong("FelixConfiguration", {"nodeSelector": "all()"}) == ["spec.nodeSelector"]
    assert wrong("FelixConfiguration", {"nodeSelector": "all()"}, name="node.n") == ["spec.nodeSelector"]
    assert wrong("FelixConfiguration", {}, name="group") == ["spec.nodeSelector"]
    assert wrong("FelixConfiguration", {"nodeSelector": "all()"}, name="group") == []


def test_check_raises_with_all_problems() -> None:
    bad = resource("IPPool", {"cidr": "x", "vxlanMode": "y"})
    with pytest.raises(validation.ValidationError) as caught:
        validation.check(bad)
    assert [problem.path for problem in caught.value.problems] == ["spec.vxlanMode", "spec.cidr"]


def test_defaults_may_clash_with_what_is_given() -> None:
    pool = resource("IPPool", {"namespaceSelector": "all()"})
    assert validation.validate(pool) == []
    assert [problem.path for problem in validation.validate(apply_defaults(pool))] == ["spec.namespaceSelector"]
