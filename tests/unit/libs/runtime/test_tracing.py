"""Spans: free when nobody collects, complete when somebody does."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from libs.runtime import logs, tracing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_off_costs_no_import_and_spans_do_nothing() -> None:
    text = (
        "import sys\n"
        "from libs.runtime import tracing, service\n"
        "assert tracing.setup('felix', environ={}) is False\n"
        "with tracing.tracer('t').span('s', {'a': 1}) as span:\n"
        "    span.set('b', 2); span.event('e'); assert span.traceparent is None\n"
        "assert tracing.current_ids() is None\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')], 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", text], check=True)


def test_switched_off_by_its_own_variable() -> None:
    assert not tracing.enabled({ENDPOINT: "http://x", "OTEL_SDK_DISABLED": "true"})
    assert tracing.enabled({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"})


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []

    async def receive(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", bodies
    await runner.cleanup()


async def test_spans_reach_the_collector_and_log_lines_carry_their_ids(collector: tuple[str, list[bytes]]) -> None:
    endpoint, bodies = collector
    assert tracing.setup("felix", instance="host.1", environ={ENDPOINT: endpoint})
    out = io.StringIO()
    try:
        logs.setup("felix", stream=out)
        tracer = tracing.tracer("calc")
        with tracer.span("apply", {"rev": 7}) as span:
            logging.getLogger("x").info("inside")
            ids = tracing.current_ids()
            parent = span.traceparent
        assert ids is not None
        assert (parent or "").startswith(f"00-{ids[0]}-{ids[1]}-")
        with tracer.span("elsewhere", parent=parent):
            assert (tracing.current_ids() or ("",))[0] == ids[0]
        with tracer.span("own", parent="nonsense"):
            assert (tracing.current_ids() or ("",))[0] != ids[0]
        logging.getLogger("x").info("outside")
    finally:
        logs.close()
        await asyncio.to_thread(tracing.shutdown)
    inside, outside = (json.loads(line) for line in out.getvalue().splitlines())
    assert (inside["trace_id"], inside["span_id"]) == ids
    assert "trace_id" not in outside
    sent = b"".join(bodies)
    assert b"apply" in sent
    assert b"elsewhere" in sent
    assert b"host.1" in sent
    assert tracing.current_ids() is None
