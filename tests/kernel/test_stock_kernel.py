"""A command on a distribution's kernel, really."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libs.testkit.stock_kernel import machine

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(machine.missing()), reason="a distribution's kernel is not here"),
]
PROJECT = Path(__file__).resolve().parents[2]


def test_a_command_runs_there_with_this_machines_files_and_changes_none() -> None:
    """Its words come out, its exit status too; modules are loaded when something asks for them."""
    new = PROJECT / f"stock-kernel-{os.getpid()}"
    script = f"uname -r; pwd; touch {new} && ls {new}; ip link add w type wireguard && echo made; exit 7"
    done = subprocess.run(
        [sys.executable, "-m", "libs.testkit.stock_kernel", "sh", "-c", script],
        cwd=PROJECT, capture_output=True, text=True, timeout=870, check=False,
    )  # fmt: skip
    said = done.stdout.replace("\r", "").splitlines()
    (release,) = [path.name.removeprefix("vmlinuz-") for path in (machine.PACKAGES / "boot").glob("vmlinuz-*")]
    assert [line for line in said if line in (release, str(PROJECT), str(new), "made")] == [
        release, str(PROJECT), str(new), "made",
    ]  # fmt: skip
    assert done.returncode == 7, done.stdout + done.stderr
    assert not new.exists()
