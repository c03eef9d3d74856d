"""`python -m tests.cluster.steps.felix`: the real felix, with its outward effects numbered and a signal at one of them.

A step is one effect of a CNI request that outlives the process: an operation on the journal's files, a write to etcd
below IPAM or the endpoints, a netlink request or nftables transaction that changes something, a sysctl, the question to
typha, the answer on the socket. Steps are named "what #occurrence, before|half|after"; nothing is counted in advance.
The product knows nothing of this; its modules are imported as they are and the doors through which effects leave (os,
EtcdStore, NetlinkSocket, NatsBus.publish, aiohttp's response) are watched.

The file STEPS_PLAN says what to do (tests/cluster/steps/plan.py); without it nothing is counted. A process that was
killed is started again at once, as a supervisor would; it is forked from one that has imported everything, because
importing takes longer than everything else.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import struct
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from libs.bus import subjects
from libs.bus.nats import NatsBus
from libs.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from libs.store.api import Delete, Op
from libs.store.etcd import EtcdStore
from services.felix.__main__ import main
from tests.cluster.steps.plan import AFTER, BEFORE, HALF, Plan, note, read_plan, write_plan

PR_SET_PDEATHSIG = 1
PLAN = Path(os.environ["STEPS_PLAN"])
JOURNAL = f"{os.environ['FELIX_STATE_DIR']}/"
# linux/rtnetlink.h: what a message of each family of four kinds is about; the kind's last two bits say what to do.
_ABOUT = {16: "link", 20: "address", 24: "route", 28: "neighbour", 36: "qdisc", 44: "filter", 80: "netconf"}
_DEEDS = ("new", "del", "get", "set")
_KEYS = {
    "/calico/ipam/v2/handle/": "handle",
    "/calico/ipam/v2/assignment/": "block",
    "/calico/ipam/v2/host/": "affinity",
    "/calico/resources/v3/projectcalico.org/workloadendpoints/": "endpoint",
}


class Steps:
    """Counts while there is a plan; a new plan starts to count anew."""

    def __init__(self) -> None:
        self._plan_id: tuple[int, int] | None = None
        self._plan: Plan | None = None
        self._seen: Counter[str] = Counter()
        self._lock = threading.RLock()  # the removal of a link runs in a thread of its own

    def _current(self) -> Plan | None:
        try:
            found = PLAN.stat()
        except FileNotFoundError:
            self._plan_id = self._plan = None
            return None
        if (ident := (found.st_ino, found.st_mtime_ns)) != self._plan_id:
            self._plan_id, self._plan = ident, read_plan(PLAN)
            self._seen.clear()
        return self._plan

    def begin(self, what: str) -> str:
        """Call before the effect, and `reach` with the result and AFTER after it."""
        with self._lock:
            if self._current() is None:
                return ""
            self._seen[what] += 1
            step = f"{what} #{self._seen[what]}"
        self.reach(step, BEFORE)
        return step

    def wanted(self, step: str, when: str) -> bool:
        with self._lock:
            plan = self._current()
            return plan is not None and plan.steps[:1] == (f"{step}, {when}",)

    def reach(self, step: str, when: str) -> None:
        with self._lock:
            plan = self._current()
            if plan is None or not step:
                return
            name = f"{step}, {when}"
            if plan.record:
                note(plan.record, name)
            if not plan.steps or plan.steps[0] != name:
                return
            note(plan.hits, name)
            rest = Plan(steps=plan.steps[1:], hits=plan.hits, record=plan.record_last if not plan.steps[1:] else "",
                        record_last=plan.record_last, signal=plan.signal)  # fmt: skip
            write_plan(PLAN, rest)
            os.kill(plan.victim or os.getpid(), plan.signal)


STEPS = Steps()


def watch_files() -> None:
    """Opening to write, renaming and removing by the interpreter's audit events; writing and syncing are none."""

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], (str, os.PathLike)):
            path, flags = os.fspath(args[0]), args[2]
            if isinstance(path, str) and path.startswith(JOURNAL) and (flags & (os.O_WRONLY | os.O_RDWR)):
                STEPS.begin("journal: open")
            elif isinstance(path, str) and path.startswith("/proc/sys/net/") and flags & os.O_WRONLY:
                _, _, where, *rest = path.removeprefix("/proc/sys/").split("/", 3)
                STEPS.begin(" ".join(("sysctl:", where, *(name.rpartition("/")[2] for name in rest))))
        elif event == "os.rename" and str(args[0]).startswith(JOURNAL):
            STEPS.begin("journal: rename")
        elif event == "os.remove" and str(args[0]).startswith(JOURNAL):
            STEPS.begin("journal: remove")

    sys.addaudithook(audit)

    def watched(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *data: bytes) -> Any:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if not f"{name}/".startswith(JOURNAL):
                return real(descriptor, *data)
            step = STEPS.begin(f"journal: {what}" + (" of the directory" if os.path.isdir(name) else ""))
            first = 0
            if data and STEPS.wanted(step, HALF):
                first = real(descriptor, data[0][: len(data[0]) // 2])
                data = (data[0][first:],)
            if data:
                STEPS.reach(step, HALF)
            done = real(descriptor, *data)
            done = done + first if data else done
            STEPS.reach(step, AFTER)
            return done

        return call

    os.fsync = watched("sync", os.fsync)
    os.fdatasync = watched("sync", os.fdatasync)
    os.write = watched("write", os.write)


def watch_store() -> None:
    def about(key: str) -> str:
        return next((name for prefix, name in _KEYS.items() if key.startswith(prefix)), "")

    def watched(verb: str, real: Callable[..., Awaitable[Any]], what: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(real)
        async def call(self: EtcdStore, *args: Any, **kwargs: Any) -> Any:
            label = what(*args, **kwargs)
            step = STEPS.begin(f"etcd: {verb} {label}".rstrip()) if label else ""
            try:
                return await real(self, *args, **kwargs)
            finally:
                STEPS.reach(step, AFTER)

        return call

    for verb in ("create", "update", "put", "delete"):
        setattr(EtcdStore, verb, watched(verb, getattr(EtcdStore, verb), lambda key, *_, **__: about(key)))

    def transaction(compares: Any, ops: list[Op]) -> str:
        parts = [f"{'delete' if isinstance(op, Delete) else 'put'} {about(op.key)}" for op in ops if about(op.key)]
        return ", ".join(parts)

    EtcdStore.txn = watched("transaction", EtcdStore.txn, transaction)  # type: ignore[method-assign]


def watch_kernel() -> None:
    real = NetlinkSocket.send

    def send(self: NetlinkSocket, data: bytes) -> None:
        what = effect_of(self.socket.proto, data)
        step = STEPS.begin(what) if what else ""
        real(self, data)
        STEPS.reach(step, AFTER)

    NetlinkSocket.send = send  # type: ignore[method-assign]


def effect_of(protocol: int, data: bytes) -> str:
    """What the requests in one datagram change, "" for nothing. Message head: length(4) type(2) flags(2) seq port."""
    found: list[str] = []
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if protocol == NETLINK_ROUTE and kind % 4 != 2:
            found.append(f"{_DEEDS[kind % 4]} {_ABOUT.get(kind & ~3, str(kind))}")
        elif protocol == NETLINK_NETFILTER and kind == 0x10:  # NFNL_MSG_BATCH_BEGIN
            return "nftables: transaction"
        elif protocol == NETLINK_NETFILTER and kind == 0x102:  # subsystem conntrack, IPCTNL_MSG_CT_DELETE
            return "conntrack: forget"
        at += (length + 3) & ~3 or len(data)
    return f"netlink: {', '.join(found)}" if found else ""


def watch_answers() -> None:
    publish = NatsBus.publish

    def published(self: NatsBus, subject: str, *args: Any, **kwargs: Any) -> None:
        step = STEPS.begin("bus: question to typha") if subject == subjects.TYPHA_MARK else ""
        publish(self, subject, *args, **kwargs)
        STEPS.reach(step, AFTER)

    NatsBus.publish = published  # type: ignore[method-assign]
    prepare, write_eof = web.Response.prepare, web.Response.write_eof

    async def prepared(self: web.Response, request: web.BaseRequest) -> Any:
        if request.path in ("/cni", "/ipam"):
            self["step"] = STEPS.begin("answer")
        return await prepare(self, request)

    async def written(self: web.Response, data: bytes = b"") -> None:
        await write_eof(self, data)
        STEPS.reach(self.get("step", ""), AFTER)

    web.Response.prepare = prepared  # type: ignore[method-assign]
    web.Response.write_eof = written  # type: ignore[method-assign]


def supervise() -> int:
    """Start felix, and again whenever it ends, until told to stop; the exit status of the last one."""
    stopping = False
    child = 0

    def stop(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    parent = os.getpid()
    while True:
        child = os.fork()
        if not child:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for watch in (watch_files, watch_store, watch_kernel, watch_answers):
                watch()
            return main()
        _, status = os.waitpid(child, 0)
        note(str(PLAN.with_name("lives")), str(os.waitstatus_to_exitcode(status)))
        if stopping:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(supervise())
