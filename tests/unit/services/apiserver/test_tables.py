"""Tables of every kind: columns, cells, ages, and what of the objects goes with them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import inspect

from libs import model
from libs.model import bgp, codec
from libs.model.base import Condition, ObjectMeta
from libs.model.kinds import KINDS
from services.apiserver.core import tables
from services.apiserver.core.request import SERVED
from tests.unit.services.apiserver import schemas

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
CREATED = "2026-11-28T11:00:00Z"


def shown(resource: model.Resource, *, wide: bool = False) -> dict[str, Any]:
    """Heading to cell, as kubectl prints them."""
    kind = KINDS[resource.kind]
    made = tables.table(kind, [resource], now=NOW)
    (row,) = made["rows"]
    cells = zip(made["columnDefinitions"], row["cells"], strict=True)
    return {column["name"]: cell for column, cell in cells if wide or column["priority"] == 0}


@pytest.mark.parametrize("name", sorted(kind.kind for kind in SERVED.values()))
def test_every_kind_has_a_table_whatever_its_objects_have(name: str) -> None:
    kind = KINDS[name]
    for resource in (kind.struct(), schemas.whole(inspect.type_info(kind.struct))):
        made = tables.table(kind, [resource], now=NOW, revision="5")
        columns = [column["name"] for column in made["columnDefinitions"]]
        assert columns[0] == "Name"
        assert "Age" in columns
        assert len(columns) == len(set(columns))
        assert len(made["rows"][0]["cells"]) == len(columns)
        priorities = [column["priority"] for column in made["columnDefinitions"]]
        assert priorities == sorted(priorities), "wide columns come last"
        assert all(cell is None or isinstance(cell, (str, int, float)) for cell in made["rows"][0]["cells"])
        assert all(column["description"].endswith(".") for column in made["columnDefinitions"])


def test_policies_show_their_tier_and_order() -> None:
    spec = model.NetworkPolicySpec(tier="security", order=10.0, selector="a == 'b'", types=["Ingress", "Egress"])
    policy = model.NetworkPolicy(metadata=ObjectMeta(name="p", creation_timestamp=CREATED), spec=spec)
    assert shown(policy) == {"Name": "p", "Tier": "security", "Order": 10, "Age": "60m"}
    assert list(shown(policy, wide=True))[4:] == ["Selector", "Types"]
    assert shown(policy, wide=True)["Types"] == "Ingress,Egress"
    policy.spec.order = None
    assert shown(policy)["Order"] is None, "prints as nothing: last"
    policy.spec.order = 1.5
    assert shown(policy)["Order"] == 1.5


def test_pools_show_calicos_columns() -> None:
    pool = model.IPPool(metadata=ObjectMeta(name="p"), spec=model.IPPoolSpec(cidr="fd00:10::/48", nat_outgoing=True))
    assert shown(pool) == {
        "Name": "p", "CIDR": "fd00:10::/48", "VXLAN": "Never", "IPIP": "Never", "NAT": True, "Allocatable": "",
        "Age": "<unknown>",
    }  # fmt: skip
    other = Condition(type="Other", status="True")
    pool.status = model.IPPoolStatus(conditions=[other, Condition(type="Allocatable", status="False")])
    assert shown(pool)["Allocatable"] == "False"


def test_node_status_counts_sessions_and_routes() -> None:
    learned = bgp.CalicoNodeRouteLearnedFrom(source_type="NodeMesh")
    status = bgp.CalicoNodeStatusStatus(
        last_updated="2026-11-28T11:59:30Z",
        agent=bgp.CalicoNodeAgentStatus(bird_v4=bgp.BGPDaemonStatus(state="Ready")),
        bgp=bgp.CalicoNodeBGPStatus(number_established_v6=1, peers_v6=[bgp.CalicoNodePeer()]),
        routes=bgp.CalicoNodeRouteStatus(
            routes_v4=[bgp.CalicoNodeRoute(learned_from=learned), bgp.CalicoNodeRoute()],
            routes_v6=[bgp.CalicoNodeRoute()],
        ),
    )
    spec = bgp.CalicoNodeStatusSpec(node="n1", classes=["Agent", "BGP"], update_period_seconds=10)
    resource = bgp.CalicoNodeStatus(metadata=ObjectMeta(name="s", creation_timestamp=CREATED), spec=spec, status=status)
    assert shown(resource, wide=True) == {
        "Name": "s", "Node": "n1", "Classes": "[Agent,BGP]", "Update Interval": "10s", "Last Updated": "30s",
        "Age": "60m", "Agent State": "v4(Ready)", "BGP Peers": "v6(1/1/0)", "BGP Routes": "v4(1) v6(0)",
    }  # fmt: skip


def test_peers_say_whose_they_are() -> None:
    peer = model.BGPPeer(spec=model.BGPPeerSpec(peer_ip="2001:db8::1", as_number=model.ASNumber(65001)))
    assert (shown(peer)["Node"], shown(peer)["ASN"], shown(peer)["PeerIP"]) == ("(global)", 65001, "2001:db8::1")
    peer.spec.node_selector = "all()"
    assert shown(peer)["Node"] == "all()"


@pytest.mark.parametrize("include", ["None", "Metadata", "Object"])
def test_rows_carry_as_much_of_the_object_as_was_asked_for(include: tables.Include) -> None:
    metadata = ObjectMeta(name="t", labels={"a": "b"}, resource_version="9")
    tier = model.Tier(metadata=metadata, spec=model.TierSpec(order=1.0))
    row = tables.row(KINDS["Tier"], tier, include)
    match include:
        case "None":
            assert "object" not in row
        case "Metadata":
            assert row["object"] == {
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "t", "labels": {"a": "b"}, "resourceVersion": "9"},
            }  # fmt: skip
        case "Object":
            assert row["object"] == codec.to_dict(tier)
    assert row["cells"] == tables.row(KINDS["Tier"], tier)["cells"]


def test_tables_carry_the_list_they_are_of() -> None:
    made = tables.table(KINDS["Tier"], [], revision="12", continue_="more", remaining=3)
    assert (made["kind"], made["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert made["metadata"] == {"resourceVersion": "12", "continue": "more", "remainingItemCount": 3}
    assert made["rows"] == []
    assert tables.table(KINDS["Tier"], [])["metadata"] == {"resourceVersion": ""}


def test_without_a_clock_there_is_the_time_of_creation() -> None:
    tier = model.Tier(metadata=ObjectMeta(name="t", creation_timestamp=CREATED))
    assert CREATED in tables.row(KINDS["Tier"], tier)["cells"]


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        # k8s.io/apimachinery, pkg/util/duration/duration_test.go has the limits.
        (timedelta(seconds=-10), "<invalid>"),
        (timedelta(seconds=-1), "0s"),
        (timedelta(0), "0s"),
        (timedelta(seconds=119), "119s"),
        (timedelta(minutes=2), "2m"),
        (timedelta(minutes=2, seconds=1), "2m1s"),
        (timedelta(minutes=9, seconds=59), "9m59s"),
        (timedelta(minutes=10, seconds=30), "10m"),
        (timedelta(minutes=179), "179m"),
        (timedelta(hours=3), "3h"),
        (timedelta(hours=7, minutes=59), "7h59m"),
        (timedelta(hours=8, minutes=30), "8h"),
        (timedelta(hours=47), "47h"),
        (timedelta(hours=48), "2d"),
        (timedelta(days=7, hours=23), "7d23h"),
        (timedelta(days=8, hours=5), "8d"),
        (timedelta(days=729), "729d"),
        (timedelta(days=730), "2y"),
        (timedelta(days=731), "2y1d"),
        (timedelta(days=8 * 365 + 1), "8y"),
    ],
)
def test_ages_are_as_short_as_kubernetes_says_them(ago: timedelta, text: str) -> None:
    since = (NOW - ago).isoformat().replace("+00:00", "Z")
    assert tables.age(since, NOW) == text


@pytest.mark.parametrize("since", ["", "yesterday", "2026-11-28"])
def test_what_is_no_time_has_no_age(since: str) -> None:
    assert tables.age(since, NOW) == ""
