"""What happens to the members of the etcd cluster: killed and started again with their data, stopped and continued,
one or two of three, often the leader.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random

from libs.testkit.servers import EtcdServer
from tests.jepsen import raw_etcd


class Nemesis:
    def __init__(self, members: list[EtcdServer], rng: Random, *, calm_s: tuple[float, float] = (1.0, 5.0)) -> None:
        self._members = members
        self._rng = rng
        self._calm_s = calm_s
        self.counts: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then every member runs."""
        deeds: list[Callable[[], Coroutine[object, object, None]]] = [
            self._kill_one, self._kill_one, self._kill_leader, self._kill_two,
            self._pause_one, self._pause_leader, self._pause_two,
        ]  # fmt: skip
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), self._rng.uniform(*self._calm_s))
            except TimeoutError:
                await self._rng.choice(deeds)()

    async def _kill_one(self) -> None:
        await self._kill(self._rng.sample(self._members, 1))

    async def _kill_two(self) -> None:
        self.counts["majority lost"] += 1
        await self._kill(self._rng.sample(self._members, 2))

    async def _kill_leader(self) -> None:
        await self._kill([await self._leader()])

    async def _kill(self, victims: list[EtcdServer]) -> None:
        for member in victims:
            member.kill()
            self.counts["killed"] += 1
        await asyncio.sleep(self._rng.choice([0.0, 0.2, 1.0, 2.5]))
        await asyncio.gather(*(member.start_async() for member in victims))

    async def _pause_one(self) -> None:
        await self._pause(self._rng.sample(self._members, 1))

    async def _pause_two(self) -> None:
        self.counts["majority lost"] += 1
        await self._pause(self._rng.sample(self._members, 2))

    async def _pause_leader(self) -> None:
        await self._pause([await self._leader()])

    async def _pause(self, victims: list[EtcdServer]) -> None:
        for member in victims:
            member.pause()
            self.counts["paused"] += 1
        try:
            await asyncio.sleep(self._rng.choice([0.2, 1.0, 2.0, 4.5]))
        finally:
            for member in victims:
                member.resume()

    async def _leader(self) -> EtcdServer:
        for member in self._rng.sample(self._members, len(self._members)):
            if await asyncio.to_thread(raw_etcd.is_leader, member.endpoint):
                self.counts["leader hit"] += 1
                return member
        return self._rng.choice(self._members)
