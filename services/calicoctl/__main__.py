"""`calicoctl`, `kubectl calico` (installed as kubectl-calico), and `python -m services.calicoctl`."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from libs.runtime import tracing
from services.calicoctl.app import cli

COMPLETE_VARIABLE = "_CALICOCTL_COMPLETE"


def invoked_as(path: str) -> str:
    """How the user names this program: as a kubectl plugin it is `kubectl calico`."""
    return "kubectl calico" if Path(path).name.startswith("kubectl-") else "calicoctl"


def main() -> None:
    gc.set_threshold(50_000, 20, 20)  # most commands end before anything is worth looking for
    tracing.setup("calicoctl")
    try:
        cli(prog_name=invoked_as(sys.argv[0]), complete_var=COMPLETE_VARIABLE)
    finally:
        tracing.shutdown()


def complete() -> None:
    """`kubectl_complete-calico WORD… LAST`: what may stand in the place of LAST, for kubectl's own completion."""
    from services.calicoctl.completing import for_kubectl

    sys.stdout.write(for_kubectl(sys.argv[1:]))


if __name__ == "__main__":
    main()
