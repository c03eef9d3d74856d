"""Container runtimes and CNI's own tools, from where ./dev put them (unpacked, not installed) or from the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[3] / ".cache"
PACKAGES = CACHE / "runtimes"  # Debian's packages, unpacked
CNITOOL = CACHE / "cnitool" / "cnitool"
_BIN = [PACKAGES / name for name in ("usr/bin", "usr/sbin", "bin", "sbin")]
_PLUGINS = (PACKAGES / "usr/lib/cni", Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def tool(name: str) -> Path:
    """Raises pytest.skip: not here."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, _BIN), os.environ["PATH"], "/usr/sbin", "/sbin"]))
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
    found = sorted({str(path.parent) for path in (PACKAGES / "usr/lib").glob("*/*.so.*")})
    return os.pathsep.join([*found, *filter(None, [os.environ.get("LD_LIBRARY_PATH", "")])])


def environment() -> dict[str, str]:
    """What the tools need to find each other and their libraries."""
    path = os.pathsep.join([*map(str, _BIN), os.environ["PATH"], "/usr/sbin", "/sbin"])
    made = os.environ | {"PATH": path}
    if libraries := library_path():
        made["LD_LIBRARY_PATH"] = libraries
    for extensions in (PACKAGES / "usr/lib").glob("*/xtables"):
        made["XTABLES_LIBDIR"] = str(extensions)
    return made
