"""A Docker daemon of a test's own: its network, mounts and processes are in namespaces, so that nothing of this machine
changes and all of it ends with one process.

Programs come from where `./dev test` unpacked the distribution's packages, Compose from where it was built, else both
from the machine. Ports that containers publish are on the loopback of `daemon.namespace`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from libs.testkit import netns, packages

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = packages.CACHE / "docker"
COMPOSE = packages.CACHE / "compose" / "docker-compose"
_READY_S = 60.0

# $1: directory, $2: control group. State folders and those that containers of a node mount from
# their host are the daemon's own: what it makes there is gone with it.
_START = """
set -e
mount -t tmpfs tmpfs /run
for at in lib log; do mount -t tmpfs tmpfs /var/$at; done
mkdir -p "$1/upper" "$1/work" /var/log/calico
mount -t overlay -o "lowerdir=/usr/lib,upperdir=$1/upper,workdir=$1/work" overlay /usr/lib  # it makes /lib/modules
exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid \
    --storage-driver overlay2 --iptables=false --ip6tables=false --exec-opt native.cgroupdriver=cgroupfs \
    --cgroup-parent "$2" --log-level warn
"""


class DockerError(RuntimeError):
    """The daemon did not start; the text has the end of its log."""


class NotHere(Exception):
    """What this machine lacks."""


def _compose() -> Path:
    """The plugin. Raises NotHere."""
    places = [COMPOSE, *(Path(at) / "docker/cli-plugins/docker-compose" for at in ("/usr/libexec", "/usr/local/lib"))]
    for place in (*places, Path("/usr/lib/docker/cli-plugins/docker-compose")):
        if place.exists():
            return place.resolve()
    raise NotHere("Docker Compose is not here")


class DockerDaemon:
    """`with DockerDaemon() as daemon: daemon.run("docker compose up")`."""

    def __init__(self) -> None:
        """Raises NotHere."""
        for program in ("dockerd", "docker", "containerd", "runc"):
            if shutil.which(program, path=packages.search_path(PACKAGES)) is None:
                raise NotHere(f"Docker is not here: {program}")
        self._plugin = _compose()
        self.directory = Path(tempfile.mkdtemp(prefix="calico-docker-"))
        self._group = f"/{self.directory.name}"
        self.namespace = netns.create("docker")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For `docker` and `docker compose`; variables that would lead elsewhere are gone."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "COMPOSE_", "CALICO_", "ETCD_"))}
        return plain | {
            "PATH": packages.search_path(PACKAGES),
            "DOCKER_HOST": f"unix://{self.directory}/docker.sock",
            "DOCKER_CONFIG": str(self.directory / "config"),
            "COMPOSE_PROGRESS": "plain",
        }

    def run(self, script: str, *, cwd: Path = PROJECT, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """A shell script on the daemon's network, its output and errors together; whatever its status."""
        return subprocess.run(
            ["nsenter", f"--net={self.namespace.path}", "bash", "-euo", "pipefail", "-c", script],
            env=self.environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def start(self) -> Self:
        """Until it answers. Raises DockerError."""
        plugins = self.directory / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(self._plugin)
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={self.namespace.path}", "unshare", "--mount", "--pid", "--fork", "--kill-child",
                 "--mount-proc", "sh", "-c", _START, "sh", str(self.directory), self._group],
                env=packages.environment(PACKAGES), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_S
        while self.run("docker info").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DockerError(f"the Docker daemon does not answer:\n{self.log_tail()}")
            time.sleep(0.1)
        return self

    def log_tail(self, characters: int = 3000) -> str:
        return (self.directory / "log").read_text(errors="replace")[-characters:]

    def close(self) -> None:
        """Everything ends and goes: processes with their PID namespace, mounts with theirs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        netns.delete(self.namespace)
        root = Path("/sys/fs/cgroup")
        for group in (root / self._group[1:], *root.glob(f"*{self._group}")):
            self._remove_group(group)
        shutil.rmtree(self.directory)

    def _remove_group(self, group: Path) -> None:
        deadline = time.monotonic() + 10
        while group.exists():
            try:
                for path, _, _ in os.walk(group, topdown=False):
                    os.rmdir(path)
            except OSError:  # its processes are still on their way out
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()
