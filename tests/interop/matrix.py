"""`python -m tests.interop.matrix RESULTS… TARGET`: docs/interop.md from what runs of tests/interop wrote.

A cell is what all tests of a feature with that router said: `pass`, `fail`, or `skip` with a number that leads to its
reason. A feature that was not tried with a router has an empty cell.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

from libs.testkit.routers.peer import RouterMissing, environment, program

COLUMNS = ("bird", "frr", "gobgp", "exabgp", "raw")
TITLES = {"bird": "BIRD", "frr": "FRR", "gobgp": "GoBGP", "exabgp": "ExaBGP", "raw": "by hand"}
VERSIONS = {
    "bird": ["bird", "--version"],
    "frr": ["bgpd", "--version"],
    "gobgp": ["gobgpd", "--version"],
}
Tests = dict[str, list[list[str]]]  # router -> [test, outcome, reason]


def versions() -> str:
    said = []
    for name, (command, *arguments) in VERSIONS.items():
        try:
            argv = [str(program(command, also="/usr/lib/frr")), *arguments]
        except RouterMissing:
            continue
        done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
        said.append(f"{TITLES[name]} {(done.stdout + done.stderr).split('version ')[-1].split()[0]}")
    return ", ".join([*said, "ExaBGP 4.2.21"])


def cell(tests: list[list[str]], notes: list[str]) -> str:
    outcomes = [outcome for _, outcome, _ in tests]
    passed, failed = outcomes.count("passed"), outcomes.count("failed")
    if failed:
        return f"**fail** {failed} of {failed + passed}"
    said = [f"pass {passed}" if passed > 1 else "pass"] if passed else []
    for reason in dict.fromkeys(reason for _, outcome, reason in tests if outcome == "skip"):
        if reason not in notes:
            notes.append(reason)
        said.append(f"skip ({notes.index(reason) + 1})")
    return ", ".join(said)


def page(found: dict[str, Tests], subject: str) -> str:
    notes: list[str] = []
    lines = [
        "# Interoperation",
        "",
        "Written by `./dev interop-matrix` from what `tests/interop` said; not edited by hand. Each cell says how "
        "many tests of that feature passed with that router on the other end; `by hand` is a peer that the test speaks "
        "octet by octet. Everything runs in network namespaces with the kernel's own routes.",
        "",
        f"{datetime.date.today().isoformat()}, Linux {platform.release()}; {versions()}"
        + ("." if subject == "ours" else f"; in our speaker's place: {subject}."),
        "",
        "| | " + " | ".join(TITLES[name] for name in COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for feature in sorted(found):
        cells = [cell(found[feature][name], notes) if found[feature].get(name) else "" for name in COLUMNS]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    if notes:
        lines += ["", "Skipped:", ""]
        lines += [f"{number}. {reason}" for number, reason in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    *results, target = map(Path, arguments)
    found = json.loads(results[0].read_text())
    for more in results[1:]:
        for feature, by_router in json.loads(more.read_text())["features"].items():
            for router, tests in by_router.items():
                found["features"].setdefault(feature, {}).setdefault(router, []).extend(tests)
    target.write_text(page(found["features"], found["subject"]))
    failed = sum(
        outcome == "failed" for tests in found["features"].values() for some in tests.values() for _, outcome, _ in some
    )
    print(f"{target}: {len(found['features'])} features, {failed} failures", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
