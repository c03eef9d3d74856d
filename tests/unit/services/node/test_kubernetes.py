"""What the Kubernetes API tells of this node, taken with care."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random
from typing import Any, cast

import pytest

from libs.kube.api import KubeApi, KubeError
from libs.runtime.health import Aggregator
from services.node.shell import completion
from services.node.shell.interfaces import source_address
from services.node.shell.kubernetes import internal_addresses


class _Api:
    """A server that has one node."""

    def __init__(self, *addresses: dict[str, Any]) -> None:
        self._addresses = list(addresses)

    async def get(self, path: str) -> dict[str, Any]:
        assert path == "/api/v1/nodes/n1"
        return {"status": {"addresses": self._addresses}}


async def test_an_internal_ip_that_is_no_address_is_told_and_others_taken(caplog: pytest.LogCaptureFixture) -> None:
    api = _Api(
        {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.300"}, {"type": "InternalIP"},
        {"type": "InternalIP", "address": "192.0.2.5"}, {"type": "InternalIP", "address": "2001:db8::5"},
    )  # fmt: skip
    found = await internal_addresses(cast("KubeApi", api), "n1")
    assert found == [ip_address("192.0.2.5"), ip_address("2001:db8::5")]
    told = [record for record in caplog.records if record.name.startswith("services.")]
    assert [record.message for record in told] == ["InternalIP of our node left out"] * 2
    assert "10.0.0.300" in str(told[0].__dict__["error"])


async def test_a_name_that_no_resolver_can_be_asked_for_leads_nowhere() -> None:
    assert await source_address("www..example", 4) is None


class _Busy(_Api):
    """Answers with 429 to the first patches."""

    def __init__(self, *answers: float | None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.patched: list[str] = []

    async def patch(self, path: str, body: dict[str, Any], kind: str) -> dict[str, Any]:
        if self.answers:
            raise KubeError(429, f"PATCH {path}: 429 too many requests", "TooManyRequests", self.answers.pop(0))
        self.patched.append(path)
        return {}


async def test_a_busy_server_is_asked_again_when_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(completion.asyncio, "sleep", sleep)
    api, health = _Busy(30.0, None), Aggregator()
    reporter = health.register("Completion")
    await completion.complete_start(cast("KubeApi", api), "n1", [], 1.0, Random(1), reporter)
    assert pauses[0] == 30.0
    assert 0 < pauses[1] < 30.0
    assert api.patched == ["/api/v1/nodes/n1/status"]
    assert "NetworkUnavailable is False" in health.readiness().table()
