"""Tiers and policies in order, and the split by how a policy applies."""

from __future__ import annotations

from libs.policy.order import PolicyOrder, TierSpec, arrange
from libs.policy.output import PolicyKey


def one(name: str, tier: str = "default", order: float | None = None, **fields: object) -> PolicyOrder:
    kind, namespace = str(fields.pop("kind", "GlobalNetworkPolicy")), str(fields.pop("namespace", ""))
    settings = {"ingress": True, "egress": True, **fields}
    return PolicyOrder(key=PolicyKey(kind, name, namespace), tier=tier, order=order, **settings)


def names(keys: tuple[PolicyKey, ...]) -> list[str]:
    return [key.name for key in keys]


def test_policies_by_order_then_none_then_name() -> None:
    (tier,) = arrange([one("d"), one("a"), one("b", order=2), one("c", order=-1.5)], {}).normal
    assert names(tier.ingress) == ["c", "b", "a", "d"]


def test_ties_are_broken_by_name_then_namespace_then_kind() -> None:
    policies = [
        one("a", kind="StagedNetworkPolicy", namespace="n"),
        one("a", kind="NetworkPolicy", namespace="n"),
        one("a", kind="NetworkPolicy", namespace="m"),
        one("a"),
    ]
    (tier,) = arrange(policies, {}).normal
    assert [(key.namespace, key.kind) for key in tier.ingress] == [
        ("", "GlobalNetworkPolicy"),
        ("m", "NetworkPolicy"),
        ("n", "NetworkPolicy"),
        ("n", "StagedNetworkPolicy"),
    ]


def test_tiers_by_order_then_none_then_name_and_unknown_ones_last() -> None:
    tiers = {
        "late": TierSpec(None, "Deny"),
        "first": TierSpec(1, "Pass"),
        "second": TierSpec(2, "Deny"),
        "also": TierSpec(2, "Deny"),
    }
    policies = [one("p", tier) for tier in ("unknown", "late", "second", "also", "first", "another")]
    arranged = arrange(policies, tiers).normal
    assert [tier.name for tier in arranged] == ["first", "also", "second", "late", "another", "unknown"]
    assert [tier.default_action for tier in arranged] == ["Pass", "Deny", "Deny", "Deny", "Deny", "Deny"]


def test_direction_follows_types() -> None:
    (tier,) = arrange([one("in", egress=False), one("out", ingress=False)], {}).normal
    assert (names(tier.ingress), names(tier.egress)) == (["in"], ["out"])


def test_split_of_untracked_pre_dnat_and_forward() -> None:
    tiers = {"t": TierSpec(1, "Deny")}
    arranged = arrange(
        [
            one("normal", "t"),
            one("forward", "t", apply_on_forward=True),
            one("untracked", "t", untracked=True, apply_on_forward=True),
            one("dnat", "t", pre_dnat=True, apply_on_forward=True),
        ],
        tiers,
    )
    assert [names(tier.ingress) for tier in arranged.normal] == [["forward", "normal"]]
    assert [names(tier.ingress) for tier in arranged.forward] == [["forward"]]
    assert [names(tier.ingress) for tier in arranged.untracked] == [["untracked"]]
    assert [(names(tier.ingress), tier.egress) for tier in arranged.pre_dnat] == [(["dnat"], ())]
    assert {tier.default_action for tier in (*arranged.untracked, *arranged.pre_dnat)} == {"Pass"}


def test_tier_without_an_applicable_policy_is_left_out() -> None:
    assert arrange([one("untracked", untracked=True)], {}).normal == ()
    assert arrange([one("egress only", pre_dnat=True, ingress=False)], {}).pre_dnat == ()
