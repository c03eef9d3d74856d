"""Working in another network namespace from one thread.

The namespace is a property of the thread, so everything between enter and leave must be free of `await`. A thread
that cannot get back would silently program the wrong host: the process is aborted then.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(OSError):
    """A path that is no network namespace, or one we may not enter."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise NamespaceError(code, f"cannot enter network namespace: {os.strerror(code)}")


@contextmanager
def open_netns(path: str | Path) -> Iterator[int]:
    """A file descriptor of the namespace at `path`, closed at the end. Raises NamespaceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(error.errno, f"cannot open network namespace {path}: {error.strerror}") from error
    try:
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0  # a plain file
        if kind != CLONE_NEWNET:
            raise NamespaceError(errno.EINVAL, f"{path} is no network namespace")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def in_netns(netns: int | str | Path | None) -> Iterator[None]:
    """Run the block in a namespace (descriptor or path; None: where we are), and come back whatever happens."""
    if netns is None:
        yield
        return
    if not isinstance(netns, int):
        with open_netns(netns) as fd, in_netns(fd):
            yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns)
        try:
            yield
        finally:
            try:
                _setns(home)
            except OSError as error:
                sys.stderr.write(f"cannot return to our network namespace, aborting: {error}\n")
                sys.stderr.flush()
                os.abort()
    finally:
        os.close(home)
