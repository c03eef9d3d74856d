"""Child processes of a pretend cluster: each in a namespace, with a log of its own, never outliving us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from libs.netlink.netns import in_netns
from libs.runtime.compile_c import compile_c
from libs.testkit.topology import Namespace

_HERE = Path(__file__).parent


class ProcessError(RuntimeError):
    """A process ended or refused to start; carries the tail of its log."""


def nsrun() -> Path:
    return compile_c(_HERE / "nsrun.c")


def probe_program() -> Path:
    return compile_c(_HERE / "probe.c")


class Process:
    """A command in a namespace; `start` again after it ended. The log is appended to, so that it tells all of its
    lives.

    Start from a thread that lives as long as the process should: the kernel kills it with that thread
    (PR_SET_PDEATHSIG).
    """

    def __init__(
        self, name: str, command: Sequence[str], *, netns: Namespace, log_path: Path, env: Mapping[str, str], cwd: Path
    ) -> None:
        self.name = name
        self.command = list(command)
        self.netns = netns
        self.log_path = log_path
        self.env = dict(env)
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.running:
            raise ProcessError(f"{self.name} is running already")
        if threading.current_thread() is not threading.main_thread():
            raise ProcessError(f"{self.name} must be started from the main thread, whose end ends it")
        command = [str(nsrun()), str(os.getpid()), *self.command]
        # The child is born in the namespace of the thread that makes it.
        with self.log_path.open("ab") as log, in_netns(self.netns.path):
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self._cwd,
                start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        return self._child.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._child.poll() if self._child else None

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self, patience_s: float = 5.0) -> int:
        """SIGTERM, SIGKILL when that takes too long; the exit status."""
        if self._child is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience_s)
        self._child.kill()
        return self._child.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit status, once it has ended by itself. Raises ProcessError when it has not in time."""
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} runs after {timeout_s:g} s:\n{self.log_tail()}") from None

    def require_running(self) -> None:
        """Raises ProcessError with the log's tail when it has ended."""
        if not self.running:
            raise ProcessError(f"{self.name} ended with status {self.status}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


class Probe:
    """The server of one pod: HTTP 200 and echo on TCP ports, echo on UDP ports."""

    def __init__(self, name: str, netns: Namespace, tcp: Sequence[int], udp: Sequence[int]) -> None:
        ports = [f"tcp:{p}" for p in tcp] + [f"udp:{p}" for p in udp]
        with in_netns(netns.path):
            self._child = subprocess.Popen(
                [str(probe_program()), str(os.getpid()), name, *ports],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert self._child.stdout is not None
        first = self._child.stdout.readline()
        if first != b"ready\n":
            self.stop()
            raise ProcessError(f"probe server of {name}: {first.decode(errors='replace').strip()}")

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
