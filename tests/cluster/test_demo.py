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


def clusters(env: dict[str, str]) -> set[str]:
    """Their ids, which their namespaces carry."""
    try:
        return {path.name for path in Path(env["CALICO_TEST_RUN_DIR"]).iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return set()


def links() -> set[str]:
    out = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {line.split(": ")[1].split("@")[0] for line in out.splitlines()}


def left_behind(made: set[str], devices: set[str]) -> tuple[set[str], set[str]]:
    """Namespaces of these clusters, and devices that were not here before."""
    assert made
    lines = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.splitlines()
    spaces = {line.split()[0] for line in lines if line}
    return {space for space in spaces if any(one in space for one in made)}, links() - devices


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
    devices, made, deadline = links(), set[str](), time.monotonic() + 240
    report = tmp_path / "report.json"
    command = ["./dev", "demo", "--networking", networking, "--json", str(report)]
    with subprocess.Popen(
        command, cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        while True:
            made |= clusters(env)
            try:
                said, _ = demo.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    demo.kill()
    assert demo.returncode == 0, said[-6000:]
    written = json.loads(report.read_text())
    cells = [cell for matrix in written["matrices"] for cell in matrix["cells"]]
    assert len(cells) >= 50
    assert all(cell["expected"] == cell["actual"] for cell in cells)
    assert {cell["actual"] for cell in cells} == {"allow", "deny"}
    assert written["times_ms"]["apply to enforcement, median"] > 0
    assert "kill -9 of felix on node2" in written["times_ms"]
    assert ("kill -9 of bgp on node2" in written["times_ms"]) is (networking == "bgp")
    assert left_behind(made, devices) == (set(), set())


def test_interrupted_demo_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    devices = links()
    demo = subprocess.Popen(
        ["./dev", "demo"], cwd=PROJECT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert demo.stderr is not None
    for line in demo.stderr:
        if "nine pods" in line:
            break
    made = clusters(env)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    demo.stderr.read()
    assert demo.wait(timeout=60) != 0
    assert left_behind(made, devices) == (set(), set())
    deadline = time.monotonic() + 30
    while not children_gone(env["CALICO_TEST_RUN_DIR"]):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


def test_up_shell_and_down(env: dict[str, str]) -> None:
    devices = links()
    up = subprocess.run(["./dev", "up"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=120)
    made = clusters(env)
    try:
        assert up.returncode == 0, up.stderr
        assert "./dev shell node1" in up.stdout
        inside = subprocess.run(
            ["./dev", "shell", "node1"], cwd=PROJECT, env=env, input="nft list tables; ip -br addr show eth0\n",
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "table ip calico" in inside.stdout
        assert "172.31.0.11" in inside.stdout
        again = subprocess.run(["./dev", "up"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
        assert again.returncode == 1
        assert "running already" in again.stderr
    finally:
        down = subprocess.run(["./dev", "down"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert down.returncode == 0, down.stderr
    assert left_behind(made, devices) == (set(), set())
    unknown = subprocess.run(
        ["./dev", "shell", "node1"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60
    )
    assert unknown.returncode == 1
    assert "no cluster is running" in unknown.stderr
