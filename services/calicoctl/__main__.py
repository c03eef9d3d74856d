"""`calicoctl` and `python -m services.calicoctl`."""

from __future__ import annotations

from services.calicoctl.app import cli


def main() -> None:
    cli(prog_name="calicoctl")


if __name__ == "__main__":
    main()
