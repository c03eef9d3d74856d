"""The life of a service process: ready, signalled, failing, hanging; seen from outside, as a supervisor sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PREAMBLE = """
import asyncio, os, sys
from libs.runtime.config import RuntimeConfig
from libs.runtime.exits import ServiceExit
from libs.runtime.service import start

async def forever(name):
    try:
        await asyncio.Event().wait()
    finally:
        print("end of", name, flush=True)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def begin(body: str, *argv: str, **env: str) -> subprocess.Popen[str]:
        text = f"{PREAMBLE}{body}\nsys.exit(start(run, RuntimeConfig, prog='calico-test'))\n"
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", text, *argv],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"LOG_FORMAT": "json"} | env,
            )
        )
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def wait_for_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def messages(stderr: str) -> list[str]:
    return [json.loads(line)["msg"] for line in stderr.splitlines() if line.startswith("{")]


WELL_BEHAVED = """
async def run(config, service):
    service.spawn(forever("one"), name="one")
    print("up", service.http.port if service.http else None, type(asyncio.get_running_loop()).__module__, flush=True)
    service.health.register("Main").report()
    await service.stop.wait()
    print("winding down", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_winds_down_in_order_with_status_0(start: Start, number: signal.Signals) -> None:
    child = start(WELL_BEHAVED)
    assert wait_for_line(child).startswith("up")
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0
    assert out.split("\n")[:2] == ["winding down", "end of one"]
    assert messages(err) == ["service starts", "signal received", "service stopped"]


def test_uvloop_runs_it_where_installed(start: Start) -> None:
    pytest.importorskip("uvloop")
    child = start(WELL_BEHAVED)
    assert "uvloop" in wait_for_line(child)


def test_probes_are_served_at_the_chosen_port(start: Start) -> None:
    child = start(WELL_BEHAVED, "--health-port", "0", "--health-host", "127.0.0.1")
    port = wait_for_line(child).split()[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readiness", timeout=10) as answer:
        assert answer.status == 200
        assert b"Main" in answer.read()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"process_cpu_seconds_total" in answer.read()


def test_taken_health_port_is_status_1_with_a_clear_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = start(WELL_BEHAVED, "--health-port", str(port), "--health-host", "127.0.0.1")
        _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in err


def test_failed_task_ends_the_service_with_status_1_and_cancels_the_others(start: Start) -> None:
    child = start(
        """
async def fail():
    raise LookupError("lost it")

async def run(config, service):
    service.spawn(forever("one"), name="one")
    await asyncio.sleep(0)
    service.spawn(fail(), name="fail")
    await service.stop.wait()
"""
    )
    out, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert out == "end of one\n"
    (line,) = [json.loads(text) for text in err.splitlines() if '"error"' in text]
    assert "LookupError: lost it" in line["exception"]


def test_service_exit_sets_the_status(start: Start) -> None:
    child = start(
        """
async def watch():
    raise ServiceExit(129, "configuration changed")

async def run(config, service):
    service.spawn(watch(), name="watch")
    await service.stop.wait()
"""
    )
    _, err = child.communicate(timeout=20)
    assert child.returncode == 129
    assert "configuration changed" in err
    assert "Traceback" not in err


def test_main_that_returns_ends_the_service_with_status_0(start: Start) -> None:
    child = start(
        "async def run(config, service):\n    service.spawn(forever('one'), name='one')\n    await asyncio.sleep(0)\n"
    )
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (0, "end of one\n")


HANGING = """
async def run(config, service):
    print("up", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise
"""


def test_stop_that_takes_too_long_is_cut_short_with_status_124(start: Start) -> None:
    child = start(HANGING, "--shutdown-grace-s", "0.2")
    wait_for_line(child)
    child.terminate()
    out, err = child.communicate(timeout=20)
    assert child.returncode == 124
    assert out == "cancelled\n"
    assert "not stopped in time, giving up" in messages(err)


def test_second_signal_ends_at_once(start: Start) -> None:
    child = start(HANGING)
    wait_for_line(child)
    child.terminate()
    assert child.stderr is not None
    for line in child.stderr:
        if "signal received" in line:
            break
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130


def test_unusable_configuration_is_status_2_without_a_traceback(start: Start) -> None:
    child = start(WELL_BEHAVED, "--health-port", "x")
    _, err = child.communicate(timeout=20)
    assert child.returncode == 2
    assert err == "calico-test: --health-port on the command line: 'x' is not a whole number\n"
    child = start(WELL_BEHAVED, LOG_LEVEL="loud")
    _, err = child.communicate(timeout=20)
    assert child.returncode == 2
    assert err.startswith("calico-test: log level: 'loud' is not one of")


def test_systemd_is_told(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        child = start(
            "async def run(config, service):\n    service.ready()\n    await service.stop.wait()\n",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert systemd.recv(100) == b"READY=1"
        child.terminate()
        assert systemd.recv(100) == b"STOPPING=1"
