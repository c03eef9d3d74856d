"""Kubernetes network policies (recipes.py) in the kernel: every flow of the matrix as a crafted packet, SCTP too."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from libs.testkit import packets
from libs.testkit.packets import Packet
from tests.judges.kernel_judge import KernelJudge, running_judge
from tests.judges.recipes import ALL, FLOWS, RECIPES, Flow, cluster
from tests.judges.shots import Shot

pytestmark = pytest.mark.kernel

NUMBERS = {"tcp": packets.TCP, "udp": packets.UDP, "sctp": packets.SCTP}


@pytest.fixture(scope="module")
def judge() -> Iterator[KernelJudge]:
    with running_judge({pod.full: {version: pod.address(version) for version in (4, 6)} for pod in ALL}) as made:
        yield made


def shot(flow: Flow, version: int) -> Shot:
    source, target, port, protocol = flow
    from_, to = (ip_address(pod.address(version)) for pod in (source, target))
    return Shot(Packet(from_, to, NUMBERS[protocol], 40000, port), source.full, target.full)


@pytest.mark.parametrize("name", RECIPES)
def test_matrix_of_real_packets(judge: KernelJudge, name: str) -> None:
    policies, allowed = RECIPES[name]
    judge.load(cluster(policies, lambda _pod: "n0").view("n0"))
    asked = [(flow, version) for flow in FLOWS for version in (4, 6)]
    verdicts = judge.judge([shot(flow, version) for flow, version in asked])
    wrong = [
        f"IPv{version} {flow}"
        for (flow, version), got_through in zip(asked, verdicts, strict=True)
        if got_through is not allowed(*flow)
    ]
    assert not wrong, f"{len(wrong)} of {len(asked)}, first {wrong[0]}"
