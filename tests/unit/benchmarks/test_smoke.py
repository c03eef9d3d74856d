"""Benchmarks that need nothing but Python run at a small size, and the shared parts do what they say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import calc, common, node_share, policies
from libs import model
from libs.runtime import garbage

TINY = calc.Size(endpoints=120, policies=30, nodes=6, namespaces=5, apps=4)


@pytest.fixture(autouse=True)
def _collector_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "settle", lambda: None)  # is for a process of its own


def test_the_calculation_runs_and_agrees_with_the_plain_loop() -> None:
    rows = {str(row["what"]): row["value"] for row in calc.cluster_rows(TINY)}
    assert "a node with 20 pods receives" in rows
    assert 0 < float(str(rows["a node's share of everything, uncompressed"])) < 100


def test_a_calculation_that_differs_from_the_plain_loop_is_no_result() -> None:
    data = dict(policies.cluster(20, 10, 2, 2, 2))
    calculator, _, _ = calc.load(data)
    key, value = policies.policy("pol0", "ns0", "nobody", ["app0"], 80)
    calculator.update(key, model.from_storage(key, value, 2))
    calculator.flush()
    with pytest.raises(SystemExit, match="differ"):
        calc.naive_matching(calculator, data)


@pytest.mark.parametrize(("function", "arguments", "_calico"), calc.QUICK_SHAPES)
def test_shapes(function: Callable[..., common.Row], arguments: tuple[int | str, ...], _calico: str) -> None:
    assert function(*arguments)["ours"]


def test_synthetic_resources_are_what_the_datastore_holds() -> None:
    for key, value in [*node_share.own_data(), *node_share.rest_data(100), *policies.with_network_set(3, "app1")]:
        if "/ipam/" not in key:
            assert model.from_storage(key, value, 1).metadata.name


def test_growing_the_rest_of_the_cluster_changes_nothing_of_the_nodes_own() -> None:
    own = dict(node_share.own_data())
    assert not own.keys() & dict(node_share.rest_data(2_000)).keys()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles_are_samples(share: float, expected: float) -> None:
    assert common.percentile([float(n) for n in range(100, 0, -1)], share) == expected


def test_a_report_tells_the_machine_and_its_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x" / "figures.json"
    common.report("title", [{"what": "one", "p50_ms": 1.5}], path, common.machine())
    written = json.loads(path.read_text())
    assert written["rows"] == [{"what": "one", "p50_ms": 1.5}]
    assert {"kernel", "cpu", "cores", "memory_gib", "python", "date", "load_before", "load_after"} <= set(
        written["machine"]
    )
    assert "one" in capsys.readouterr().out


def test_every_name_has_a_module_and_unknown_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in program.NAMES:
        assert importlib.import_module(f"benchmarks.{name}").main
    assert program.main(["--list"]) == 0
    assert "node_share" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        program.main(["nothing"])
    assert "no such benchmark: nothing" in capsys.readouterr().err
