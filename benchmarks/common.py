"""What all benchmarks share: the machine's description, percentiles, one way to print and to write results."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, object]


def parser(text: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    made.add_argument("--json", type=Path, help="also write the figures there")
    return made


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest sample that at least this share of all does not exceed; 0.5 is the median."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(samples: Sequence[float]) -> Row:
    """samples: milliseconds."""
    return {
        "count": len(samples),
        "p50_ms": round(percentile(samples, 0.5), 2),
        "p99_ms": round(percentile(samples, 0.99), 2),
        "max_ms": round(max(samples), 2),
    }


def rss_mb(pid: int | str = "self") -> float:
    """Resident memory now (proc(5), statm), not the peak."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat; fields 14 and 15 in ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Taken before a benchmark begins; `report` adds the load when it ended."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20),
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def report(title: str, rows: list[Row], where: Path | None, described: dict[str, Any]) -> None:
    """A table on standard output; everything as JSON in `where`: {"machine", "title", "rows"}."""
    described["load_after"] = [round(load, 2) for load in os.getloadavg()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    loads = f"load {described['load_before'][0]} before, {described['load_after'][0]} after"
    table = Table(title=title, caption=f"{described['cores']} cores, {loads}")
    for name in columns:
        table.add_column(name, justify="left" if name == "what" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in columns))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if where is not None:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(json.dumps({"machine": described, "title": title, "rows": rows}, indent=1) + "\n")


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
