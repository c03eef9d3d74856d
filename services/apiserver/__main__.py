"""`python -m services.apiserver`, `calico-apiserver`."""

from __future__ import annotations

import sys

from libs.runtime.service import start
from services.apiserver.app import run
from services.apiserver.config import ApiserverConfig


def main() -> int:
    return start(
        run,
        ApiserverConfig,
        prog="calico-apiserver",
        description="Serves projectcalico.org/v3 to kubectl, calicoctl and REST, alone or behind a kube-apiserver.",
    )


if __name__ == "__main__":
    sys.exit(main())
