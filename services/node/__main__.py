"""`python -m services.node`, `calico-node`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

USAGE = """\
usage: calico-node [VERB] [--help | options]

Services
  run                    (the default) daemons of a node: tunnel addresses, CalicoNodeStatus, detected addresses,
                         NetworkUnavailable. With --supervise: all of a node, start-up, felix, bgp and CNI included
  node-services          the same as run
  monitor-addresses      detected addresses alone
  monitor-token          the CNI plugin and its token alone (calico-cni install --watch)
  status report          CalicoNodeStatus alone

Once
  startup                the node's resource and addresses, default pools, cluster information
  allocate-tunnel-addrs  tunnel addresses, for an init container
  complete-startup       wait for felix and bgp, then set NetworkUnavailable to False
  shutdown               set NetworkUnavailable to True: a container's preStop
  init                   mount what eBPF needs: bpffs, cgroup2
  hostpath-init          directories of the host for a node that does not run as root
  take-over              remove what a real calico-node left in the kernel, once felix is live
  upgrade-ipam           take over the addresses that the plugin host-local gave to pods
  uninstall              remove everything of ours from this host

Questions
  health                 probes of felix and bgp, for a container's exec probe
  status show            BGP sessions of this node
  version
"""
COMMANDS = ("health", "init", "hostpath-init", "take-over", "uninstall", "upgrade-ipam", "version")
ONCE = ("startup", "allocate-tunnel-addrs", "complete-startup", "shutdown")
ALIASES = {"allocate-tunnel-addresses": "allocate-tunnel-addrs", "node-services": "run"}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = "run"
    if arguments and not arguments[0].startswith("-"):
        verb = arguments.pop(0)
    elif arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    verb = ALIASES.get(verb, verb)
    if verb == "status":
        if arguments[:1] == ["report"]:
            verb = " ".join((verb, arguments.pop(0)))
        else:
            _command([verb, *arguments])
    if verb in COMMANDS:
        _command([verb, *arguments])
    if verb == "monitor-token":
        os.execv(sys.executable, [sys.executable, "-m", "services.cni", "install", "--watch", *arguments])
    service = _services().get(verb)
    if service is None:
        print(f"calico-node: no such verb: {verb}\n{USAGE}", end="", file=sys.stderr)
        return 2
    return service("calico-node" if verb == "run" else f"calico-node {verb}", arguments)


def _command(arguments: list[str]) -> NoReturn:
    # Each imports what it needs alone: probes are run every few seconds.
    if arguments[0] in ("take-over", "uninstall"):
        from services.node.cleaning import cleaning as cli
    elif arguments[0] == "upgrade-ipam":
        from services.node.upgrading import upgrading as cli
    else:
        from services.node.cli import cli
    cli.main(arguments, prog_name="calico-node")


def _services() -> dict[str, Callable[[str, list[str]], int]]:
    from libs.runtime.service import start
    from services.node import app
    from services.node.config import NodeConfig
    from services.node.startup_config import StartupConfig

    descriptions = {
        "run": (app.run, "The daemons of a node, or with --supervise all of it."),
        "startup": (app.startup, "Starts this node up: its resource, addresses, default pools, cluster information."),
        "allocate-tunnel-addrs": (app.run_once, "Gives this node the tunnel addresses that its pools call for."),
        "monitor-addresses": (app.monitor_addresses, "Keeps the node's resource at the addresses that it detects."),
        "status report": (app.report_status, "Writes the CalicoNodeStatus objects of this node."),
        "complete-startup": (app.complete_startup, "Waits for felix and bgp, then sets NetworkUnavailable to False."),
        "shutdown": (app.shutdown, "Sets NetworkUnavailable to True."),
    }
    found: dict[str, Callable[[str, list[str]], int]] = {}
    for verb, (work, description) in descriptions.items():

        def run(
            prog: str, arguments: list[str], work: object = work, description: str = description, verb: str = verb
        ) -> int:
            kind = StartupConfig if verb == "startup" else NodeConfig
            environ = dict(os.environ)
            if verb in ONCE:
                environ.pop("CALICO_NODE_HEALTHPORT", None)  # of the service beside which it runs, in one container
            return start(work, kind, prog=prog, description=description, argv=arguments, environ=environ)  # type: ignore[arg-type]

        found[verb] = run
    return found


if __name__ == "__main__":
    sys.exit(main())
