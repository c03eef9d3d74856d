"""Structured logs: a message, a level and fields, as JSON lines or as readable text, to up to three outlets.

    log = logging.getLogger(__name__)
    log.info("session up", extra={"peer": str(peer), "hold_time_s": 90})

Outlets are "screen" (stderr), "file" and "syslog"; each has a level of its own, which `set_level` changes at once.
Lines carry the trace and span id when a span is active. Text that is a known secret, the credentials of URLs and fields
whose name says secret are masked in all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from libs.runtime import tracing
from libs.runtime.redact import MASK, is_secret_name, redact

Outlet = Literal["screen", "file", "syslog"]
OFF: Final = logging.CRITICAL + 10
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "none": OFF,
}
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_outlets: dict[Outlet, logging.Handler] = {}


def parse_level(name: str) -> int:
    """Number of a level name in any case, Calico's spellings included. Raises ValueError that lists the names."""
    try:
        return _LEVELS[name.strip().casefold()]
    except KeyError:
        raise ValueError(f"{name!r} is not one of debug, info, warning, error, fatal, none") from None


def setup(
    service: str,
    *,
    level: str = "info",
    form: Literal["auto", "json", "text"] = "auto",
    stream: TextIO | None = None,
    file: Path | None = None,
    file_level: str = "info",
    file_max_bytes: int = 100_000_000,
    file_count: int = 10,
    syslog_level: str = "none",
    syslog_address: str = "/dev/log",
) -> None:
    """Send the root logger's records to the outlets; replaces an earlier set-up, leaves foreign handlers in place.

    Raises ValueError for an unknown level, OSError when the file or syslog's socket cannot be opened.
    """
    levels = {"screen": parse_level(level), "file": parse_level(file_level), "syslog": parse_level(syslog_level)}
    close()
    stream = sys.stderr if stream is None else stream
    as_text = form == "text" or (form == "auto" and stream.isatty())
    screen = logging.StreamHandler(stream)
    screen.setFormatter(TextFormatter() if as_text else JsonFormatter(service))
    outlets: dict[Outlet, logging.Handler] = {"screen": screen}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        outlets["file"] = logging.handlers.RotatingFileHandler(
            file, maxBytes=file_max_bytes, backupCount=file_count, encoding="utf-8"
        )
        outlets["file"].setFormatter(JsonFormatter(service))
    if levels["syslog"] < OFF:
        outlets["syslog"] = logging.handlers.SysLogHandler(syslog_address)
        outlets["syslog"].setFormatter(TextFormatter(prefix=f"{service}: ", with_time=False))
    root = logging.getLogger()
    for name, handler in outlets.items():
        handler.setLevel(levels[name])
        _outlets[name] = handler
        root.addHandler(handler)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # one line a probe, for ever
    _set_root_level()


def set_level(level: str, outlet: Outlet | None = None) -> None:
    """Change the level of one outlet, or of all, from the next record on. Raises ValueError for an unknown one."""
    number = parse_level(level)
    if outlet is not None and outlet not in _outlets:
        raise ValueError(f"no outlet {outlet!r}; there are: {', '.join(_outlets) or 'none'}")
    for name, handler in _outlets.items():
        if outlet in (None, name):
            handler.setLevel(number)
    _set_root_level()


def levels() -> dict[str, str]:
    """outlet -> level name, as they are now."""
    return {name: "none" if h.level >= OFF else logging.getLevelName(h.level).lower() for name, h in _outlets.items()}


def close() -> None:
    """Flush and remove our outlets."""
    for handler in _outlets.values():
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(ValueError, OSError):  # the stream may be closed before us, or its reader gone
            handler.flush()
        handler.close()
    _outlets.clear()


def _set_root_level() -> None:
    # The root passes what its most talkative outlet wants, so that log.isEnabledFor() stays a useful guard for costly
    # fields.
    logging.getLogger().setLevel(min((h.level for h in _outlets.values()), default=logging.WARNING))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {k: v for k, v in record.__dict__.items() if k not in _PLAIN and not k.startswith("_")}
    for name in fields:
        if is_secret_name(name):
            fields[name] = MASK
    if (ids := tracing.current_ids()) is not None:
        fields["trace_id"], fields["span_id"] = ids
    return fields


def _trouble(record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[0] is not None:
        return "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return record.exc_text or None


def _utc(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _level(record: logging.LogRecord) -> str:
    return record.levelname.lower()


class JsonFormatter(logging.Formatter):
    """{"time", "level", "service", "logger", "msg", …fields, "trace_id", "span_id", "exception"}, one line each."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": _level(record),
            "service": self._service,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        for name, value in _fields(record).items():
            line[f"field_{name}" if name in line else name] = value
        if (trouble := _trouble(record)) is not None:
            line["exception"] = trouble
        return redact(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """`12:00:01.250 INFO  felix.calc: message key=value`; texts with spaces are quoted, exceptions follow."""

    def __init__(self, prefix: str = "", *, with_time: bool = True) -> None:
        super().__init__()
        self._prefix, self._with_time = prefix, with_time

    def format(self, record: logging.LogRecord) -> str:
        when = f"{_utc(record.created)[11:-1]} " if self._with_time else ""
        fields = "".join(f" {name}={_quote(value)}" for name, value in _fields(record).items())
        text = f"{self._prefix}{when}{record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        trouble = _trouble(record)
        return redact(f"{text}\n{trouble}" if trouble else text)


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n\t') else text
