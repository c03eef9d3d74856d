"""The front door: `./dev demo`, `up`, `shell`, `down`, and Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from libs.testkit import quickstart

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A run directory of its own: a developer's cluster beside it is not touched."""
    return {**os.environ, "CALICO_TEST_RUN_DIR": str(tmp_path / "clusters")}


def namespaces() -> set[str]:
    return {
        line.split()[0] for line in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.splitlines()
    }


def links() -> set[str]:
    out = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {line.split(": ")[1].split("@")[0] for line in out.splitlines()}


def left_behind(spaces: set[str], devices: set[str]) -> tuple[set[str], set[str]]:
    return namespaces() - spaces, links() - devices


def children_gone(mark: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    return False
            except OSError:
                continue
    return True


def test_the_example_is_consistent() -> None:
    example = quickstart.load()
    assert len(example.pods) == 9
    assert all(len(stage.expected) == 9 * 8 * len(example.ports) for stage in example.stages)


@pytest.mark.parametrize("networking", ["none", "bgp", "vxlan", "vxlan-crosssubnet"])
def test_demo_shows_every_cell_as_a_person_expected(env: dict[str, str], tmp_path: Path, networking: str) -> None:
    spaces, devices = namespaces(), links()
    report = tmp_path / "report.json"
    command = ["./dev", "demo", "--networking", networking, "--json", str(report)]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = json.loads(report.read_text())
    cells = [cell for matrix in written["matrices"] for cell in matrix["cells"]]
    assert len(cells) >= 50
    assert all(cell["expected"] == cell["actual"] for cell in cells)
    assert {cell["actual"] for cell in cells} == {"allow", "deny"}
    assert written["times_ms"]["apply to enforcement, median"] > 0
    assert "kill -9 of felix on node2" in written["times_ms"]
    assert ("kill -9 of bgp on node2" in written["times_ms"]) is (networking == "bgp")
    assert left_behind(spaces, devices) == (set(), set())


def test_interrupted_demo_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    spaces, devices = namespaces(), links()
    demo = subprocess.Popen(
        ["./dev", "demo"], cwd=PROJECT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert demo.stderr is not None
    for line in demo.stderr:
        if "nine pods" in line:
            break
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    demo.stderr.read()
    assert demo.wait(timeout=30) != 0
    assert left_behind(spaces, devices) == (set(), set())
    deadline = time.monotonic() + 10
    while not children_gone(env["CALICO_TEST_RUN_DIR"]):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


def test_up_shell_and_down(env: dict[str, str]) -> None:
    spaces, devices = namespaces(), links()
    up = subprocess.run(["./dev", "up"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=90)
    try:
        assert up.returncode == 0, up.stderr
        assert "./dev shell node1" in up.stdout
        inside = subprocess.run(
            ["./dev", "shell", "node1"], cwd=PROJECT, env=env, input="nft list tables; ip -br addr show eth0\n",
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert "table ip calico" in inside.stdout
        assert "172.31.0.11" in inside.stdout
        again = subprocess.run(["./dev", "up"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=30)
        assert again.returncode == 1
        assert "running already" in again.stderr
    finally:
        down = subprocess.run(["./dev", "down"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert down.returncode == 0, down.stderr
    assert left_behind(spaces, devices) == (set(), set())
    unknown = subprocess.run(
        ["./dev", "shell", "node1"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=30
    )
    assert unknown.returncode == 1
    assert "no cluster is running" in unknown.stderr
