"""What is asked before a user is told that there is no such policy (A07)."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from services.apiserver.core.attributes import Attributes
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import SERVED, Target, User
from services.apiserver.core.status import ApiError
from services.apiserver.shell.authz import PARALLEL_TIERS, Tiered

TIERS = ["default", *(f"t{number:02}" for number in range(40))]
JANE = User("jane")


class Asked:
    """Jane may do everything in some tiers."""

    def __init__(self, *tiers: str) -> None:
        self.tiers = tiers
        self.asked: list[str] = []

    async def authorize(self, user: User, attributes: Attributes) -> Decision:
        if attributes.resource == "tiers":
            self.asked.append(attributes.name)
            return Decision(attributes.name in self.tiers)
        return Decision(attributes.name.removesuffix(".*") in self.tiers)

    async def absent(self, name: str, tiers: Collection[str] = TIERS) -> None:
        async def all_tiers() -> Collection[str]:
            return tiers

        await Tiered(self, all_tiers).check_absent(JANE, "get", Target(SERVED["networkpolicies"], "shop", name))


@pytest.mark.parametrize(("tiers", "most"), [(("default",), 1), (("t00", "t01"), 2), (("t03",), 8)], ids=str)
async def test_a_name_without_a_tier_asks_about_few_tiers_when_the_first_ones_allow(
    tiers: tuple[str, ...], most: int
) -> None:
    judge = Asked(*tiers)
    await judge.absent("web")
    assert len(judge.asked) <= most
    assert len(set(judge.asked)) == len(judge.asked)


async def test_any_tier_that_allows_is_found_and_each_is_asked_about_once() -> None:
    judge = Asked("t39")
    await judge.absent("web")
    assert sorted(judge.asked) == TIERS
    refused = Asked()
    with pytest.raises(ApiError, match='in tier "default" and namespace "shop" \\(user cannot get tier\\)') as caught:
        await refused.absent("web")
    assert caught.value.code == 403
    assert sorted(refused.asked) == TIERS
    assert len(TIERS) > PARALLEL_TIERS


async def test_a_name_that_begins_with_a_tier_asks_about_that_one_alone() -> None:
    judge = Asked("t01")
    await judge.absent("t01.web")
    assert judge.asked == ["t01"]
    with pytest.raises(ApiError, match='in tier "t02"'):
        await judge.absent("t02.web")
