"""Bandwidth limits of workloads, kept in the kernel's traffic control (services/felix/core/bandwidth.py).

What is there is read, compared with what is wanted, and only what differs is written; then it is read again, because an
ifb must exist before it can be named, and to see that the kernel took what it was given. What is ours and not wanted
goes (docs/design/ownership.md). A limit waits until its interface is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from libs.netlink.codec import NetlinkError, ObjectNotFound
from libs.netlink.links import RTM_DELLINK, list_links
from libs.netlink.qdisc import (
    RTM_DELQDISC,
    RTM_DELTFILTER,
    Filter,
    Qdisc,
    list_filters,
    list_qdiscs,
)
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.policy.output import Workload, WorkloadKey
from services.felix.core.bandwidth import Limits, Seen, Todo, asked_for_filters, is_ours, limits, plan

log = logging.getLogger(__name__)

ROUNDS = 3  # an ifb; all that needs its index; nothing more to do, or the kernel does not keep it
_REMOVALS = {RTM_DELLINK, RTM_DELQDISC, RTM_DELTFILTER}


class BandwidthDriver:
    def __init__(self, interface_prefixes: tuple[str, ...], *, netns: int | str | Path | None = None) -> None:
        """interface_prefixes: what names of workloads' interfaces begin with."""
        self.writes = 0  # requests that the kernel took
        self._prefixes = interface_prefixes
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="bandwidth")
        self._wanted: dict[str, Limits] = {}
        self._failed: dict[str, str] = {}
        self._stale = True  # must be compared with the kernel
        self._waiting = False  # for an interface
        self._holds = True  # something of ours was there when last seen, or may have been

    def resync(self) -> None:
        self._stale = True

    def interfaces_changed(self) -> None:
        """Cheap where nothing is limited, which is on most nodes."""
        self._stale |= bool(self._wanted) or self._holds

    async def step(self, workloads: Mapping[WorkloadKey, Workload]) -> dict[str, str]:
        """Make the kernel match; `bandwidth <interface>` -> reason for those that are not limited as they should be.

        workloads: all of this node, so call it only once they are known.
        """
        wanted = limits(workloads)
        if wanted == self._wanted and not self._stale and not self._waiting:
            return {}
        self._wanted, self._stale = wanted, False
        try:
            failed = await asyncio.get_running_loop().run_in_executor(self._worker, self._reconcile, wanted)
        except (NetlinkError, OSError, ValueError) as error:
            self._stale = True
            if not wanted:  # a kernel without traffic control has nothing of ours either
                log.debug("traffic control cannot be read", extra={"error": str(error)})
                return {}
            failed = dict.fromkeys(wanted, str(error))
        except BaseException:
            self._stale = True
            raise
        self._stale |= bool(failed)
        if failed and failed != self._failed:  # tried again and again, said once
            log.error("bandwidth not limited as wanted", extra={"failures": failed})
        self._failed = failed
        return {f"bandwidth {name}": reason for name, reason in failed.items()}

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
        self._netlink.close()

    # --- in the worker thread ---

    def _reconcile(self, wanted: Mapping[str, Limits]) -> dict[str, str]:
        refused: dict[str, str] = {}  # what the kernel said; such an interface is left for the next step
        for _ in range(ROUNDS):
            seen, mine = self._read(wanted)
            todo = plan(wanted, seen, mine)
            self._waiting = any(name not in seen.links for name in wanted)
            self._holds = any(is_ours(link) for link in seen.links.values()) or bool(todo)
            problems = {name: one.problem for name, one in todo.items() if one.problem}
            left = {name: one for name, one in todo.items() if one.requests and name not in refused}
            if not left:
                return problems | refused
            refused |= {name: reason for name, one in left.items() if (reason := self._write(one))}
        unstable = {name: f"done, and to be done again: {one.requests[0][0]}" for name, one in left.items()}
        return problems | unstable | refused

    def _read(self, wanted: Mapping[str, Limits]) -> tuple[Seen, list[str]]:
        links = {link.name: link for link in list_links(self._netlink)}
        qdiscs: defaultdict[int, tuple[Qdisc, ...]] = defaultdict(tuple)
        for qdisc in list_qdiscs(self._netlink):
            qdiscs[qdisc.index] += (qdisc,)
        mine = sorted(wanted.keys() | {name for name in links if name.startswith(self._prefixes)})
        filters: dict[int, tuple[Filter, ...]] = {
            index: tuple(list_filters(self._netlink, index)) for index in asked_for_filters(links, qdiscs, mine)
        }
        return Seen(links, qdiscs, filters), mine

    def _write(self, todo: Todo) -> str:
        """The first refusal ends it. What should go and is not there has gone with its interface."""
        for what, (kind, flags, body) in todo.requests:
            try:
                self._netlink.request(kind, flags, body, what)
            except ObjectNotFound as error:
                if kind not in _REMOVALS:
                    return str(error)
            except NetlinkError as error:
                return str(error)
            else:
                self.writes += 1
                log.info("bandwidth", extra={"change": what})
        return ""
