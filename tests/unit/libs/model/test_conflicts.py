from __future__ import annotations

from ipaddress import ip_network

import pytest

from libs import model
from libs.model import conflicts
from libs.model.validation import Problem, validate_update


def pool(name: str, cidr: str, block_size: int = 26, uses: tuple[str, ...] = ()) -> model.IPPool:
    spec = model.IPPoolSpec(cidr=cidr, block_size=block_size, allowed_uses=list(uses))
    return model.IPPool(metadata=model.ObjectMeta(name=name), spec=spec)


def paths(problems: list[Problem]) -> list[str]:
    return [problem.path for problem in problems]


@pytest.mark.parametrize(
    ("cidr", "clashes"),
    [("10.0.0.0/24", 1), ("10.0.0.0/8", 2), ("10.2.0.0/16", 0), ("fd00:1::/64", 1), ("fd01::/48", 0)],
)
def test_pools_must_not_share_addresses(cidr: str, clashes: int) -> None:
    others = [pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16"), pool("c", "fd00:1::/48"), pool("new", cidr)]
    assert paths(conflicts.overlapping_pools(pool("new", cidr), others)) == ["spec.cidr"] * clashes


def test_blocks_in_a_new_pool_keep_their_size() -> None:
    blocks = [ip_network("10.0.0.0/26"), ip_network("10.9.0.0/28"), ip_network("fd00::/122")]
    assert conflicts.blocks_of_other_size(pool("p", "10.0.0.0/16"), blocks) == []
    assert paths(conflicts.blocks_of_other_size(pool("p", "10.0.0.0/16", 28), blocks)) == ["spec.blockSize"]


def test_a_peers_filters_must_exist() -> None:
    peer = model.BGPPeer(spec=model.BGPPeerSpec(filters=["a", "b"]))
    assert paths(conflicts.missing_filters(peer, {"a"})) == ["spec.filters[1]"]


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        (pool("p", "10.0.0.0/16"), pool("p", "10.0.0.0/16"), []),
        (pool("p", "10.0.0.0/16"), pool("p", "10.1.0.0/16"), ["spec.cidr"]),
        (pool("p", "fd00::/64", 122), pool("p", "fd00:0::/64", 122), []),
        (pool("p", "10.0.0.0/16"), pool("p", "10.0.0.0/16", 28), ["spec.blockSize"]),
        (
            pool("p", "10.0.0.0/16", uses=("LoadBalancer",)),
            pool("p", "10.0.0.0/16", uses=("Workload",)),
            ["spec.allowedUses"],
        ),
        (pool("p", "10.0.0.0/16", uses=("Workload",)), pool("p", "10.0.0.0/16", uses=("LoadBalancer",)), []),
        (pool("p", "10.0.0.0/16"), pool("q", "10.0.0.0/16"), ["metadata.name"]),
        (pool("p", "10.0.0.0/16"), model.Tier(metadata=model.ObjectMeta(name="p")), ["kind"]),
    ],
)
def test_updates_leave_what_cannot_change(old: model.Resource, new: model.Resource, wrong: list[str]) -> None:
    assert paths(validate_update(old, new)) == wrong


def test_identity_given_by_the_datastore_cannot_change() -> None:
    old = model.Tier(metadata=model.ObjectMeta(name="t", uid="1", creation_timestamp="2026-01-01T00:00:00Z"))
    new = model.Tier(metadata=model.ObjectMeta(name="t", uid="2", creation_timestamp="2026-01-02T00:00:00Z"))
    assert paths(validate_update(old, new)) == ["metadata.uid", "metadata.creationTimestamp"]
    assert validate_update(old, model.Tier(metadata=model.ObjectMeta(name="t"))) == []


@pytest.mark.parametrize(
    ("felix", "bgp", "wrong"),
    [
        ({}, {}, 0),
        ({}, {"default": "EnabledNoEncapOnly"}, 0),
        ({"default": "EnabledIPIPOnly"}, {"default": "EnabledNoEncapOnly"}, 0),
        ({"default": "Enabled"}, {"default": "Disabled"}, 0),
        ({"default": "Disabled"}, {"default": "Enabled"}, 0),
        ({"default": "EnabledNoEncapOnly"}, {"default": "EnabledIPIPOnly"}, 0),
        ({"default": "Enabled"}, {}, 0),  # bgp follows
        ({}, {"default": "Disabled"}, 1),
        ({}, {"default": "Enabled"}, 1),
        ({"default": "Enabled"}, {"default": "Enabled"}, 1),
        ({"default": "Disabled"}, {"default": "Disabled"}, 1),
        ({"default": "Enabled"}, {"default": "EnabledNoEncapOnly"}, 1),
        ({"node.a": "Enabled"}, {"default": "EnabledNoEncapOnly"}, 1),
        ({"node.a": "Enabled"}, {"default": "EnabledNoEncapOnly", "node.a": "Disabled"}, 0),
        ({"node.a": "Enabled", "node.b": "Disabled"}, {"default": "EnabledNoEncapOnly"}, 2),
    ],
)
def test_each_route_to_a_block_has_one_owner(felix: dict[str, str], bgp: dict[str, str], wrong: int) -> None:
    problems = conflicts.route_owners(felix, bgp)
    assert len(problems) == wrong
    assert all("FelixConfiguration(" in text and "BGPConfiguration(" in text for text in problems)
