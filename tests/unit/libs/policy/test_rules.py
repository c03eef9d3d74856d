"""How rules and policies become selectors and IP sets."""

from __future__ import annotations

import pytest

from libs import model
from libs.model.selector import SelectorError, parse
from libs.policy.output import Action, HttpMatch, Icmp, IPSetType, PortRange, ServiceAccountMatch
from libs.policy.rules import compile_rules, entity_selector, policy_selector
from libs.policy.sets import named_port_set, selector_set
from tests.unit.libs.policy.build import entity, rule

NS = "projectcalico.org/namespace"
SA = "projectcalico.org/serviceaccount"


@pytest.mark.parametrize(
    ("arguments", "canonical"),
    [
        (("a == 'b'",), 'a == "b"'),
        (("",), "all()"),
        (("a == 'b'", "ns1"), f'(a == "b" && {NS} == "ns1")'),
        (("", "ns1"), f'{NS} == "ns1"'),
        (("has(a) || has(b)", "ns1"), f'((has(a) || has(b)) && {NS} == "ns1")'),
        (("has(a)", "", "env == 'prod'"), '(has(a) && pcns.env == "prod")'),
        (("", "", "env == 'prod'"), 'pcns.env == "prod"'),
        (("has(a)", "", "all()"), f"(has(a) && has({NS}))"),
        # As in Calico the word is replaced in the user's selector too.
        (("has(a) || all()", "", "env == 'prod'"), f'((has(a) || has({NS})) && pcns.env == "prod")'),
        (("has(a)", "", "", "role == 'db'"), '(has(a) && pcsa.role == "db")'),
        (("has(a)", "", "", "all()"), f"(has(a) && has({SA}))"),
        (("", "ns1", "", "role == 'db'"), f'({NS} == "ns1" && pcsa.role == "db")'),
        (("has(a)", "", "has(x)", "has(y)"), "((has(a) && has(pcns.x)) && has(pcsa.y))"),
    ],
)
def test_policy_selector_composition(arguments: tuple[str, ...], canonical: str) -> None:
    assert policy_selector(*arguments).canonical == canonical


@pytest.mark.parametrize(
    ("fields", "namespace", "canonical"),
    [
        ({}, "ns1", None),
        ({"nets": ["10.0.0.0/8"]}, "ns1", None),
        ({"selector": "has(a)"}, "", "has(a)"),
        ({"selector": "has(a)"}, "ns1", f'({NS} == "ns1" && has(a))'),
        ({"not_selector": "has(a)"}, "ns1", f'{NS} == "ns1"'),
        ({"not_selector": "has(a)"}, "", None),
        ({"namespace_selector": "env == 'prod'"}, "ns1", 'pcns.env == "prod"'),
        ({"namespace_selector": "env == 'prod'"}, "", 'pcns.env == "prod"'),
        ({"namespace_selector": "all()"}, "ns1", f"has({NS})"),
        ({"namespace_selector": "global()", "selector": "has(a)"}, "ns1", f"(!has({NS}) && has(a))"),
        ({"accounts": {"names": ["x", "w"]}}, "", f'{SA} in {{"w", "x"}}'),
        ({"accounts": {"selector": "has(r)"}}, "", "has(pcsa.r)"),
        ({"accounts": {"selector": "has(r)", "names": ["x"]}}, "", f'(has(pcsa.r) && {SA} in {{"x"}})'),
        ({"accounts": {"names": ["x"]}, "selector": "has(a)"}, "", f'({SA} in {{"x"}} && has(a))'),
        (
            {"accounts": {"names": ["x"]}, "selector": "has(a)"},
            "ns1",
            f'({NS} == "ns1" && ({SA} in {{"x"}} && has(a)))',
        ),
    ],
)
def test_endpoints_of_a_rule(fields: dict[str, object], namespace: str, canonical: str | None) -> None:
    text = entity_selector(entity(**fields), namespace)
    assert (parse(text).canonical if text else None) == canonical


def test_negative_selector_joins_a_positive_one() -> None:
    (compiled,), specs = compile_rules([rule(source={"selector": "has(a)", "not_selector": "has(b)"})])
    joined = selector_set(parse("(has(a)) && (!(has(b)))"))
    assert compiled.src_sets == (joined.id,)
    assert compiled.not_src_sets == ()
    assert list(specs) == [joined.id]


def test_negative_selector_alone_in_a_global_policy_is_a_negative_set() -> None:
    (compiled,), _ = compile_rules([rule(source={"not_selector": "has(b)"})])
    assert compiled.src_sets == ()
    assert compiled.not_src_sets == (parse("has(b)").id,)


def test_negative_selector_in_a_namespaced_policy_means_others_of_that_namespace() -> None:
    (compiled,), _ = compile_rules([rule(source={"not_selector": "has(b)"})], "ns1")
    assert compiled.src_sets == (parse(f"({NS} == 'ns1') && (!(has(b)))").id,)
    assert compiled.not_src_sets == ()


