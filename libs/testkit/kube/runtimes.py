"""Programs of a node that Kubernetes does not bring: containerd, runc and CNI's own plugins, from where `./dev test`
unpacked the distribution's packages (`.cache/runtimes`), or from the machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[3] / ".cache" / "runtimes"
_BIN = [str(PACKAGES / name) for name in ("usr/bin", "usr/sbin", "bin", "sbin")]
_PLUGINS = (PACKAGES / "usr/lib/cni", Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CGROUPS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
_ROOT = Path("/sys/fs/cgroup")


class RuntimesMissing(RuntimeError):
    """This machine cannot run real kubelets; the text says what is missing."""


def tool(name: str) -> Path:
    """Raises RuntimesMissing."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise RuntimesMissing(f"container runtimes are not here: {name}")
    return Path(found)


def plugin(name: str) -> Path:
    """One of the plugins that everybody chains (package containernetworking-plugins). Raises RuntimesMissing."""
    for directory in _PLUGINS:
        if (directory / name).exists():
            return directory / name
    raise RuntimesMissing(f"container runtimes are not here: plugin {name}")


def search_path() -> str:
    return os.pathsep.join([*_BIN, os.environ["PATH"], "/usr/sbin", "/sbin"])


def environment() -> dict[str, str]:
    """What the programs need to find each other and their libraries; nothing of who develops here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")} | {"PATH": search_path()}
    libraries = sorted({str(path.parent) for path in (PACKAGES / "usr/lib").glob("*/*.so.*")})
    if libraries:
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    for extensions in (PACKAGES / "usr/lib").glob("*/xtables"):
        kept["XTABLES_LIBDIR"] = str(extensions)
    return kept


def make_cgroups(name: str) -> None:
    """A group of that name below every controller, for one node. Raises RuntimesMissing where version 1 is not mounted
    (the runtime is configured for it).
    """
    missing = [one for one in CGROUPS if not (_ROOT / one).is_dir()]
    if missing:
        raise RuntimesMissing(f"real kubelets need control groups of version 1: {', '.join(missing)}")
    for controller in CGROUPS:
        (_ROOT / controller / name).mkdir(exist_ok=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):  # empty at first, and then nothing may run there
        (_ROOT / "cpuset" / name / setting).write_text((_ROOT / "cpuset" / setting).read_text())


def remove_cgroups(name: str) -> None:
    """What is left of them once no process is."""
    for group in _ROOT.glob(f"*/{name}"):
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
