"""Kubernetes network policies (tests/judges/recipes.py), judged at both ends by the product's own trace, after
conversion and calculation; the pods are on two nodes.
"""

from __future__ import annotations

import pytest

from libs import model
from libs.policy.output import Action
from libs.policy.trace import Direction, Packet, decide
from tests.judges.recipes import BOTH, FLOWS, PODS, RECIPES, Flow, Pod, cluster, np

OUTSIDE = {4: "192.0.2.9", 6: "2001:db8::9"}


def node_of(pod: Pod) -> str:
    return f"n{PODS.index(pod.name) % 2}"


class Judge:
    def __init__(self, policies: list[model.Resource]) -> None:
        self._views = {node: cluster(policies, node_of).view(node) for node in ("n0", "n1")}

    def allows(self, flow: Flow, version: int) -> bool:
        source, target, port, protocol = flow
        packet = Packet(
            src=source.address(version), dst=target.address(version), protocol=protocol, src_port=40000, dst_port=port
        )
        ends = ((source, Direction.EGRESS), (target, Direction.INGRESS))
        return all(self._end(pod, packet, direction) for pod, direction in ends)

    def outside(self, pod: Pod, version: int, direction: Direction) -> bool:
        mine, other = pod.address(version), OUTSIDE[version]
        src, dst = (mine, other) if direction is Direction.EGRESS else (other, mine)
        return self._end(pod, Packet(src=src, dst=dst, protocol="tcp", src_port=1, dst_port=80), direction)

    def _end(self, pod: Pod, packet: Packet, direction: Direction) -> bool:
        view = self._views[node_of(pod)]
        (endpoint,) = (w for w in view.workloads.values() if w.name == f"cali{pod.full}")
        return decide(endpoint, view, packet, direction).action is Action.ALLOW


@pytest.mark.parametrize("name", RECIPES)
def test_matrix(name: str) -> None:
    policies, allowed = RECIPES[name]
    judge = Judge(policies)
    wrong = [
        (f"IPv{version}", flow)
        for flow in FLOWS
        for version in (4, 6)
        if judge.allows(flow, version) is not allowed(*flow)
    ]
    assert not wrong, f"{len(wrong)} of {2 * len(FLOWS)}, first {wrong[0]}"


def test_what_is_no_pod_counts_for_networks_only() -> None:
    inside = Pod("x", "a")
    judge = Judge([np("p", ingress=[{"from": [{"namespaceSelector": {}}]}], egress=[], policyTypes=BOTH)])
    block = {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
    open_block = Judge([np("p", ingress=[block])])
    excepted = {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}]}
    closed_block = Judge([np("p", ingress=[excepted])])
    assert not judge.outside(inside, 4, Direction.INGRESS)
    assert not judge.outside(inside, 4, Direction.EGRESS)
    assert open_block.outside(inside, 4, Direction.INGRESS)
    assert not open_block.outside(inside, 6, Direction.INGRESS)
    assert not closed_block.outside(inside, 4, Direction.INGRESS)
    assert Judge([]).outside(inside, 6, Direction.EGRESS)
