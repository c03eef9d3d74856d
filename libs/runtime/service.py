"""The life of a service: configuration, logs, tracing, probes, named tasks, signals, and an honest exit status.

The first SIGTERM or SIGINT sets `service.stop`; `run` returns when it has wound down, and whatever it spawned is then
cancelled. After `shutdown_grace_s` everything is cancelled; a second signal ends the process at once. A task that fails
ends the service with status 1, because a supervisor restarts a dead process but not a limping one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from libs.runtime import logs, tracing
from libs.runtime.config import ConfigError, RuntimeConfig, describe, load
from libs.runtime.exits import ServiceExit
from libs.runtime.health import Aggregator
from libs.runtime.http import HttpServer, ServiceRegistry, new_registry

C = TypeVar("C", bound=RuntimeConfig)
T = TypeVar("T")
RESTART_STATUS: Final = 129  # Felix's status for "start me again with the new configuration"
log = logging.getLogger(__name__)


class Service:
    """What a running service gets from its surroundings. Made by `run_service`."""

    def __init__(self, name: str, tasks: asyncio.TaskGroup, health: Aggregator, registry: ServiceRegistry) -> None:
        self.name = name
        self.stop = asyncio.Event()  # set when the service should wind down
        self.health = health
        self.registry = registry
        self.http: HttpServer | None = None  # .port is the port of /liveness, /readiness and /metrics
        self._group = tasks
        self._spawned: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """A task of the service. Its failure is the service's; it is cancelled after `run` has returned."""
        task = self._group.create_task(work, name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    def ready(self) -> None:
        """Tell systemd, where it supervises us."""
        notify("READY=1")

    def _cancel_spawned(self) -> None:
        for task in self._spawned:
            task.cancel()


Run = Callable[[C, Service], Awaitable[None]]


def start(
    run: Run[C],
    config_class: type[C],
    *,
    prog: str,
    description: str = "",
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Load the configuration and run; the body of a `main()`. Status 2 for a configuration that cannot be used."""
    try:
        config = load(config_class, argv, environ, prog=prog, description=description)
        for level in (config.log_level, config.log_file_level, config.log_syslog_level):
            logs.parse_level(level)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{prog}: {problem}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"{prog}: log level: {error}", file=sys.stderr)
        return 2
    return run_service(run, config, name=prog)


def run_service(run: Run[C], config: C, *, name: str) -> int:
    """Run to the end and return the exit status: 0 orderly, 1 failed, a ServiceExit's own, 124 when grace ran out."""
    try:
        logs.setup(
            name,
            level=config.log_level,
            form=config.log_format,
            file=config.log_file,
            file_level=config.log_file_level,
            syslog_level=config.log_syslog_level,
        )
    except OSError as error:
        print(f"{name}: logs: {error}", file=sys.stderr)
        return 2
    tracing.setup(name, instance=f"{socket.gethostname()}.{os.getpid()}")
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_supervise(run, config, name))
    except BaseExceptionGroup as group:
        return _status_of(group)
    except ServiceExit as error:
        log.info("service ends", extra={"reason": str(error), "status": error.status})
        return error.status
    except Exception:
        log.exception("service failed")
        return 1
    finally:
        tracing.shutdown()
        logs.close()


async def _supervise(run: Run[C], config: C, name: str) -> int:
    health, registry = Aggregator(), new_registry()
    async with contextlib.AsyncExitStack() as stack:
        http: HttpServer | None = None
        if config.health_port is not None:
            http = HttpServer(health, registry, host=config.health_host, port=config.health_port)
            await stack.enter_async_context(http)
        async with asyncio.TaskGroup() as tasks:
            service = Service(name, tasks, health, registry)
            service.http = http
            with _signals(service):
                log.info("service starts", extra={"pid": os.getpid(), "health_port": http.port if http else None})
                log.debug("configuration", extra={"config": describe(config)})
                main = tasks.create_task(_awaited(run(config, service)), name=name)
                in_time = await _main_ends(main, service, config.shutdown_grace_s)
                service._cancel_spawned()
        notify("STOPPING=1")
        log.info("service stopped", extra={"in_time": in_time})
        return 0 if in_time else 124


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _main_ends(main: asyncio.Task[None], service: Service, grace_s: float) -> bool:
    """True when `main` ended by itself, before or after the stop; False when it had to be cancelled."""
    stop = asyncio.create_task(service.stop.wait(), name="stop")
    try:
        await asyncio.wait({main, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            await asyncio.wait({main}, timeout=grace_s)
        if main.done():
            return True
        log.error("not stopped in time, giving up", extra={"grace_s": grace_s})
        main.cancel()
        return False
    finally:
        stop.cancel()


@contextlib.contextmanager
def _signals(service: Service) -> Any:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if service.stop.is_set():
            log.warning("second signal, ending at once", extra={"signal": number.name})
            logs.close()
            os._exit(128 + number)
        log.info("signal received", extra={"signal": number.name})
        service.stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _status_of(group: BaseExceptionGroup[BaseException]) -> int:
    """One failure is the cause, the rest usually its echo; a wanted exit wins only when nothing else went wrong."""
    wanted, others = group.split(ServiceExit)
    if others is None and wanted is not None:
        exits = list(_leaves(wanted))
        log.info("service ends", extra={"reason": "; ".join(str(e) for e in exits)})
        return max(e.status for e in exits if isinstance(e, ServiceExit))
    for failure in _leaves(others or group):
        log.error("task failed", exc_info=failure)
    return 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # PyPy, or a platform without it
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def notify(state: str) -> None:
    """Send a state such as READY=1 to systemd (sd_notify(3)); does nothing when NOTIFY_SOCKET is not set."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.sendto(state.encode(), address)
