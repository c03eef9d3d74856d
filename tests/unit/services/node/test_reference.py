"""Every setting stands in the reference page, and systemd takes the unit files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from libs.runtime.config import settings_of
from services.node.config import NodeConfig

ROOT = Path(__file__).resolve().parents[4]


def test_the_page_tells_each_setting_with_its_default() -> None:
    lines = (ROOT / "docs" / "reference" / "node.md").read_text().splitlines()
    rows = {line.split("|")[1].strip().strip("`"): line for line in lines if line.startswith("| `")}
    for setting in settings_of(NodeConfig):
        row = rows[setting.env[0]]
        assert setting.sentence.replace("|", "/") in row
        assert not setting.default or f"`{setting.default}`" in row


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", ["calico-node.service", "calico-felix.service"])
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "systemd" / name).read_text()
    for program in ("calico-node", "calico-felix"):
        text = text.replace(f"/opt/calico/bin/{program}", "/bin/true")  # it looks for programs, too
    unit = tmp_path / name
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if name in line]
    assert (done.returncode, ours) == (0, []), done.stderr
