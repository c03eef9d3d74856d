"""The CNI journal: what is begun is found after a crash, what is ended is not, and nothing unreadable is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from services.felix.core.journal import Entry, Journal


def entry(container: str = "c1", verb: Literal["ADD", "DEL"] = "ADD", ifname: str = "eth0") -> Entry:
    return Entry(
        verb=verb, container=container, ifname=ifname, host_interface="cali1", handle=f"net.{container}",
        namespace="ns1", wep="node1-k8s-web-eth0", netns="/var/run/netns/x",
    )  # fmt: skip


def test_what_is_begun_and_not_ended_is_found_by_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "b")
    for one in (entry("c1"), entry("c2", "DEL"), entry("c2", ifname="eth1"), entry("c3")):
        journal.begin(one)
    journal.end(entry("c3"))
    found, bad = Journal(tmp_path / "a" / "b").unfinished()
    assert sorted(found, key=lambda e: (e.container, e.ifname)) == [
        entry("c1"), entry("c2", "DEL"), entry("c2", ifname="eth1"),
    ]  # fmt: skip
    assert bad == []


def test_ending_twice_is_no_error_and_beginning_again_replaces(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(entry())
    journal.begin(entry(verb="DEL"))
    assert journal.unfinished()[0] == [entry(verb="DEL")]
    assert not journal.holds(entry())
    assert journal.holds(entry(verb="DEL"))
    journal.end(entry())
    journal.end(entry())
    assert journal.unfinished() == ([], [])
    assert not journal.holds(entry(verb="DEL"))


def test_a_torn_write_is_removed_and_an_unreadable_entry_is_kept_and_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(entry())
    (tmp_path / "torn.tmp").write_bytes(b'{"verb": "AD')
    (tmp_path / "other.json").write_bytes(b"{}")
    found, bad = journal.unfinished()
    assert (found, bad) == ([entry()], [tmp_path / "other.json"])
    assert not (tmp_path / "torn.tmp").exists()
    assert (tmp_path / "other.json").exists()


def test_only_root_reads_it(tmp_path: Path) -> None:
    Journal(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_names_of_containers_never_become_paths(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin(entry("../../escape", ifname="../x"))
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "state"]
