"""The recorded clusters told in other ways: whatever happens to writes on their way, a node ends where Calico ended.

Of each cluster where the calculation and Calico agree, the same writes shuffled within their steps, each flushed alone,
all in one step, only the last of each key, with everything deleted between, and with writes that concern nobody. Where
the samples are absent the tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from libs.testkit.judge import Judge
from tests.unit.libs.policy.test_recorded import DIFFERENT, RECORDED, fold, recorded, strip

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded samples are not here")

V3 = "/calico/resources/v3/projectcalico.org"
Op = dict[str, str]
Steps = list[list[Op]]
State = dict[str, Any]


# --- other ways to tell it: steps in, steps out; a step of the result ends where a step of the original ended ---------


def shuffled(steps: Steps, random: Random) -> Steps:
    """Writes of one key stay in their order."""
    result = []
    for ops in steps:
        by_key: dict[str, list[Op]] = {}
        for op in ops:
            by_key.setdefault(op["key"], []).append(op)
        keys = [op["key"] for op in ops]
        random.shuffle(keys)
        result.append([by_key[key].pop(0) for key in keys])
    return result


def reversed_keys(steps: Steps, random: Random) -> Steps:
    return [sorted(ops, key=lambda op: op["key"], reverse=True) for ops in steps]


def repeated(steps: Steps, random: Random) -> Steps:
    """Old values come again before new ones, and what is gone is deleted again."""
    seen: list[Op] = []
    result = []
    for ops in steps:
        touched = {op["key"] for op in ops}
        back = [op for op in seen if op["key"] in touched and random.random() < 0.3]
        result.append([*back, *ops, *gone(op for op in ops if op["key"] not in last([ops]))])
        seen += ops
    return result


def with_noise(steps: Steps, random: Random) -> Steps:
    """With writes that concern nobody: some stay, some pass by within a step."""
    return [
        [*random.sample(NOISE, 6), *PASSING[: (size := random.randint(0, len(PASSING)))], *ops, *gone(PASSING[:size])]
        for ops in steps
    ]


IN_STEP: tuple[Callable[[Steps, Random], Steps], ...] = (shuffled, reversed_keys, repeated, with_noise)


# --- ways that keep only the end --------------------------------------------------------------------------------------


def one_by_one(steps: Steps, random: Random) -> Steps:
    return [[op] for ops in shuffled(steps, random) for op in ops]


def merged(steps: Steps, random: Random) -> Steps:
    return [[op for ops in steps for op in ops]]


def only_the_end(steps: Steps, random: Random) -> Steps:
    return [list(last(steps).values())]


def from_nothing_again(steps: Steps, random: Random) -> Steps:
    """What was there at the middle goes altogether, then the end comes key by key."""
    half = last(steps[: len(steps) // 2 + 1])
    end = list(last(steps).values())
    random.shuffle(end)
    return [list(half.values()), gone(half.values()), *([op] for op in end)]


def backwards(steps: Steps, random: Random) -> Steps:
    """Every step's state after that of the step behind it, and then the end."""
    states = [last(steps[:size]) for size in range(1, len(steps) + 1)]
    result: Steps = []
    known: dict[str, Op] = {}
    for state in [*reversed(states), states[-1]]:
        result.append([*gone(op for key, op in known.items() if key not in state), *state.values()])
        known = state
    return result


TO_THE_END: tuple[Callable[[Steps, Random], Steps], ...] = (
    one_by_one,
    merged,
    only_the_end,
    from_nothing_again,
    backwards,
)


def last(steps: Steps) -> dict[str, Op]:
    """The puts that count at the end, by key."""
    state: dict[str, Op] = {}
    for ops in steps:
        for op in ops:
            state.pop(op["key"], None)
            if op["op"] == "put":
                state[op["key"]] = op
    return state


def gone(ops: Any) -> list[Op]:
    return [{"op": "del", "key": op["key"]} for op in ops]


# --- writes that concern nobody ---------------------------------------------------------------------------------------


def put(path: str, kind: str, spec: Any, **metadata: Any) -> Op:
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
    return {"op": "put", "key": f"{V3}/{path}", "value": json.dumps(document)}


