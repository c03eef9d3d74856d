"""Who may do what on projectcalico.org/v3 (row A07): tiers by real Roles at kube-apiserver, and by the role file alone.

The same documents, in RBAC's own form, are given to both.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from libs.testkit.kube.kubectl import Kubectl
from tests.kube.objects import cluster_role, global_policy, network_policy, network_set, role, rule, tier
from tests.kube.ways import Way

POLICIES = ("networkpolicies", "globalnetworkpolicies")
ALL = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
NP = "networkpolicies.projectcalico.org"
_numbers = itertools.count()


@dataclass(frozen=True)
class Stage:
    """Tiers `alpha` and `beta`, one policy of each sort in either; and users of this module's own."""

    way: Way

    def user(self, *rules: dict[str, object], tag: str = "user") -> tuple[str, Kubectl]:
        """A new user with these rules in a ClusterRole; nothing else."""
        name = f"{tag}-{next(_numbers)}"
        if rules:
            self.way.grant(*cluster_role(name, *rules, user=name))
        return name, self.way.user(name, ())

    def of_tier(self, name: str, verbs: tuple[str, ...] = ALL) -> tuple[str, Kubectl]:
        """One who may do `verbs` to all policies of one tier."""
        user, kubectl = self.user(
            rule(["tiers"], ["get"], [name]),
            rule(POLICIES, ALL),
            rule([f"tier.{plural}" for plural in POLICIES], verbs, [f"{name}.*"]),
            tag=f"of-{name}",
        )
        self.way.until(lambda: kubectl.run("get", NP, "-A", "-l", f"projectcalico.org/tier={name}").status == 0, user)
        return user, kubectl


@pytest.fixture(scope="module")
def stage(way: Way) -> Iterator[Stage]:
    way.kubectl.apply(tier("alpha", 100), tier("beta", 200))
    for name in ("alpha", "beta"):
        way.kubectl.apply(network_policy(f"np-{name}", "red", tier=name), global_policy(f"gnp-{name}", tier=name))
    yield Stage(way)
    for name in ("alpha", "beta"):
        way.kubectl("delete", "networkpolicies.projectcalico.org", "-A", "-l", f"projectcalico.org/tier={name}")
        way.kubectl("delete", "gnp", "-l", f"projectcalico.org/tier={name}")
        way.kubectl("delete", "tier", name, "--timeout=30s")


def names(kubectl: Kubectl, *arguments: str) -> list[str]:
    return sorted(word.split("/")[1] for word in kubectl("get", *arguments, "-o", "name").split())


def test_who_has_no_role_may_do_nothing(stage: Stage) -> None:
    user, nobody = stage.user()
    for arguments in (("get", "gns"), ("get", "gns", "x"), ("delete", "gnp", "gnp-alpha"), ("get", "tiers")):
        said = nobody.fails(*arguments)
        assert "(Forbidden)" in said
        assert f'User "{user}" cannot {arguments[0].replace("get", "list" if len(arguments) == 2 else "get")}' in said
    assert "gnp-alpha" in names(stage.way.kubectl, "gnp")


def test_roles_for_kinds_without_tiers_are_plain(stage: Stage) -> None:
    _, reader = stage.user(rule(["globalnetworksets"], ["get", "list"]))
    stage.way.until(lambda: reader.run("get", "gns").status == 0, "the role counts")
    assert "cannot create resource" in reader.fails("create", "-f", "-", stdin=yaml.safe_dump(network_set("lan")))
    assert "cannot watch resource" in reader.fails("get", "gns", "--watch-only", "--request-timeout=20s")


