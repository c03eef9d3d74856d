"""The plugin where it really runs: another network namespace, a host without libraries, an agent made of aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs.testkit.topology import Namespace
from services.cni.build import build

pytestmark = pytest.mark.kernel


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[Path, list[dict[str, Any]]]]:
    """An aiohttp server on a unix socket below tmp_path, and the requests that it got."""
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"cniVersion": "1.0.0", "ips": [{"address": "10.65.0.2/32"}]})

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/cni", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "cni.sock")).start()
    yield tmp_path / "cni.sock", asked
    await runner.cleanup()


async def run(*command: str | Path, stdin: bytes = b"{}", **env: str) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"CNI_COMMAND": "ADD", **env}
    )
    output, _ = await child.communicate(stdin)
    assert child.returncode == 0, output
    document = json.loads(output)
    assert isinstance(document, dict)
    return document


async def test_agent_is_reached_from_another_network_namespace(agent: tuple[Path, list[dict[str, Any]]]) -> None:
    socket_path, asked = agent
    space = Namespace(f"shim-{os.getpid()}")
    space.create()
    try:
        result = await run(
            "ip", "netns", "exec", space.name, build(),
            CNI_NETNS=str(space.path), CALICO_CNI_SOCKET=str(socket_path), PATH=os.environ["PATH"],
        )  # fmt: skip
    finally:
        space.delete()
    assert result["ips"] == [{"address": "10.65.0.2/32"}]
    assert asked[0]["env"]["CNI_NETNS"] == str(space.path)


async def test_it_needs_nothing_of_the_host_but_itself(agent: tuple[Path, list[dict[str, Any]]]) -> None:
    socket_path, _ = agent
    shutil.copy(build(), socket_path.parent / "calico")  # a root directory with the program and the socket
    result = await run("chroot", socket_path.parent, "/calico", CALICO_CNI_SOCKET="/cni.sock", PATH=os.environ["PATH"])
    assert result["cniVersion"] == "1.0.0"


async def test_a_call_costs_milliseconds_even_with_a_large_configuration(
    agent: tuple[Path, list[dict[str, Any]]],
) -> None:
    socket_path, asked = agent
    large = json.dumps({"x": "y\n" * 500_000}).encode()
    assert await run(build(), stdin=large, CALICO_CNI_SOCKET=str(socket_path))
    assert asked[-1]["config"].encode() == large
    took = []
    for _ in range(30):
        started = time.perf_counter()
        await run(build(), CALICO_CNI_SOCKET=str(socket_path))
        took.append(time.perf_counter() - started)
    # Mostly the server's time and ours for making a process; the least, because machines are shared.
    assert min(took) < 0.1, took
