"""What several kernel tests stand on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.testkit.topology import Namespace, remove
from tests.kernel.ipvs_lab import KubeProxy, Services, running
from tests.kernel.ruleset_lab import Lab, running_lab
from tests.kernel.wireguard_lab import Stage


@pytest.fixture(scope="module")
def built() -> Iterator[Lab]:
    """A pretend node with its pods, for the tests of one module; `fresh()` makes it new for each."""
    with running_lab() as lab:
        yield lab


@pytest.fixture(scope="session", params=[Services, KubeProxy], ids=["by-hand", "kube-proxy"])
def each_ipvs(request: pytest.FixtureRequest) -> Iterator[Services]:
    """Services through IPVS, of either kind. For several modules: kube-proxy's API server takes long to start."""
    with running(request.param) as services:
        yield services


@pytest.fixture
def services(each_ipvs: Services) -> Services:
    each_ipvs.fresh()
    return each_ipvs


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    space = Namespace(f"t-wgw-{uuid.uuid4().hex[:8]}")
    space.create()
    made = Stage(space, request.param)
    try:
        yield made
    finally:
        remove([space])
        Path(f"/var/run/wireguard/{made.name}.sock").unlink(missing_ok=True)
