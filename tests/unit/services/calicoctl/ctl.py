"""The command line over a datastore and a bus in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from libs import model
from libs.bus import Bus, BusConfig, BusUnavailable
from libs.bus.memory import MemoryBroker
from libs.model.base import Resource
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.store import Store, StoreConfig
from libs.store.memory import MemoryEtcd, MemoryStore
from services.calicoctl.app import cli
from services.calicoctl.session import Environment

T = TypeVar("T")


@dataclass
class Ctl:
    """`ctl("get", "tiers")` runs a command; each gets a client of its own, as a process would."""

    server: MemoryEtcd = field(default_factory=MemoryEtcd)
    variables: dict[str, str] = field(default_factory=dict)
    clients: int = 0
    broker: MemoryBroker | None = None

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        environment = Environment(store=self._store, bus=self._bus, variables=self.variables)
        return CliRunner().invoke(cli, list(arguments), input=stdin, obj=environment)

    @asynccontextmanager
    async def _store(self, _config: StoreConfig) -> AsyncIterator[Store]:
        self.clients += 1
        store = MemoryStore(self.server)
        yield store
        await store.close()

    @asynccontextmanager
    async def _bus(self, _config: BusConfig) -> AsyncIterator[Bus]:
        if self.broker is None:
            raise BusUnavailable("no bus in this test")
        async with self.broker.connect("calicoctl") as bus:
            yield bus

    def good(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of a command that must succeed."""
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert result.stderr == ""
        return result.stdout

    def bad(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard error of a command that must fail with exit status 1 and no traceback."""
        result = self(*arguments, stdin=stdin)
        assert isinstance(result.exception, SystemExit), result.output + repr(result.exception)
        assert result.exit_code == 1, result.output
        return result.stderr

    def apply(self, text: str) -> str:
        return self.good("apply", "-f", "-", stdin=text)

    def get(self, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
        where = ("-n", namespace) if namespace else ()
        found: dict[str, Any] = json.loads(self.good("get", kind, name, "-o", "json", *where))
        return found

    def names(self, kind: str, *options: str) -> list[str]:
        lines = self.good("get", kind, "-o", "name", *options).splitlines()
        return [line.split("/", 1)[1] for line in lines]

    def store(self, resource: Resource) -> None:
        """Past all commands, as somebody else's write."""
        value = model.to_storage(resource, now=datetime(2026, 1, 1, tzinfo=UTC), uid="x")
        self.run(MemoryStore(self.server).put(codec.key(codec.identity(resource)), value))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def client(self) -> ResourceClient:
        return ResourceClient(MemoryStore(self.server))
