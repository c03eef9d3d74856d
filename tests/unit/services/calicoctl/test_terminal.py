"""Progress and watches: for people at a terminal, and plain in a pipe."""

from __future__ import annotations

import io
import json

import pytest

from services.calicoctl import terminal
from services.calicoctl.columns import Resource
from services.calicoctl.output import Format
from services.calicoctl.watching import Printer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_at_a_terminal_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_AFTER_S", -1.0)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with terminal.progress(10, "applied", stream) as more:
            more(3)
            more(4)
        assert ("applied 7 of 10" in stream.getvalue()) is shown
        assert stream.getvalue().endswith("\r\033[K") is shown
        with terminal.stage("collecting", stream) as begin:
            begin("nodes")
        assert ("collecting nodes …" in stream.getvalue()) is shown


def test_short_work_shows_none() -> None:
    stream = Terminal()
    with terminal.progress(10, "applied", stream) as more:
        more(10)
    assert stream.getvalue() == ""


def resource(name: str, **spec: object) -> Resource:
    return {"kind": "Tier", "metadata": {"name": name}, "spec": spec}  # type: ignore[dict-item]


def printed(form: Format, *events: tuple[str, Resource]) -> list[str]:
    lines: list[str] = []
    printer = Printer("Tier", form, lambda text, _colour: lines.append(text), namespace=False, as_number="")
    for event, one in events:
        printer.show(event, one)
    return lines


def test_rows_keep_their_columns_and_grow_with_what_comes() -> None:
    lines = printed(
        Format("ps"), ("", resource("a", order=5)), ("MODIFIED", resource("a-very-long-name", order=6)),
        ("DELETED", resource("b", order=7)),
    )  # fmt: skip
    assert lines[0].split() == ["EVENT", "NAME", "ORDER"]
    assert [line.split() for line in lines[1:]] == [
        ["a", "5"], ["MODIFIED", "a-very-long-name", "6"], ["DELETED", "b", "7"],
    ]  # fmt: skip
    assert lines[2].index("6") == lines[3].index("7")
    assert len({line.index("a") for line in lines[1:3]}) == 1


def test_programs_get_one_object_for_each_change() -> None:
    (line,) = printed(Format("json"), ("DELETED", resource("a")))
    assert json.loads(line) == {"type": "DELETED", "object": resource("a")}
    (text,) = printed(Format("yaml"), ("", resource("a")))
    assert text.startswith("---\nobject:\n")
    assert text.endswith("type: ADDED")
    assert printed(Format("name"), ("MODIFIED", resource("a"))) == ["MODIFIED tier.projectcalico.org/a"]
