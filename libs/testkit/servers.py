"""Real etcd and NATS servers for tests: started on free ports, killed, paused and started again, never left behind.

    with EtcdServer() as etcd: ...                 # plain
    async with NatsServer() as nats: ...           # does not block the loop while the server starts

`kill`, `pause`, `resume` are what faults are made of; `start` (or `await start_async()`) after `kill` or `stop` brings
the server back on the same port and data directory. Leaving the `with` block (or `close`) ends the process and removes
what was made for it. A server dies with the thread that started it (PR_SET_PDEATHSIG), so start servers from a thread
that lives as long as the test.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from libs.testkit.packages import CACHE

CRASH_ETCD = CACHE / "etcd-server" / "usr" / "bin" / "etcd"
"""The distribution's etcd, which keeps what it has confirmed; `./dev` fetches it."""

_POLL_S = 0.01
_LAUNCHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    sys.exit("parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A preexec_fn would do the same, but forks the whole interpreter, which gRPC's threads do not survive well."""


class ServerError(Exception):
    """The server did not start. Carries the tail of its log."""


def free_port(address: str = "127.0.0.1") -> int:
    """A port nobody listens on, below the ephemeral range so that no outgoing connection takes it between kill and
    restart. Each worker of a test run has ports of its own, and gives none twice that may not be bound yet.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(200):
        port = _own_ports().popleft()
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            finally:
                _own_ports().append(port)
            return port
    raise ServerError(f"no free port on {address}")


@functools.cache
def _own_ports() -> deque[int]:
    """In an order of chance that no seed of a property test repeats."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw3"; nothing outside such a run
    first = 10_000 + (int(worker.removeprefix("gw")) % 7 if worker else 7) * 2_750
    ports = list(range(first, first + 2_750))
    random.SystemRandom().shuffle(ports)
    return deque(ports)


def listening_sockets(pid: int) -> dict[int, set[int]]:
    """Port -> inodes of the sockets that listen on it in the network namespace of `pid` (proc(5), /proc/net/tcp)."""
    found: dict[int, set[int]] = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(int(fields[9]))
    return found


def _owned_sockets(pid: int) -> set[int]:
    owned = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue  # closed between listing and reading
        if target.startswith("socket:["):
            owned.add(int(target[8:-1]))
    return owned


class Server(ABC):
    """One child process that listens on `address`:`port`.

    binary: program to run instead of the one next to the interpreter. netns: name of a network namespace to run in; the
    port is then the well-known one, as the namespace is ours alone. directory: where data and log live; made and
    removed when not given.
    """

    program: ClassVar[str]
    well_known_port: ClassVar[int]
    ready_line: ClassVar[bytes]

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        netns: str | None = None,
        binary: str | Path | None = None,
        directory: str | Path | None = None,
        extra_args: tuple[str, ...] = (),
        ready_timeout_s: float = 60.0,
    ) -> None:
        self.address = str(ip_address(address))
        self.netns = netns
        self.port = port or self._pick_port()
        self.binary = Path(binary) if binary else Path(sys.executable).parent / self.program
        self._own_directory = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.program}-")) if directory is None else Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / f"{self.program}.log"
        self._extra_args = extra_args
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @abstractmethod
    def arguments(self) -> list[str]:
        """What follows the program's name on its command line."""

    def environment(self) -> dict[str, str]:
        """What it has beside our own."""
        return {}

    def _pick_port(self) -> int:
        return self.well_known_port if self.netns else free_port(self.address)

    @property
    def host_port(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.program} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 20) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Blocks until the server answers. Raises ServerError with the log's tail when it does not."""
        deadline = self._spawn()
        while not self._ready(deadline):
            time.sleep(_POLL_S)
        return self

    async def start_async(self) -> Self:
        deadline = self._spawn()
        while not self._ready(deadline):  # noqa: ASYNC110 - another process's state has no event to wait for
            await asyncio.sleep(_POLL_S)
        return self

    def _spawn(self) -> float:
        """Start the process; return the monotonic time at which it must be ready."""
        if self.running:
            raise ServerError(f"{self.program} is running already")
        self._log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), str(self.binary)]
        if self.netns:
            command = [shutil.which("ip") or "/sbin/ip", "netns", "exec", self.netns, *command]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.arguments(), *self._extra_args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=os.environ | self.environment(),
                start_new_session=True,  # Ctrl-C is for the test, which then stops us in order
            )
        return time.monotonic() + self._ready_timeout_s

    def _ready(self, deadline: float) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self._process = None
            raise ServerError(f"{self.program} ended with {code}:\n{self.log_tail()}")
        if self._serves():
            self._assert_listener()
            return True
        if time.monotonic() > deadline:
            tail = self.log_tail()
            self._end()
            raise ServerError(f"{self.program} not ready within {self._ready_timeout_s} s:\n{tail}")
        return False

    def _serves(self) -> bool:
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return self.ready_line in log.read()

    def _assert_listener(self) -> None:
        """What listens on our port must be our child: a server left over from elsewhere would answer just as well."""
        inodes = listening_sockets(self.pid).get(self.port, set())
        if not inodes & _owned_sockets(self.pid):
            self._end()
            raise ServerError(f"port {self.port} is not served by the {self.program} that was started")

    def stop(self) -> None:
        """Ask it to end, insist after half a minute. Data stay, so that `start` continues."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as power loss looks to everybody else."""
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP, until all its threads stand: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self._end()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            return await self.start_async()
        except BaseException:
            self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def _forgets(binary: Path) -> bool:
    """Whether a member that is alone answers a write before it is in its log, and forgets it when killed right then:
    3.4 before 3.4.21 and 3.5 before 3.5.5 (etcd issue 14370).
    """
    shown = subprocess.run([str(binary), "--version"], capture_output=True, check=True, text=True, timeout=20).stdout
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", shown)
    assert found is not None, shown
    version = tuple(map(int, found.groups()))
    return version < (3, 4, 21) or (3, 5, 0) <= version < (3, 5, 5)


