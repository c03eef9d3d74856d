"""What the upstream NetworkPolicy conformance suite asks ("Netpol" of Kubernetes' end-to-end tests), as a table: the
policies of a case, and the picture that they make. SCTP is left out: no connection of it can be made on most machines.

A case is written for the namespaces x, y, z and the pods a, b, c of `grid`; policies stand in x unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e.grid import TCP80, TCP81, UDP80, Grid, Picture

JsonObject = dict[str, Any]
Addresses = Callable[[str], list[str]]
"""Of a pod, IPv4 first, each with its full prefix length."""


@dataclass(frozen=True)
class Case:
    """policies: spec by name, or a callable that gets the pods' addresses. picture: what they make."""

    name: str
    policies: Mapping[str, JsonObject] | Callable[[Addresses], Mapping[str, JsonObject]]
    picture: Callable[[], Picture]


def select(**labels: str) -> JsonObject:
    return {"matchLabels": labels}


def anyone(key: str, operator: str, *values: str) -> JsonObject:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def pods(selector: JsonObject) -> JsonObject:
    return {"podSelector": selector}


def namespaces(selector: JsonObject, pod: JsonObject | None = None) -> JsonObject:
    return {"namespaceSelector": selector, **({"podSelector": pod} if pod is not None else {})}


def ingress(subject: JsonObject, *rules: JsonObject) -> JsonObject:
    return {"podSelector": subject, "policyTypes": ["Ingress"], "ingress": list(rules)}


def egress(subject: JsonObject, *rules: JsonObject) -> JsonObject:
    return {"podSelector": subject, "policyTypes": ["Egress"], "egress": list(rules)}


def sources(*peers: JsonObject, ports: list[JsonObject] | None = None) -> JsonObject:
    return {"from": list(peers), **({"ports": ports} if ports else {})}


def targets(*peers: JsonObject, ports: list[JsonObject] | None = None) -> JsonObject:
    return {"to": list(peers), **({"ports": ports} if ports else {})}


def port(number: int | str, protocol: str = "TCP", end: int | None = None) -> JsonObject:
    return {"port": number, "protocol": protocol, **({"endPort": end} if end else {})}


EVERY: JsonObject = {}
A, B = select(pod="a"), select(pod="b")
Y = select(ns="y")


def blocks(addresses: list[str], excepted: list[str] | None = None) -> list[JsonObject]:
    """Peers, one of each family."""
    return [
        {"ipBlock": {"cidr": cidr, **({"except": [excepted[n]]} if excepted else {})}}
        for n, cidr in enumerate(addresses)
    ]


EVERYWHERE = ["0.0.0.0/0", "::/0"]

