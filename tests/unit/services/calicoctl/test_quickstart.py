"""The quickstart's files are accepted, and its hand-written expectations agree with the policy calculation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from libs import model
from libs.model.storage import from_storage
from libs.policy.calculator import Calculator
from libs.policy.output import Action, Workload
from libs.policy.trace import Direction, Packet, decide
from libs.store.memory import MemoryStore
from tests.unit.services.calicoctl.ctl import Ctl

QUICKSTART = Path(__file__).parents[4] / "examples" / "quickstart"
PODS: dict[str, Any] = yaml.safe_load((QUICKSTART / "demo" / "pods.yaml").read_text())
EXPECTED: dict[str, Any] = yaml.safe_load((QUICKSTART / "demo" / "expected.yaml").read_text())
NAMES = [pod["name"] for pod in PODS["pods"]]
STAGES = [stage["name"] for stage in EXPECTED["stages"]]


def cells(stage: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(source, destination) -> two signs, one for each port."""
    lines = [line.split() for line in stage["matrix"].splitlines() if not line.startswith("#")]
    assert [line[0] for line in lines] == NAMES
    return {(line[0], to): cell for line in lines for to, cell in zip(NAMES, line[1:], strict=True)}


def test_matrices_cover_every_pair_and_port() -> None:
    for stage in EXPECTED["stages"]:
        found = cells(stage)
        assert len(found) == 81
        assert [pair for pair, cell in found.items() if cell == "--"] == [(name, name) for name in NAMES]
        assert all(len(cell) == 2 and set(cell) <= set("+.") for pair, cell in found.items() if pair[0] != pair[1])
    tries = sum(2 for stage in EXPECTED["stages"] for cell in cells(stage).values() if cell != "--")
    assert tries == 720


def test_every_stage_changes_something_but_no_cell_without_reason() -> None:
    before: dict[tuple[str, str], str] = {}
    for stage in EXPECTED["stages"]:
        found = cells(stage)
        assert found != before
        before = found


def addresses(index: int, pod: dict[str, Any]) -> list[str]:
    wanted = pod.get("annotations", {}).get("cni.projectcalico.org/ipAddrs")
    return list(yaml.safe_load(wanted)) if wanted else [f"10.244.{index}.5", f"fd00:244::{index}:5"]


def endpoint(index: int, pod: dict[str, Any]) -> dict[str, Any]:
    namespace = pod["namespace"]
    networks = [f"{address}/{128 if ':' in address else 32}" for address in addresses(index, pod)]
    spec = {"orchestrator": "k8s", "node": pod["node"], "pod": pod["name"], "endpoint": "eth0", "containerID": "c"}
    spec |= {"interfaceName": f"cali{index}", "ipNetworks": networks, "serviceAccountName": "default"}
    spec |= {"profiles": [f"kns.{namespace}", f"ksa.{namespace}.default"]}
    metadata = {"name": f"{pod['node']}-k8s-{pod['name']}-eth0", "namespace": namespace, "labels": pod["labels"]}
    return {"apiVersion": model.API_VERSION, "kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec}


def calculated(ctl: Ctl) -> Calculator:
    async def read() -> Calculator:
        calculator = Calculator()
        for kv in (await MemoryStore(ctl.server).list("/calico/resources/")).kvs:
            calculator.update(kv.key, from_storage(kv.key, kv.value, kv.mod_revision))
        calculator.flush()
        return calculator

    return ctl.run(read())


@pytest.mark.parametrize("stage", STAGES)
def test_the_calculation_agrees_with_the_expectation(ctl: Ctl, stage: str) -> None:
    pods = [endpoint(index, pod) for index, pod in enumerate(PODS["pods"], start=1)]
    for current in EXPECTED["stages"]:
        for file in current["apply"]:
            ctl.good("apply", "-f", str(QUICKSTART / file))
        if current["name"] == stage:
            break
    ctl.good("apply", "-f", "-", stdin=yaml.safe_dump({"kind": "List", "items": pods}))
    calculator = calculated(ctl)
    views = {node: calculator.view(node) for node in ("node1", "node2", "node3")}
    found: dict[str, tuple[str, Workload]] = {}
    for node, key, workload in calculator.workloads():
        (name,) = (name for name in NAMES if f"/{name}" in str(key) or f"-{name}-" in str(key))
        found[name] = (node, workload)
    assert sorted(found) == sorted(NAMES)
    by_name = {pod["name"]: addresses(index, pod) for index, pod in enumerate(PODS["pods"], start=1)}
    for family in (0, 1):
        actual = {
            (source, to): "--" if source == to else "".join(
                "+" if allowed(found, views, by_name[source][family], by_name[to][family], source, to, port) else "."
                for port in EXPECTED["ports"]
            )
            for source in NAMES
            for to in NAMES
        }  # fmt: skip
        assert actual == cells(current)


def allowed(found: Any, views: Any, src: str, dst: str, source: str, to: str, port: int) -> bool:
    packet = Packet(src=src, dst=dst, protocol="tcp", src_port=40_000, dst_port=port)
    return all(
        decide(found[name][1], views[found[name][0]], packet, direction).action is Action.ALLOW
        for name, direction in ((source, Direction.EGRESS), (to, Direction.INGRESS))
    )
