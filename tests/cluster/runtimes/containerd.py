"""containerd, runc and ctr on a node, with everything of their own: socket, root, state, control groups."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

from libs.testkit.topology import processes_in
from tests.cluster.conftest import until
from tests.cluster.runtimes.host import Host, RuntimeFailed, remove_cgroups
from tests.cluster.runtimes.tools import environment

_CONFIG = """
version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{at}/containerd.sock"
[ttrpc]
  address = "{at}/containerd.sock.ttrpc"
"""


class Containerd:
    def __init__(self, host: Host, space: str) -> None:
        """space: containerd's namespace, whose name begins the container's id for CNI, and its control group."""
        self.host, self.space = host, space
        self._at = host.directory / "containerd"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._runs: dict[str, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        self._at.mkdir()
        (self._at / "config.toml").write_text(_CONFIG.format(at=self._at))
        with self._log().open("wb") as log:
            self._daemon = subprocess.Popen(  # noqa: ASYNC220  # starts at once
                self.host.argv("containerd", "--config", self._at / "config.toml"),
                env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

        async def answers() -> bool:
            assert self._daemon is not None
            if self._daemon.poll() is not None:
                raise RuntimeFailed(self._log().read_text()[-2000:])
            try:
                await self.ctr("version")
            except RuntimeFailed:
                return False
            return True

        await until(answers, 30, "containerd answers")

    def _log(self) -> Path:
        return self._at / "log"

    async def ctr(self, *arguments: str | Path) -> str:
        return await self.host.run("ctr", "-a", self._at / "containerd.sock", "-n", self.space, *arguments)

    async def run(self, image: str, name: str, *command: str) -> None:
        """`ctr run --cni` in the foreground: it sends DEL when the container ends. Returns once the container runs."""
        argv = self.host.argv(
            "ctr", "-a", self._at / "containerd.sock", "-n", self.space, "run", "--rm", "--cni", image, name, *command
        )
        pipe = asyncio.subprocess.PIPE
        self._runs[name] = await asyncio.create_subprocess_exec(
            *argv, env=environment(), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )

        async def running() -> bool:
            if (status := self._runs[name].returncode) is not None:
                output, _ = await self._runs[name].communicate()
                raise RuntimeFailed(f"ctr run ended with {status}: {output.decode()}")
            return f"{name} " in (tasks := await self.ctr("task", "ls")) and "RUNNING" in tasks

        await until(running, 60, f"container {name} runs")

    async def end(self, name: str) -> str:
        """What `ctr run` printed."""
        await self.ctr("task", "kill", "--signal", "SIGKILL", name)
        output, _ = await asyncio.wait_for(self._runs.pop(name).communicate(), 60)
        return output.decode()

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait()
        remove_cgroups(self.space)

    def leftovers(self) -> list[int]:
        """Processes of containers and their shims in the node's namespace."""
        found = []
        for pid in processes_in([self.host.node.namespace]):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
                if b"containerd-shim" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found
