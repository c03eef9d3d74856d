"""What every test of a folder is, for those who choose tests and spread them over workers."""

from __future__ import annotations

from pathlib import Path

import pytest


def by_module(items: list[pytest.Item], folder: Path, mark: str) -> None:
    """Tests below `folder` get the mark, and those of a module one worker, since they share what it started."""
    for item in items:
        path = Path(item.fspath)
        if folder in path.parents:
            item.add_marker(getattr(pytest.mark, mark))
            item.add_marker(pytest.mark.xdist_group(f"{mark}-{path.stem}"))
