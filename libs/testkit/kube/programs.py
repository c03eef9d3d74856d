"""Where the programs of Kubernetes are: kube-apiserver, kube-controller-manager, kubectl.

`KUBEBUILDER_ASSETS` names a folder of them (the field's convention for tests); else those that `./dev test` built from
their published modules (`go/build.sh`) into `.cache/kubernetes`; else what is on the path.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

BUILT = Path(__file__).resolve().parents[3] / ".cache" / "kubernetes"


class KubernetesMissing(RuntimeError):
    """A program of Kubernetes is not on this machine; tests are skipped for it."""


def program(name: str) -> Path:
    """Raises KubernetesMissing, which says how to get it."""
    places = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(BUILT), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(place for place in places if place))
    if found is None:
        hint = "install it" if name == "kubectl" else "./dev test builds it with Go, KUBEBUILDER_ASSETS names a folder"
        raise KubernetesMissing(f"{name} is not here: {hint}")
    return Path(found)
