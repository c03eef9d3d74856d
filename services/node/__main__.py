"""`python -m services.node`, `calico-node`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from libs.runtime.service import Run, start
from services.node.app import run, run_once
from services.node.config import NodeConfig

USAGE = """\
usage: calico-node [run] [--help | options]                   the daemons of a node: tunnel addresses, CalicoNodeStatus
       calico-node allocate-tunnel-addresses [--help | …]     tunnel addresses once, for an init container
"""
VERBS: dict[str, tuple[Run[NodeConfig], str]] = {
    "run": (run, "The daemons of a node that are neither felix nor bgp: tunnel addresses, CalicoNodeStatus."),
    "allocate-tunnel-addresses": (run_once, "Gives this node the tunnel addresses that its pools call for, and ends."),
}
ALIASES = {"allocate-tunnel-addrs": "allocate-tunnel-addresses"}  # Calico's word


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = "run"
    if arguments and not arguments[0].startswith("-"):
        verb = arguments.pop(0)
    verb = ALIASES.get(verb, verb)
    if verb not in VERBS:
        print(f"calico-node: no such verb: {verb}\n{USAGE}", end="", file=sys.stderr)
        return 2
    work, description = VERBS[verb]
    prog = "calico-node" if verb == "run" else f"calico-node {verb}"
    return start(work, NodeConfig, prog=prog, description=description, argv=arguments)


if __name__ == "__main__":
    sys.exit(main())
