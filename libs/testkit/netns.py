"""Network namespaces for tests: uniquely named, entered from a thread, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from libs.netlink.netns import in_netns

R = TypeVar("R")


class CommandFailed(RuntimeError):
    """A command inside a namespace ended badly; the message holds what it said."""


_DIRECTORY = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str

    @property
    def path(self) -> Path:
        return _DIRECTORY / self.name

    def run(self, *argv: str, text: str | None = None, check: bool = True) -> str:
        """Standard output of a command run inside; text is its standard input. Raises CommandFailed."""
        return run(self, argv, text=text, check=check)

    def call(self, function: Callable[[], R]) -> R:
        return call_in(self, function)


def can_make_namespaces() -> bool:
    """Whether this process may: root, and a kernel and container that allow it."""
    if os.geteuid() != 0:
        return False
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return done.returncode == 0


@cache
def kernel_makes(kind: str) -> bool:
    """Whether there can be links of this kind, as `ip link` names it."""
    if not can_make_namespaces():
        return False
    with namespace("kind") as ns:
        try:
            ns.run("ip", "link", "add", "probe", "type", kind)
        except CommandFailed as failure:  # others than this say that there is such a kind, and what it asks for
            return "Unknown device type" not in str(failure)
    return True


def create(prefix: str = "t") -> Namespace:
    """A new namespace with its loopback up."""
    ns = Namespace(f"{prefix}-{os.getpid():x}-{uuid.uuid4().hex[:8]}")
    subprocess.run(["ip", "netns", "add", ns.name], check=True, capture_output=True)
    ns.run("ip", "link", "set", "lo", "up")
    return ns


def delete(ns: Namespace) -> None:
    subprocess.run(["ip", "netns", "delete", ns.name], check=True, capture_output=True)


@contextmanager
def namespace(prefix: str = "t") -> Iterator[Namespace]:
    ns = create(prefix)
    try:
        yield ns
    finally:
        delete(ns)


def run(ns: Namespace, argv: Sequence[str], *, text: str | None = None, check: bool = True) -> str:
    done = subprocess.run(
        ["nsenter", f"--net={ns.path}", *argv], input=text, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise CommandFailed(f"{' '.join(argv)} in {ns.name}: exit status {done.returncode}: {said}")
    return done.stdout


def call_in(ns: Namespace, function: Callable[[], R]) -> R:
    """Run a function in a thread of its own that has entered the namespace; its result, or its exception."""
    results: list[R] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with in_netns(ns.path):
                results.append(function())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=work, name=f"in {ns.name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
