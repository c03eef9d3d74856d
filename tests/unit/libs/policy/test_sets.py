"""Members of IP sets."""

from __future__ import annotations

import pytest

from libs import model
from tests.unit.libs.policy.build import (
    calculate,
    gnp,
    gns,
    hep,
    key_of,
    ns,
    only_policy_sets,
    profile,
    rule,
    view_of,
    wep,
)


def from_selector(selector: str, **fields: object) -> model.Resource:
    return gnp("p", "has(here)", ingress=[rule(source={"selector": selector, **fields})])


HERE = wep("here", labels={"here": ""}, nets=("192.0.2.99/32",))


def members(*resources: model.Resource) -> frozenset[str]:
    (found,) = only_policy_sets(view_of(HERE, *resources), "p")
    return found


def test_workloads_hosts_and_network_sets_of_both_families_share_a_set() -> None:
    assert members(
        from_selector("has(a)"),
        wep("w", node="n2", labels={"a": ""}, nets=("10.0.0.1/32", "fd00::1/128")),
        hep("h", node="n3", labels={"a": ""}, expected=("192.0.2.1", "2001:db8::1")),
        gns("g", {"a": ""}, ("198.51.100.7/24", "203.0.113.9")),
    ) == {
        "10.0.0.1/32",
        "fd00::1/128",
        "192.0.2.1/32",
        "2001:db8::1/128",
        "198.51.100.0/24",
        "203.0.113.9/32",
    }


def test_network_set_has_its_namespaces_labels() -> None:
    policy = from_selector("has(a)", namespace_selector="env == 'prod'")
    resources = (profile("kns.ns2", {"pcns.env": "prod"}), ns("s", "ns2", {"a": ""}, ("198.51.100.0/24",)))
    assert members(policy, *resources) == {"198.51.100.0/24"}


def test_namespaced_rule_reaches_only_its_namespaces_network_sets() -> None:
    from tests.unit.libs.policy.build import np

    policy = np("p", "ns1", "has(here)", ingress=[rule(source={"selector": "has(a)"})])
    sets = (ns("s", "ns1", {"a": ""}, ("198.51.100.0/24",)), ns("s", "ns2", {"a": ""}, ("203.0.113.0/24",)))
    assert members(policy, *sets, gns("g", {"a": ""}, ("192.0.2.0/24",))) == {"198.51.100.0/24"}


def test_shared_address_stays_while_one_owner_is_left() -> None:
    first, second = wep("x", labels={"a": ""}), wep("y", node="n2", labels={"a": ""})
    calculator = calculate(HERE, from_selector("has(a)"), first, second)
    (set_id,) = calculator.view("n1").ipsets
    calculator.update(key_of(first), None)
    assert not calculator.flush().ipsets
    calculator.update(key_of(second), None)
    assert calculator.flush().ipsets[set_id].removed == {"10.0.0.1/32"}


def test_covered_networks_are_left_out_and_come_back() -> None:
    wide, middle = gns("w", {"a": ""}, ("10.0.0.0/8",)), gns("m", {"a": ""}, ("10.1.0.0/16", "10.1.2.0/24"))
    host = wep("x", labels={"a": ""}, nets=("10.1.2.3/32", "fd00::1/128"))
    calculator = calculate(HERE, from_selector("has(a)"), wide, middle, host)
    assert only_policy_sets(calculator.view("n1"), "p") == [{"10.0.0.0/8", "fd00::1/128"}]
    calculator.update(key_of(wide), None)
    calculator.flush()
    assert only_policy_sets(calculator.view("n1"), "p") == [{"10.1.0.0/16", "fd00::1/128"}]
    calculator.update(key_of(middle), None)
    calculator.flush()
    assert only_policy_sets(calculator.view("n1"), "p") == [{"10.1.2.3/32", "fd00::1/128"}]
    calculator.update(key_of(wide), wide)
    changes = calculator.flush()
    (change,) = changes.ipsets.values()
    assert (change.added, change.removed) == ({"10.0.0.0/8"}, {"10.1.2.3/32"})


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("TCP", {"10.0.0.1,tcp:80", "10.0.0.1,tcp:8080", "192.0.2.1,tcp:80", "fd00::1,tcp:80", "fd00::1,tcp:8080"}),
        ("UDP", {"10.0.0.1,udp:53", "fd00::1,udp:53"}),
        ("SCTP", set()),
        (
            None,
            {
                "10.0.0.1,tcp:80",
                "10.0.0.1,tcp:8080",
                "10.0.0.1,udp:53",
                "fd00::1,tcp:80",
                "fd00::1,tcp:8080",
                "fd00::1,udp:53",
                "192.0.2.1,tcp:80",
            },
        ),
    ],
)
def test_named_port_set_holds_address_protocol_and_port(protocol: str | None, expected: set[str]) -> None:
    ports = (("web", "TCP", 80), ("web", "TCP", 8080), ("web", "UDP", 53), ("other", "TCP", 1))
    resources = (
        gnp("p", "has(here)", ingress=[rule(protocol=protocol, destination={"selector": "has(a)", "ports": ["web"]})]),
        wep("w", labels={"a": ""}, nets=("10.0.0.1/32", "fd00::1/128"), ports=ports),
        wep("unselected", nets=("10.0.0.2/32",), ports=ports),
        hep("h", labels={"a": ""}, expected=("192.0.2.1",), ports=(("web", "TCP", 80),)),
        gns("g", {"a": ""}, ("198.51.100.0/24",)),
    )
    assert members(*resources) == expected


def test_change_of_a_port_replaces_the_member() -> None:
    policy = gnp("p", "has(here)", ingress=[rule(protocol="TCP", destination={"ports": ["web"]})])
    calculator = calculate(HERE, policy, wep("w", ports=(("web", "TCP", 80),)))
    calculator.update(key_of(wep("w")), wep("w", ports=(("web", "TCP", 81),)))
    (change,) = calculator.flush().ipsets.values()
    assert (change.added, change.removed) == ({"10.0.0.1,tcp:81"}, {"10.0.0.1,tcp:80"})


def test_set_is_shared_by_policies_and_goes_with_the_last() -> None:
    first, second = gnp("p", ingress=[rule(source={"selector": "a=='b'"})]), gnp("q", egress=[
        rule(destination={"selector": "(a == 'b')"})
    ])  # fmt: skip
    calculator = calculate(HERE, first, second)
    (set_id,) = calculator.view("n1").ipsets
    calculator.update(key_of(first), None)
    assert not calculator.flush().ipsets
    calculator.update(key_of(second), None)
    changes = calculator.flush()
    assert changes.ipsets[set_id].deleted
    assert changes.nodes["n1"].sets_removed == {set_id}
    assert calculator.ipset(set_id) is None


def test_set_that_moves_from_one_policy_to_another_is_not_rebuilt() -> None:
    first, second = from_selector("has(a)"), gnp("q", ingress=[rule(source={"selector": "has(a)"})])
    calculator = calculate(HERE, first)
    calculator.update(key_of(first), None)
    calculator.update(key_of(second), second)
    changes = calculator.flush()
    assert not changes.ipsets
    assert not changes.nodes["n1"].sets_added


def test_service_set_is_empty_without_services_in_the_datastore() -> None:
    policy = gnp("p", egress=[rule(destination={"services": model.ServiceMatch(name="s", namespace="ns1")})])
    assert members(policy) == frozenset()
