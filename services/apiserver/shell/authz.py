"""May this user do that: several authorisers as one, and tier RBAC over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from services.apiserver.core import reviews, tiers
from services.apiserver.core.attributes import Attributes, Judge, attributes_of
from services.apiserver.core.ports import Decision
from services.apiserver.core.rbac import BUILT_IN, MASTERS
from services.apiserver.core.request import RequestInfo, Target, User
from services.apiserver.core.reviews import Granted
from services.apiserver.core.status import ApiError

PARALLEL_TIERS = 16
Tiers = Callable[[], Awaitable[Iterable[str]]]
"""Names of all tiers that there are."""


class Lister(Judge, Protocol):
    """A judge that can tell all that it would allow."""

    def granted(self, user: User, namespace: str) -> Granted: ...


class Authorization:
    """Masters may do everything, paths that are always allowed are; then one judge that says yes is enough. One that
    cannot answer matters only when no other says yes: then nothing is allowed, and the error is told.
    """

    def __init__(self, judges: Sequence[Lister], *, always_allowed: Sequence[str] = ()) -> None:
        self._judges = tuple(judges)
        self._paths = frozenset(path for path in always_allowed if not path.endswith("*"))
        self._prefixes = tuple(path.rstrip("*") for path in always_allowed if path.endswith("*"))

    async def authorize(self, user: User, attributes: Attributes) -> Decision:
        if MASTERS in user.groups:
            return Decision(True, f"member of {MASTERS}")
        if not attributes.resource and self.is_open(attributes.path):
            return Decision(True, "path is always allowed")
        failure: ApiError | None = None
        reasons = []
        for judge in self._judges:
            try:
                decision = await judge.authorize(user, attributes)
            except ApiError as error:
                failure = error
                continue
            if decision.allowed:
                return decision
            if decision.reason:
                reasons.append(decision.reason)
        if failure is not None:
            raise failure
        return Decision(False, ", ".join(reasons))

    async def decide(self, user: User, info: RequestInfo) -> Decision:
        return await self.authorize(user, attributes_of(info))

    def granted(self, user: User, namespace: str) -> Granted:
        """All that the user may do in a namespace, as far as the judges can list it."""
        if reviews.of_masters(user):
            return Granted(reviews.EVERYTHING)
        return reviews.together(judge.granted(user, namespace) for judge in self._judges)

    def is_open(self, path: str) -> bool:
        return path in self._paths or bool(self._prefixes and path.startswith(self._prefixes))


class BuiltIn:
    """What Kubernetes grants to everybody: health, version, discovery."""

    async def authorize(self, user: User, attributes: Attributes) -> Decision:
        return BUILT_IN.decide(user, attributes)

    def granted(self, user: User, namespace: str) -> Granted:
        return Granted(BUILT_IN.rules(user, namespace))


class Tiered:
    """`ports.TierAccess` over a judge."""

    def __init__(self, judge: Judge, all_tiers: Tiers) -> None:
        self._judge, self._all = judge, all_tiers

    async def check(self, user: User, verb: str, target: Target, tier: str) -> None:
        may_get, allowed = await self._ask(user, verb, target, tier)
        if not allowed:
            raise tiers.refusal(user.name, verb, target, tier, may_get)

    async def check_absent(self, user: User, verb: str, target: Target) -> None:
        # A name need not say its tier, and who is about to create the policy looks first whether it is there.
        prefix, dot, _ = target.name.partition(".")
        names = frozenset(await self._all())
        if dot and prefix in names:
            await self.check(user, verb, target, prefix)
            return
        may_get, allowed = await self._ask(user, verb, target, tiers.DEFAULT)
        others = sorted(names - {tiers.DEFAULT})
        count = 1  # one yes is enough, and each tier costs three reviews: a few are asked at first
        while not allowed and others:
            some, others = others[:count], others[count:]
            answers = await asyncio.gather(*(self._ask(user, verb, target, tier) for tier in some))
            allowed = any(yes for _, yes in answers)
            count = min(2 * count, PARALLEL_TIERS)
        if not allowed:
            raise tiers.refusal(user.name, verb, target, tiers.DEFAULT, may_get)

    async def readable(self, user: User, verb: str, target: Target, wanted: Sequence[str] | None) -> frozenset[str]:
        asked = sorted(set(await self._all() if wanted is None else wanted))
        room = asyncio.Semaphore(PARALLEL_TIERS)

        async def one(tier: str) -> tuple[bool, bool]:
            async with room:
                return await self._ask(user, verb, target, tier)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(tier), name=f"tier {tier}") for tier in asked]
        except BaseExceptionGroup as failed:
            own = [one for one in failed.exceptions if not isinstance(one, ApiError)]  # a fault of ours is to be seen
            raise (own or failed.exceptions)[0] from None  # one is enough for an answer; its status is the client's
        answers = dict(zip(asked, (task.result() for task in tasks), strict=True))
        found = frozenset(tier for tier, (_, allowed) in answers.items() if allowed)
        if wanted is not None and asked and not found:
            first = asked[0]
            raise tiers.refusal(user.name, verb, target, first, answers[first][0])
        return found

    async def _ask(self, user: User, verb: str, target: Target, tier: str) -> tuple[bool, bool]:
        """(may get the tier, may do what is asked for)."""
        asked = tiers.questions(verb, target, tier)
        tier_, policy, wildcard = await asyncio.gather(
            *(self._judge.authorize(user, one) for one in (asked.tier, asked.policy, asked.wildcard))
        )
        return tier_.allowed, asked.allowed(tier_, policy, wildcard)
