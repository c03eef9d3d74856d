"""Random histories of the datastore: after every step each node has what the plain calculation says, and what a fresh
calculation says that knows only the final state.

A failure is told with the fewest writes that still show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs import model
from libs.policy.calculator import Calculator
from libs.policy.changes import Changes
from libs.policy.routes import RouteResolver, resolve_routes
from libs.testkit.scenario_objects import NODES
from libs.testkit.scenarios import HOSTNAME, Op, Scenario, scenario
from tests.properties.policy_oracle import Oracle
from tests.properties.test_policy import Reader

Steps = list[list[Op]]
ASKED = {HOSTNAME, "n4"}
TABLES = ("node_infos", "pools", "blocks", "namespaces", "service_accounts", "encapsulation", "nodes")
EXAMPLES = settings(max_examples=max(250, settings().max_examples), phases=(Phase.generate,))


def read(op: Op) -> model.Resource | None:
    """A value that cannot be read counts as absent, as in typha."""
    if op["op"] == "del":
        return None
    try:
        return model.from_storage(op["key"], op["value"].encode(), 0)
    except model.DecodeError:
        return None


class World:
    """A calculation, what a reader of its changes knows, and the state of the datastore."""

    def __init__(self) -> None:
        self.calculator = Calculator()
        for node in sorted(ASKED):
            self.calculator.know_node(node)
        self.reader = Reader()
        self.refused: dict[str, str] = {}
        self.resources: dict[str, model.Resource] = {}
        self.routes = {node: RouteResolver(node) for node in NODES}

    def step(self, ops: list[Op]) -> None:
        for op in ops:
            one = read(op)
            self.calculator.update(op["key"], one)
            self.resources.pop(op["key"], None)
            if one is not None:
                self.resources[op["key"]] = one
        changes = self.calculator.flush()
        self.reader.read(changes)
        for key in (*changes.refused, *(op["key"] for op in ops)):
            self.refused.pop(key, None)
        self.refused |= changes.refused
        for node, resolver in self.routes.items():
            follow(node, resolver, changes)


def follow(node: str, resolver: RouteResolver, changes: Changes) -> None:
    """Keep a node's routes up to date, as felix does."""
    for cidr, pool in changes.pools.items():
        resolver.put_pool(cidr, pool)
    for cidr, block in changes.blocks.items():
        resolver.put_block(cidr, block)
    for name, info in changes.node_infos.items():
        resolver.put_node(name, info)
    mine = changes.nodes.get(node)
    for key, workload in (mine.workloads if mine is not None else {}).items():
        resolver.put_workload(str(key), node, None if workload is None else (*workload.nets4, *workload.nets6))
    resolver.flush()


def fresh(resources: dict[str, model.Resource]) -> Calculator:
    calculator = Calculator()
    for node in sorted(ASKED):
        calculator.know_node(node)
    for key, one in resources.items():
        calculator.update(key, one)
    calculator.flush()
    return calculator


def disagreement(steps: Steps) -> str:
    """The first thing on which the three do not agree, "" when they do."""
    world = World()
    for number, ops in enumerate(steps):
        world.step(ops)
        oracle, again = Oracle(world.resources, ASKED), fresh(world.resources)
        calculator = world.calculator
        for table in TABLES:
            wanted = getattr(oracle, table)
            for who, one in (("incremental", calculator), ("fresh", again)):
                if getattr(one, table) != wanted:
                    return f"step {number}: {table}, {who}:\n  {getattr(one, table)}\n  {wanted}"
        if world.refused.keys() != oracle.refused:
            return f"step {number}: refused\n  {world.refused}\n  {oracle.refused}"
        sets, policies = set(), {}
        for node in sorted(oracle.nodes | world.reader.nodes.keys()):
            wanted = oracle.view(node)
            sets |= wanted.ipsets.keys()
            policies |= wanted.policies
            for who, view in (
                ("incremental", calculator.view(node)),
                ("fresh", again.view(node)),
                ("told", world.reader.view(node)),
            ):
                if view != wanted:
                    return f"step {number}: {node}, {who}: {first_difference(view, wanted)}"
        for node, resolver in world.routes.items():
            own = {str(key): (node, (*one.nets4, *one.nets6)) for key, one in oracle.view(node).workloads.items()}
            routes = resolve_routes(node, oracle.pools, oracle.blocks, oracle.node_infos, own)
            if resolver.routes != routes:
                return f"step {number}: routes of {node}\n  {resolver.routes}\n  {routes}"
        if set(calculator.ipset_ids()) != sets or dict(calculator.policies) != policies:
            return f"step {number}: more is active than any node needs"
    return ""


def first_difference(got: Any, wanted: Any) -> str:
    for field in wanted.__struct_fields__:
        ours, theirs = getattr(got, field), getattr(wanted, field)
        for key in sorted({*ours, *theirs}, key=str):
            if ours.get(key) != theirs.get(key):
                return f"{field} {key}\n  got    {ours.get(key)}\n  wanted {theirs.get(key)}"
    return "nothing"


def fewest(steps: Steps, fails: Callable[[Steps], bool]) -> Steps:
    """Take writes away as long as it still fails."""
    again = True
    while again:
        again = False
        for at, ops in enumerate(steps):
            size = len(ops)
            while size:
                for start in range(0, len(steps[at]), size):
                    less = [*steps[:at], steps[at][:start] + steps[at][start + size :], *steps[at + 1 :]]
                    if fails(less):
                        steps, again = less, True
                        break
                else:
                    size //= 2
        steps = [ops for ops in steps if ops]
    return steps


def told(made: Scenario, steps: Steps, why: str) -> str:
    lines = [f"seed {made['seed']}: {why}"]
    for number, ops in enumerate(steps):
        lines += [f"  step {number}: {op['op']} {op['key']} {op.get('value', '')}" for op in ops]
    return "\n".join(lines)


def check(seed: int) -> None:
    made = scenario(seed)
    steps = [step["ops"] for step in made["steps"]]
    if disagreement(steps):
        shortest = fewest(steps, lambda less: bool(disagreement(less)))
        pytest.fail(told(made, shortest, disagreement(shortest)), pytrace=False)


@EXAMPLES
@given(st.integers(0, 2**40))
def test_every_step_is_what_the_plain_calculation_says(seed: int) -> None:
    check(seed)
