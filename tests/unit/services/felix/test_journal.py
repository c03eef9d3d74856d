"""The CNI journal: what is begun is found after a crash, what is ended is not, and nothing unreadable is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.felix.core.journal import Entry
from services.felix.shell import journal as module
from services.felix.shell.journal import LOG, UNREADABLE, Journal, read_journal


def entry(container: str = "c1", verb: Literal["ADD", "DEL"] = "ADD", ifname: str = "eth0") -> Entry:
    return Entry(
        verb=verb, container=container, ifname=ifname, host_interface="cali1", handle=f"net.{container}",
        namespace="ns1", wep="node1-k8s-web-eth0", netns="/var/run/netns/x",
    )  # fmt: skip


def no_disk(file: int) -> None:
    raise OSError(5, "no disk")


async def test_what_is_begun_and_not_ended_is_found_by_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "b")
    for one in (entry("c1"), entry("c2", "DEL"), entry("c2", ifname="eth1"), entry("c3")):
        await journal.begin(one)
    journal.end(entry("c3"))
    again = Journal(tmp_path / "a" / "b")
    assert again.unfinished() == [entry("c1"), entry("c2", "DEL"), entry("c2", ifname="eth1")]
    assert again.unreadable == 0


async def test_ending_twice_is_no_error_and_beginning_again_replaces(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry())
    await journal.begin(entry(verb="DEL"))
    for one in (journal, Journal(tmp_path)):
        assert one.unfinished() == [entry(verb="DEL")]
        assert not one.holds(entry())
        assert one.holds(entry(verb="DEL"))
    journal = Journal(tmp_path)
    journal.end(entry())
    journal.end(entry())
    assert not journal.holds(entry(verb="DEL"))
    assert Journal(tmp_path).unfinished() == []


@given(cut=st.integers(min_value=1))
def test_a_record_torn_at_any_byte_takes_no_other_with_it(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("torn")

    async def write() -> None:
        journal = Journal(directory)
        await journal.begin(entry("c1"))
        await journal.begin(entry("c2"))

    asyncio.run(write())
    log = directory / LOG
    whole = log.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    log.write_bytes(whole[: last + cut % (len(whole) - last - 1)] + b"\0\0")
    found = Journal(directory)
    assert found.unfinished() == [entry("c1")]
    assert found.unreadable == 0
    assert not (directory / UNREADABLE).exists()


async def test_an_unreadable_record_in_the_midst_is_kept_and_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry("c1"))
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"begin": 7}\n')
    await journal.begin(entry("c2"))
    again = Journal(tmp_path)
    assert again.unfinished() == [entry("c1"), entry("c2")]
    assert again.unreadable == 1
    assert (tmp_path / UNREADABLE).read_bytes() == b'{"begin": 7}\n'
    assert Journal(tmp_path).unreadable == 0


async def test_only_what_is_open_is_carried_over_when_the_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 2000)
    journal = Journal(tmp_path)
    await journal.begin(entry("stays"))
    for number in range(50):
        await journal.begin(entry(f"c{number}"))
        journal.end(entry(f"c{number}"))
        assert (tmp_path / LOG).stat().st_size < 3000
    await journal.begin(entry("new"))
    assert Journal(tmp_path).unfinished() == [entry("stays"), entry("new")]


async def test_those_that_begin_together_share_syncs_and_each_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []  # records in the file at each sync
    sync = os.fdatasync

    def counting(file: int) -> None:
        synced.append((tmp_path / LOG).read_bytes().count(b"\n"))
        sync(file)

    monkeypatch.setattr(os, "fdatasync", counting)
    journal = Journal(tmp_path)
    await asyncio.gather(*(journal.begin(entry(f"c{number}")) for number in range(20)))
    assert synced[-1] == 20
    assert len(synced) <= 3


async def test_what_cannot_be_synced_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fdatasync", no_disk)
    with pytest.raises(OSError, match="no disk"):
        await journal.begin(entry())
    assert journal.unfinished() == []
    assert Journal(tmp_path).unfinished() == []
    monkeypatch.undo()
    await Journal(tmp_path).begin(entry())
    assert Journal(tmp_path).unfinished() == [entry()]


def test_only_root_reads_it(tmp_path: Path) -> None:
    Journal(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / LOG).stat().st_mode & 0o077 == 0


def test_names_of_containers_never_become_paths(tmp_path: Path) -> None:
    asyncio.run(Journal(tmp_path / "state").begin(entry("../../escape", ifname="../x")))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "state" / LOG]


def full_disk(monkeypatch: pytest.MonkeyPatch, takes: int) -> None:
    """The disk takes that many bytes of each record, then no more."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:takes]))


@pytest.mark.parametrize("takes", [0, 10])
async def test_a_full_disk_spoils_neither_what_was_written_nor_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry("c1"))
    with monkeypatch.context() as broken:
        full_disk(broken, takes)
        with pytest.raises(OSError, match="only part"):
            await journal.begin(entry("c2"))
        journal.end(entry("c1"))  # is no failure of the request
    assert journal.unfinished() == []
    await journal.begin(entry("c3"))
    assert [one.container for one in read_journal(tmp_path)[0].values()] == ["c3"]


@pytest.mark.parametrize("takes", [0, 10])
async def test_an_end_that_the_disk_did_not_take_is_written_with_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry("c1"))
    with monkeypatch.context() as broken:
        full_disk(broken, takes)
        journal.end(entry("c1"))
    await journal.begin(entry("c3"))
    assert [one.container for one in read_journal(tmp_path)[0].values()] == ["c3"]


async def test_a_begin_that_fails_leaves_the_earlier_one_of_the_attachment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry(verb="DEL"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", no_disk)
        with pytest.raises(OSError, match="no disk"):
            await journal.begin(entry())
    assert journal.holds(entry(verb="DEL"))
    assert list(read_journal(tmp_path)[0].values()) == [entry(verb="DEL")]


async def test_a_rewrite_that_the_disk_does_not_take_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 100)
    journal = Journal(tmp_path)
    await journal.begin(entry("c1"))

    def failing(*_: object) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", failing)
        await journal.begin(entry("c2"))
        journal.end(entry("c2"))
    assert list(read_journal(tmp_path)[0].values()) == [entry("c1")]


async def test_what_begins_meanwhile_is_noted_also_when_it_has_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.begin(entry("before"))
    with journal.noting() as begun:
        await journal.begin(entry("during"))
        journal.end(entry("during"))
    await journal.begin(entry("after"))
    assert begun == {entry("during")}
