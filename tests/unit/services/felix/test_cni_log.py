"""The plugin's own log: whose file, which level, how it rotates, and that it never fails a request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.felix.shell.cni.log import LOGGER, CniLog, LogSettings, settings_of

plugin = logging.getLogger(f"{LOGGER}.add")


@pytest.fixture
def cni_log() -> Iterator[CniLog]:
    made = CniLog()
    made.install()
    yield made
    made.uninstall()


def lines(path: Path) -> list[str]:
    return [json.loads(line)["msg"] for line in path.read_text().splitlines()]


def test_lines_go_to_the_file_of_their_request_at_its_level(cni_log: CniLog, tmp_path: Path) -> None:
    one, two = LogSettings(tmp_path / "deep/one.log", logging.DEBUG), LogSettings(tmp_path / "two.log", logging.ERROR)

    async def serve(settings: LogSettings, name: str) -> None:
        with cni_log.request(settings):
            plugin.debug("%s begins", name)
            await asyncio.sleep(0)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.to_thread(plugin.error, "%s in a thread", name))

    async def both() -> None:
        await asyncio.gather(serve(one, "one"), serve(two, "two"))
        plugin.error("between requests")

    asyncio.run(both())
    assert lines(one.path) == ["one begins", "one in a thread"]
    assert lines(two.path) == ["two in a thread"]


def test_other_loggers_are_none_of_its_business(cni_log: CniLog, tmp_path: Path) -> None:
    with cni_log.request(LogSettings(tmp_path / "cni.log")):
        logging.getLogger("libs.feed.runner").error("not about CNI")
        plugin.info("about CNI")
    assert lines(tmp_path / "cni.log") == ["about CNI"]


def test_a_full_file_is_rotated_and_only_so_many_are_kept(cni_log: CniLog, tmp_path: Path) -> None:
    settings = LogSettings(tmp_path / "cni.log", max_bytes=1500, max_count=3)
    with cni_log.request(settings):
        for number in range(100):
            plugin.info("line %03d", number)
    files = [*sorted(tmp_path.glob("cni-*.log")), settings.path]
    assert len(files) == 4
    assert all(0 < path.stat().st_size <= 1500 for path in files)
    kept = [line for path in files for line in lines(path)]
    assert kept == [f"line {number:03d}" for number in range(100 - len(kept), 100)], "the newest, none twice or lost"


def test_files_that_are_too_old_go_and_foreign_ones_stay(cni_log: CniLog, tmp_path: Path) -> None:
    old, fresh, foreign = tmp_path / "cni-old.log", tmp_path / "cni-fresh.log", tmp_path / "other-old.log"
    for path in (old, fresh, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (time.time() - 31 * 86_400,) * 2)
    with cni_log.request(LogSettings(tmp_path / "cni.log", max_days=30)):
        plugin.info("x")
    assert (old.exists(), fresh.exists(), foreign.exists()) == (False, True, True)


def test_a_file_that_was_moved_away_is_opened_anew(cni_log: CniLog, tmp_path: Path) -> None:
    path = tmp_path / "cni.log"
    with cni_log.request(LogSettings(path)):
        plugin.info("first")
        path.rename(tmp_path / "moved")
        plugin.info("second")
    assert lines(path) == ["second"]


def test_a_log_that_cannot_be_written_is_said_once_and_fails_nothing(
    cni_log: CniLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file/cni.log", Path("/dev/full")):
        caplog.clear()
        with cni_log.request(LogSettings(path)):
            plugin.info("one")
            plugin.info("two")
        told = [record for record in caplog.records if record.getMessage() == "the plugin's log is not written"]
        assert len(told) == 1, path


@pytest.mark.parametrize(
    ("netconf", "wanted"),
    [
        ({}, None),
        ({"log_file_path": 7}, None),
        ({"log_file_path": "relative.log"}, None),
        ({"log_file_path": "/a"}, LogSettings(Path("/a"), logging.INFO, 100_000_000, 30, 10)),
        (
            {"log_file_path": "/a", "log_level": "Debug", "log_file_max_size": 1, "log_file_max_age": 2}
            | {"log_file_max_count": 3},
            LogSettings(Path("/a"), logging.DEBUG, 1_000_000, 2, 3),
        ),
        (
            {"log_file_path": "/a", "log_level": "loud", "log_file_max_size": "big", "log_file_max_age": -1},
            LogSettings(Path("/a"), logging.INFO, 100_000_000, 30, 10),
        ),
    ],
)
def test_settings_come_from_the_network_configuration(netconf: dict[str, Any], wanted: LogSettings | None) -> None:
    assert settings_of(netconf) == wanted
