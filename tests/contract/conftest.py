"""Fixtures that several contract suites share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest

from libs.testkit.servers import EtcdServer
from tests.contract.ipam_stage import Cluster, wipe
from tests.contract.store_backends import open_backend


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
