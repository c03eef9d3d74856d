"""The plugin's own log: what Felix has to say about a CNI request, in the file that the network configuration names.

    logger "services.felix.shell.cni" ──► CniLog ──► file of the request that is being served, at that request's level

The plugin only carries requests, so the lines come from here. Keys of the configuration (Calico's): log_level,
log_file_path, log_file_max_size (MB), log_file_max_age (days), log_file_max_count. A full file is renamed to
`<name>-<UTC time>.<ending>`; rotated files beyond the count, or older than the age, are removed. A log that cannot be
written never fails a pod: it is said once in Felix's own log.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from libs.runtime.logs import JsonFormatter, parse_level

LOGGER = "services.felix.shell.cni"
_MB = 1_000_000
_DAY_S = 86_400.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """max_count, max_days 0: no limit, as in Calico."""

    path: Path
    level: int = logging.INFO
    max_bytes: int = 100 * _MB
    max_days: int = 30
    max_count: int = 10


def settings_of(netconf: Mapping[str, Any]) -> LogSettings | None:
    """None when no file is wanted. What means nothing is left at its default: a log must not fail a pod."""
    path = netconf.get("log_file_path")
    if not isinstance(path, str) or not path.startswith("/"):
        return None
    level = logging.INFO
    with contextlib.suppress(ValueError, AttributeError):
        level = parse_level(netconf.get("log_level") or "info")
    return LogSettings(
        Path(path),
        level,
        _number(netconf.get("log_file_max_size"), 100) * _MB,
        _number(netconf.get("log_file_max_age"), 30),
        _number(netconf.get("log_file_max_count"), 10),
    )


def _number(given: object, default: int) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else default


class CniLog(logging.Handler):
    """`install()` once; then `with cni_log.request(settings_of(netconf)):` around each request. Tasks that are made
    inside belong to the request.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._files: dict[Path, _RotatingFile] = {}
        self._failed: set[Path] = set()
        self._request: ContextVar[LogSettings | None] = ContextVar("cni request", default=None)

    def install(self) -> None:
        logger = logging.getLogger(LOGGER)
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)  # each request has a level of its own; Felix's outlets keep theirs

    def uninstall(self) -> None:
        logger = logging.getLogger(LOGGER)
        logger.removeHandler(self)
        logger.setLevel(logging.NOTSET)
        self.close()

    @contextlib.contextmanager
    def request(self, settings: LogSettings | None) -> Iterator[None]:
        token = self._request.set(settings)
        try:
            yield
        finally:
            self._request.reset(token)

    def emit(self, record: logging.LogRecord) -> None:
        settings = self._request.get()
        if settings is None or record.levelno < settings.level:
            return
        try:
            self._file(settings).emit(record)
        except OSError as error:
            if settings.path not in self._failed:
                self._failed.add(settings.path)
                log.warning("the plugin's log is not written", extra={"path": str(settings.path), "error": str(error)})
            return
        self._failed.discard(settings.path)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of a full disk, told before
                file.close()
        self._files.clear()
        super().close()

    def _file(self, settings: LogSettings) -> _RotatingFile:
        file = self._files.get(settings.path)
        if file is None:
            settings.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._files[settings.path] = _RotatingFile(settings)
        file.settings = settings  # limits may have been changed since
        return file


class _RotatingFile(logging.handlers.WatchedFileHandler):
    """Watched: a file that logrotate or a person moved away is opened anew."""

    def __init__(self, settings: LogSettings) -> None:
        self.settings = settings
        super().__init__(settings.path, encoding="utf-8")
        self.setFormatter(JsonFormatter("calico-cni"))
        self._prune()

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # to `CniLog.emit`, which says it once

    def emit(self, record: logging.LogRecord) -> None:
        self.reopenIfNeeded()
        size = self.stream.tell() if self.stream is not None else 0
        if size and size + len(self.format(record).encode()) + 1 > self.settings.max_bytes:
            self._rotate()
        super().emit(record)

    def _rotate(self) -> None:
        path, now = self.settings.path, time.time()
        when = f"{time.strftime('%Y-%m-%dT%H-%M-%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}"
        if self.stream is not None:
            self.stream.close()
        path.rename(path.with_name(f"{path.stem}-{when}{path.suffix}"))
        self.stream = self._open()
        self._statstream()
        self._prune()

    def _prune(self) -> None:
        settings = self.settings
        rotated = settings.path.parent.glob(f"{escape(settings.path.stem)}-*{settings.path.suffix}")
        for number, path in enumerate(sorted(rotated, reverse=True)):
            with contextlib.suppress(OSError):
                old = settings.max_days and time.time() - path.stat().st_mtime > settings.max_days * _DAY_S
                if old or (settings.max_count and number >= settings.max_count):
                    path.unlink()
