"""Programs of a node that Kubernetes does not bring: containerd, runc and CNI's own plugins, from where `./dev test`
unpacked the distribution's packages (`.cache/runtimes`), or from the machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from libs.testkit import packages

PACKAGES = packages.CACHE / "runtimes"
_PLUGINS = (PACKAGES / "usr/lib/cni", Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CGROUPS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
_ROOT = Path("/sys/fs/cgroup")


class RuntimesMissing(RuntimeError):
    """This machine cannot run real kubelets; the text says what is missing."""


def tool(name: str) -> Path:
    """Raises RuntimesMissing."""
    found = shutil.which(name, path=packages.search_path(PACKAGES))
    if found is None:
        raise RuntimesMissing(f"container runtimes are not here: {name}")
    return Path(found)


def plugin(name: str) -> Path:
    """One of the plugins that everybody chains (package containernetworking-plugins). Raises RuntimesMissing."""
    for directory in _PLUGINS:
        if (directory / name).exists():
            return directory / name
    raise RuntimesMissing(f"container runtimes are not here: plugin {name}")


def environment() -> dict[str, str]:
    """What the programs need to find each other and their libraries; nothing of who develops here."""
    return {name: value for name, value in packages.environment(PACKAGES).items() if not name.startswith("KUBE")}


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
