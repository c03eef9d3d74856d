"""Log lines: fields, forms, levels that change at once, and nothing secret."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.runtime import logs, redact
from libs.runtime.redact import Secret

log = logging.getLogger("felix.test")


@pytest.fixture(autouse=True)
def no_outlets_after() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logs.close()
    logging.getLogger().setLevel(before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_carries_time_level_logger_message_and_fields() -> None:
    out = io.StringIO()
    logs.setup("felix", stream=out)
    log.info("session %s", "up", extra={"peer": "10.0.0.1", "hold_time_s": 90, "path": Path("/x"), "msg_id": None})
    (line,) = json_lines(out)
    assert line.pop("time", "").endswith("Z")  # type: ignore[attr-defined]
    assert line == {
        "level": "info", "service": "felix", "logger": "felix.test", "msg": "session up",
        "peer": "10.0.0.1", "hold_time_s": 90, "path": "/x", "msg_id": None,
    }  # fmt: skip


def test_fields_cannot_replace_what_every_line_has() -> None:
    out = io.StringIO()
    logs.setup("felix", stream=out)
    log.info("x", extra={"level": "fatal", "service": "other"})
    (line,) = json_lines(out)
    assert (line["level"], line["service"]) == ("info", "felix")
    assert (line["field_level"], line["field_service"]) == ("fatal", "other")


def test_text_is_the_form_on_a_terminal_and_quotes_what_needs_it() -> None:
    out = Terminal()
    logs.setup("felix", stream=out)
    log.warning("gone", extra={"peer": "a", "why": "no route", "empty": ""})
    assert out.getvalue()[12:] == ' WARNING felix.test: gone peer=a why="no route" empty=""\n'
    assert logs.levels() == {"screen": "info"}
    out = Terminal()
    logs.setup("felix", stream=out, form="json")
    log.warning("gone")
    assert json_lines(out)[0]["msg"] == "gone"


def test_exception_is_part_of_the_line() -> None:
    out = io.StringIO()
    logs.setup("felix", stream=out)
    try:
        raise ValueError("bad thing")
    except ValueError:
        log.exception("failed")
    (line,) = json_lines(out)
    assert "ValueError: bad thing" in str(line["exception"])
    assert out.getvalue().count("\n") == 1


def test_level_change_is_effective_with_the_next_record_and_per_outlet(tmp_path: Path) -> None:
    out = io.StringIO()
    logs.setup("felix", stream=out, level="Warning", file=tmp_path / "logs" / "felix.log", file_level="error")
    log.info("1")
    logs.set_level("debug", "screen")
    log.debug("2")
    logs.set_level("info", "file")
    log.info("3")
    logs.set_level("none", "screen")
    log.critical("4")
    assert [line["msg"] for line in json_lines(out)] == ["2", "3"]
    file_lines = (tmp_path / "logs" / "felix.log").read_text().splitlines()
    assert [json.loads(line)["msg"] for line in file_lines] == ["3", "4"]
    assert logs.levels() == {"screen": "none", "file": "info"}
    assert not log.isEnabledFor(logging.DEBUG)  # costly fields are not made for nobody
    logs.set_level("error")
    assert logs.levels() == {"screen": "error", "file": "error"}


def test_unknown_level_or_outlet_is_refused_and_changes_nothing() -> None:
    logs.setup("felix", stream=io.StringIO())
    with pytest.raises(ValueError, match="'loud' is not one of debug, info"):
        logs.set_level("loud")
    with pytest.raises(ValueError, match="no outlet 'file'; there are: screen"):
        logs.set_level("info", "file")
    with pytest.raises(ValueError, match="'x' is not one of"):
        logs.setup("felix", level="x")
    assert logs.levels() == {"screen": "info"}


def test_syslog_gets_records_from_its_level_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(30)
        logs.setup("felix", stream=io.StringIO(), syslog_level="error", syslog_address=str(tmp_path / "log"))
        log.warning("not this")
        log.error("this", extra={"key": "k"})
        assert b"felix: ERROR   felix.test: this key=k" in server.recv(4096)


def test_secrets_never_reach_a_line() -> None:
    out = io.StringIO()
    logs.setup("felix", stream=out)
    password = Secret("hunter2-hunter2")
    log.info("using %s", password, extra={"object": password})
    log.info("using %s", password.reveal(), extra={"url": "nats://u:pw@host", "bus_token": "abc", "tokens": 3})
    log.info("x", extra={"password": "short"})
    try:
        raise RuntimeError(f"login with {password.reveal()} failed at https://tok@h/")
    except RuntimeError:
        log.exception("failed")
    text = out.getvalue()
    assert "hunter2" not in text
    assert "pw@" not in text
    assert "tok@" not in text
    lines = json_lines(out)
    assert lines[1]["bus_token"] == "***"
    assert lines[1]["tokens"] == 3
    assert lines[1]["url"] == "nats://***@host"
    assert lines[2]["password"] == "***"


def test_secret_compares_hashes_and_refuses_to_be_pickled() -> None:
    import pickle

    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")
    assert repr(Secret("a")) == "Secret('***')"
    with pytest.raises(TypeError):
        pickle.dumps(Secret("a"))


def test_short_values_are_not_hidden_everywhere() -> None:
    redact.hide("node")
    assert redact.redact("node1 is up") == "node1 is up"
