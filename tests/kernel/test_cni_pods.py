"""Pretend pods (`calico-cni pod`) where there is no agent to plug them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from libs.testkit.netns import can_make_namespaces
from services.cni.build import build

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
]


def test_a_pod_that_cannot_be_plugged_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    name = f"t{uuid4().hex[:8]}"
    plugin = build(socket=str(tmp_path / "nobody.sock"))
    said = []
    try:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-m", "services.cni", "pod", "add", name],
                env=os.environ | {"CNI_BINARY": str(plugin)}, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert not Path("/run/netns", name).exists()
            said.append(done.stderr)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    assert "nobody.sock" in said[0]
    assert said[0] == said[1], "the second time the same, and not that the name is taken"
