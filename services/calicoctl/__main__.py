"""`calicoctl` and `python -m services.calicoctl`."""

from __future__ import annotations

from libs.runtime import tracing
from services.calicoctl.app import cli


def main() -> None:
    tracing.setup("calicoctl")
    try:
        cli(prog_name="calicoctl")
    finally:
        tracing.shutdown()


if __name__ == "__main__":
    main()
