"""Where the programs of Kubernetes are: kube-apiserver, kube-controller-manager, kubectl.

`KUBEBUILDER_ASSETS` names a folder of them (the field's convention for tests); else those that `./dev test` built from
their published modules (`go/build.sh`) into `.cache/kubernetes`; else what is on the path.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

BUILT = Path(__file__).resolve().parents[3] / ".cache" / "kubernetes"
OLDEST_KUBECTL = (1, 30)


class KubernetesMissing(RuntimeError):
    """A program of Kubernetes is not on this machine; tests are skipped for it."""


def program(name: str) -> Path:
    """Raises KubernetesMissing, which says how to get it."""
    places = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(BUILT), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(place for place in places if place))
    if found is None:
        hint = "install it" if name == "kubectl" else "./dev test builds it with Go, KUBEBUILDER_ASSETS names a folder"
        raise KubernetesMissing(f"{name} is not here: {hint}")
    return _kubectl(Path(found)) if name == "kubectl" else Path(found)


@functools.cache
def _kubectl(found: Path) -> Path:
    """Some packages put one program for each version beside a dispatcher, which asks the server for its version before
    every command; then the newest of them.
    """
    beside = [
        path for path in found.resolve().parent.glob("kubectl.1.*") if re.fullmatch(r"kubectl\.1\.\d+", path.name)
    ]
    program = max(beside, key=lambda path: int(path.suffix[1:]), default=found)
    version = kubectl_version(program)
    if version < OLDEST_KUBECTL:
        raise KubernetesMissing(f"kubectl is not here: {program} is version {version[0]}.{version[1]}")
    return program


def kubectl_version(program: Path) -> tuple[int, int]:
    done = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, check=True, timeout=60)
    client = json.loads(done.stdout)["clientVersion"]
    return int(client["major"]), int(re.sub(r"\D", "", client["minor"]))
