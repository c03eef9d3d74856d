"""A real etcd, a real NATS, real typha processes, and readers as felix runs them, but without a kernel.

Run as a program it is one reader in a process of its own, to be stopped and continued: `python -m
tests.contract.typha_stage <node>` with NATS_URL in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

import aiohttp

from libs.bus import subjects, wire
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus, connect
from libs.feed.feed import Apply
from libs.feed.runner import FeedRunner
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.processes import nsrun
from libs.testkit.servers import EtcdServer, NatsServer, free_port

PROJECT = Path(__file__).resolve().parents[2]
_OURS = ("ETCD", "NATS", "FELIX", "TYPHA", "CALICO", "NODENAME", "LOG_", "HEALTH")


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


class Child:
    """A Python program that ends with us. Its log is kept for when a test fails."""

    def __init__(self, module: str, *arguments: str, env: dict[str, str], log: Path) -> None:
        command = [str(nsrun()), str(os.getpid()), sys.executable, "-m", module, *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=inherited | env, cwd=PROJECT,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def status(self, timeout_s: float = 60.0) -> int:
        """Its exit status, once it has ended by itself."""
        await eventually(lambda: self.process.poll() is not None, timeout_s, "the process ends")
        return self.process.wait()


class Typha(Child):
    def __init__(self, instance: str, env: dict[str, str], log: Path) -> None:
        self.instance = instance
        self.port = free_port()
        own = {"TYPHA_INSTANCE": instance, "TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": str(self.port)}
        super().__init__("services.typha", env=env | own, log=log)

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.status, await answer.text()

    async def ready(self, wanted: bool = True) -> Self:
        """Waits until /readiness says so."""
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(aiohttp.ClientError):
                status, _ = await self.get("/readiness")
                if status == (200 if wanted else 503):
                    return self
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            await asyncio.sleep(0.02)

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        start = f'{name}{{syncer="felix"}} '
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


class RecordingBus(NatsBus):
    """Notes every message that the server delivers to one of our subscriptions."""

    def __init__(self, config: BusConfig, *, name: str) -> None:
        self.delivered: list[tuple[str, int]] = []  # subject, bytes
        super().__init__(config, name=name)

    def subscribe(self, subject: str, callback, queue=None):  # type: ignore[no-untyped-def]
        def noted(msg) -> None:  # type: ignore[no-untyped-def]
            self.delivered.append((msg.subject, len(msg.data)))
            callback(msg)

        return super().subscribe(subject, noted, queue)


class Agent:
    """A felix without a kernel: follows typha and reports what it was told to apply."""

    def __init__(self, bus: NatsBus, node: str, *, report: bool = True) -> None:
        self.bus, self.node, self.report = bus, node, report
        self.applies: list[Apply] = []
        self.runner = FeedRunner(bus, node, self._on_apply, Random())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Self:
        self._task = asyncio.create_task(self.runner.run(), name=f"agent {self.node}")
        return self

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _on_apply(self, apply: Apply, traceparent: str | None) -> None:
        self.applies.append(apply)
        self.report_again()

    def report_again(self) -> None:
        if self.report and self.applies:
            apply = self.applies[-1]
            report = wire.Applied(node=self.node, epoch=apply.epoch, rev=apply.rev, seq=apply.seq)
            self.bus.publish(subjects.applied(self.node), wire.encode(report))

    @property
    def feed(self):  # type: ignore[no-untyped-def]
        return self.runner.feed

    @property
    def following(self) -> bool:
        return self.runner.following


class Stage:
    """Leaving the block ends everything that was started on it."""

    def __init__(self, directory: Path, nats_config: str = "", typha_env: Mapping[str, str] | None = None) -> None:
        self._typha_env = dict(typha_env or {})
        self.etcd = EtcdServer()
        self.nats = NatsServer(config=nats_config)
        self.directory = directory
        self.store: EtcdStore
        self._stack = AsyncExitStack()
        self._count = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for server in (self.etcd, self.nats):
                stack.callback(server.close)
            await asyncio.gather(self.etcd.start_async(), self.nats.start_async())
            self.store = EtcdStore(StoreConfig.from_env(self.env))
            stack.push_async_callback(self.store.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def env(self) -> dict[str, str]:
        return {"ETCD_ENDPOINTS": self.etcd.endpoint, "NATS_URL": self.nats.url}

    def typha(self) -> Typha:
        self._count += 1
        name = f"t{self._count}"
        made = Typha(name, self.env | self._typha_env, self.directory / f"{name}.log")
        self._stack.callback(made.kill)
        return made

    def agent_process(self, node: str) -> Child:
        made = Child("tests.contract.typha_stage", node, env=self.env, log=self.directory / f"{node}.log")
        self._stack.callback(made.kill)
        return made

    async def bus(self, name: str, **env: str) -> NatsBus:
        made = await connect(BusConfig.from_env(self.env | env), name=name, timeout_s=10)
        self._stack.push_async_callback(made.close)
        return made

    async def recording_bus(self, name: str) -> RecordingBus:
        made = RecordingBus(BusConfig.from_env(self.env), name=name)
        made.start()
        self._stack.push_async_callback(made.close)
        await made.wait_connected(10)
        return made

    async def agent(self, node: str, bus: NatsBus | None = None) -> Agent:
        made = Agent(bus or await self.bus(f"felix-{node}"), node).start()
        self._stack.push_async_callback(made.stop)
        return made

    @contextlib.asynccontextmanager
    async def agents(self, count: int, per_connection: int, prefix: str = "agent") -> AsyncIterator[list[Agent]]:
        async with AsyncExitStack() as stack:
            made: list[Agent] = []
            for start in range(0, count, per_connection):
                bus = await connect(BusConfig.from_env(self.env), name=f"{prefix}s-{start}", timeout_s=10)
                stack.push_async_callback(bus.close)
                for number in range(start, min(count, start + per_connection)):
                    agent = Agent(bus, f"{prefix}{number}").start()
                    stack.push_async_callback(agent.stop)
                    made.append(agent)
            yield made

    async def put(self, *entries: tuple[str, bytes | None]) -> int:
        """Returns the revision of the last one."""
        revision = 0
        for key, data in entries:
            written = await (self.store.delete(key) if data is None else self.store.put(key, data))
            revision = written or revision
        return revision

    async def watchers(self) -> int:
        """How many watchers etcd serves, by its own count."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.etcd.endpoint}/metrics") as answer:
            text = await answer.text()
        start = "etcd_debugging_mvcc_watcher_total "
        return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith(start))

    async def replace_etcd(self, *, same_cluster: bool) -> None:
        """An empty etcd on the same port, as after restoring an old backup. Starts at revision 1."""
        self.etcd.stop()
        shutil.rmtree(self.etcd.directory / "data")
        if not same_cluster:
            self.etcd.cluster_token = "another"
        await self.etcd.start_async()


async def _main(node: str) -> None:
    async with await connect(BusConfig.from_env(os.environ), name=f"felix-{node}") as bus:
        await Agent(bus, node).start()._task  # type: ignore[misc]


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
