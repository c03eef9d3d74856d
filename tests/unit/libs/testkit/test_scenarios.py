"""The random histories are always the same, and say everything that the calculation reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from libs import model
from libs.model.node import NodeSpec
from libs.testkit.scenarios import HOSTNAME, scenario

KINDS = {
    *("WorkloadEndpoint", "HostEndpoint", "NetworkSet", "GlobalNetworkSet", "Profile", "Tier", "Node", "IPPool"),
    *("NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "IPAMBlock"),
    *("StagedKubernetesNetworkPolicy", "KubernetesClusterNetworkPolicy", "KubernetesEndpointSlice"),
    *("FelixConfiguration", "BGPConfiguration", "BGPPeer", "BGPFilter", "ClusterInformation"),
}
# What no calculation reads.
UNREAD = {"ipv4Gateway", "ipv6Gateway", "orchRefs", "addresses", "interfaces"}


@pytest.fixture(scope="module")
def scenarios() -> list[dict[str, Any]]:
    return [scenario(seed) for seed in range(300)]


def ops(scenarios: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    return (op for one in scenarios for step in one["steps"] for op in step["ops"])


def test_seed_says_all(scenarios: list[dict[str, Any]]) -> None:
    assert scenario(7) == scenarios[7]
    assert scenarios[7] != scenarios[8]
    assert {one["hostname"] for one in scenarios} == {HOSTNAME}


def test_every_kind_is_put_deleted_and_spoilt(scenarios: list[dict[str, Any]]) -> None:
    good: Counter[str] = Counter()
    deleted: Counter[str] = Counter()
    spoilt = 0
    for op in ops(scenarios):
        if op["op"] == "del":
            key = model.parse_key(op["key"])
            assert key is not None
            deleted[key.kind] += 1
            continue
        try:
            good[model.from_storage(op["key"], op["value"].encode(), 0).kind] += 1
        except model.DecodeError:
            spoilt += 1
    assert good.keys() == KINDS
    assert min(good.values()) > 10
    assert deleted.keys() == KINDS
    assert spoilt > 100


def test_every_field_that_the_calculation_reads_is_said(scenarios: list[dict[str, Any]]) -> None:
    said: dict[str, set[str]] = {}

    def note(value: Any) -> None:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict):
            for name, part in value.items():
                said.setdefault(name, set()).add(json.dumps(part))
        for part in parts:
            note(part)

    for op in ops(scenarios):
        try:
            note(json.loads(op.get("value", "0")))
        except ValueError:
            continue
    for struct in (
        *(model.Rule, model.EntityRule, model.NetworkPolicySpec, model.StagedGlobalNetworkPolicySpec),
        *(model.WorkloadEndpointSpec, model.HostEndpointSpec, model.ProfileSpec, model.TierSpec, NodeSpec),
    ):
        for field in struct.__struct_encode_fields__:
            assert field in UNREAD or len(said[field]) > 1, field