@functools.cache
def _knows_flag(binary: Path, flag: str) -> bool:
    shown = subprocess.run([str(binary), "--help"], capture_output=True, check=False, timeout=20)
    return flag.encode() in shown.stdout + shown.stderr


class EtcdServer(Server):
    """One etcd member.

    binary: the one of the locked packages, or one that may be killed (CRASH_ETCD). fsync: False saves the disk in tests
    where the machine survives (a SIGKILL loses nothing: the page cache stays); tests of crashes say True. name, peers:
    member name and every member's peer URL by name, for a cluster (see `etcd_cluster`). cert_file, key_file, ca_file:
    TLS for clients; with a CA their certificates are demanded too. peer_files: directory of peer.crt, peer.key and
    peer-ca.crt, by which members know each other.
    """

    program = "etcd"
    well_known_port = 2379
    ready_line = b"ready to serve client requests"

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        peer_port: int | None = None,
        netns: str | None = None,
        binary: str | Path | None = None,
        directory: str | Path | None = None,
        extra_args: tuple[str, ...] = (),
        ready_timeout_s: float = 60.0,
        fsync: bool = False,
        name: str = "default",
        peers: dict[str, str] | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        ca_file: str | Path | None = None,
        peer_files: Path | None = None,
    ) -> None:
        super().__init__(
            address=address,
            port=port,
            netns=netns,
            binary=binary,
            directory=directory,
            extra_args=extra_args,
            ready_timeout_s=ready_timeout_s,
        )
        self.peer_port = peer_port or (2380 if netns else free_port(self.address))
        self.name = name
        self.cluster_token = ""  # another one makes another cluster id, once the data directory is empty
        self._peers = peers
        self._fsync = fsync
        self._cert_file, self._key_file, self._ca_file = cert_file, key_file, ca_file
        self._peer_files = peer_files

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._cert_file else 'http'}://{self.host_port}"

    @property
    def peer_url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self._peer_files else 'http'}://{host}:{self.peer_port}"

    def arguments(self) -> list[str]:
        peers = self._peers or {self.name: self.peer_url}
        flags = {
            "name": self.name,
            "data-dir": str(self.directory / "data"),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{name}={url}" for name, url in peers.items()),
            "initial-cluster-token": self.cluster_token or f"test-{min(peers.values())}",
            "auto-tls": "false",
            "log-level": "info",
        }
        if self._cert_file:
            flags |= {"cert-file": str(self._cert_file), "key-file": str(self._key_file)}
        if self._ca_file:
            flags |= {"client-cert-auth": "true", "trusted-ca-file": str(self._ca_file)}
        if at := self._peer_files:
            flags |= {"peer-client-cert-auth": "true", "peer-trusted-ca-file": str(at / "peer-ca.crt")}
            flags |= {"peer-cert-file": str(at / "peer.crt"), "peer-key-file": str(at / "peer.key")}
        if not self._fsync and _knows_flag(self.binary, "unsafe-no-fsync"):
            flags["unsafe-no-fsync"] = "true"
        return [f"--{key}={value}" for key, value in flags.items()]

    def kill(self) -> None:
        """Raises ServerError for a release that does not keep its promises then."""
        if _forgets(self.binary):
            raise ServerError(f"{self.binary} may forget what it confirmed when it is killed; run CRASH_ETCD")
        super().kill()

    def forget(self) -> None:
        """End it and remove all it knows; the next start makes another, empty one."""
        self._end()
        shutil.rmtree(self.directory / "data")


