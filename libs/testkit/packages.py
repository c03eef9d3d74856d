"""Programs of packages that `./dev test` unpacked without installing them, else the machine's own."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache"


def search_path(*packages: Path) -> str:
    """PATH, with theirs first."""
    own = [str(one / name) for one in packages for name in ("usr/bin", "usr/sbin", "bin", "sbin")]
    return os.pathsep.join([*own, os.environ["PATH"], "/usr/sbin", "/sbin"])


def library_path(*packages: Path) -> str:
    libraries = (path for one in packages for root in ("usr/lib", "lib") for path in (one / root).glob("*/*.so.*"))
    found = sorted({str(path.parent) for path in libraries})
    return os.pathsep.join([*found, *filter(None, [os.environ.get("LD_LIBRARY_PATH", "")])])


def environment(*packages: Path) -> dict[str, str]:
    """Ours, and what their programs need to find each other, their libraries and the extensions of iptables."""
    made = os.environ | {"PATH": search_path(*packages)}
    if libraries := library_path(*packages):
        made["LD_LIBRARY_PATH"] = libraries
    for one in packages:
        for extensions in (one / "usr/lib").glob("*/xtables"):
            made["XTABLES_LIBDIR"] = str(extensions)
    return made
