"""Runs the programs of a node: starts them again when they end, tells their health, ends them with us.

A program that ends is started again after a pause that doubles up to 30 s; one that asks for it (status 129) at once.
It writes where we write, and into a log file of its own where we have one. When we are killed the kernel ends it
(PR_SET_PDEATHSIG), so nothing is orphaned; what it did in the kernel stays.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from random import Random

from libs.runtime.backoff import Backoff
from libs.runtime.health import Aggregator
from services.node.core.programs import WELL_AFTER_S, Program, at_once, own_log
from services.node.shell.probes import answered, http_problem

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: after fork nothing may be
LOG_FILE = "LOG_FILE_PATH"
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0


def _end_with(parent: int) -> Callable[[], None]:
    """For the child, between fork and exec."""

    def bind() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # we ended in between
            os._exit(1)

    return bind


class Supervised:
    """One program. starts: how often it was started."""

    def __init__(
        self, program: Program, health: Aggregator, random: Random, environ: Mapping[str, str], grace_s: float
    ) -> None:
        self.program = program
        self.starts = 0
        self._random = random
        self._environ = dict(environ) | dict(program.environment)
        self._environ.pop("NOTIFY_SOCKET", None)  # of systemd, for whom we are the service
        if path := environ.get(LOG_FILE, ""):
            self._environ[LOG_FILE] = own_log(path, program.name)
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None
        self._why = "not started yet"
        self._report = health.register(program.name)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """For ever. Cancelled, it ends the program first: SIGTERM, and SIGKILL when that takes too long."""
        backoff = Backoff(self._random, first_s=FIRST_PAUSE_S, cap_s=LAST_PAUSE_S)
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                status = await self._once()
                lived_s = loop.time() - started
                if lived_s >= WELL_AFTER_S:
                    backoff.reset()
                if at_once(status, lived_s):
                    log.info("started again, as it asked for", extra={"program": self.program.name})
                    continue
                pause_s = backoff.next_s()
                self._why = f"ended with status {status}, starts again"
                said = {"program": self.program.name, "status": status, "pause_s": round(pause_s, 2)}
                log.error("program ended, starting it again", extra=said)
                await asyncio.sleep(pause_s)
        finally:
            await self._end()

    async def _once(self) -> int:
        """Its exit status, negative for a signal; 127 when it could not be started."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self.program.arguments, stdin=asyncio.subprocess.DEVNULL, env=self._environ,
                start_new_session=True, preexec_fn=_end_with(os.getpid()),
            )  # fmt: skip
        except OSError as error:
            log.error("program not started", extra={"program": self.program.name, "error": str(error)})
            return 127
        self.starts += 1
        self._why = ""
        log.info("program started", extra={"program": self.program.name, "program_pid": self._process.pid})
        status = await self._process.wait()
        self._process = None
        return status

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._grace_s):
                await process.wait()
        except TimeoutError:
            log.error("program does not end, killed", extra={"program": self.program.name})
            process.kill()
            await process.wait()

    async def watch(self, every_s: float) -> None:
        """For ever: its own probes, passed on. One that does not run is not ready, and no reason to restart us."""
        while True:
            if self._process is None:
                self._report.report(ready=False, detail=self._why or "does not run")
            elif not self.program.health:
                self._report.report(detail=f"runs as {self._process.pid}")
            else:
                at = self.program.health
                live = await asyncio.to_thread(http_problem, at, "liveness")
                ready = await asyncio.to_thread(http_problem, at, "readiness")
                # No answer at all is what a program looks like that is starting: its own end tells of more.
                self._report.report(live=not live or not answered(live), ready=not ready, detail=ready or live)
            await asyncio.sleep(every_s)
