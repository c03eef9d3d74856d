"""The policy calculation at scale: 50,000 endpoints and 5,000 policies, all nodes calculated at once.

    python -m benchmarks.calc [--quick] [--json FILE]

Naive, in the same run: test every policy's selector on every endpoint (matching only: no sets, no order, no rules) on a
part of the cluster, extrapolated to all of it and labelled so; its answers are compared with ours. And one JSON list of
everything for each node, instead of each node's share.

The second table has the shapes for which Calico's figures are known, each in a fresh process. Calico's are the cost of
one node, which every node pays; ours are the cost of all nodes at once.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import policies
from benchmarks.common import Row, machine, parser, percentile, report, rss_mb
from libs import model
from libs.bus import wire
from libs.model.selector import parse
from libs.policy.calculator import Calculator
from libs.policy.index import LabelIndex
from libs.runtime import garbage
from services.typha.core.publisher import Publisher

UPDATES = 2_000
NAIVE_PART = 200  # endpoints


@dataclass(frozen=True)
class Size:
    endpoints: int
    policies: int
    nodes: int
    namespaces: int
    apps: int

    def endpoint(self, number: int, app: int) -> tuple[str, bytes]:
        """As `policies.cluster` makes it, with another app."""
        node, namespace = number % self.nodes, number // self.nodes % self.namespaces
        return policies.endpoint(number, f"node{node}", f"ns{namespace}", f"app{app}")


FULL = Size(50_000, 5_000, 500, 100, 50)
QUICK = Size(2_000, 200, 20, 20, 10)


def load(data: dict[str, bytes]) -> tuple[Calculator, float, float]:
    """Loaded as typha does it; seconds of decoding, seconds of calculating."""
    calculator = Calculator()
    with garbage.paused():
        started = time.perf_counter()
        for key, value in data.items():
            calculator.update(key, model.from_storage(key, value, 1))
        decoded = time.perf_counter()
        calculator.flush()
        done = time.perf_counter()
    garbage.settle()
    return calculator, decoded - started, done - decoded


def updates(calculator: Calculator, size: Size) -> tuple[list[float], float]:
    """Endpoints whose label changes: microseconds of each flushed alone, and of one when all are flushed together."""
    chance = random.Random(1)
    count = min(UPDATES, size.endpoints)

    def changes() -> list[tuple[str, model.Resource]]:
        made = [
            size.endpoint(number, chance.randrange(size.apps)) for number in chance.sample(range(size.endpoints), count)
        ]
        return [(key, model.from_storage(key, value, 2)) for key, value in made]

    alone: list[float] = []
    for key, changed in changes():
        begun = time.perf_counter()
        calculator.update(key, changed)
        calculator.flush()
        alone.append((time.perf_counter() - begun) * 1e6)
    together = changes()
    begun = time.perf_counter()
    for key, changed in together:
        calculator.update(key, changed)
    calculator.flush()
    return alone, (time.perf_counter() - begun) / count * 1e6


def naive_matching(calculator: Calculator, data: dict[str, bytes]) -> float:
    """Seconds of testing all selectors on one endpoint. Raises SystemExit when it does not say what we say."""
    resources = [(key, model.from_storage(key, value, 1)) for key, value in data.items()]
    selectors = [
        (
            one.metadata.name,
            parse(f"({one.spec.selector}) && projectcalico.org/namespace == '{one.metadata.namespace}'"),
        )
        for _, one in resources
        if isinstance(one, model.NetworkPolicy)
    ]
    part = [one for _, one in resources if isinstance(one, model.WorkloadEndpoint)][-NAIVE_PART:]
    begun = time.perf_counter()
    found = [{name for name, selector in selectors if selector.matches(one.metadata.labels)} for one in part]
    each_s = (time.perf_counter() - begun) / len(part)
    ours = {key.workload: workload.policy_keys() for _, key, workload in calculator.workloads()}
    for one, names in zip(part, found, strict=True):
        if {key.name for key in ours[f"{one.metadata.namespace}/{one.spec.pod}"]} != names:
            raise SystemExit(f"{one.metadata.name}: the plain loop and the calculation differ")
    return each_s


def share(calculator: Calculator, data: dict[str, bytes]) -> tuple[int, int, int, int]:
    """Pods of node0; bytes of its snapshot, plain and as sent; bytes of everything as one JSON list."""
    publisher = Publisher(wire.Epoch("bench", 1, 1), calculator)
    snapshot = wire.encode(publisher.snapshot("node0", 0.0))
    everything = sum(len(value) + 1 for value in data.values()) + 1
    pods = sum(1 for node, _, _ in calculator.workloads() if node == "node0")
    return pods, len(snapshot), len(zlib.compress(snapshot, 1)), everything


def cluster_rows(size: Size) -> list[Row]:
    data = dict(policies.cluster(size.endpoints, size.policies, size.nodes, size.namespaces, size.apps))
    before_mb = rss_mb()
    calculator, decode_s, calculate_s = load(data)
    memory_mb = rss_mb() - before_mb
    each_s = naive_matching(calculator, data)  # before labels change
    pods, plain, packed, everything = share(calculator, data)
    alone, together = updates(calculator, size)
    what = f"{size.endpoints:,} endpoints, {size.policies:,} policies, {size.nodes} nodes"
    return [
        {"what": f"decode {len(data):,} values", "value": round(decode_s, 2), "unit": "s"},
        {"what": f"calculate {what}", "value": round(calculate_s, 2), "unit": "s"},
        {
            "what": "naive: matching alone, every selector on every endpoint (extrapolated)",
            "value": round(each_s * size.endpoints, 1),
            "unit": "s",
        },
        {"what": "memory added, all inputs included", "value": round(memory_mb), "unit": "MB"},
        {
            "what": "label change of one endpoint, flushed alone: median",
            "value": round(percentile(alone, 0.5)),
            "unit": "us",
        },
        {"what": "the same, p99", "value": round(percentile(alone, 0.99)), "unit": "us"},
        {"what": f"the same, {len(alone):,} in one flush: each", "value": round(together), "unit": "us"},
        {
            "what": "naive: matching alone, all selectors on the one endpoint",
            "value": round(each_s * 1e6),
            "unit": "us",
        },
        {"what": f"a node with {pods} pods receives", "value": round(plain / 1024), "unit": "KiB"},
        {"what": "the same, compressed as sent", "value": round(packed / 1024), "unit": "KiB"},
        {"what": "naive: JSON list of everything to every node", "value": round(everything / 1024), "unit": "KiB"},
        {
            "what": "a node's share of everything, uncompressed",
            "value": round(100 * plain / everything, 2),
            "unit": "%",
        },
    ]


# --- shapes that Calico was measured with -----------------------------------------------------------------------------


def network_sets(endpoints: int, count: int) -> Row:
    """200 endpoints a node, `count` policies each of which refers to a network set of its own."""
    nodes = max(1, endpoints // 200)
    data = dict(policies.cluster(endpoints, 0, nodes, 100, 50))
    for number in range(count):
        data |= dict(policies.with_network_set(number, f"app{number % 50}"))
    before_mb = rss_mb()
    _, decode_s, calculate_s = load(data)
    return {
        "what": f"{endpoints:,} endpoints, {count:,} policies each with a network set; {nodes} nodes at once",
        "ours": f"{decode_s + calculate_s:.1f} s, {rss_mb() - before_mb:.0f} MB",
    }


def label_policies(endpoints: int, count: int) -> Row:
    """200 endpoints a node, `count` policies of five rules with selectors."""
    nodes = max(1, endpoints // 200)
    data = dict(policies.cluster(endpoints, count, nodes, 100, 50, rules=5))
    before_mb = rss_mb()
    _, decode_s, calculate_s = load(data)
    return {
        "what": f"{endpoints:,} endpoints, {count:,} label policies of 5 rules; {nodes} nodes at once",
        "ours": f"{decode_s + calculate_s:.1f} s, {rss_mb() - before_mb:.0f} MB",
    }


def label_index(selectors: int, form: str) -> Row:
    """One endpoint's label changes against that many selectors: the index alone.

    form: of the selectors. EQUAL is what policies mostly say, and found by value; SPREAD can only be tested one by one.
    """
    index = LabelIndex()
    for number in range(selectors):
        index.add_selector(parse(form.format(app=number % 50, team=number // 50)))
    teams = max(1, selectors // 50)
    labels = [
        {"app": f"app{n % 50}", "team": f"team{n % teams}", "tier": f"{n % 7}", "zone": "a"} for n in range(2_000)
    ]
    for number, one in enumerate(labels):
        index.put_item(number, one)
    samples: list[float] = []
    for number, one in enumerate(labels):
        changed = {**one, "app": f"app{(number + 1) % 50}"}
        begun = time.perf_counter()
        index.put_item(number, changed)
        samples.append((time.perf_counter() - begun) * 1e6)
    return {
        "what": f"one endpoint update against {selectors:,} selectors like {form.format(app=1, team=2)}",
        "ours": f"{percentile(samples, 0.5):.0f} us",
    }


EQUAL = "app == 'app{app}' && team == 'team{team}'"
SPREAD = "app in {{'app{app}', 'other'}} && team != 'team{team}'"

Shape = tuple[Callable[..., Row], tuple[int | str, ...], str]
SHAPES: list[Shape] = [
    (network_sets, (10_000, 1_000), "2.2 s, 98 MB"),
    (network_sets, (10_000, 10_000), "15.8 s, 792 MB"),
    (label_policies, (250_000, 10_000), "10.6 s, 283 MB heap"),
    (label_index, (100, EQUAL), "33 us"),
    (label_index, (1_000, EQUAL), "214 us"),
    (label_index, (10_000, EQUAL), "6,778 us"),
    (label_index, (10_000, SPREAD), ""),
]
QUICK_SHAPES: list[Shape] = [
    (network_sets, (500, 50), ""),
    (label_policies, (1_000, 100), ""),
    (label_index, (100, SPREAD), ""),
]


def shape_rows(shapes: list[Shape]) -> list[Row]:
    """Each in a process of its own."""
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    for function, arguments, calico in shapes:
        with context.Pool(1) as pool:
            row = pool.apply(function, arguments)
        rows.append({**row, "Calico, one node": calico})
    return rows


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    rows = cluster_rows(QUICK if options.quick else FULL)
    report("policy calculation", rows, options.json, described)
    if options.json is not None:
        (first,) = [json.loads(options.json.read_text())]
    shapes = shape_rows(QUICK_SHAPES if options.quick else SHAPES)
    report("shapes that Calico was measured with", shapes, None, described)
    if options.json is not None:
        options.json.write_text(json.dumps(first | {"machine": described, "shapes": shapes}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
