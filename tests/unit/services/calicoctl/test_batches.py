"""Which documents are worked on at the same time, and that nobody can tell from the result."""

from __future__ import annotations

import asyncio

import pytest

from libs.resources.client import ResourceClient
from libs.store.memory import MemoryStore
from services.calicoctl import actions
from services.calicoctl.actions import AT_ONCE, batches
from services.calicoctl.files import parse
from tests.unit.services.calicoctl.ctl import Ctl

POLICY = (
    "kind: NetworkPolicy\napiVersion: projectcalico.org/v3\nmetadata: {{name: {0}, namespace: {1}}}\n"
    "spec: {{tier: {2}, order: {3}}}\n"
)
TIER = "kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: sec}\n"


def policy(name: str, namespace: str = "shop", tier: str = "default", order: object = 1) -> str:
    return POLICY.format(name, namespace, tier, order)


def sizes(*texts: str) -> list[int]:
    return [len(batch) for batch in batches(list(parse("---\n".join(texts), "f")))]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([policy("a"), policy("b"), policy("a", "bank")], [3]),
        ([policy("a"), policy("b"), policy("a")], [2, 1]),
        ([TIER, policy("a"), policy("b"), TIER], [1, 2, 1]),
        ([policy("a"), policy("a").replace("NetworkPolicy", "StagedNetworkPolicy"), policy("b")], [1, 1, 1]),
        ([TIER, TIER.replace("sec", "other")], [1, 1]),
        ([policy("a"), "kind: [\n", policy("b")], [1, 1, 1]),
        ([policy(f"p{number}") for number in range(AT_ONCE + 3)], [AT_ONCE, 3]),
        ([], []),
    ],
)
def test_neighbours_that_do_not_look_at_each_other(texts: list[str], expected: list[int]) -> None:
    assert sizes(*texts) == expected


def test_the_last_of_two_with_one_name_counts(ctl: Ctl) -> None:
    ctl.apply("---\n".join(policy("a", order=order) for order in range(1, 9)))
    assert ctl.get("np", "a", "shop")["spec"]["order"] == 8


def test_failures_are_told_in_the_order_of_the_file(ctl: Ctl) -> None:
    texts = [policy(f"p{n}", tier="none" if n % 3 == 2 else "default") for n in range(9)]
    result = ctl("create", "-f", "-", stdin="---\n".join(texts))
    assert result.exit_code == 1
    assert result.stdout == "Partial success: created 6 out of 9 'NetworkPolicy' resources:\n"
    lines = result.stderr.splitlines()[1:]
    assert [line.split(":")[1].split(",")[0] for line in lines] == [" document 3", " document 6", " document 9"]


def test_writes_do_overlap() -> None:
    """Else it would be no faster: more than one is under way when the first has not ended."""
    store = MemoryStore()
    under_way, most = 0, 0

    async def before(_name: str, _key: str) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    async def run() -> actions.Outcome:
        client = ResourceClient(store)
        await client.ensure_initialized()
        store.before = before
        documents = list(parse("---\n".join(policy(f"p{n}") for n in range(20)), "f"))
        return await actions.run(actions.verb("create"), client, documents)

    outcome = asyncio.run(run())
    assert outcome.done == 20
    assert outcome.revisions == sorted(outcome.revisions) or len(set(outcome.revisions)) == 20
    assert most > 1
