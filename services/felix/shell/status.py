"""Tells others of the endpoints' status: at once on the bus and by files, after a pause by keys in etcd.

Files and keys are compared with what is there when they are first written, on a period and after an error, so those of
endpoints that went while nobody was here go too (docs/design/ownership.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from libs.policy.output import Workload, WorkloadKey
from libs.reconcile import Diff, Reconciler
from libs.runtime.backoff import Backoff
from libs.store.api import Store, StoreError
from services.felix.core import status
from services.felix.core.status import EndpointKey, Status

log = logging.getLogger(__name__)

RESYNC_S = 10.0
GONE = Status(status.DOWN, "endpoint is gone")


class StatusFiles:
    """Driver of one directory; every file in it is ours. A file is whole or not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def read(self) -> dict[str, bytes]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return {path.name: path.read_bytes() for path in self._directory.iterdir() if path.is_file()}

    async def apply(self, todo: Diff[str, bytes]) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        for name in todo.drop:
            self._try(name, failed, lambda path: path.unlink(missing_ok=True))
        for name, content in todo.put.items():
            self._try(name, failed, lambda path, content=content: self._write(path, content))  # type: ignore[misc]
        return failed

    def _try(self, name: str, failed: dict[str, Exception], action: Callable[[Path], None]) -> None:
        try:
            action(self._directory / name)
        except OSError as error:
            failed[name] = error

    def _write(self, path: Path, content: bytes) -> None:
        fresh = self._directory / ".new"
        fresh.write_bytes(content)
        fresh.replace(path)


class StatusKeys:
    """Driver of this node's status keys in etcd."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node

    async def read(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for prefix in status.etcd_prefixes(self._node):
            found |= {kv.key: kv.value for kv in (await self._store.list(prefix)).kvs}
        return found

    async def apply(self, todo: Diff[str, bytes]) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        for key in todo.drop:
            try:
                await self._store.delete(key)
            except StoreError as error:
                failed[key] = error
        for key, value in todo.put.items():
            try:
                await self._store.put(key, value)
            except StoreError as error:
                failed[key] = error
        return failed


class StatusReporter:
    """`update` as often as anything may have changed; `configure` with the effective settings."""

    def __init__(
        self, node: str, store: Store, *, random: Random, publish: Callable[[EndpointKey, Status], None]
    ) -> None:
        self._node = node
        self._random = random
        self._publish = publish
        self._statuses: dict[EndpointKey, Status] = {}
        self._in_sync = False
        self._directory: Path | None = None
        self._files: Reconciler[str, bytes] | None = None
        self._files_wanted: dict[str, bytes] = {}
        self._files_failed = False
        self._made: dict[WorkloadKey, tuple[Workload, str, bytes]] = {}
        self._keys = Reconciler(StatusKeys(store, node))
        self._keys_on = False
        self._delay_s = 1.0
        self._news = asyncio.Event()

    def configure(self, directory: Path | None, *, in_etcd: bool, delay_s: float) -> None:
        """directory: None writes no files. in_etcd: when this ends, our keys go."""
        if directory != self._directory:
            self._directory = directory
            self._files = Reconciler(StatusFiles(directory)) if directory is not None else None
        self._keys_on, self._delay_s = in_etcd, delay_s
        self._news.set()

    def update(self, statuses: dict[EndpointKey, Status], workloads: Mapping[WorkloadKey, Workload]) -> None:
        """What holds now, of all endpoints. Not before the first pass over the kernel."""
        files = self._files_of(statuses, workloads)
        if self._in_sync and statuses == self._statuses and files == self._files_wanted:
            return
        before, self._statuses, self._files_wanted = self._statuses, statuses, files
        self._in_sync = True
        for key in before.keys() - statuses.keys():
            self._publish(key, GONE)
        for key, now in statuses.items():
            if before.get(key) != now:
                if now.status == status.ERROR:
                    log.error("endpoint in error", extra={"endpoint": str(key), "reason": now.detail})
                self._publish(key, now)
        self._news.set()

    def _files_of(
        self, statuses: Mapping[EndpointKey, Status], workloads: Mapping[WorkloadKey, Workload]
    ) -> dict[str, bytes]:
        """A file is there while its workload is up. Of a workload that is the same as before it is not made again."""
        made: dict[WorkloadKey, tuple[Workload, str, bytes]] = {}
        for key, workload in workloads.items():
            if statuses[key].status == status.UP:
                old = self._made.get(key)
                if old is None or old[0] is not workload:
                    old = (workload, status.file_name(key), status.file_content(workload))
                made[key] = old
        self._made = made
        return {name: content for _, name, content in made.values()}

    def of(self, key: EndpointKey) -> Status | None:
        """None: there is no such endpoint, or nothing is known yet."""
        return self._statuses.get(key)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_files(), name="status files")
            tasks.create_task(self._write_keys(), name="status keys")

    async def _write_files(self) -> None:
        seen = None
        while True:
            if self._in_sync and self._files is not None:
                files = self._files
                files.desired, files.in_sync = self._files_wanted, True
                if seen is self._files_wanted:
                    files.resync()
                seen = self._files_wanted
                try:
                    failed = await files.step()
                    reason = str(next(iter(failed.values()))) if failed else ""
                except OSError as error:
                    reason = str(error)
                if bool(reason) != self._files_failed:
                    self._files_failed = bool(reason)
                    log.log(
                        logging.WARNING if reason else logging.INFO, "endpoint status files",
                        extra={"directory": str(self._directory), "error": reason},
                    )  # fmt: skip
            await self._wait(RESYNC_S)

    async def _write_keys(self) -> None:
        """At most once in each delay."""
        backoff = Backoff(self._random, first_s=1.0)
        ours = False
        while True:
            pause_s = max(self._delay_s, 0.01)
            on = self._keys_on  # may change while the keys are being written
            if self._in_sync and (on or ours):
                self._keys.desired = status.etcd_values(self._node, self._statuses) if on else {}
                self._keys.in_sync = True
                try:
                    failed = await self._keys.step()
                except StoreError as error:
                    failed = {"": error}
                ours = on or bool(failed)
                if failed:
                    pause_s = backoff.next_s()
                    log.warning("endpoint status not in etcd", extra={"error": str(next(iter(failed.values())))})
                else:
                    backoff.reset()
            await asyncio.sleep(pause_s)

    async def _wait(self, timeout_s: float) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
