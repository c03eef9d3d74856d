"""The way to a state: a cluster that turns into another one step by step, as felix is told of it."""

from __future__ import annotations

from random import Random

from libs import model
from libs.nftables.model import Ruleset
from libs.policy.calculator import Calculator
from libs.policy.changes import NodeView
from tests.judges.draw import NODE, PODS, Draw
from tests.judges.kernel_judge import KernelJudge, compiled, feed
from tests.judges.shots import draw_shots
from tests.judges.trial import Quarrel, Record, compare, view_of

Step = dict[str, model.Resource | None]  # by key; None: gone
WithRules = model.NetworkPolicy | model.GlobalNetworkPolicy | model.Profile
LOCAL = frozenset(f"WorkloadEndpoint/{namespace}/{NODE}-k8s-{pod}-eth0" for pod, namespace in PODS.items())


def draw_steps(random: Random, count: int) -> list[Step]:
    """The first step makes a cluster; each later one brings some keys to what they are in another drawn cluster, and
    gives some policies and profiles other rules.

    The pods of this node change, but are always there: packets need their ends.
    """
    many = random.random() < 0.4
    state: dict[str, model.Resource] = Draw(random).cluster(many).by_key
    steps: list[Step] = [dict(state)]
    for _ in range(count):
        other = Draw(random).cluster(many).by_key
        share = random.choice((0.05, 0.3, 0.7))
        keys = [key for key in {**state, **other} if random.random() < share and (key in other or key not in LOCAL)]
        step: Step = {key: other.get(key) for key in keys}
        kept = [key for key in state if key not in step and isinstance(state[key], WithRules)]
        step |= {key: Draw(random).with_other_rules(state[key]) for key in kept if random.random() < share / 2}
        for key, resource in step.items():
            state.pop(key, None)
            if resource is not None:
                state[key] = resource
        steps.append(step)
    return steps


def follow(judge: KernelJudge, seed: int, packets: int, record: Record) -> list[Quarrel]:
    """Takes the kernel along the steps; after each, the ruleset and the kernel must be what a fresh start makes of it.

    Raises AssertionError where they differ. Returns the packets that the judges do not agree on, after any step.
    """
    random = Random(seed)
    calculator, state = Calculator(), dict[str, model.Resource]()
    view: NodeView | None = None
    quarrels: list[Quarrel] = []
    builder = None
    for step in draw_steps(random, 4):
        calculated(calculator, state, step)
        old, view = view, calculator.view(NODE)
        resources = list(state.values())
        assert view == view_of(resources), "the calculation went elsewhere"
        if builder is None:
            builder = judge.load(view)
        else:
            feed(builder, old, view)
            judge.apply(builder)
        for mine, fresh in zip(judge.desired(), compiled(view), strict=True):
            assert by_name(mine) == by_name(fresh.ruleset()), "the ruleset is another one than that of a fresh start"
        judge.check_kernel()
        shots = draw_shots(random, packets, guarded=bool(view.hosts))
        quarrels += compare(resources, view, shots, judge.judge(shots), record)
        record.cases += 1
    return quarrels


def calculated(calculator: Calculator, state: dict[str, model.Resource], step: Step) -> None:
    """Tells the calculator a step, and keeps what there is then."""
    for key, resource in step.items():
        calculator.update(key, resource)
        state.pop(key, None)
        if resource is not None:
            state[key] = resource
    calculator.flush()


def by_name(ruleset: Ruleset) -> dict[tuple[str, str], object]:
    return {
        **{("chain", one.name): one for one in ruleset.chains},
        **{("set", one.name): one for one in ruleset.sets},
        **{("map", one.name): one for one in ruleset.maps},
    }
