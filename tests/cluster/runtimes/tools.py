"""Container runtimes and CNI's own tools, from where ./dev put them (unpacked, not installed) or from the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from libs.testkit import packages

PACKAGES = packages.CACHE / "runtimes"
CNITOOL = packages.CACHE / "cnitool" / "cnitool"
_PLUGINS = (PACKAGES / "usr/lib/cni", Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def tool(name: str) -> Path:
    """Raises pytest.skip: not here."""
    found = shutil.which(name, path=packages.search_path(PACKAGES))
    if found is None:
        pytest.skip(f"container runtimes are not here: {name}")
    return Path(found)


def cnitool() -> Path:
    if not CNITOOL.exists():
        pytest.skip("cnitool is not here")
    return CNITOOL


def plugin(name: str) -> Path:
    """One of the plugins that everybody chains (package containernetworking-plugins)."""
    for directory in _PLUGINS:
        if (directory / name).exists():
            return directory / name
    pytest.skip(f"container runtimes are not here: plugin {name}")


def library_path() -> str:
    return packages.library_path(PACKAGES)


def environment() -> dict[str, str]:
    return packages.environment(PACKAGES)
