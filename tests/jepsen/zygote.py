"""Client processes made by fork from one process that has imported everything: some hundred a minute cost nothing.

`Zygote` is the runner's end, `python -m tests.jepsen.zygote` the other: a JSON object per line, `{"spawn": spec}` in,
`{"pid": n}` and later `{"ended": n, "status": wait status}` out. The children die with the zygote, and it with its
standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1


class Zygote:
    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._born: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Zygote:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.jepsen.zygote",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, limit=1 << 24,
            )  # fmt: skip
        self._reader = asyncio.create_task(self._read(), name="zygote")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process
        assert self._reader
        self._reader.cancel()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def spawn(self, spec: dict[str, Any]) -> tuple[int, asyncio.Future[int]]:
        """(pid, wait status once it has ended)."""
        assert self._process
        assert self._process.stdin
        async with self._turn:
            self._process.stdin.write(json.dumps({"spawn": spec}).encode() + b"\n")
            await self._process.stdin.drain()
            return await self._born.get()

    async def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "pid" in told:
                ended = self._ended[told["pid"]] = asyncio.get_running_loop().create_future()
                self._born.put_nowait((told["pid"], ended))  # both: the child may have ended before anybody looks
            else:
                self._ended.pop(told["ended"]).set_result(told["status"])


def serve() -> None:
    from tests.jepsen import workload

    wake, wake_end = os.pipe()
    for end in (wake, wake_end):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_end)
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
            _reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _become(workload, json.loads(line)["spawn"], (wake, wake_end))
                _say(pid=pid)


def _become(workload: Any, spec: dict[str, Any], close: tuple[int, int]) -> None:
    """The child: never returns."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        for fd in close:
            os.close(fd)
        workload.main(workload.Spec.from_json(spec))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reap() -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _say(ended=pid, status=status)


def _say(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    serve()