def test_named_port_alone_replaces_the_selector_set() -> None:
    (compiled,), specs = compile_rules([rule(protocol="TCP", destination={"selector": "has(a)", "ports": ["http"]})])
    named = named_port_set(parse("has(a)"), "tcp", "http")
    assert compiled.dst_named_port_sets == (named.id,)
    assert compiled.dst_sets == ()
    assert specs[named.id].type is IPSetType.IP_PORT


def test_named_port_with_a_numeric_one_keeps_the_selector_set() -> None:
    (compiled,), _ = compile_rules(
        [rule(protocol="TCP", destination={"selector": "has(a)", "ports": ["http", 80, "8000:8100"]})]
    )
    assert compiled.dst_ports == (PortRange(80, 80), PortRange(8000, 8100))
    assert len(compiled.dst_named_port_sets) == 1
    assert compiled.dst_sets == (parse("has(a)").id,)


def test_negated_named_port_is_limited_to_the_positive_selector() -> None:
    (compiled,), _ = compile_rules([rule(protocol="UDP", source={"selector": "has(a)", "not_ports": ["dns"]})])
    assert compiled.not_src_named_port_sets == (named_port_set(parse("has(a)"), "udp", "dns").id,)
    assert compiled.src_sets == (parse("has(a)").id,)


@pytest.mark.parametrize(
    ("protocol", "expected"), [(None, "any"), ("TCP", "tcp"), (17, "udp"), ("SCTP", "sctp"), (132, "sctp"), (47, "tcp")]
)
def test_named_port_takes_the_protocol_of_the_rule(protocol: str | int | None, expected: str) -> None:
    (compiled,), _ = compile_rules([rule(protocol=protocol, destination={"ports": ["http"]})])
    assert compiled.dst_named_port_sets == (named_port_set(parse(""), expected, "http").id,)


def test_destination_service_matches_address_and_port_and_source_service_the_address() -> None:
    (compiled,), specs = compile_rules(
        [
            rule(
                source={"services": model.ServiceMatch(name="a", namespace="ns1")},
                destination={"services": model.ServiceMatch(name="b")},
            )
        ],
        "ns2",
    )
    assert [spec[: spec.index(":")] for spec in specs] == ["svcnoport", "svc"]
    assert len(compiled.src_sets) == 1
    assert len(compiled.dst_ip_port_sets) == 1
    assert compiled.origin is not None
    assert (compiled.origin.src_service, compiled.origin.src_service_namespace) == ("a", "ns1")


@pytest.mark.parametrize(("protocol", "version"), [("ICMP", 4), ("ICMPv6", 6), ("TCP", 0), (1, 0), (None, 0)])
def test_icmp_by_name_limits_the_family(protocol: str | int | None, version: int) -> None:
    (compiled,), _ = compile_rules([rule(protocol=protocol)])
    assert compiled.ip_version == version


def test_plain_fields_are_carried_over() -> None:
    (compiled,), specs = compile_rules(
        [
            rule(
                "Pass",
                "ICMP",
                {"nets": ["10.0.0.0/8"], "not_nets": ["10.1.0.0/16"]},
                {"nets": ["fd00::/64"]},
                ip_version=4,
                icmp=model.ICMPFields(type=8, code=0),
                not_icmp=model.ICMPFields(type=3),
                http=model.HTTPMatch(methods=["GET"], paths=[model.HTTPPath(exact="/a"), model.HTTPPath(prefix="/b")]),
                metadata=model.RuleMetadata(annotations={"why": "because"}),
            )
        ]
    )
    assert compiled.action is Action.PASS
    assert (compiled.protocol, compiled.ip_version) == ("icmp", 4)
    assert (compiled.icmp, compiled.not_icmp) == (Icmp(8, 0), Icmp(3))
    assert (compiled.src_nets, compiled.not_src_nets, compiled.dst_nets) == (
        ("10.0.0.0/8",),
        ("10.1.0.0/16",),
        ("fd00::/64",),
    )
    assert compiled.http == HttpMatch(("GET",), ("/a",), ("/b",))
    assert compiled.annotations == {"why": "because"}
    assert not specs


def test_the_users_own_words_are_kept() -> None:
    (compiled,), _ = compile_rules(
        [rule(source={"selector": "a=='b'", "namespace_selector": "all()", "accounts": {"names": ["x"]}})], "ns1"
    )
    assert compiled.origin is not None
    assert compiled.origin.src_selector == "a=='b'"
    assert compiled.origin.src_namespace_selector == "all()"
    assert compiled.origin.src_service_accounts == ServiceAccountMatch("", ("x",))


def test_selector_that_does_not_parse_is_refused() -> None:
    with pytest.raises(SelectorError):
        compile_rules([rule(source={"selector": "a = 'b'"})])
