from __future__ import annotations

from libs.policy.output import PolicyKey
from services.felix.core import names

HASH = "TqLohIFmwleJANVwI_zJXgxvVhYs8wHJz0wDVQ"


def test_policy_ids_are_chain_names_as_they_are():
    assert names.policy_chain(PolicyKey("NetworkPolicy", "web", "ns1"), True) == "pi-np/ns1/web"
    assert names.policy_chain(PolicyKey("GlobalNetworkPolicy", "sec.block"), False) == "po-gnp/sec.block"
    assert names.profile_chain("kns.ns1", True) == "pri-kns.ns1"


def test_what_nft_would_refuse_gets_a_digest_and_stays_distinct():
    odd = [names.profile_chain(text, True) for text in ("a b", "a:b", "a{b", "a..b")]
    assert len(set(odd)) == 4
    assert all(name.startswith("pri-a") and " " not in name and "{" not in name for name in odd)


def test_longest_names_fit_and_differ():
    one, two = (names.policy_chain(PolicyKey("NetworkPolicy", "n" * 252 + end, "s" * 63), True) for end in "xy")
    assert one != two
    assert len(one) <= 200


def test_set_names_keep_their_kind_and_fit_with_a_half():
    for kind in ("s", "n", "svc", "svcnoport"):
        name = names.ip_set(f"{kind}:{HASH}")
        assert name == f"{kind}-{HASH}"[:29]
        assert len(f"{name}-h") <= 31
    assert names.ip_set("s:web") == "s-web"
    assert names.ip_set("odd id!").startswith("set-odd")
    assert len(names.ip_set("x" * 100)) <= 29


def test_tier_chains_differ_by_content_and_direction():
    chains = {names.tier_chain("default", inbound, text) for inbound in (True, False) for text in ("a", "b")}
    assert len(chains) == 4
    assert all(chain.startswith(("ti-default-", "to-default-")) for chain in chains)


def test_content_sets_are_readable_while_short():
    assert names.content_set("ports", ["80", "443"]) == "ports-80-443"
    long = names.content_set("ports", [str(port) for port in range(80, 100)])
    assert long.startswith("ports-x")
    assert len(long) <= 31


def test_comments_are_printable_and_short():
    assert names.comment('a "b"\n\\ é') == "a ?b??? ?"
    assert len(names.comment("é" * 500)) == 127
