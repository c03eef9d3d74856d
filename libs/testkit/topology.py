"""Named network namespaces and the links between them, made fast and removed for certain.

Everything is done inside namespaces that we made: no device, address or route ever appears in the root namespace. Names
begin with a prefix that carries the owner's id, so that leftovers of a dead owner can be told from a living one's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.netlink.netns import CLONE_NEWNET, in_netns

NETNS_DIR = Path("/run/netns")
_MS_BIND, _MS_SHARED, _MS_REC, _MNT_DETACH = 0x1000, 0x100000, 0x4000, 2  # linux/mount.h
_SIOCSIFFLAGS, _SIOCGIFFLAGS, _IFF_UP = 0x8914, 0x8913, 1  # linux/sockios.h, linux/if.h
_libc = ctypes.CDLL(None, use_errno=True)


class TopologyError(RuntimeError):
    """A namespace or link could not be made; carries what the kernel or `ip` said."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace, as `ip netns` knows it."""

    name: str

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.name

    def create(self) -> None:
        """With lo up, and nothing else. Raises TopologyError when it exists."""
        _make_shared_mount()
        failure: list[BaseException] = []
        # A thread of its own: it stays in the new namespace until it ends, and nobody else is taken along.
        maker = threading.Thread(target=self._create_here, args=(failure,), name=f"netns-{self.name}")
        maker.start()
        maker.join()
        if failure:
            raise TopologyError(f"namespace {self.name}: {failure[0]}") from failure[0]

    def _create_here(self, failure: list[BaseException]) -> None:
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            try:
                _check(_libc.unshare(CLONE_NEWNET))
                _check(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(self.path), b"none", _MS_BIND, None))
            except OSError:
                self.path.unlink()
                raise
            _loopback_up()
        except OSError as error:
            failure.append(error)

    def delete(self) -> None:
        """The name goes at once; the kernel takes the namespace down when its last process and socket are gone."""
        _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def exists(self) -> bool:
        return self.path.exists()

    def ip(self, commands: Sequence[str]) -> None:
        """Run `ip` commands ("link add …") in one process. Raises TopologyError with the first failure."""
        done = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"], input="\n".join(commands) + "\n", capture_output=True, text=True
        )
        if done.returncode:
            raise TopologyError(f"in namespace {self.name}: {done.stderr.strip()}")

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """name in dots or slashes below net -> value. A name that this kernel does not have is skipped."""
        with in_netns(self.path):  # /proc/sys/net shows the namespace of the thread that looks
            for name, value in values.items():
                path = Path("/proc/sys/net") / (name if "/" in name else name.replace(".", "/"))
                with contextlib.suppress(FileNotFoundError):
                    path.write_text(f"{value}\n")

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A non-blocking socket that belongs to this namespace for ever, whichever thread uses it."""
        with in_netns(self.path):
            made = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
        made.setblocking(False)
        return made

    def processes(self) -> list[int]:
        return processes_in([self])


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))  # struct ifreq
        fcntl.ioctl(channel, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(channel, _SIOCSIFFLAGS, request)


def _make_shared_mount() -> None:
    """/run/netns must be a shared mount, as `ip netns add` makes it: else a process with a mount namespace of its own
    does not
    see namespaces that are made later."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        for line in table:
            fields = line.split()
            if fields[4] == str(NETNS_DIR) and any(f.startswith("shared:") for f in fields[6 : fields.index("-")]):
                return
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    path = os.fsencode(NETNS_DIR)
    if _libc.mount(b"none", path, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _check(_libc.mount(path, path, b"none", _MS_BIND | _MS_REC, None))
        _check(_libc.mount(b"none", path, b"none", _MS_SHARED | _MS_REC, None))


def namespaces(prefix: str) -> list[Namespace]:
    """Those whose name begins with `prefix`, sorted."""
    try:
        return [Namespace(n) for n in sorted(os.listdir(NETNS_DIR)) if n.startswith(prefix)]
    except FileNotFoundError:
        return []


def processes_in(spaces: Iterable[Namespace]) -> list[int]:
    """Process ids of everything that runs in the given namespaces, this process never among them."""
    inodes = set()
    for space in spaces:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(space.path).st_ino)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in inodes:
                    found.append(int(entry))
    return found


def remove(spaces: Sequence[Namespace], *, patience_s: float = 5.0) -> None:
    """Kill what runs in the namespaces (they are ours, so is what runs there), then delete them."""
    deadline = time.monotonic() + patience_s
    while (left := processes_in(spaces)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    for space in spaces:
        space.delete()
