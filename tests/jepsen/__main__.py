"""A run with quotas: `python -m tests.jepsen --operations 100000`. Its report goes to standard output, how it goes on
to standard error. Ends with 1 when the verdict finds a problem or a quota is not met.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from libs.testkit.servers import CRASH_ETCD
from tests.jepsen.mutations import MUTATIONS
from tests.jepsen.report import shortfalls, table
from tests.jepsen.runner import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jepsen", description=__doc__)
    parser.add_argument("--operations", type=int, default=100_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--crashes", type=int, default=20, help="client deaths at each crash point (%(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="deaths of etcd members (%(default)s)")
    parser.add_argument("--at-most", type=float, default=3600.0, metavar="SECONDS", help="give up then (%(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="processes at a time, on four nodes (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of clients and nemesis; drawn when not given")
    parser.add_argument("--etcd", type=Path, default=CRASH_ETCD, help="a server that survives being killed")
    parser.add_argument("--fsync", action="store_true", help="etcd syncs its log (with an etcd that can leave it out)")
    parser.add_argument("--directory", type=Path, help="keep journals and data there (default: in memory, removed)")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), default="", help="a mistake put into the clients")
    arguments = parser.parse_args()
    if not arguments.etcd.exists():
        parser.error(f"{arguments.etcd} is not here; ./dev test fetches it, or name one with --etcd")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started and made is removed
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    outcome = run(
        Plan(
            seed=seed,
            recorded=True,
            operations=arguments.operations,
            at_most_s=arguments.at_most,
            crashes_each=arguments.crashes,
            kills=arguments.kills,
            slots=arguments.clients,
            mutation=arguments.mutation,
            etcd=arguments.etcd,
            fsync=arguments.fsync,
            directory=arguments.directory,
        )
    )
    print(table(outcome))
    missed = shortfalls(outcome)
    for problem in outcome.problems[:50]:
        print(f"PROBLEM {problem.kind}: {problem.text}")
    for text in missed:
        print(f"NOT MET {text}")
    return 1 if outcome.problems or missed else 0


if __name__ == "__main__":
    sys.exit(main())
