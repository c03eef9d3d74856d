"""A node as a container runtime sees it: its network, and /etc/cni/net.d, /opt/cni/bin and /var/lib/cni of its own.

Runtimes have these paths compiled in. A process that only waits holds a mount namespace in which they are laid over
the machine's; commands join it. Mounts below /run/netns alone are shared, because felix must see the namespaces that
a runtime makes there. The plugin and its network list are installed by the project's own installer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from libs.testkit.cluster import Node
from services.cni.config import InstallConfig
from services.cni.install import install
from tests.cluster.runtimes.tools import environment, plugin, tool

# $1: directory with etc, opt and lib. An overlay shows what is below as well, and needs nothing to exist there.
_HOLD = """
set -e
while read -r _ _ _ _ at _; do
    [ "$at" = /run/netns ] || mount --make-private "$at" 2>/dev/null || :
done < /proc/self/mountinfo
mount -t overlay -o "lowerdir=$1/etc:/etc" private /etc
mount -t overlay -o "lowerdir=$1/opt:/opt" private /opt
mount -t overlay -o "lowerdir=$1/lib:/var/lib" private /var/lib
for at in etc/cni/net.d opt/cni/bin; do mount --bind "$1/$at" "/$at"; done  # an overlay may not see later changes
mount --bind "$1/cni" /var/lib/cni
echo ready
exec sleep infinity
"""


class RuntimeFailed(RuntimeError):
    """A command of a runtime did not succeed; carries what it printed."""


@dataclass
class Host:
    node: Node
    directory: Path
    _holder: subprocess.Popen[bytes]

    @classmethod
    def open(cls, node: Node, plugins: Sequence[str]) -> Self:
        """plugins: names of CNI's own that stand beside ours."""
        directory = node.directory / "host"
        for name in ("etc/cni/net.d", "opt/cni/bin", "lib/cni", "cni"):
            (directory / name).mkdir(parents=True)
        for name in plugins:
            shutil.copy(plugin(name), directory / "opt/cni/bin" / name)
        env = environment()
        holder = subprocess.Popen(
            ["nsenter", f"--net={node.namespace.path}", "unshare", "--mount", "--propagation", "unchanged",
             "sh", "-c", _HOLD, "sh", str(directory)],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert holder.stdout is not None
        if (said := holder.stdout.readline()) != b"ready\n":
            holder.kill()
            raise RuntimeFailed(f"no private view of the file system: {said.decode()} {holder.stdout.read().decode()}")
        return cls(node, directory, holder)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    @property
    def networks(self) -> Path:
        return self.directory / "etc/cni/net.d"

    def install(self, network: Mapping[str, Any] | str, name: str = "10-calico.conflist") -> None:
        """As calico-cni does on a host. network: a network list; as text it may have Calico's placeholders."""
        install(
            InstallConfig(
                bin_dir=(self.directory / "opt/cni/bin",), conf_dir=self.networks, conf_name=name,
                network_config=network if isinstance(network, str) else json.dumps(network),
                node_name=self.node.name, socket=str(self.node.cni_socket),
            )
        )  # fmt: skip

    def argv(self, *command: str | Path) -> list[str]:
        inside = ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--wdns=/"]
        return [*inside, str(tool(str(command[0]))), *map(str, command[1:])]

    async def run(self, *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
        """Its standard output. Raises RuntimeFailed."""

        def work() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                self.argv(*command), env=environment() | dict(env or {}), stdin=subprocess.DEVNULL,
                capture_output=True, timeout=timeout_s, check=False,
            )  # fmt: skip

        done = await asyncio.to_thread(work)
        if done.returncode:
            said = f"{done.stdout.decode(errors='replace')}\n{done.stderr.decode(errors='replace')}".strip()
            raise RuntimeFailed(f"{' '.join(map(str, command))}: {said}")
        return done.stdout.decode()


def remove_cgroups(name: str) -> None:
    """Empty control groups that a runtime leaves below its parent group, in either version of the hierarchy."""
    root = Path("/sys/fs/cgroup")
    deadline = time.monotonic() + 10
    for group in (*root.glob(name), *root.glob(f"*/{name}")):
        for path, _, _ in os.walk(group, topdown=False):
            while True:
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError as error:  # its last process is about to end
                    if error.errno == errno.EBUSY and time.monotonic() < deadline:
                        time.sleep(0.05)
                        continue
                    raise
                break
