"""`python -m services.kube_controllers`, `calico-kube-controllers`."""

from __future__ import annotations

import sys

from libs.runtime.service import start
from services.kube_controllers.app import run
from services.kube_controllers.config import KubeControllersConfig


def main() -> int:
    return start(
        run,
        KubeControllersConfig,
        prog="calico-kube-controllers",
        description="Brings Kubernetes objects into the datastore, makes automatic host endpoints. Replicas elect one.",
    )


if __name__ == "__main__":
    sys.exit(main())