def test_who_has_a_tier_does_everything_in_it(stage: Stage) -> None:
    _, owner = stage.of_tier("alpha")
    assert owner.apply(network_policy("new", "red", tier="alpha")).endswith("created\n")
    assert owner.apply(network_policy("new", "red", tier="alpha", order=99)).endswith("configured\n")
    assert owner("label", NP, "new", "-n", "red", "a=1").endswith("labeled\n")
    assert owner.json("get", NP, "new", "-n", "red")["spec"]["order"] == 99
    assert owner("delete", NP, "new", "-n", "red").endswith("deleted\n")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("get", ("get", NP, "np-beta", "-n", "red")),
        ("patch", ("label", NP, "np-beta", "-n", "red", "a=1")),
        ("patch", ("patch", NP, "np-beta", "-n", "red", "--type=merge", "-p", '{"spec":{"order":1}}')),
        ("delete", ("delete", NP, "np-beta", "-n", "red", "--wait=false")),
        ("get", ("get", "gnp", "gnp-beta")),
        ("delete", ("delete", "gnp", "gnp-beta", "--wait=false")),
    ],
)
def test_who_has_tier_alpha_cannot_touch_tier_beta(stage: Stage, verb: str, arguments: tuple[str, ...]) -> None:
    user, owner = stage.of_tier("alpha")
    before = stage.way.kubectl.json("get", "gnp,networkpolicies.projectcalico.org", "-A")["items"]
    said = owner.fails(*arguments)
    assert "(Forbidden)" in said
    # kubectl reads before it labels or patches.
    assert re.search(rf'User "{user}" cannot (get|{verb}) \S+ in tier "beta"', said), said
    assert "(user cannot get tier)" in said
    assert stage.way.kubectl.json("get", "gnp,networkpolicies.projectcalico.org", "-A")["items"] == before


def test_who_has_tier_alpha_cannot_create_in_tier_beta_or_move_a_policy_there(stage: Stage) -> None:
    user, owner = stage.of_tier("alpha")
    text = yaml.safe_dump(network_policy("intruder", "red", tier="beta"))
    assert f'User "{user}" cannot create {NP} in tier "beta"' in owner.fails("create", "-f", "-", stdin=text)
    owner.apply(network_policy("mover", "red", tier="alpha"))
    moved = owner.run("patch", NP, "mover", "-n", "red", "--type=merge", "-p", '{"spec":{"tier":"beta"}}')
    assert moved.status != 0
    assert stage.way.kubectl.json("get", NP, "mover", "-n", "red")["spec"]["tier"] == "alpha"
    owner("delete", NP, "mover", "-n", "red")
    assert "intruder" not in names(stage.way.kubectl, NP, "-A")


def test_lists_are_narrowed_to_the_tiers_that_one_may_read(stage: Stage) -> None:
    _, alpha = stage.of_tier("alpha")
    _, beta = stage.of_tier("beta", ("get", "list"))
    assert names(alpha, NP, "-A") == ["np-alpha"]
    assert names(alpha, "gnp") == ["gnp-alpha"]
    assert names(beta, NP, "-n", "red") == ["np-beta"]
    assert names(stage.way.kubectl, "gnp") == ["gnp-alpha", "gnp-beta"]
    said = alpha.fails("get", NP, "-A", "-l", "projectcalico.org/tier=beta")
    assert 'in tier "beta"' in said
    said = alpha.fails("get", "gnp", "--field-selector", "spec.tier=beta")
    assert 'in tier "beta"' in said


def test_one_policy_by_its_name(stage: Stage) -> None:
    user, reader = stage.user(
        rule(["tiers"], ["get"], ["alpha"]),
        rule(POLICIES, ALL),
        rule(["tier.globalnetworkpolicies"], ["get"], ["gnp-alpha"]),
    )
    stage.way.kubectl.apply(global_policy("other", tier="alpha"))
    stage.way.until(lambda: reader.run("get", "gnp", "gnp-alpha").status == 0, "the role counts")
    said = reader.fails("get", "gnp", "other")
    assert f'User "{user}" cannot get globalnetworkpolicies.projectcalico.org in tier "alpha"' in said
    assert "user cannot get tier" not in said
    stage.way.kubectl("delete", "gnp", "other")


def test_who_may_not_get_the_tier_itself_may_do_nothing_in_it(stage: Stage) -> None:
    user, outsider = stage.user(rule(POLICIES, ALL), rule(["tier.globalnetworkpolicies"], ["*"], ["alpha.*"]))
    in_tier = f'User "{user}" cannot get globalnetworkpolicies.projectcalico.org in tier "alpha"'
    stage.way.until(lambda: in_tier in outsider.run("get", "gnp", "gnp-alpha").err, "the role counts")
    said = outsider.fails("delete", "gnp", "gnp-alpha", "--wait=false")
    assert f'User "{user}" cannot delete globalnetworkpolicies.projectcalico.org in tier "alpha"' in said
    assert "(user cannot get tier)" in said
    assert "gnp-alpha" in names(stage.way.kubectl, "gnp")