def etcd_cluster(
    size: int = 3,
    *,
    binary: str | Path | None = None,
    directory: Path | None = None,
    fsync: bool = False,
    extra_args: tuple[str, ...] = (),
    ready_timeout_s: float = 60.0,
    tls: Path | None = None,
) -> list[EtcdServer]:
    """Members of one cluster, all started. The caller closes each; none is left running when one fails to start.

    directory: where each gets one of its own, which stays; else they are made and removed. tls: directory of
    calico-etcd's files (`calicoctl trust certs`), for clients and between members.
    """
    members = [
        EtcdServer(
            name=f"m{number}",
            binary=binary,
            directory=directory / f"m{number}" if directory else None,
            fsync=fsync,
            extra_args=extra_args,
            ready_timeout_s=ready_timeout_s,
            cert_file=tls / "tls.crt" if tls else None,
            key_file=tls / "tls.key" if tls else None,
            ca_file=tls / "ca.crt" if tls else None,
            peer_files=tls,
        )
        for number in range(size)
    ]
    peers = {member.name: member.peer_url for member in members}
    try:
        deadlines = []
        for member in members:
            member._peers = peers
            deadlines.append(member._spawn())  # a member is ready only once a majority is there: spawn all, then wait
        for member, deadline in zip(members, deadlines, strict=True):
            while not member._ready(deadline):
                time.sleep(_POLL_S)
    except BaseException:
        for member in members:
            member.close()
        raise
    return members


class NatsServer(Server):
    """One nats-server. config: text of a configuration file (accounts, permissions, TLS); address and port are added to
    it.
    """

    program = "nats-server"
    well_known_port = 4222
    ready_line = b"Server is ready"

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        netns: str | None = None,
        binary: str | Path | None = None,
        directory: str | Path | None = None,
        extra_args: tuple[str, ...] = (),
        ready_timeout_s: float = 60.0,
        config: str = "",
        jetstream: bool = False,
    ) -> None:
        super().__init__(
            address=address,
            port=port,
            netns=netns,
            binary=binary,
            directory=directory,
            extra_args=extra_args,
            ready_timeout_s=ready_timeout_s,
        )
        self._config = config
        self._jetstream = jetstream

    @property
    def url(self) -> str:
        return f"nats://{self.host_port}"

    def arguments(self) -> list[str]:
        arguments = ["-a", self.address, "-p", str(self.port)]
        if self._config:
            path = self.directory / "nats.conf"
            path.write_text(self._config)
            arguments += ["-c", str(path)]
        if self._jetstream:
            arguments += ["-js", "-sd", str(self.directory / "jetstream")]
        return arguments
