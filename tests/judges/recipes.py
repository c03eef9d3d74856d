"""What people do with Kubernetes network policies, over a matrix of three namespaces, three pods, two ports and three
protocols. What should happen is written as a predicate on the two pods, in the words of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from libs import model
from libs.model import kubernetes as k8s
from libs.model.codec import convert
from libs.model.policy import StagedKubernetesNetworkPolicySpec
from libs.policy import kubernetes
from libs.policy.calculator import Calculator
from tests.unit.libs.policy.build import calculate, profile, rule, tier, wep

NAMESPACES, PODS, PORTS, PROTOCOLS = ("x", "y", "z"), ("a", "b", "c"), (80, 81), ("tcp", "udp", "sctp")
NAMED = tuple((f"serve-{port}-{protocol}", protocol.upper(), port) for port in PORTS for protocol in PROTOCOLS)


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str

    def address(self, version: int) -> str:
        number = NAMESPACES.index(self.namespace) * 8 + PODS.index(self.name) + 1
        return f"10.0.0.{number}" if version == 4 else f"fd00::{number:x}"

    @property
    def full(self) -> str:
        """`xa`: unique, and the end of its interface's name."""
        return self.namespace + self.name


ALL = [Pod(namespace, name) for namespace, name in product(NAMESPACES, PODS)]
Flow = tuple[Pod, Pod, int, str]  # from, to, port, protocol
Allowed = Callable[[Pod, Pod, int, str], bool]


FLOWS: list[Flow] = [flow for flow in product(ALL, ALL, PORTS, PROTOCOLS) if flow[0] != flow[1]]


def cluster(policies: list[model.Resource], node_of: Callable[[Pod], str]) -> Calculator:
    allow = [rule("Allow")]
    resources: list[model.Resource] = [
        tier("kube-admin", 1000, "Pass"), tier("default", 1_000_000), tier("kube-baseline", 10_000_000, "Pass"),
    ]  # fmt: skip
    for namespace in NAMESPACES:
        labels = {"pcns.ns": namespace, "pcns.projectcalico.org/name": namespace}
        resources.append(profile(f"kns.{namespace}", labels, ingress=allow, egress=allow))
    for pod in ALL:
        made = wep(
            pod.full,
            node=node_of(pod),
            namespace=pod.namespace,
            labels={"pod": pod.name, "projectcalico.org/orchestrator": "k8s"},
            nets=(f"{pod.address(4)}/32", f"{pod.address(6)}/128"),
            profiles=(f"kns.{pod.namespace}",),
            ports=tuple(
                (f"serve-{port}-{protocol}", protocol.upper(), port) for port in PORTS for protocol in PROTOCOLS
            ),
        )
        resources.append(made)
    return calculate(*resources, *policies)


def np(name: str, namespace: str = "x", **spec: Any) -> model.Resource:
    made = kubernetes.network_policy(convert(StagedKubernetesNetworkPolicySpec, {"podSelector": {}, **spec}))
    assert not made.problems
    metadata = model.ObjectMeta(name=f"knp.default.{name}", namespace=namespace)
    assert isinstance(made.spec, model.NetworkPolicySpec)
    return model.NetworkPolicy(metadata=metadata, spec=made.spec)


def cnp(name: str, tier_name: str = "Admin", priority: int = 1, **spec: Any) -> model.Resource:
    value = {"tier": tier_name, "priority": priority, "subject": {"namespaces": {}}, **spec}
    return k8s.KubernetesClusterNetworkPolicy(
        metadata=model.ObjectMeta(name=name), spec=convert(k8s.ClusterPolicySpec, value)
    )


def pods(**labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


def namespaces(*names: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "In", "values": list(names)}]}}


A, WEB = pods(pod="a"), {"podSelector": {"matchLabels": {"pod": "a"}}}
IN, OUT, BOTH = ["Ingress"], ["Egress"], ["Ingress", "Egress"]


def at(pod: Pod, namespace: str, name: str = "") -> bool:
    return pod.namespace == namespace and (not name or pod.name == name)


def admin_rule(action: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "from": [{"namespaces": namespaces(*names)["namespaceSelector"]}], **more}


