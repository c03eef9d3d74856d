"""Data of a later release are left alone; anything else in ClusterInformation ends nobody."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model.base import ObjectMeta
from libs.model.cluster import ClusterInformation, ClusterInformationSpec
from libs.resources import version_guard as guard
from libs.resources.client import ResourceClient
from libs.runtime.exits import ServiceExit
from libs.store.api import StoreUnavailable
from libs.store.memory import MemoryEtcd, MemoryStore

KEY = "/calico/resources/v3/projectcalico.org/clusterinformations/default"


def information(version: str = "", data_format: str | None = None) -> ClusterInformation:
    annotations = None if data_format is None else {guard.DATA_FORMAT: data_format}
    metadata = ObjectMeta(name="default", annotations=annotations)
    return ClusterInformation(metadata=metadata, spec=ClusterInformationSpec(calico_version=version))


@pytest.mark.parametrize("told", ["2", "3", "17"])
def test_later_format_is_refused_and_the_reason_says_what_to_do(told: str) -> None:
    why = guard.refusal(information("v0.9.0", data_format=told), "v0.1.0")
    assert f"data of format {told}" in why
    assert "v0.9.0" in why
    assert "this release (v0.1.0) reads and writes format 1" in why
    assert "restore a backup" in why


@pytest.mark.parametrize("told", ["", "0", "1", "01", "9" * 5000, "two", "-2", "2.5", "²", " 2"])
def test_formats_that_are_ours_or_none_are_fine(told: str) -> None:
    assert guard.refusal(information("v0.9.0", data_format=told), "v0.1.0") == ""


@pytest.mark.parametrize("version", ["", "v3.31.2", "v3.33.0", "v3.40.1-0.dev-12-gabc", "v0.0.1", "v99.0.0", "master"])
def test_no_version_ends_a_service(version: str) -> None:
    assert guard.refusal(information(version), "v0.1.0") == ""
    assert guard.refusal(None, "unknown") == ""


@pytest.mark.parametrize(
    ("own", "cluster", "older"),
    [
        ("v0.1.0", "v0.2.0", True), ("v0.1.0", "v1.0.0", True), ("v0.9.0", "v0.10.0", True),
        ("v0.1.0", "v0.1.9", False), ("v0.2.0", "v0.1.0", False), ("v0.1.0", "v0.1.0-3-gabc", False),
        ("v0.1.0", "v3.31.2", False), ("v0.1.0", "v3.40.0", False), ("v0.1.0", "", False), ("v0.1.0", "master", False),
        ("unknown", "v0.2.0", False), ("v2.0.0", "v4.0.0", True), ("v4.0.0", "v3.33.1", False),
    ],
)  # fmt: skip
def test_only_releases_of_one_numbering_compare(own: str, cluster: str, older: bool) -> None:
    assert guard.is_older(own, cluster) is older


@given(own=st.text(max_size=12), cluster=st.text(max_size=12), told=st.text(max_size=6))
def test_whatever_stands_there_it_is_decided(own: str, cluster: str, told: str) -> None:
    assert isinstance(guard.is_older(own, cluster), bool)
    refused = guard.refusal(information(cluster, data_format=told), own)
    assert bool(refused) == (told.isascii() and told.isdecimal() and int(told) > guard.FORMAT)  # six digits at most


async def stored(value: bytes | None) -> MemoryStore:
    store = MemoryStore(MemoryEtcd())
    if value is not None:
        await store.put(KEY, value)
    return store


def value(version: str, data_format: str | None = None) -> bytes:
    metadata = {"name": "default", "annotations": {} if data_format is None else {guard.DATA_FORMAT: data_format}}
    document = {"kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3", "metadata": metadata}
    return msgspec.json.encode(document | {"spec": {"calicoVersion": version}})


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'{"metadata": {"annotations": [1]}}',
        value("v3.31.2"),
        value("v0.1.0", "1"),
        value("", "x"),
    ],
)
async def test_start_goes_on_with_nothing_with_foreign_and_with_broken_information(content: bytes | None) -> None:
    store = await stored(content)
    before = store.server.snapshot()
    await guard.check(store)
    await guard.check_when_reachable(store)
    assert store.server.snapshot() == before


async def test_start_ends_with_a_status_of_its_own_and_writes_nothing() -> None:
    store = await stored(value("v0.9.0", "2"))
    before = store.server.snapshot()
    for checked in (guard.check, guard.check_when_reachable):
        with pytest.raises(ServiceExit, match="data of format 2") as ended:
            await checked(store)
        assert ended.value.status == 78
    assert store.server.snapshot() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"calicoVersion": 5}}, {"spec": []}, {"spec": {"datastoreReady": "yes"}}, {"kind": "Information"},
        {"metadata": {"labels": 3, "annotations": {guard.DATA_FORMAT: "2", "other": []}}},
        {"metadata": {"name": 7, "annotations": {guard.DATA_FORMAT: "2"}}},
    ],
)  # fmt: skip
async def test_marker_counts_whatever_a_later_release_has_made_of_the_rest(changes: dict[str, object]) -> None:
    store = await stored(msgspec.json.encode(msgspec.json.decode(value("v0.9.0", "2")) | changes))
    with pytest.raises(ServiceExit, match="data of format 2"):
        await guard.check(store)


async def test_older_release_on_data_that_it_understands_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("libs.runtime.release.version", lambda: "v0.1.0")
    await guard.check(await stored(value("v0.2.0")))
    assert [record.message for record in caplog.records] == [
        "this release is older than the cluster's, whose data it can still read and write"
    ]


async def test_datastore_that_is_away_is_waited_for() -> None:
    store = await stored(value("v0.9.0", "2"))
    get, failures = store.get, iter([StoreUnavailable("away"), StoreUnavailable("away")])

    async def later(key: str, *, revision: int = 0):  # type: ignore[no-untyped-def]
        for failure in failures:
            raise failure
        return await get(key)

    store.get = later  # type: ignore[method-assign]
    with pytest.raises(ServiceExit):
        await guard.check_when_reachable(store)


async def test_marker_survives_what_nodes_and_controllers_do_at_their_start() -> None:
    """They merge their version and type into it, as Calico's do."""
    store = await stored(value("v0.9.0", "2"))
    await ResourceClient(store).ensure_initialized("v0.1.0", "k8s")
    with pytest.raises(ServiceExit, match="this release"):
        await guard.check(store)
