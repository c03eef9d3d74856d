"""Removing pods' interfaces, many at the price of one.

The kernel waits for all of its processors when it removes interfaces, tens of milliseconds, and does it once for all
that go in one request. Such a request names a group, so those that are to go are put into a group of ours first.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from libs.netlink.links import delete_group, delete_link, get_link, link_change
from libs.netlink.podlink import PAIRS
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket

GROUP = 0x63616C69  # "cali": whatever is in it goes (docs/design/ownership.md)


class LinkRemover:
    """Of one network namespace. What is asked for while a removal is under way goes with the next one."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self.requests = 0  # of removal
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="links")
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._running: asyncio.Task[None] | None = None

    async def remove(self, name: str) -> bool:
        """It is gone when this returns. False when it was not there, or is no pair: then it stays.

        Raises OSError. When cancelled, it ends only once the kernel has: nobody else may touch the interface before.
        """
        future = self._waiting.get(name)
        if future is None:
            future = self._waiting[name] = asyncio.get_running_loop().create_future()
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def close(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
        self._netlink.close()

    async def _run(self) -> None:
        """Whatever happens, nobody is left waiting."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                try:
                    found = await asyncio.get_running_loop().run_in_executor(self._worker, self._remove, list(batch))
                except Exception as error:
                    for future in batch.values():
                        future.set_exception(error)
                except BaseException:
                    for future in (*batch.values(), *self._waiting.values()):
                        future.set_exception(OSError(errno.ECANCELED, "removing interfaces was cancelled"))
                    self._waiting = {}
                    raise
                else:
                    for name, future in batch.items():
                        future.set_result(name in found)
        finally:
            self._running = None

    def _remove(self, names: Sequence[str]) -> set[str]:
        """In the worker. Those that were there."""
        self.requests += 1
        links = [link for name in names if (link := get_link(self._netlink, name)) is not None and link.kind in PAIRS]
        if len(links) == 1:
            return {links[0].name} if delete_link(self._netlink, links[0].index) else set()
        failed = self._netlink.batch([link_change(link.index, group=GROUP) for link in links])
        delete_group(self._netlink, GROUP)
        for place in failed:  # gone already, or refused: then alone
            delete_link(self._netlink, links[place].index)
        return {link.name for link in links}