RECIPES: dict[str, tuple[list[model.Resource], Allowed]] = {
    "no policy": ([], lambda s, d, p, t: True),
    "deny all to a pod": ([np("p", **WEB, policyTypes=IN)], lambda s, d, p, t: not at(d, "x", "a")),
    "deny all to a namespace": ([np("p", policyTypes=IN)], lambda s, d, p, t: not at(d, "x")),
    "deny all from a namespace": ([np("p", policyTypes=OUT)], lambda s, d, p, t: not at(s, "x")),
    "deny both ways": ([np("p", policyTypes=BOTH)], lambda s, d, p, t: not at(d, "x") and not at(s, "x")),
    "types are ingress when none are given": ([np("p")], lambda s, d, p, t: not at(d, "x")),
    "allow all beside deny all": (
        [np("deny", policyTypes=IN), np("allow", policyTypes=IN, ingress=[{}])],
        lambda s, d, p, t: True,
    ),
    "limit traffic to an application": (
        [np("p", **WEB, ingress=[{"from": [pods(pod="b")]}])],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "x", "b"),
    ),
    "only the own namespace": (
        [np("p", ingress=[{"from": [{"podSelector": {}}]}])],
        lambda s, d, p, t: not at(d, "x") or at(s, "x"),
    ),
    "all namespaces": (
        [np("deny", policyTypes=IN), np("p", **WEB, ingress=[{"from": [{"namespaceSelector": {}}]}])],
        lambda s, d, p, t: not at(d, "x") or at(d, "x", "a"),
    ),
    "one other namespace": (
        [np("p", **WEB, ingress=[{"from": [namespaces("y")]}])],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "y"),
    ),
    "some pods of another namespace": (
        [np("p", **WEB, ingress=[{"from": [namespaces("y") | pods(pod="b")]}])],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "y", "b"),
    ),
    "namespace or pods": (
        [np("p", **WEB, ingress=[{"from": [namespaces("y"), pods(pod="b")]}])],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "y") or at(s, "x", "b"),
    ),
    "not in": (
        [
            np("p", **WEB, ingress=[{"from": [{
                "namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]}
            }]}])
        ],
        lambda s, d, p, t: not at(d, "x", "a") or not at(s, "x"),
    ),
    "label that nobody has": (
        [
            np("p", **WEB, ingress=[{"from": [{
                "podSelector": {"matchExpressions": [{"key": "q", "operator": "Exists"}]}
            }]}])
        ],
        lambda s, d, p, t: not at(d, "x", "a"),
    ),
    "label that everybody lacks": (
        [
            np("p", **WEB, ingress=[{"from": [{
                "podSelector": {"matchExpressions": [{"key": "q", "operator": "DoesNotExist"}]}
            }]}])
        ],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "x"),
    ),
    "one port": (
        [np("p", **WEB, ingress=[{"ports": [{"port": 80}]}])],
        lambda s, d, p, t: not at(d, "x", "a") or (p, t) == (80, "tcp"),
    ),
    "one named port": (
        [np("p", **WEB, ingress=[{"ports": [{"port": "serve-81-udp", "protocol": "UDP"}]}])],
        lambda s, d, p, t: not at(d, "x", "a") or (p, t) == (81, "udp"),
    ),
    "a named port of another protocol": (
        [np("p", **WEB, ingress=[{"ports": [{"port": "serve-81-udp", "protocol": "TCP"}]}])],
        lambda s, d, p, t: not at(d, "x", "a"),
    ),
    "a whole protocol": (
        [np("p", **WEB, ingress=[{"ports": [{"protocol": "SCTP"}]}])],
        lambda s, d, p, t: not at(d, "x", "a") or t == "sctp",
    ),
    "a range of ports": (
        [np("p", **WEB, ingress=[{"ports": [{"port": 81, "endPort": 90, "protocol": "UDP"}]}])],
        lambda s, d, p, t: not at(d, "x", "a") or (p == 81 and t == "udp"),
    ),
    "ports and peers": (
        [
            np("p", **WEB, ingress=[
                {"ports": [{"port": 80}, {"port": 81, "protocol": "UDP"}], "from": [namespaces("z")]}
            ])
        ],
        lambda s, d, p, t: not at(d, "x", "a") or (at(s, "z") and (p, t) in {(80, "tcp"), (81, "udp")}),
    ),
    "two rules of one policy": (
        [
            np("p", **WEB, ingress=[
                {"from": [pods(pod="b")], "ports": [{"port": 80}]}, {"from": [pods(pod="c")], "ports": [{"port": 81}]},
            ])
        ],
        lambda s, d, p, t: not at(d, "x", "a") or (
            t == "tcp" and ((at(s, "x", "b") and p == 80) or (at(s, "x", "c") and p == 81))
        ),
    ),
    "policies add up": (
        [
            np("one", **WEB, ingress=[{"from": [pods(pod="b")]}]),
            np("two", **WEB, ingress=[{"from": [namespaces("z")]}]),
        ],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "x", "b") or at(s, "z"),
    ),
    "egress to one application": (
        [np("p", **WEB, policyTypes=OUT, egress=[{"to": [pods(pod="b")]}])],
        lambda s, d, p, t: not at(s, "x", "a") or at(d, "x", "b"),
    ),
    "egress to a namespace on a port": (
        [np("p", policyTypes=OUT, egress=[{"to": [namespaces("y")], "ports": [{"port": 81, "protocol": "UDP"}]}])],
        lambda s, d, p, t: not at(s, "x") or (at(d, "y") and (p, t) == (81, "udp")),
    ),
    "egress to a named port": (
        [np("p", **WEB, policyTypes=OUT, egress=[{"ports": [{"port": "serve-80-tcp"}]}])],
        lambda s, d, p, t: not at(s, "x", "a") or (p, t) == (80, "tcp"),
    ),
    "egress allowed, ingress of the other denied": (
        [np("out", policyTypes=OUT, egress=[{"to": [namespaces("y")]}]), np("in", "y", policyTypes=IN)],
        lambda s, d, p, t: not at(s, "x") and not at(d, "y"),
    ),
    "networks": (
        [np("p", **WEB, ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/28", "except": ["10.0.0.8/29"]}}]},
                                 {"from": [{"ipBlock": {"cidr": "fd00::/124", "except": ["fd00::8/125"]}}]}])],
        lambda s, d, p, t: not at(d, "x", "a") or at(s, "x"),
    ),
    "the cluster's administrator denies what a policy allows": (
        [np("p", ingress=[{}]), cnp("deny", ingress=[admin_rule("Deny", "y")])],
        lambda s, d, p, t: not at(s, "y"),
    ),
    "the administrator allows what a policy denies": (
        [np("p", policyTypes=IN), cnp("allow", ingress=[admin_rule("Accept", "y")])],
        lambda s, d, p, t: not at(d, "x") or at(s, "y"),
    ),
    "the administrator passes": (
        [np("p", policyTypes=IN), cnp("pass", ingress=[admin_rule("Pass", "y"), admin_rule("Accept", "y", "z")])],
        lambda s, d, p, t: not at(d, "x") or at(s, "z"),
    ),
    "priority decides among the administrator's": (
        [
            cnp("late", priority=9, ingress=[admin_rule("Accept", "y")]),
            cnp("early", priority=2, ingress=[admin_rule("Deny", "y")]),
        ],
        lambda s, d, p, t: not at(s, "y"),
    ),
    "the baseline holds where no policy is": (
        [np("p", ingress=[{}]), cnp("base", "Baseline", ingress=[admin_rule("Deny", "y")])],
        lambda s, d, p, t: at(d, "x") or not at(s, "y"),
    ),
    "the administrator's subject and protocols": (
        [
            cnp(
                "deny",
                subject={"pods": {"namespaceSelector": {"matchLabels": {"ns": "x"}}, **pods(pod="a")}},
                ingress=[admin_rule("Deny", "y", "z", protocols=[
                    {"tcp": {"destinationPort": {"number": 80}}},
                    {"sctp": {"destinationPort": {"range": {"start": 81, "end": 99}}}},
                    {"destinationNamedPort": "serve-81-udp"},
                ])],
            )
        ],
        lambda s, d, p, t: not (
            at(d, "x", "a") and not at(s, "x") and (p, t) in {(80, "tcp"), (81, "sctp"), (81, "udp")}
        ),
    ),
    "the administrator's egress to networks": (
        [
            cnp("deny", egress=[
                {"action": "Deny", "to": [{"networks": ["10.0.0.8/29", "fd00::8/125"]}]}
            ])
        ],
        lambda s, d, p, t: not at(d, "y"),
    ),
}  # fmt: skip
