"""Settings as a file: everything comes back, and what is wrong is named where it stands."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from services.bgp.core.paths import Attributes, Family, SegmentType, nlri
from services.bgp.core.settings import (
    Filter,
    FilterRule,
    Originated,
    PeerKind,
    PeerSettings,
    PoolExport,
    SecretRef,
    SpeakerSettings,
)
from services.bgp.core.settings_file import SettingsError, decode_settings, encode_settings

PEER = PeerSettings(
    "Global_fd00__2_port_1179", PeerKind.GLOBAL, ip_address("fd00::2"), 4_200_000_001, 64512, port=1179,
    prefix=ip_network("fd00::/64"), source=ip_address("fd00::1"), password=SecretRef("bgp", "pw"), restart_time_s=None,
    families=(Family.IPV4, Family.IPV6), filters=("one", "two"), ttl_security=1,
)  # fmt: skip
RULE = FilterRule(
    "Accept", network=ip_network("10.0.0.0/8"), match_operator="In", min_length=16, communities=((65000, 1), (1, 2, 3)),
    as_path_prefix=(65001,), add_communities=((65000, 9),), set_priority=100,
)  # fmt: skip
ATTRIBUTES = Attributes(
    as_path=((SegmentType.SEQUENCE, (65001, 65002)), (SegmentType.SET, (1, 2))),
    aggregator=(65001, b"\x0a\x00\x00\x01"), communities=(4259840001,), unknown=((192, 99, b"\xc0\xff\xee"),),
)  # fmt: skip
SETTINGS = SpeakerSettings(
    node="node1",
    router_id=1,
    local_as=64512,
    peers=(PEER,),
    filters={"one": Filter(imports={Family.IPV4: (RULE,)}, exports={Family.IPV6: (replace(RULE, network=None),)})},
    originated=(Originated(Family.IPV6, nlri(ip_network("fd00:65::/122")), ATTRIBUTES, block=True, priority=512),),
    pools=(PoolExport(ip_network("10.65.0.0/16"), export=False, ipip_mode="Always"),),
    advertisements=((ip_network("10.65.0.0/16"), ((65000, 7),)),),
    normal_priority={Family.IPV4: 1000, Family.IPV6: 2000},
)


def test_everything_comes_back() -> None:
    assert decode_settings(encode_settings(SETTINGS)) == SETTINGS


def test_people_can_read_it() -> None:
    shown = json.loads(encode_settings(SETTINGS))
    assert shown["peers"][0]["address"] == "fd00::2"
    assert shown["originated"][0]["prefix"] == "fd00:65::/122"
    assert shown["filters"]["one"]["imports"]["ipv4"][0]["communities"] == [[65000, 1], [1, 2, 3]]
    assert "listen_port" not in shown  # as by default


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peers": [{"name": "x"}]}, "settings.peers[0]"),
        ({"peers": [{**json.loads(encode_settings(SETTINGS))["peers"][0], "address": "10.0.0.300"}]}, "address"),
        ({"peers": [{**json.loads(encode_settings(SETTINGS))["peers"][0], "passive": 1}]}, "settings.peers[0].passive"),
        ({"peers": {}}, "settings.peers: expected a list"),
        ({"colour": "red"}, "no such field: colour"),
        ({"local_as": True}, "settings.local_as: expected int"),
        ({"pools": [{"network": "10.65.0.1/16"}]}, "settings.pools[0].network"),
        ({"normal_priority": {"ipv5": 1}}, "ipv4 or ipv6"),
        ({"originated": [{"prefix": 7}]}, "settings.originated[0].prefix"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(change: dict[str, object], said: str) -> None:
    text = json.dumps({**json.loads(encode_settings(SETTINGS)), **change})
    with pytest.raises(SettingsError) as caught:
        decode_settings(text)
    assert said in str(caught.value)


def test_no_json() -> None:
    with pytest.raises(SettingsError, match="not JSON"):
        decode_settings("{")
