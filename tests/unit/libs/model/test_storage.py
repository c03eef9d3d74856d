"""Values as they stand in etcd come in and go out unchanged, and what the client forces on them is forced."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from libs import model
from libs.model import keys

ROOT = Path(__file__).resolve().parents[4]
DUMP = ROOT.parent / "shared" / "facts" / "etcd-sample.txt"
SAMPLES = Path(__file__).parent / "samples.txt"
NOW = datetime(2026, 1, 2, 3, 4, 5, 999_999, UTC)


def pairs(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text().splitlines()
    return [(key, value) for key, value in pairwise(lines) if key.startswith("/calico/") and value.startswith("{")]


def assert_unchanged(key: str, value: str) -> None:
    resource = model.from_storage(key, value.encode(), 42)
    assert resource.metadata.resource_version == "42"
    parsed = keys.parse_key(key)
    if isinstance(parsed, keys.ResourceKey):
        assert model.to_storage(resource).decode() == value
        assert model.resource_key(resource.kind, resource.name, resource.namespace) == key


@pytest.mark.parametrize(("key", "value"), pairs(SAMPLES), ids=lambda text: text.rpartition("/")[2][:30])
def test_own_samples_survive_byte_for_byte(key: str, value: str) -> None:
    assert_unchanged(key, value)


@pytest.mark.skipif(not DUMP.exists(), reason="recorded samples are not here")
def test_a_real_clients_values_survive_byte_for_byte() -> None:
    recorded = pairs(DUMP)
    assert len(recorded) > 30
    for key, value in recorded:
        assert_unchanged(key, value)


def test_policies_are_stored_with_their_name_and_tier() -> None:
    policy = model.NetworkPolicy(metadata=model.ObjectMeta(name="web", namespace="shop", resource_version="7"))
    policy.spec.tier = "sec"
    stored = model.to_dict(model.decode("NetworkPolicy", model.to_storage(policy, now=NOW, uid="u")))
    assert stored["metadata"] == {
        "name": "web",
        "namespace": "shop",
        "uid": "u",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"projectcalico.org/tier": "sec"},
        "annotations": {"projectcalico.org/metadata": '{"name":"web"}'},
    }
    assert policy.metadata.labels == {}, "the caller's object stays as it is"


def test_workload_endpoints_are_stored_with_forced_labels() -> None:
    endpoint = model.WorkloadEndpoint(
        metadata=model.ObjectMeta(namespace="ns", labels={"projectcalico.org/namespace": "liar", "a": "b"})
    )
    endpoint.spec.orchestrator = "k8s"
    stored = model.decode("WorkloadEndpoint", model.to_storage(endpoint, now=NOW, uid="u"))
    assert stored.metadata.labels == {
        "a": "b",
        "projectcalico.org/namespace": "ns",
        "projectcalico.org/orchestrator": "k8s",
    }


def test_uid_and_creation_time_are_kept_once_given() -> None:
    tier = model.Tier(metadata=model.ObjectMeta(name="t", uid="old", creation_timestamp="2020-01-01T00:00:00Z"))
    stored = model.decode("Tier", model.to_storage(tier, now=NOW, uid="new"))
    assert (stored.metadata.uid, stored.metadata.creation_timestamp) == ("old", "2020-01-01T00:00:00Z")


@pytest.mark.parametrize("meta", [{"uid": "u"}, {"creation_timestamp": "2020-01-01T00:00:00Z"}])
def test_values_without_uid_or_creation_time_are_not_stored(meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        model.to_storage(model.Tier(metadata=model.ObjectMeta(name="t", **meta)))


@pytest.mark.parametrize(
    ("metadata", "tier", "name"),
    [
        ('"name":"default.web"', "default", "web"),
        ('"name":"default.web"', "", "web"),
        ('"name":"sec.web"', "sec", "sec.web"),
        ('"name":"default.web"', "sec", "default.web"),
        (
            '"name":"x","annotations":{"projectcalico.org/metadata":"{\\"name\\":\\"default.web\\"}"}',
            "default",
            "default.web",
        ),
        ("", "default", "np"),
    ],
)
def test_names_of_policies_are_read_as_users_gave_them(metadata: str, tier: str, name: str) -> None:
    value = f'{{"metadata":{{{metadata}}},"spec":{{"tier":"{tier}"}}}}'
    policy = model.from_storage(model.resource_key("NetworkPolicy", "np", "ns"), value.encode(), 1)
    assert policy.name == name
    assert policy.namespace == "ns"
    assert "projectcalico.org/metadata" not in policy.metadata.annotations
    assert policy.metadata.labels == {"projectcalico.org/tier": tier or "default"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("/calico/resources/v3/projectcalico.org/tiers/t", b"nonsense"),
        ("/calico/resources/v3/projectcalico.org/tiers/t", b'{"spec":{"order":"first"}}'),
        ("/calico/resources/v3/projectcalico.org/unknown/t", b"{}"),
        (
            "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/p",
            b'{"metadata":{"annotations":{"projectcalico.org/metadata":"x"}}}',
        ),
    ],
)
def test_values_that_cannot_be_read_raise(key: str, value: bytes) -> None:
    with pytest.raises(model.DecodeError):
        model.from_storage(key, value, 1)


def test_ipams_own_values_come_as_the_kinds_that_show_them() -> None:
    block = model.from_storage(
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30",
        b'{"cidr":"10.0.0.0/30","affinity":"host:n1","allocations":[0,null,null,null],"unallocated":[1,2,3],'
        b'"attributes":[{"handle_id":"h","secondary":{"pod":"p"}}],"deleted":false}',
        9,
    )
    assert isinstance(block, model.IPAMBlock)
    assert block.spec.affinity == "host:n1"
    assert block.spec.allocations == [0, None, None, None]
    assert block.spec.attributes[0].handle_id == "h"
    affinity = model.from_storage("/calico/ipam/v2/host/n1/ipv4/block/10.0.0.0-30", b'{"state":"pending"}', 9)
    assert isinstance(affinity, model.BlockAffinity)
    assert (affinity.spec.node, affinity.spec.cidr, affinity.spec.state) == ("n1", "10.0.0.0/30", "pending")
    handle = model.from_storage("/calico/ipam/v2/handle/h", b'{"block":{"10.0.0.0/30":1},"deleted":false}', 9)
    assert isinstance(handle, model.IPAMHandle)
    assert handle.spec.block == {"10.0.0.0/30": 1}
    config = model.from_storage("/calico/ipam/v2/config", b'{"strict_affinity":true,"maxBlocksPerHost":4}', 9)
    assert isinstance(config, model.IPAMConfiguration)
    assert (config.spec.strict_affinity, config.spec.auto_allocate_blocks, config.spec.max_blocks_per_host) == (
        True,
        False,
        4,
    )
