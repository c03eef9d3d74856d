"""calicoctl as its users run it, a process each time, on a real etcd: how long it takes to start, and what it takes for
1,000 policies (create, apply the same again, apply them changed, get, delete).

Modules are compiled beforehand, as an installation and the image have them. wall_s is what a user waits, cpu_s what the
process itself used: on a machine with other work only the second says something about the program.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row, machine, parser, report
from libs.testkit.servers import EtcdServer

ROOT = Path(__file__).resolve().parents[1]
POLICY = """\
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {{name: policy-{number}, namespace: shop}}
spec:
  order: {order}
  selector: app == 'web-{number}'
  types: [Ingress, Egress]
  ingress:
  - {{action: Allow, protocol: TCP, source: {{selector: app == 'front'}}, destination: {{ports: [80, "8080:8090"]}}}}
  egress:
  - {{action: Allow, destination: {{nets: [10.0.0.0/8, 192.168.0.0/16]}}}}
"""


def main() -> None:
    options = parser(__doc__).parse_args()
    count, times = (50, 2) if options.quick else (1000, 7)
    described = machine()
    rows: list[Row] = []
    with EtcdServer() as server, tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "ETCD_ENDPOINTS": server.endpoint, "PYTHONPYCACHEPREFIX": f"{directory}/compiled",
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation and the image come compiled

        def run(*arguments: str) -> tuple[float, float]:
            """(wall, CPU) seconds."""
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "services.calicoctl", *arguments],
                env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
            return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        def measured(what: str, samples: list[tuple[float, float]]) -> None:
            walls, cpus = zip(*samples, strict=True)
            rows.append(
                {
                    "what": what, "times": len(samples), "wall_s": round(statistics.median(walls), 3),
                    "least_wall_s": round(min(walls), 3), "cpu_s": round(statistics.median(cpus), 3),
                }
            )  # fmt: skip

        files = {}
        for name, order in (("policies", 10), ("changed", 20)):
            files[name] = Path(directory) / f"{name}.yaml"
            files[name].write_text("".join(POLICY.format(number=n, order=order) for n in range(count)))
        run("version", "--client")  # compiles what is not compiled yet
        measured("version --client", [run("version", "--client") for _ in range(times)])
        measured(f"create {count} policies", [run("create", "-f", str(files["policies"]))])
        measured("get one of them", [run("get", "np", "-n", "shop", "policy-1") for _ in range(times)])
        measured(f"apply the same {count} again", [run("apply", "-f", str(files["policies"])) for _ in range(3)])
        measured(f"apply {count} changed", [run("apply", "-f", str(files["changed"]))])
        measured(f"get {count} as a table", [run("get", "np", "-n", "shop", "-o", "wide") for _ in range(3)])
        measured(f"get {count} as YAML", [run("get", "np", "-n", "shop", "-o", "yaml") for _ in range(3)])
        measured(f"delete {count}", [run("delete", "-f", str(files["policies"]))])
    report("calicoctl", rows, options.json, described)


if __name__ == "__main__":
    main()
