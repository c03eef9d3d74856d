"""Fixtures that several contract suites share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from libs.store import StoreConfig
from libs.store.etcd import connect
from libs.testkit.servers import EtcdServer
from tests.contract.ipam_stage import Cluster, wipe
from tests.contract.store_backends import open_backend
from tests.contract.verbs_stage import Stage, open_stage


@pytest.fixture(scope="module")
def ipam_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def cluster(request: pytest.FixtureRequest) -> AsyncGenerator[Cluster, None]:
    async with open_backend(request.param, lambda: request.getfixturevalue("ipam_etcd")) as made:
        found = Cluster(made)
        await wipe(found.store)
        await found.node("node1", zone="a")
        await found.node("node2", zone="b")
        yield found


@pytest.fixture
def patient_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which no typha falls silent, but the machine may stand still."""
    monkeypatch.setattr("libs.feed.feed.MISSED_BEATS_S", 30.0)


@pytest.fixture(scope="module")
def apiserver_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
async def stage(apiserver_etcd: EtcdServer, tmp_path: Path) -> AsyncGenerator[Stage, None]:
    """The API's verbs over a real etcd."""
    store = await connect(StoreConfig(endpoints=(apiserver_etcd.endpoint,)))
    try:
        async with open_stage(store, tmp_path) as made:
            yield made
    finally:
        await store.close()
