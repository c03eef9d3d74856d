"""Fixtures that several contract suites share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest

from libs.testkit.servers import EtcdServer
from tests.contract.ipam_stage import Cluster, wipe
from tests.contract.store_backends import Backend, EtcdBackend, MemoryBackend


@pytest.fixture(scope="module")
def ipam_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def cluster(request: pytest.FixtureRequest) -> AsyncGenerator[Cluster, None]:
    made: Backend
    if request.param == "memory":
        made = MemoryBackend()
    else:
        made = EtcdBackend(request.getfixturevalue("ipam_etcd"))
        await made.open()
    found = Cluster(made)
    await wipe(found.store)
    await found.node("node1", zone="a")
    await found.node("node2", zone="b")
    yield found
    await made.close()