def test_a_role_in_one_namespace_counts_there_alone(stage: Stage) -> None:
    user, kubectl = stage.user(rule(["tiers"], ["get"], ["alpha"]))
    in_red = (rule(["networkpolicies"], ALL), rule(["tier.networkpolicies"], ["*"], ["alpha.*"]))
    stage.way.grant(*role(user, "red", *in_red, user=user))
    stage.way.until(lambda: kubectl.run("get", NP, "np-alpha", "-n", "red").status == 0, "the role counts")
    stage.way.kubectl.apply(network_policy("np-blue", "blue", tier="alpha"))
    assert names(kubectl, NP, "-n", "red") == ["np-alpha"]
    assert "(Forbidden)" in kubectl.fails("get", NP, "np-blue", "-n", "blue")
    for elsewhere in (("-n", "blue"), ("-A",)):
        # Refused, or where everybody is let through to the tiers' own rules (k8s/apiserver.yaml), empty.
        assert "np-" not in kubectl.run("get", NP, *elsewhere, "-o", "name").out
    stage.way.kubectl("delete", NP, "np-blue", "-n", "blue")


def test_watches_are_narrowed_to_the_tiers_that_one_may_read(stage: Stage) -> None:
    _, alpha = stage.of_tier("alpha")
    watched = ("get", NP, "-A", "--watch", "-o", "name")
    with alpha.background(*watched) as watch:
        watch.until(lambda lines: any("np-alpha" in line for line in lines), "what is there")
        stage.way.kubectl.apply(network_policy("hidden", "red", tier="beta"))
        stage.way.kubectl.apply(network_policy("shown", "red", tier="alpha"))
        lines = watch.until(lambda lines: any("shown" in line for line in lines), "what came")
        assert not [line for line in lines if "beta" in line or "hidden" in line]
    stage.way.kubectl("delete", NP, "hidden", "shown", "-n", "red")


def test_watches_end_when_a_tier_comes_so_that_clients_list_again(stage: Stage) -> None:
    with stage.way.kubectl.background("get", NP, "-A", "--watch", "-o", "name") as watch:
        watch.until(lambda lines: any("np-alpha" in line for line in lines), "what is there")
        # A tier between kubectl's list and its watch would end nothing.
        stage.way.kubectl.apply(network_policy("watched", "red", tier="alpha"))
        watch.until(lambda lines: any("watched" in line for line in lines), "what came")
        stage.way.kubectl.apply(tier("gamma", 300))
        watch.wait()
    stage.way.kubectl("delete", "tier", "gamma")
    stage.way.kubectl("delete", NP, "watched", "-n", "red")


def test_a_role_that_is_taken_away_counts_no_longer(stage: Stage) -> None:
    user, reader = stage.user(rule(["globalnetworksets"], ["list"]))
    stage.way.until(lambda: reader.run("get", "gns").status == 0, "the role counts")
    stage.way.revoke(user)
    stage.way.until(lambda: reader.run("get", "gns").status != 0, "refused", timeout_s=30)


def test_can_i(stage: Stage) -> None:
    """kubectl asks with a SelfSubjectAccessReview, which kube-apiserver answers; alone we do, by the role file."""
    user, owner = stage.of_tier("alpha")
    arguments = ("auth", "can-i", "create", NP, "-n", "red")
    assert owner(*arguments) == "yes\n"
    assert owner.run("auth", "can-i", "create", "gns").out == "no\n"
    assert stage.way.kubectl("auth", "can-i", "*", "*") == "yes\n"
    assert "tier.networkpolicies.projectcalico.org" in owner("auth", "can-i", "--list", "-n", "red")
    assert user in owner("auth", "whoami")
    if not stage.way.aggregated:  # what follows creates a kind that kubectl must find in the discovery
        return
    ask = ("create", "--validate=false", "-f", "-", "-o", "jsonpath={.status.allowed}")
    for tier_name, allowed in (("alpha", "true"), ("beta", "false")):
        attributes = {
            "group": "projectcalico.org", "resource": "tier.networkpolicies", "namespace": "red", "verb": "create",
            "name": f"{tier_name}.*",
        }  # fmt: skip
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        text = json.dumps(review | {"spec": {"resourceAttributes": attributes}})
        assert owner(*ask, stdin=text) == allowed
