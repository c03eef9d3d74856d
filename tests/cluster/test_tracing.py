"""A change can be followed from the client to the kernel: spans of every part meet in one collector."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from libs.testkit.cluster import Cluster
from libs.testkit.topology import Namespace
from tests.cluster.conftest import open_world, until

POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: traced}
spec: {selector: all(), types: [Ingress], ingress: [{action: Allow}]}
"""


class Collector:
    """OTLP over HTTP, as a collector receives it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []  # (service, span)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]

    def find(self, service: str, name: str, revision: int) -> Any:
        for owner, span in list(self.spans):
            values = {entry.key: entry.value.int_value for entry in span.attributes}
            first = values.get("revision.first", values.get("revision", 0))
            if owner == service and span.name == name and first <= revision <= values.get("revision", 0):
                return span
        return None


def serve(collector: Collector, address: str, port: int, space: Namespace | None = None) -> ThreadingHTTPServer:
    """Listening on `address`, inside a namespace where one is given. Call shutdown() and server_close() in the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler, bind_and_activate=False)
    if space is not None:
        server.socket.close()
        server.socket = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def end(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


async def test_a_policy_is_followed_from_calicoctl_through_typha_into_the_kernel() -> None:
    outside, inside = Collector(), Collector()
    async with AsyncExitStack() as stack:
        ours = serve(outside, "127.0.0.1", 0)
        stack.callback(end, ours)
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://172.31.0.1:4318", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        cluster = Cluster.create(nodes=1, env=endpoint)
        world = await open_world(stack, cluster)
        stack.callback(end, serve(inside, "172.31.0.1", 4318, cluster.fabric))  # where the services can reach it
        await world.cluster.add_namespace("ns1")
        pod = await world.cluster.add_pod("node1", "web", namespace="ns1")
        env = {
            **os.environ,
            **cluster.outside_env(),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ours.server_port}",
        }
        command = [sys.executable, "-m", "services.calicoctl", "apply", "--wait", "-f", "-"]
        await asyncio.to_thread(
            subprocess.run, command, input=POLICY.encode(), env=env, check=True, capture_output=True, timeout=60
        )
        written = next(span for owner, span in outside.spans if span.name == "resource.apply")
        revision = {entry.key: entry.value.int_value for entry in written.attributes}["revision"]

        async def arrived() -> bool:
            felix = inside.find("calico-felix", "felix.apply", revision)
            return felix is not None and inside.find("calico-typha", "typha.flush", revision) is not None

        seen = [(owner, span.name) for owner, span in inside.spans]
        await until(arrived, 10, f"spans of revision {revision} on both sides; got {seen}")
        flush = inside.find("calico-typha", "typha.flush", revision)
        apply = inside.find("calico-felix", "felix.apply", revision)
        assert apply.trace_id == flush.trace_id, "the trace travels in the bus's headers"
        assert apply.parent_span_id == flush.span_id
        names = {span.name for owner, span in inside.spans if owner == "calico-felix"}
        assert {"cni.add", "resource.create"} <= names
        await world.cluster.remove_pod(pod)