CASES = [
    Case("default-deny ingress", {"p": ingress(EVERY)}, lambda: Picture().deny("*", "x")),
    Case(
        "default-deny of both directions", {"p": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}},
        lambda: Picture().deny("*", "x").deny("x", "*"),
    ),
    Case(
        "pods of the server's namespace, by pod selector", {"p": ingress(A, sources(pods(B)))},
        lambda: Picture().deny("*", "x/a").allow("x/b", "x/a"),
    ),
    Case(
        "pods by match expressions",
        {"p": ingress(A, sources(pods(anyone("pod", "In", "b", "d"))), sources(pods(anyone("absent", "Exists"))))},
        lambda: Picture().deny("*", "x/a").allow("x/b", "x/a"),
    ),
    Case(
        "another namespace, by namespace selector", {"p": ingress(A, sources(namespaces(Y)))},
        lambda: Picture().deny("*", "x/a").allow("y", "x/a"),
    ),
    Case(
        "namespaces by match expressions",
        {"p": ingress(A, sources(namespaces(anyone("ns", "NotIn", "y"))), sources(namespaces(anyone("no", "Exists"))))},
        lambda: Picture().deny("y", "x/a"),
    ),
    Case(
        "a pod selector or a namespace selector", {"p": ingress(A, sources(pods(B), namespaces(Y)))},
        lambda: Picture().deny("*", "x/a").allow(("x/b", "y"), "x/a"),
    ),
    Case(
        "a pod selector and a namespace selector", {"p": ingress(A, sources(namespaces(Y, B)))},
        lambda: Picture().deny("*", "x/a").allow("y/b", "x/a"),
    ),
    Case(
        "several pairs of selectors",
        {"p": ingress(A, sources(namespaces(anyone("ns", "NotIn", "x"), anyone("pod", "In", "b", "c"))))},
        lambda: Picture().deny("*", "x/a").allow(("y/b", "y/c", "z/b", "z/c"), "x/a"),
    ),
    Case(
        "any pod of its own namespace", {"p": ingress(A, sources(pods(EVERY)))},
        lambda: Picture().deny(("y", "z"), "x/a"),
    ),
    Case(
        "one port only", {"p": ingress(A, sources(ports=[port(81)]))},
        lambda: Picture().deny("*", "x/a", TCP80, UDP80),
    ),
    Case(
        "a port and a peer", {"p": ingress(A, sources(namespaces(Y), ports=[port(80)]))},
        lambda: Picture().deny("*", "x/a").allow("y", "x/a", TCP80),
    ),
    Case(
        "several ports and peers in rules of their own",
        {"p": ingress(
            A, sources(namespaces(Y), ports=[port(80)]), sources(pods(B), ports=[port(80, "UDP"), port(81)])
        )},
        lambda: Picture().deny("*", "x/a").allow("y", "x/a", TCP80).allow("x/b", "x/a", TCP81, UDP80),
    ),
    Case(
        "a range of ports", {"p": ingress(A, sources(ports=[port(79, end=80)]))},
        lambda: Picture().deny("*", "x/a", TCP81, UDP80),
    ),
    Case(
        "named ports", {"p": ingress(A, sources(namespaces(EVERY), ports=[port("serve-81-tcp")]))},
        lambda: Picture().deny("*", "x/a", TCP80, UDP80),
    ),
    Case(
        "a named port of UDP in egress", {"p": egress(A, targets(ports=[port("serve-80-udp", "UDP")]))},
        lambda: Picture().deny("x/a", "*", TCP80, TCP81),
    ),
    Case(
        "a protocol without a port", {"p": ingress(A, sources(ports=[{"protocol": "UDP"}]))},
        lambda: Picture().deny("*", "x/a", TCP80, TCP81),
    ),
    Case(
        "SCTP is not TCP", {"p": ingress(A, sources(ports=[port(80, "SCTP")]))},
        lambda: Picture().deny("*", "x/a"),
    ),
    Case(
        "policies add up",
        {"p": ingress(A, sources(namespaces(Y), ports=[port(80)])), "q": ingress(A, sources(ports=[port(81)]))},
        lambda: Picture().deny("*", "x/a").allow("*", "x/a", TCP81).allow("y", "x/a", TCP80),
    ),
    Case(
        "allow-all opens what deny-all closes", {"p": ingress(EVERY), "q": ingress(EVERY, {})},
        Picture,
    ),
    Case(
        "egress to pods of its own namespace", {"p": egress(A, targets(pods(B)))},
        lambda: Picture().deny("x/a", "*").allow("x/a", "x/b"),
    ),
    Case(
        "egress to another namespace's pods on a port", {"p": egress(A, targets(namespaces(Y, A), ports=[port(80)]))},
        lambda: Picture().deny("x/a", "*").allow("x/a", "y/a", TCP80),
    ),
    Case(
        "egress policies add up",
        {"p": egress(A, targets(ports=[port(80)])), "q": egress(A, targets(ports=[port(81)]))},
        lambda: Picture().deny("x/a", "*", UDP80),
    ),
    Case(
        "both directions in one policy",
        {"p": {"podSelector": A, "policyTypes": ["Ingress", "Egress"], "ingress": [sources(namespaces(Y))],
               "egress": [targets(pods(B))]}},
        lambda: Picture().deny("*", "x/a").allow("y", "x/a").deny("x/a", "*").allow("x/a", "x/b"),
    ),
    Case(
        "egress to a block of addresses", lambda at: {"p": egress(A, targets(*blocks(at("y/b"))))},
        lambda: Picture().deny("x/a", "*").allow("x/a", "y/b"),
    ),
    Case(
        "a block with an exception", lambda at: {"p": egress(A, targets(*blocks(EVERYWHERE, at("y/b"))))},
        lambda: Picture().deny("x/a", "y/b"),
    ),
    Case(
        "an exception that another policy allows",
        lambda at: {
            "p": egress(A, targets(*blocks(EVERYWHERE, at("y/b")))), "q": egress(A, targets(*blocks(at("y/b")))),
        },
        Picture,
    ),
    Case(
        "ingress from a block of addresses", lambda at: {"p": ingress(A, sources(*blocks(at("z/c"))))},
        lambda: Picture().deny("*", "x/a").allow("z/c", "x/a"),
    ),
]  # fmt: skip


def documents(case: Case, grid: Grid) -> list[JsonObject]:
    def addresses(name: str) -> list[str]:
        pod = grid.pod(name)
        return [f"{pod.address(4)}/32", f"{pod.address(6)}/128"]

    specs = case.policies if isinstance(case.policies, Mapping) else case.policies(addresses)
    return [policy(name, grid.namespace("x"), spec) for name, spec in specs.items()]


def policy(name: str, namespace: str, spec: JsonObject) -> JsonObject:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
