"""Probes: what reporters say, what silence means, and what an HTTP client sees."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import Counter

from libs.runtime.health import Aggregator
from libs.runtime.http import HttpServer, bind_all, new_registry
from libs.testkit.servers import free_port


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_new_reporter_is_alive_and_not_ready() -> None:
    health = Aggregator()
    reporter = health.register("Dataplane")
    assert health.liveness().ok
    assert not health.readiness().ok
    reporter.report()
    assert health.readiness().ok
    reporter.report(live=False, ready=False, detail="hung")
    assert health.liveness().rows == [("Dataplane", "bad", "hung")]


def test_silence_beyond_the_timeout_is_bad_until_the_next_report() -> None:
    clock = Clock()
    health = Aggregator(clock=clock)
    reporter = health.register("Graph", timeout_s=30)
    health.register("Other").report()
    reporter.report(detail="busy")
    clock.now += 30
    assert health.liveness().ok
    clock.now += 0.5
    assert not health.liveness().ok
    assert not health.readiness().ok
    assert health.liveness().rows[0] == ("Graph", "timed out", "silent for 30.5 s of 30 s (last: busy)")
    reporter.report()
    assert health.readiness().ok


def test_timeout_counts_from_registration_for_one_that_never_speaks() -> None:
    clock = Clock()
    health = Aggregator(clock=clock)
    health.register("Graph", timeout_s=1)
    clock.now += 2
    assert not health.liveness().ok


def test_timeouts_can_be_overridden_by_name() -> None:
    clock = Clock()
    health = Aggregator(clock=clock, timeout_overrides={"Graph": 5})
    health.register("Graph", timeout_s=30)
    clock.now += 6
    assert not health.liveness().ok


def test_timeouts_are_overridden_and_given_back_while_running() -> None:
    clock = Clock()
    health = Aggregator(clock=clock)
    health.register("Graph", timeout_s=30)
    health.register("Bus")
    clock.now += 20
    assert health.liveness().ok
    health.override_timeouts({"Graph": 10, "Bus": 15, "Nobody": 1})
    assert [row[:2] for row in health.liveness().rows] == [("Bus", "timed out"), ("Graph", "timed out")]
    assert "silent for 20.0 s of 10 s" in health.liveness().rows[1][2]
    clock.now += 20
    health.override_timeouts({"Graph": 0})
    assert health.liveness().ok, "any silence"
    health.override_timeouts({})
    assert [row[:2] for row in health.liveness().rows] == [("Bus", "ok"), ("Graph", "timed out")]


def test_reporter_takes_part_only_where_it_was_registered_for() -> None:
    health = Aggregator()
    health.register("Live", readiness=False)
    health.register("Ready", liveness=False).report()
    assert [row[0] for row in health.liveness().rows] == ["Live"]
    assert health.readiness().ok
    health.unregister("Ready")
    assert health.readiness().rows == []


async def fetch(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as answer:
        return answer.status, await answer.text(), answer.headers.get("Content-Type", "")


async def test_http_probes_answer_204_then_503_then_200_with_the_table() -> None:
    health = Aggregator()
    async with HttpServer(health, new_registry(process=False), host="127.0.0.1") as server:
        assert server.port > 0
        assert (await fetch(server.port, "/readiness"))[0] == 204
        reporter = health.register("DatastoreSync")
        status, text, _ = await fetch(server.port, "/readiness")
        assert status == 503
        assert text == "COMPONENT      STATE  DETAIL\nDatastoreSync  bad\n"
        assert (await fetch(server.port, "/liveness"))[0] == 200
        reporter.report(detail="in sync")
        assert (await fetch(server.port, "/readiness"))[:2] == (
            200,
            "COMPONENT      STATE  DETAIL\nDatastoreSync  ok     in sync\n",
        )
        assert (await fetch(server.port, "/elsewhere"))[0] == 404


async def test_metrics_come_from_the_private_registry_in_the_form_asked_for() -> None:
    registry = new_registry()
    Counter("felix_things", "Things.", registry=registry).inc(3)
    async with HttpServer(Aggregator(), registry, host="127.0.0.1") as server:
        status, text, kind = await fetch(server.port, "/metrics")
        assert status == 200
        assert "felix_things_total 3.0" in text
        assert "process_resident_memory_bytes" in text
        assert kind.startswith("text/plain")
    async with HttpServer(Aggregator(), new_registry(process=False), host="127.0.0.1") as other:
        assert "felix_things" not in (await fetch(other.port, "/metrics"))[1]


async def test_what_is_shown_of_the_process_itself_changes_while_it_is_served() -> None:
    registry = new_registry()
    Counter("felix_things", "Things.", registry=registry)
    async with HttpServer(Aggregator(), registry, host="127.0.0.1") as server:
        for process, runtime in ((True, True), (False, True), (True, False), (False, False), (True, True)):
            registry.show(process=process, runtime=runtime)
            _, text, _ = await fetch(server.port, "/metrics")
            shown = "process_resident_memory_bytes " in text, "python_gc_collections_total{" in text
            assert shown == (process, runtime)
            assert ("python_info{" in text) == runtime
            assert "felix_things_total" in text


async def test_localhost_is_served_on_both_families_at_one_port() -> None:
    health = Aggregator()
    async with HttpServer(health, new_registry(process=False), host="localhost") as server:
        assert (await fetch(server.port, "/liveness", "127.0.0.1"))[0] == 204
        families = {info[0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        if socket.AF_INET6 in families:
            assert (await fetch(server.port, "/liveness", "[::1]"))[0] == 204


async def test_taken_port_is_a_clear_error_and_leaves_no_socket() -> None:
    port = free_port()
    (taken,) = bind_all("127.0.0.1", port)
    with taken, pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
        async with HttpServer(Aggregator(), new_registry(process=False), host="127.0.0.1", port=port):
            pass
    async with HttpServer(Aggregator(), new_registry(process=False), host="127.0.0.1", port=port) as server:
        assert server.port == port
