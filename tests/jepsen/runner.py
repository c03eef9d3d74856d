"""One run: a cluster, clients that are started again whenever they die, the nemesis; then silence, the first
judgement, garbage collection, the second, everything released, the third.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

from libs.ipam.affinity import Owner
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, etcd_cluster
from tests.jepsen import raw_etcd
from tests.jepsen.audit import MARK, Audit, Problem
from tests.jepsen.history import Estate, History, Instance, Reader
from tests.jepsen.nemesis import Nemesis
from tests.jepsen.points import KINDS, POINTS, Arm, Loss
from tests.jepsen.verdict import Judgement, at_the_end, judge
from tests.jepsen.workload import Spec
from tests.jepsen.world import NODES, endpoint, fast_clock, resources
from tests.jepsen.zygote import Zygote

IPAM = "/calico/ipam/"
QUIET_S = 3.0
TIDE_S = 20.0
LAST_WORDS_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """operations, crashes_each, kills: the run ends when all are reached, or after `at_most_s`; that is a failure when
    the run is to be recorded.
    """

    seed: int
    operations: int
    at_most_s: float
    recorded: bool = False
    crashes_each: int = 0
    kills: int = 0
    slots: int = 12
    most_held: int = 8  # addresses per client, about, at high water
    life_s: tuple[float, float] = (10.0, 30.0)  # an armed client that does not meet its point is killed then
    calm_s: tuple[float, float] = (1.0, 5.0)  # of the nemesis, between two deeds
    loss: Loss = Loss()  # noqa: RUF009 - frozen
    mutation: str = ""
    etcd: Path | None = None
    fsync: bool = False
    directory: Path | None = None  # kept; else one in memory where there is one, removed at the end


@dataclass(slots=True)
class Outcome:
    plan: Plan
    history: History
    judgement: Judgement
    nemesis: Counter[str]
    outside_kills: int
    problems: list[Problem]
    revisions: int
    elapsed_s: float
    check: str  # what `calicoctl ipam check` said, in a line


@dataclass(slots=True)
class _Slot:
    number: int
    journal: Path
    reader: Reader
    estate: Estate = field(default_factory=Estate)
    incarnation: int = 0
    arm: Arm | None = None
    pid: int | None = None


class Runner:
    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._rng = Random(plan.seed)
        self._history = History()
        self._problems: list[Problem] = []
        self._outside_kills = 0
        self._stop = asyncio.Event()
        self._origin_ns = time.monotonic_ns()
        self._members: list[EtcdServer] = []
        self._endpoints: tuple[str, ...] = ()
        self._audit = Audit()
        self._seen = 0  # revision up to which the audit has read
        self._slots = [
            _Slot(number, path, Reader(path))
            for number in range(plan.slots)
            for path in [directory / f"client-{number}.jsonl"]
        ]

    async def run(self) -> Outcome:
        started = time.monotonic()
        plan = self._plan
        self._members = etcd_cluster(
            3,
            binary=plan.etcd and plan.etcd.resolve(),
            fsync=plan.fsync,
            directory=self._directory / "etcd",
            ready_timeout_s=60.0,
            extra_args=(f"--quota-backend-bytes={8 << 30}", "--snapshot-count=10000"),
        )
        try:
            self._endpoints = tuple(member.endpoint for member in self._members)
            async with self._store() as store:
                for key, value in resources().items():
                    await store.put(key, value)
            nemesis = Nemesis(self._members, Random(self._rng.random()), calm_s=plan.calm_s)
            await self._under_fire(nemesis, started)
            await self._quiet()
            judgement = judge(self._history, await self._read())
            await self._collect_garbage(judgement.collectable)
            self._problems += at_the_end(await self._read(), judgement.expected, "after garbage collection")
            check = await self._calicoctl_check(judgement.expected)
            if not judgement.problems and not self._problems:
                await self._release_all(judgement.expected)
                self._problems += at_the_end(await self._read(), set(), "after everything was released")
            # What the audit finds at the beginning of the second and third reading is new.
            known = set(judgement.problems)
            self._problems += [problem for problem in self._audit.problems if problem not in known]
            return Outcome(
                plan, self._history, judgement, nemesis.counts, self._outside_kills,
                judgement.problems + self._problems, self._audit.revisions, time.monotonic() - started, check,
            )  # fmt: skip
        finally:
            for member in self._members:
                member.close()

    # --- the storm ---------------------------------------------------------------------------------------------------

    async def _under_fire(self, nemesis: Nemesis, started: float) -> None:
        trouble_ends = asyncio.Event()
        async with Zygote(self._directory / "clients.log") as zygote, asyncio.TaskGroup() as tasks:
            trouble = tasks.create_task(nemesis.run(trouble_ends), name="nemesis")
            clients = [tasks.create_task(self._keep(slot, zygote), name=f"s{slot.number}") for slot in self._slots]
            told = started
            while time.monotonic() - started < self._plan.at_most_s and not self._enough(nemesis):
                await asyncio.sleep(0.5)
                for slot in self._slots:
                    self._follow(slot)
                if time.monotonic() - told > 30:
                    told = time.monotonic()
                    self._tell(nemesis, told - started)
            self._stop.set()
            trouble_ends.set()
            await trouble
            for slot in self._slots:
                if slot.pid is not None:
                    _signal(slot.pid, signal.SIGTERM)
            _, late = await asyncio.wait(clients, timeout=LAST_WORDS_S)
            for slot, client in zip(self._slots, clients, strict=True):
                if client in late and slot.pid is not None:
                    self._problems.append(Problem("history", f"client {slot.number} does not end"))
                    _signal(slot.pid, signal.SIGKILL)

    async def _keep(self, slot: _Slot, zygote: Zygote) -> None:
        """A client in this slot, again and again, until the run ends."""
        while not self._stop.is_set():
            slot.incarnation += 1
            slot.arm = self._next_arm()
            spec = Spec(
                name=f"s{slot.number}.{slot.incarnation}",
                node=NODES[slot.number % len(NODES)],
                seed=self._rng.getrandbits(64),
                endpoints=self._endpoints,
                journal=str(slot.journal),
                origin_ns=self._origin_ns,
                arm=slot.arm,
                loss=self._plan.loss,
                mutation=self._plan.mutation,
                held=tuple(slot.estate.held),
                doubtful=tuple(slot.estate.doubtful),
                most_held=self._tide(),
            )
            slot.pid, ended = await zygote.spawn(spec.to_json())
            if self._stop.is_set():
                _signal(slot.pid, signal.SIGTERM)
            outside = False
            life = asyncio.create_task(asyncio.sleep(self._rng.uniform(*self._plan.life_s)), name="life")
            await asyncio.wait({life, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not self._stop.is_set():
                outside = _signal(slot.pid, signal.SIGKILL)
                self._outside_kills += outside
            status = await ended
            life.cancel()
            slot.pid = None
            before = self._history.crashes.total()
            self._follow(slot)
            slot.estate.died()
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            asked = self._stop.is_set() and status in (0, signal.SIGTERM)  # the latter: before it could listen
            if not killed and not asked:
                self._problems.append(Problem("history", f"client {spec.name} ended with status {status}"))
            if killed and not outside and self._history.crashes.total() == before and slot.arm is None:
                self._problems.append(Problem("history", f"client {spec.name} was killed by somebody else"))

    def _tide(self) -> int:
        """Full pools make clients borrow and take over, empty blocks are given up: high and low water by turns."""
        high = (time.monotonic_ns() - self._origin_ns) // int(TIDE_S * 1e9) % 2
        return self._plan.most_held if high else 1

    def _next_arm(self) -> Arm | None:
        """The point that was hit least so far, or any that was not hit often enough; later mostly none."""
        armed = Counter((slot.arm.kind, slot.arm.when) for slot in self._slots if slot.arm)
        hits = {point: self._history.crashes[point] + armed[point] for point in POINTS}
        enough = self._plan.crashes_each and min(hits.values()) >= self._plan.crashes_each
        if self._rng.random() < (0.7 if enough else 0.15):
            return None
        wanted = [point for point in POINTS if hits[point] < self._plan.crashes_each] or POINTS
        if self._rng.random() < 0.5:  # not all clients at once wait for what is rare
            kind, when = self._rng.choice(wanted)
        else:
            kind, when = min(POINTS, key=lambda point: (hits[point], self._rng.random()))
        return Arm(kind, when, self._rng.randint(1, KINDS[kind]))

    def _follow(self, slot: _Slot) -> None:
        for event in slot.reader.events():
            self._history.take(event)
            slot.estate.take(event)

    def _enough(self, nemesis: Nemesis) -> bool:
        return (
            len(self._history.operations) >= self._plan.operations
            and nemesis.counts["killed"] >= self._plan.kills
            and min(self._history.crashes[point] for point in POINTS) >= self._plan.crashes_each
        )

    def _tell(self, nemesis: Nemesis, elapsed_s: float) -> None:
        crashes = self._history.crashes
        scarce = sorted(POINTS, key=lambda point: crashes[point])[:3]
        print(
            f"{elapsed_s:.0f} s: {len(self._history.operations)} operations, {crashes.total()} crashes"
            f" (fewest: {', '.join(f'{k} {w} {crashes[k, w]}' for k, w in scarce)}),"
            f" members {dict(nemesis.counts)}, conflicts {100 * self._history.conflict_share:.0f} %",
            file=sys.stderr,
            flush=True,
        )

    # --- silence -----------------------------------------------------------------------------------------------------

    async def _quiet(self) -> None:
        """No revision is added for a while, whichever member is asked: what was on its way has arrived."""
        deadline, since, revision, looks = time.monotonic() + 120, time.monotonic(), 0, 0
        while time.monotonic() - since < QUIET_S or looks < 3:
            if time.monotonic() > deadline:
                raise TimeoutError("etcd does not come to rest")
            now = max([await asyncio.to_thread(_revision, endpoint) for endpoint in self._endpoints])
            if now != revision or now == 0:
                revision, since, looks = now, time.monotonic(), 0
            looks += 1
            await asyncio.sleep(0.2)

    async def _read(self) -> Audit:
        """The audit, brought up to now."""
        endpoint = self._rng.choice(self._endpoints)
        async with self._store() as store:
            last = await store.put(MARK, b"")
        first = self._seen + 1
        await asyncio.to_thread(lambda: self._audit.replay(raw_etcd.history(endpoint, IPAM, first, last)))
        self._seen = last
        stored = await asyncio.to_thread(raw_etcd.snapshot, endpoint, IPAM)
        if sum("/assignment/" in key for key in stored[0]) != len(self._audit.blocks):
            raise RuntimeError("the history of etcd and its present do not agree")
        return self._audit

    async def _collect_garbage(self, garbage: set[Instance]) -> None:
        """As kube-controllers does it: by address, handle and sequence number."""
        async with self._client() as client:
            await client.set_config(cooldown_s=0)
            if garbage:
                await client.release_ips(_options(garbage))
            await client.collect_cooled()

    async def _release_all(self, held: set[Instance]) -> None:
        async with self._client() as client:
            if held:
                await client.release_ips(_options(held))
            for owner, cidr in list(self._audit.affinities):
                await client.release_affinity(Owner.parse(owner), ip_network(cidr))

    async def _calicoctl_check(self, held: set[Instance]) -> str:
        """The product's own opinion, for which every address that is held gets its workload endpoint."""
        async with self._store() as store:
            for instance in held:
                await store.put(*endpoint(instance))
        environment = {**os.environ, "ETCD_ENDPOINTS": ",".join(self._endpoints), "DATASTORE_TYPE": "etcdv3"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.calicoctl", "ipam", "check",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode(errors="replace")
        line = text.strip().splitlines()[-1] if text.strip() else ""
        if process.returncode or "found 0 problems" not in text:
            self._problems.append(Problem("check", f"calicoctl ipam check ({process.returncode}): {text.strip()}"))
        return line

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[EtcdStore]:
        async with EtcdStore(StoreConfig(self._endpoints)) as store:
            yield store

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[IpamClient]:
        async with self._store() as store:
            yield IpamClient(store, clock_ns=fast_clock(self._origin_ns))


def _signal(pid: int, number: signal.Signals) -> bool:
    """False: it has just ended by itself, and the news is still on its way."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _options(instances: set[Instance]) -> list[ReleaseOption]:
    return [ReleaseOption(ip_address(i.address), i.handle, i.sequence) for i in sorted(instances)]


def _revision(endpoint: str) -> int:
    """0: does not answer yet."""
    try:
        return raw_etcd.snapshot(endpoint, MARK)[1]
    except OSError:
        return 0


def run(plan: Plan) -> Outcome:
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    directory = plan.directory or Path(tempfile.mkdtemp(prefix="jepsen-", dir=parent))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(Runner(plan, directory).run())
    finally:
        if plan.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
