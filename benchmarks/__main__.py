"""`python -m benchmarks [NAME…] [--quick]`: run benchmarks one after the other; figures go to .run/bench/NAME.json.

Each runs in a process of its own, so that memory is measured from nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import machine

RESULTS = Path(__file__).resolve().parents[1] / ".run" / "bench"
NAMES = {
    "enforce": "client's put to the first packet treated the new way, up to 1,000 policies",
    "cni": "CNI ADD and DEL through the shim, one at a time and ten at once, by steps",
    "kubernetes": "pods of a real kube-apiserver: created to first packet under policy; 500 in one go on three nodes",
    "kube_controllers": "10,000 pods and 1,000 policies of a real kube-apiserver into etcd; a full reconcile, memory",
    "start_race": "first connections of new pods that peers do not know yet, with and without waiting for them",
    "ipam": "addresses a second with 1, 10 and 50 callers",
    "ipam_fill": "addresses with hardly any free, and a /16 filled to the last address by 50 nodes at once",
    "calc": "50,000 endpoints and 5,000 policies: load, update, memory, a node's share",
    "calicoctl": "start-up of the command line; create, apply, get and delete 1,000 policies",
    "apiserver": "requests a second, a list of 50,000 objects, 1,000 watchers and a naive server of them",
    "whatif": "what-if over 1,000 endpoints: one policy changes, one for all endpoints comes",
    "newflow": "first and later packets of a flow through 0 to 5,000 policies",
    "changes": "one member of a set of 100,000, one policy of 100 rules on 250 pods: to the kernel",
    "bgp": "a route reflector with 100,000 and 1,000,000 prefixes, and a node in a mesh of 200; four other daemons",
    "bgp_codec": "BGP messages of 100,000 prefixes read and written, and ExaBGP's decoder",
    "bgp_rib": "BGP's tables alone: 100,000 prefixes from bytes to bytes, filters, several paths, 200 peers",
    "node_share": "what a node with 100 pods receives and what its felix needs while the rest of the cluster grows",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--list", action="store_true", help="what there is")
    options = parser.parse_args(arguments)
    if options.list:
        for name, text in NAMES.items():
            print(f"{name:12} {text}")
        return 0
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.names or NAMES if not run(name, quick=options.quick)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, *, quick: bool) -> bool:
    """Quick figures get a name of their own: they are no measurement."""
    path = RESULTS / f"{name}{'.quick' if quick else ''}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
    if quick:
        command += ["--count", "60"] if name == "ipam" else ["--quick"]
    print(f"== {name}: {NAMES[name]}", file=sys.stderr, flush=True)
    described = machine()
    good = subprocess.run(command, check=False).returncode == 0
    if good and name == "ipam":  # it also runs alone and then describes the machine in its own, shorter way
        figures = json.loads(path.read_text())
        figures["machine"] = described | figures["machine"] | {"load_after": machine()["load_before"]}
        path.write_text(json.dumps(figures, indent=1) + "\n")
    return good


if __name__ == "__main__":
    sys.exit(main())
