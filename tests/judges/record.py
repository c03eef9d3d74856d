"""A long run of the three judges, and its counters: `python -m tests.judges.record --packets 50000` (needs root)."""

from __future__ import annotations

import argparse
import sys
import time

from tests.judges.kernel_judge import running_judge
from tests.judges.trial import Record, run_case

PER_CASE = 300


def run(packets: int, seed: int) -> Record:
    record = Record()
    with running_judge() as judge:
        while record.packets < packets:
            for line in run_case(judge, seed, PER_CASE, record):
                print(line, flush=True)
            seed += 1
    return record


def table(record: Record) -> str:
    """The counters in Markdown."""
    share = 100 * record.allowed / max(1, record.packets)
    lines = [
        f"packets {record.packets}, allowed {share:.1f} %, disagreements {len(record.quarrels)}",
        f"clusters {record.cases}, of them {record.many} with many policies for one endpoint",
        "protocols: " + ", ".join(f"{name} {count}" for name, count in sorted(record.protocols.items())),
        "matched rules: " + ", ".join(f"{name} {count}" for name, count in sorted(record.counters.actions.items())),
        "policies asked: " + ", ".join(f"{name} {count}" for name, count in sorted(record.counters.verdicts.items())),
        "",
        "| match | asked | held | decided | negated: asked | held | decided |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = sorted({one.removeprefix("not ") for one in record.counters.asked})
    lines += [f"| {kind} | {cells(record, kind)} | {cells(record, f'not {kind}')} |" for kind in kinds]
    return "\n".join(lines)


def cells(record: Record, kind: str) -> str:
    counters = record.counters
    if kind not in counters.asked:
        return " | | "
    return f"{counters.asked[kind]} | {counters.held[kind]} | {counters.decided[kind]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    record = run(arguments.packets, arguments.seed)
    print(table(record))
    print(f"\nseeds {arguments.seed} to {arguments.seed + record.cases - 1}, {time.monotonic() - started:.0f} s")
    return 1 if record.quarrels else 0


if __name__ == "__main__":
    sys.exit(main())
