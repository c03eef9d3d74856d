"""Ports of servers that tests start: two workers of a run never choose the same one."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from libs.testkit import servers
from libs.testkit.servers import free_port


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    servers._own_ports.cache_clear()
    yield
    servers._own_ports.cache_clear()


def given(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def test_workers_have_ports_of_their_own_below_the_ephemeral_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    for worker in ("gw0", "gw1", "gw5", None):
        servers._own_ports.cache_clear()
        if worker is None:
            monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        else:
            monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        ports = given(500)
        assert len(set(ports)) == 500, "none twice that may not be bound yet"
        assert not seen & set(ports)
        assert all(10_000 <= port < 32_768 for port in ports)
        seen |= set(ports)


def test_a_seed_does_not_repeat_them() -> None:
    random.seed(0)
    first = given(20)
    servers._own_ports.cache_clear()
    random.seed(0)
    assert given(20) != first


def test_a_port_that_is_taken_is_not_given() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        servers._own_ports().appendleft(taken.getsockname()[1])
        assert free_port() != taken.getsockname()[1]