RULES = [{"action": "Allow", "source": {"selector": "all()", "ports": ["http", 80]}, "protocol": "TCP"}]
NOBODY = {"tier": "default", "order": 1, "selector": "app == 'nobody'", "ingress": RULES, "types": ["Ingress"]}
WORKLOAD = {"orchestrator": "k8s", "node": "node1", "pod": "zz", "endpoint": "eth0", "interfaceName": "cali999"}
NOISE: list[Op] = [
    put("globalnetworkpolicies/unused", "GlobalNetworkPolicy", NOBODY, name="unused"),
    put("globalnetworkpolicies/unused", "GlobalNetworkPolicy", NOBODY | {"order": 2}, name="unused"),
    put("networkpolicies/ns1/unused", "NetworkPolicy", NOBODY, name="unused", namespace="ns1"),
    put("stagednetworkpolicies/ns1/going", "StagedNetworkPolicy", {"stagedAction": "Delete"}, name="going"),
    put("globalnetworkpolicies/bad", "GlobalNetworkPolicy", {"selector": "all(", "ingress": RULES}, name="bad"),
    put("profiles/unused", "Profile", {"labelsToApply": {"app": "a"}, "ingress": RULES}, name="unused"),
    put("tiers/unused", "Tier", {"order": 3}, name="unused"),
    put("workloadendpoints/ns1/node1-k8s-zz-eth0", "WorkloadEndpoint", WORKLOAD | {"ipNetworks": []}, namespace="ns1"),
    put("globalnetworksets/bad", "GlobalNetworkSet", {"nets": ["10.0.0.0/40"]}, name="bad", labels={"app": "a"}),
    put("bgppeers/peer", "BGPPeer", {"peerIP": "192.0.2.254", "asNumber": 64512}, name="peer"),
    put("felixconfigurations/default", "FelixConfiguration", {"logSeverityScreen": "Debug"}, name="default"),
    put("ipreservations/some", "IPReservation", {"reservedCIDRs": ["10.65.0.0/24"]}, name="some"),
    {"op": "put", "key": "/calico/ipam/v2/handle/h", "value": '{"block": {}, "deleted": false}'},
    {"op": "put", "key": "/calico/somewhere/else", "value": "text"},
    {"op": "put", "key": f"{V3}/networksets/ns1/broken", "value": "{"},
    {"op": "del", "key": f"{V3}/hostendpoints/never"},
    {"op": "del", "key": f"{V3}/networkpolicies/ns1/unused"},
]
# These would change much, were they seen.
PASSING: list[Op] = [
    put("globalnetworkpolicies/passing", "GlobalNetworkPolicy", NOBODY | {"selector": "all()"}, name="passing"),
    put("globalnetworksets/passing", "GlobalNetworkSet", {"nets": ["0.0.0.0/0"]}, name="passing", labels={"app": "a"}),
    put("ippools/passing", "IPPool", {"cidr": "10.65.0.0/20", "ipipMode": "Always"}, name="passing"),
    put("hostendpoints/passing", "HostEndpoint", {"node": "node1", "interfaceName": "eth9"}, name="passing"),
]


# --- replay -----------------------------------------------------------------------------------------------------------


class Replay:
    def __init__(self, hostname: str, module: Any) -> None:
        self.judge = Judge()
        self.module = module
        self.told: list[Any] = []
        list(self.judge.answer({"op": "reset", "hostname": hostname}))
        list(self.judge.answer({"op": "insync"}))

    def step(self, ops: list[Op]) -> State:
        for op in ops:
            list(self.judge.answer(op))
        self.told += [message for message in self.judge.answer({"op": "flush"}) if "kind" in message]
        return folded(self.module, self.told)


def folded(module: Any, messages: list[Any]) -> State:
    """The state, as new values that later messages do not change."""
    state = module.norm(module.reduce(json.loads(json.dumps(messages))))
    return json.loads(json.dumps(strip(state)))


def known_tiers(state: State, tiers: set[str]) -> State:
    """Without the default actions of tiers that do not exist: of those Calico tells what it remembers."""
    for table in ("weps", "heps"):
        for message in state[table].values():
            for field, value in message["endpoint"].items():
                for tier in value if field.endswith("tiers") else ():
                    if tier["name"] not in tiers:
                        tier.pop("default_action", None)
    return state


def existing_tiers(steps: Steps) -> set[str]:
    return {key.rpartition("/")[2] for key in last(steps) if key.startswith(f"{V3}/tiers/")}


def compare(case: Any, module: Any) -> list[str]:
    """Ways and steps that end elsewhere. Steps in which the plain way differs from Calico are not looked at."""
    steps: Steps = [step["ops"] for step in case["steps"]]
    theirs: list[Any] = []
    wanted: list[State | None] = []
    plain = Replay(case["hostname"], module)
    for number, step in enumerate(case["steps"]):
        theirs += [message for message in step["messages"] if "kind" in message]
        tiers = existing_tiers(steps[: number + 1])
        want = known_tiers(folded(module, theirs), tiers)
        wanted.append(want if known_tiers(plain.step(step["ops"]), tiers) == want else None)
    assert None not in wanted or case["seed"] in DIFFERENT
    wrong = []
    for way in (*IN_STEP, *TO_THE_END):
        replay = Replay(case["hostname"], module)
        for number, ops in enumerate(way(steps, Random(case["seed"]))):
            state = replay.step(ops)
            if way in IN_STEP and wanted[number] not in (None, known_tiers(state, existing_tiers(steps[: number + 1]))):
                wrong.append(f"{way.__name__}, step {number}")
        if wanted[-1] not in (None, known_tiers(state, existing_tiers(steps))):
            wrong.append(f"{way.__name__}, at the end")
    return wrong


@pytest.mark.parametrize("part", range(4))
def test_every_way_to_tell_a_recorded_cluster_ends_the_same(part: int) -> None:
    module = fold()
    cases = recorded("calc-scenarios.jsonl.xz")[part::4]
    found = {case["seed"]: wrong for case in cases if (wrong := compare(case, module))}
    assert not found
