"""What can be asked of every routing daemon: run it in a namespace, watch a session, read routes, restart it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from libs.testkit import netns
from libs.testkit.processes import Process
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session, family_of
from libs.testkit.topology import Namespace

PACKAGES = Path(__file__).resolve().parents[3] / ".cache" / "routers"
"""The distribution's packages, unpacked by `./dev test` and `./dev bench`."""


class RouterMissing(RuntimeError):
    """The daemon's program is not on this machine."""


class RouterError(RuntimeError):
    """A daemon refused what it was asked; carries its words."""


def program(name: str, *, also: str = "") -> Path:
    """A daemon's program: the unpacked one, or the machine's. Raises RouterMissing."""
    places = [str(PACKAGES / part) for part in ("usr/bin", "usr/sbin", "usr/lib/frr")]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", ""), "/usr/sbin", also]))
    if found is None:
        raise RouterMissing(f"routing daemons are not here: {name}")
    return Path(found)


def environment() -> dict[str, str]:
    libraries = sorted({str(path.parent) for path in (PACKAGES / "usr/lib").glob("*/**/*.so.*")})
    return os.environ | ({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {})


def until(
    condition: Callable[[], object], timeout_s: float, what: Callable[[], str] | str, poll_s: float = 0.05
) -> None:
    """Poll until the condition holds. Raises TimeoutError, telling what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(poll_s)


class Peer(ABC):
    """A routing daemon in a namespace. directory: its configuration, sockets and log.

    can: what of the daemon's own abilities differ: `kernel` (installs routes), `gr`, `llgr`, `add-path`, `rr`, `md5`,
    `gtsm`, `dynamic`, `ext-nh`, `refresh`, `attributes` (can announce every attribute), `local-as`, `link-local`,
    `as2`.
    """

    daemon: ClassVar[str]
    can: ClassVar[frozenset[str]]
    start_timeout_s: ClassVar[float] = 60.0

    def __init__(self, name: str, space: Namespace, router: Router, directory: Path) -> None:
        self.name = name
        self.space = space
        self.router = router
        self.directory = directory
        self.log_path = directory / "log"
        self.processes: list[Process] = []
        self.same_as: dict[str, str] = {}
        """Link-local addresses on the wire and the global ones of the same router: a route may go by either."""
        directory.mkdir(parents=True, exist_ok=True)

    # -- what a daemon has to bring ---------------------------------------------------------------------------------

    @abstractmethod
    def commands(self) -> list[list[str]]:
        """Its processes in the order in which they start, the speaker itself last."""

    @abstractmethod
    def write_config(self) -> None:
        """Put `self.router` where the processes look for it."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers questions."""

    @abstractmethod
    def apply(self) -> None:
        """Make the running daemon follow `self.router`, its sessions kept where they did not change."""

    @abstractmethod
    def session(self, neighbour: str) -> Session:
        """neighbour: address. A session that it does not know (yet) has the state `none`."""

    @abstractmethod
    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        """What neighbours told it, after its import filters; of one neighbour or of all."""

    @abstractmethod
    def refresh(self, neighbour: str) -> None:
        """Ask the neighbour for all its routes again (RFC 2918)."""

    @abstractmethod
    def shut(self, neighbour: str, message: str = "") -> None:
        """Close one session by administration (RFC 9003: with words); `apply` opens it again."""

    # -- what they have in common -----------------------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        return environment()

    def start(self) -> None:
        self.write_config()
        if not self.processes:
            for number, command in enumerate(self.commands()):
                self.processes.append(
                    Process(
                        f"{self.daemon} {self.name} {number}", command, netns=self.space, log_path=self.log_path,
                        env=self.env(), cwd=self.directory,
                    )
                )  # fmt: skip
        for process in self.processes:
            if not process.running:
                process.start()
                self.wait_started(process)
        until(
            self._ready_or_dead, self.start_timeout_s, lambda: f"{self.daemon} {self.name} answers\n{self.log_tail()}"
        )

    def wait_started(self, process: Process) -> None:  # noqa: B027 most daemons are one process
        """Until the next process may start; nothing to wait for by default."""

    def _ready_or_dead(self) -> bool:
        for process in self.processes:
            process.require_running()
        return self.ready()

    @property
    def speaker(self) -> Process:
        return self.processes[-1]

    def stop(self) -> None:
        """As its service manager would: SIGTERM."""
        for process in reversed(self.processes):
            process.stop()

    def kill(self) -> None:
        """SIGKILL to the speaker alone: what crashed."""
        self.speaker.kill()

    def pause(self) -> None:
        """It holds its sockets and says nothing."""
        self.speaker.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.speaker.signal(signal.SIGCONT)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.signal(signal.SIGCONT)
            if process.running:
                process.kill()

    def log_tail(self, lines: int = 60) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def run(self, *argv: str, check: bool = True) -> str:
        """A command in its namespace; its output."""
        return netns.run(netns.Namespace(self.space.name), argv, check=check)

    def announce(self, *routes: Route) -> None:
        mine = {route.prefix: route for route in (*self.router.routes, *routes)}
        self.router = replace(self.router, routes=tuple(mine.values()))
        self.apply()

    def withdraw(self, *prefixes: str) -> None:
        left = tuple(route for route in self.router.routes if route.prefix not in prefixes)
        self.router = replace(self.router, routes=left)
        self.apply()

    def change(self, address: str, **changes: Any) -> None:
        """Change one neighbour's settings while it runs."""
        neighbours = tuple(replace(n, **changes) if n.address == address else n for n in self.router.neighbours)
        self.router = replace(self.router, neighbours=neighbours)
        self.apply()

    def neighbour(self, address: str) -> Neighbour:
        return next(n for n in self.router.neighbours if n.address == address)

    # -- questions with deadlines -----------------------------------------------------------------------------------

    def wait_up(self, neighbour: str, timeout_s: float = 40.0) -> Session:
        until(
            lambda: self.session(neighbour).up, timeout_s,
            lambda: f"{self.daemon} {self.name} with {neighbour} established: {self.session(neighbour)}",
        )  # fmt: skip
        return self.session(neighbour)

    def wait_down(self, neighbour: str, timeout_s: float = 40.0) -> Session:
        until(
            lambda: not self.session(neighbour).up, timeout_s,
            lambda: f"{self.daemon} {self.name} with {neighbour} down: {self.session(neighbour)}",
        )  # fmt: skip
        return self.session(neighbour)

    def routes(self, prefix: str, neighbour: str = "") -> list[Route]:
        return [route for route in self.learned(family_of(prefix), neighbour) if route.prefix == prefix]

    def wait_route(
        self, prefix: str, neighbour: str = "", *, timeout_s: float = 30.0, like: Callable[[Route], bool] | None = None
    ) -> Route:
        """The route as learned, once it is there and (with `like`) as wished."""
        found: list[Route] = []

        def look() -> bool:
            found[:] = [r for r in self.routes(prefix, neighbour) if not r.stale and (like is None or like(r))]
            return bool(found)

        until(look, timeout_s, lambda: f"{self.daemon} {self.name} has {prefix}; it has {self.routes(prefix)}")
        return next((route for route in found if route.best), found[0])

    def wait_gone(self, prefix: str, *, timeout_s: float = 30.0) -> None:
        until(
            lambda: not self.routes(prefix), timeout_s,
            lambda: f"{self.daemon} {self.name} lost {prefix}; it has {self.routes(prefix)}",
        )  # fmt: skip

    def kernel(self, prefix: str) -> list[str]:
        """Next hops of a prefix in the namespace's main table, as addresses; [] when it is not there."""
        family = family_of(prefix)
        text = self.run("ip", "-6" if family == "ipv6" else "-4", "-j", "route", "show", prefix, check=False)
        hops: list[str] = []
        for route in json.loads(text or "[]"):
            for hop in route.get("nexthops") or [route]:
                via = hop.get("via")
                hops.append(hop.get("gateway") or (via["host"] if via else hop.get("dev") or route.get("type", "")))
        return sorted(self.same_as.get(hop, hop) for hop in hops)

    def wait_kernel(self, prefix: str, hops: Sequence[str], *, timeout_s: float = 30.0) -> None:
        wanted = sorted(self.same_as.get(hop, hop) for hop in hops)
        until(
            lambda: self.kernel(prefix) == wanted, timeout_s,
            lambda: f"{self.daemon} {self.name}: kernel has {prefix} by {wanted}; it has {self.kernel(prefix)}",
        )  # fmt: skip
