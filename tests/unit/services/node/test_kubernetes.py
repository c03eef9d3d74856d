"""What the Kubernetes API tells of this node, taken with care."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

import pytest

from libs.kube.api import KubeApi
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
    assert [record.message for record in caplog.records] == ["InternalIP of our node left out"] * 2
    assert "10.0.0.300" in str(caplog.records[0].__dict__["error"])


async def test_a_name_that_no_resolver_can_be_asked_for_leads_nowhere() -> None:
    assert await source_address("www..example", 4) is None
