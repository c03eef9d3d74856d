from __future__ import annotations

import msgspec
import pytest

from libs import model
from libs.model.base import json_name


@pytest.mark.parametrize(
    ("python", "json"),
    [
        ("apply_on_forward", "applyOnForward"),
        ("not_icmp", "notICMP"),
        ("pre_dnat", "preDNAT"),
        ("peer_ip", "peerIP"),
        ("ip_networks", "ipNetworks"),
        ("ip_nats", "ipNATs"),
        ("expected_ips", "expectedIPs"),
        ("num_allowed_local_as_numbers", "numAllowedLocalASNumbers"),
        ("device_route_source_address_ipv6", "deviceRouteSourceAddressIPv6"),
        ("local_workload_peering_ipv4", "localWorkloadPeeringIPV4"),
        ("vxlan_tunnel_mac_addr_v6", "vxlanTunnelMACAddrV6"),
        ("except_", "except"),
    ],
)
def test_python_names_map_to_json_names(python: str, json: str) -> None:
    assert json_name(python) == json


def test_absent_values_are_left_out_and_always_written_ones_stay() -> None:
    tier = model.Tier(metadata=model.ObjectMeta(name="t"))
    assert model.encode(tier) == (
        b'{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"t"},"spec":{},"status":{}}'
    )
    felix = model.FelixConfiguration()
    assert model.encode(felix).endswith(b'"metadata":{},"spec":{"bpfLogLevel":""}}')
    port = model.WorkloadEndpointPort(name="http", protocol=model.Protocol("TCP"), port=80)
    assert model.encode_struct(port) == b'{"name":"http","protocol":"TCP","port":80,"hostPort":0,"hostIP":""}'


def test_text_is_escaped_as_go_escapes_it() -> None:
    policy = model.NetworkPolicy(spec=model.NetworkPolicySpec(selector="a == '<' && b == '\u2028\u2029>'"))
    assert b"\"a == '\\u003c' \\u0026\\u0026 b == '\\u2028\\u2029\\u003e'\"" in model.encode(policy)
    assert model.decode("NetworkPolicy", model.encode(policy)) == policy


@pytest.mark.parametrize(
    ("order", "text"), [(10.0, b"10"), (10.5, b"10.5"), (1e6, b"1000000"), (-3.0, b"-3"), (0.0, b"0")]
)
def test_whole_orders_are_written_as_integers(order: float, text: bytes) -> None:
    assert b'"order":%b}' % text in model.encode(model.Tier(spec=model.TierSpec(order=order)))


def test_maps_are_sorted_by_key() -> None:
    meta = model.ObjectMeta(labels={"b": "2", "a": "1"})
    assert model.encode_struct(meta) == b'{"labels":{"a":"1","b":"2"}}'


def test_empty_sides_of_a_rule_are_none() -> None:
    rule = model.codec.decode_struct(model.Rule, b'{"action":"Allow","source":{},"destination":{"nets":[]}}')
    assert (rule.source, rule.destination) == (None, None)
    assert model.encode_struct(rule) == b'{"action":"Allow"}'


def test_null_counts_as_absent() -> None:
    value = b'{"metadata":{"name":"p","creationTimestamp":null},"spec":{"ingress":null,"order":null}}'
    assert model.decode(model.NetworkPolicy, value) == model.NetworkPolicy(metadata=model.ObjectMeta(name="p"))


def test_unknown_fields_of_stored_values_are_skipped() -> None:
    assert model.decode("Tier", b'{"spec":{"order":5,"newField":[{"x":1}]},"other":1}') == model.Tier(
        spec=model.TierSpec(order=5)
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'{"spec":{"ingress":[{"action":7}]}}', "$.spec.ingress[0].action"),
        (b'{"spec":{"ingress":[{"source":{"ports":["9:8"]}}]}}', "$.spec.ingress[0].source.ports[0]"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_values_raise_with_their_place(value: bytes, place: str) -> None:
    with pytest.raises(model.DecodeError) as caught:
        model.decode("NetworkPolicy", value)
    assert place in str(caught.value)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(model.UnknownKind):
        model.decode("Policy", b"{}")


def test_copies_share_nothing() -> None:
    policy = model.NetworkPolicy(spec=model.NetworkPolicySpec(ingress=[model.Rule(action="Allow")]))
    copy = model.copy(policy)
    copy.spec.ingress[0].action = "Deny"
    copy.metadata.labels["a"] = "b"
    assert policy.spec.ingress[0].action == "Allow"
    assert policy.metadata.labels == {}


def test_dictionaries_go_both_ways() -> None:
    value = {
        "kind": "BGPPeer",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "p"},
        "spec": {"peerIP": "192.0.2.1", "asNumber": 64512, "maxRestartTime": "1m30s"},
    }
    assert model.to_dict(model.from_dict(value)) == value


def test_every_kind_is_found_by_all_its_names() -> None:
    for kind in model.KINDS.values():
        assert kind.struct.kind == kind.kind
        for name in (kind.kind, kind.plural, *kind.short_names, *kind.aliases):
            assert model.lookup(name.upper()) is kind
    assert model.lookup("nothing") is None
    assert issubclass(model.Resource, msgspec.Struct)
