"""`python -m services.bgp`, `calico-bgp`: the speaker, and questions to the one that runs on this node."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from libs.runtime.service import start
from services.bgp.app import run
from services.bgp.config import BgpConfig

VERBS = ("peers", "rib", "explain", "settings", "refresh", "reset")
DESCRIPTION = """\
The BGP speaker of this node. With one of the verbs peers, rib, explain, settings, refresh, reset it asks the speaker
that runs here instead (`calico-bgp peers --help`)."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in VERBS:
        from services.bgp.cli import cli  # a speaker does without tables for terminals

        return int(cli.main(arguments, prog_name="calico-bgp", standalone_mode=False) or 0)
    if arguments and arguments[0] == "run":
        arguments = arguments[1:]
    return start(run, BgpConfig, prog="calico-bgp", description=DESCRIPTION, argv=arguments)


if __name__ == "__main__":
    sys.exit(main())
