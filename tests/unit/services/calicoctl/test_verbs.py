"""apply, create, replace, delete, validate, patch, label: what they store, say and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.services.calicoctl.ctl import Ctl

TIER = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata:\n  name: sec\nspec:\n  order: 100\n"
SET = """\
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{a: "1"}}
spec:
  nets: [10.0.0.0/8]
"""
POLICY = """\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  tier: {tier}
  selector: {selector}
  ingress:
  - action: Allow
"""


def set_(name: str, namespace: str = "shop") -> str:
    return SET.format(name=name, namespace=namespace)


def test_apply_creates_then_updates(ctl: Ctl) -> None:
    assert ctl.apply(TIER) == "Successfully applied 1 'Tier' resource(s)\n"
    first = ctl.get("tier", "sec")
    assert ctl.apply(TIER.replace("100", "200")) == "Successfully applied 1 'Tier' resource(s)\n"
    second = ctl.get("tier", "sec")
    assert second["spec"]["order"] == 200
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["metadata"]["creationTimestamp"] == first["metadata"]["creationTimestamp"]
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_apply_of_the_same_again_writes_nothing(ctl: Ctl) -> None:
    ctl.apply(TIER)
    before = ctl.get("tier", "sec")["metadata"]["resourceVersion"]
    ctl.apply(TIER)
    assert ctl.get("tier", "sec")["metadata"]["resourceVersion"] == before


def test_apply_fills_in_defaults(ctl: Ctl) -> None:
    ctl.apply("kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: p}\nspec: {cidr: 10.1.0.0/16}\n")
    spec = ctl.get("ippool", "p")["spec"]
    assert (spec["blockSize"], spec["nodeSelector"], spec["assignmentMode"]) == (26, "all()", "Automatic")
    assert (spec["vxlanMode"], spec["ipipMode"], spec["allowedUses"]) == ("Never", "Never", ["Workload", "Tunnel"])


def test_several_kinds_are_counted_together(ctl: Ctl) -> None:
    assert ctl.apply(f"{TIER}---\n{set_('a')}") == "Successfully applied 2 resource(s)\n"


def test_create_refuses_what_exists_unless_told_to_skip(ctl: Ctl) -> None:
    assert ctl.good("create", "-f", "-", stdin=TIER) == "Successfully created 1 'Tier' resource(s)\n"
    message = ctl.bad("create", "-f", "-", stdin=TIER)
    assert message == ("Failed to create 'Tier' resource: -: document 1, line 1: resource already exists: Tier(sec)\n")
    assert "Successfully created 1" in ctl.good("create", "--skip-exists", "-f", "-", stdin=TIER)


def test_replace_needs_what_exists(ctl: Ctl) -> None:
    assert "resource does not exist: Tier(sec)" in ctl.bad("replace", "-f", "-", stdin=TIER)
    ctl.apply(TIER)
    replaced = ctl.good("replace", "-f", "-", stdin=TIER.replace("100", "7"))
    assert replaced == "Successfully replaced 1 'Tier' resource(s)\n"
    assert ctl.get("tier", "sec")["spec"]["order"] == 7


def test_replace_with_an_old_resource_version_is_a_conflict(ctl: Ctl) -> None:
    ctl.apply(TIER)
    old = ctl.good("get", "tier", "sec", "-o", "yaml")
    ctl.apply(TIER.replace("100", "200"))
    for verb in ("replace", "apply"):
        message = ctl.bad(verb, "-f", "-", stdin=old)
        assert "update conflict: Tier(sec): resource version" in message
        assert "is out of date (latest: " in message
    assert ctl.get("tier", "sec")["spec"]["order"] == 200


def test_what_get_prints_can_be_applied(ctl: Ctl) -> None:
    ctl.apply(f"{TIER}---\n{set_('a')}---\n{set_('b', 'bank')}")
    for form in ("yaml", "json"):
        assert "Successfully applied 2" in ctl.apply(ctl.good("get", "networksets", "-A", "-o", form))
        assert "Successfully applied 1 'Tier'" in ctl.apply(ctl.good("get", "tier", "sec", "-o", form))
        assert "Successfully applied 2" in ctl.apply(ctl.good("get", "tier", "sec", "default", "-o", form))


def test_exported_resources_can_be_created_elsewhere(ctl: Ctl) -> None:
    ctl.apply(TIER)
    exported = ctl.good("get", "tier", "sec", "-o", "yaml", "--export")
    assert "uid" not in exported
    assert "resourceVersion" not in exported
    assert "Successfully created 1" in Ctl().good("create", "-f", "-", stdin=exported)


def test_apply_keeps_labels_that_are_there(ctl: Ctl) -> None:
    ctl.apply(set_("a"))
    ctl.good("label", "networkset", "a", "b=2", "-n", "shop")
    ctl.apply(set_("a").replace('"1"', '"3"'))
    assert ctl.get("networkset", "a", "shop")["metadata"]["labels"] == {"a": "3", "b": "2"}


def test_delete_by_name_and_by_file(ctl: Ctl) -> None:
    ctl.apply("---\n".join(set_(name) for name in "abc"))
    assert ctl.good("delete", "netset", "a", "b", "-n", "shop") == "Successfully deleted 2 'NetworkSet' resource(s)\n"
    assert ctl.good("delete", "-f", "-", stdin=set_("c")) == "Successfully deleted 1 'NetworkSet' resource(s)\n"
    assert ctl.names("netset", "-A") == []


def test_delete_of_nothing_fails_unless_told_to_skip(ctl: Ctl) -> None:
    ctl.apply(set_("a"))
    result = ctl("delete", "netset", "none", "a", "-n", "shop")
    assert result.exit_code == 1
    assert result.stdout == "Successfully deleted 1 'NetworkSet' resource(s)\n"
    expected = "resource does not exist: NetworkSet(shop/none)"
    assert result.stderr == f"Failed to delete 'NetworkSet' resource: {expected}\n"
    assert "deleted 1" in ctl.good("delete", "netset", "none", "-s", "-n", "shop")


def test_delete_looks_at_names_only(ctl: Ctl) -> None:
    ctl.apply(TIER)
    ctl.good("delete", "-f", "-", stdin=TIER.replace("order: 100", "colour: red"))
    assert "sec" not in ctl.names("tiers")


def test_delete_with_an_old_resource_version_is_a_conflict(ctl: Ctl) -> None:
    ctl.apply(TIER)
    old = ctl.good("get", "tier", "sec", "-o", "yaml")
    ctl.apply(TIER.replace("100", "200"))
    assert "update conflict" in ctl.bad("delete", "-f", "-", stdin=old)


def test_validate_needs_no_datastore(ctl: Ctl) -> None:
    assert ctl.good("validate", "-f", "-", stdin=TIER) == "Successfully validated 1 'Tier' resource(s)\n"
    assert "spec.order" in ctl.bad("validate", "-f", "-", stdin=TIER.replace("100", "high"))
    assert ctl.clients == 0


@pytest.mark.parametrize(
    ("kind", "patch", "expected"),
    [
        ("strategic", '{"spec": {"order": 5}, "metadata": {"labels": {"x": "y"}}}', 5),
        ("merge", "spec:\n  order: 6\n", 6),
        ("json", '[{"op": "replace", "path": "/spec/order", "value": 7}]', 7),
        ("json", "- op: replace\n  path: /spec/order\n  value: 8\n", 8),
    ],
)
def test_patches(ctl: Ctl, kind: str, patch: str, expected: int) -> None:
    ctl.apply(TIER)
    before = ctl.get("tier", "sec")
    assert ctl.good("patch", "tier", "sec", "-t", kind, "-p", patch) == "Successfully patched 1 'Tier' resource\n"
    after = ctl.get("tier", "sec")
    assert after["spec"]["order"] == expected
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ('{"spec": {"colour": "red"}}', "spec.colour"),
        ('{"spec": {"order": "high"}}', "spec.order"),
        ('{"metadata": {"name": "other"}}', "may not change kind, name or namespace"),
        ('{"metadata": {"resourceVersion": "1"}}', "update conflict"),
        ("[1]", "must be an object"),
        ("{", "Failed to read the patch"),
    ],
)
def test_bad_patches_change_nothing(ctl: Ctl, patch: str, message: str) -> None:
    ctl.apply(TIER)
    before = ctl.get("tier", "sec")
    assert message in ctl.bad("patch", "tier", "sec", "-p", patch)
    assert ctl.get("tier", "sec") == before


def test_patch_of_nothing_fails(ctl: Ctl) -> None:
    message = ctl.bad("patch", "tier", "none", "-p", "{}")
    assert message == "Failed to patch 'Tier' resource: resource does not exist: Tier(none)\n"


def test_labels(ctl: Ctl) -> None:
    ctl.apply(TIER)
    assert ctl.good("label", "tiers", "sec", "a=1") == "Successfully set label a on tiers sec\n"
    assert "key a is already present. please use '--overwrite'" in ctl.bad("label", "tiers", "sec", "a=2")
    assert ctl.good("label", "tiers", "sec", "a=1") == "Successfully updated label a on tiers sec\n"
    assert ctl.good("label", "tiers", "sec", "a=2", "--overwrite") == "Successfully updated label a on tiers sec\n"
    assert ctl.get("tier", "sec")["metadata"]["labels"] == {"a": "2"}
    assert ctl.good("label", "tiers", "sec", "a", "--remove") == "Successfully removed label a from tiers sec\n"
    assert "labels" not in ctl.get("tier", "sec")["metadata"]
    assert "key a does not exist" in ctl.bad("label", "tiers", "sec", "a", "--remove")
    assert "resource does not exist" in ctl.bad("label", "tiers", "none", "a=1")


@pytest.mark.parametrize("label", ["a", "=1", "a=b=c"])
def test_malformed_labels_are_refused(ctl: Ctl, label: str) -> None:
    assert ctl.bad("label", "tiers", "default", label) == f"invalid label {label}\n"


def test_a_label_that_kubernetes_refuses_is_refused(ctl: Ctl) -> None:
    ctl.apply(TIER)
    assert "metadata.labels" in ctl.bad("label", "tiers", "sec", "a=not a label value")


# --- namespaces ------------------------------------------------------------------------------------------------------


def test_the_namespace_is_default_when_none_is_given(ctl: Ctl) -> None:
    ctl.apply(set_("a").replace("  namespace: shop\n", ""))
    assert ctl.get("netset", "a")["metadata"]["namespace"] == "default"


def test_the_option_gives_the_namespace_and_must_not_contradict(ctl: Ctl) -> None:
    ctl.good("apply", "-n", "bank", "-f", "-", stdin=set_("a").replace("  namespace: shop\n", ""))
    assert ctl.get("netset", "a", "bank")["metadata"]["namespace"] == "bank"
    message = ctl.bad("apply", "-n", "bank", "-f", "-", stdin=set_("b"))
    assert "resource namespace does not match client namespace, shop != bank" in message


def test_cluster_wide_kinds_take_no_namespace(ctl: Ctl) -> None:
    assert "Tier is not namespaced" in ctl.bad("apply", "-n", "shop", "-f", "-", stdin=TIER)
    assert "Tier is not namespaced" in ctl.bad("get", "tiers", "-A")
    inside = TIER.replace("  name: sec\n", "  name: sec\n  namespace: shop\n")
    assert "not a namespaced resource" in ctl.bad("apply", "-f", "-", stdin=inside)


# --- what must not be written ----------------------------------------------------------------------------------------


def test_cluster_information_is_read_only(ctl: Ctl) -> None:
    ctl.apply(TIER)
    info = ctl.good("get", "clusterinfo", "default", "-o", "yaml")
    for verb in ("apply", "create", "replace", "delete"):
        assert "resource is readonly" in ctl.bad(verb, "-f", "-", stdin=info)
    assert "resource is readonly" in ctl.bad("patch", "clusterinfo", "default", "-p", "{}")


def test_policies_of_kubernetes_are_not_ours(ctl: Ctl) -> None:
    text = POLICY.format(tier="default", selector="all()").replace("name: web", "name: knp.default.web")
    for verb in ("apply", "delete"):
        assert "must be managed through the kubernetes API" in ctl.bad(verb, "-f", "-", stdin=text)


def test_builtin_tiers_are_protected(ctl: Ctl) -> None:
    ctl.apply(set_("a"))
    assert ctl.names("tiers") == ["kube-admin", "default", "kube-baseline"]
    for name in ("default", "kube-admin", "kube-baseline"):
        assert "it is a built-in tier" in ctl.bad("delete", "tier", name)
        assert "spec.order" in ctl.bad("patch", "tier", name, "-p", '{"spec": {"order": 1}}')
        action = "Pass" if name == "default" else "Deny"
        message = ctl.bad("patch", "tier", name, "-p", json.dumps({"spec": {"defaultAction": action}}))
        assert "spec.defaultAction" in message
    assert ctl.names("tiers") == ["kube-admin", "default", "kube-baseline"]


def test_the_allowing_profile_is_shown_and_never_written(ctl: Ctl) -> None:
    name = "projectcalico-default-allow"
    assert name in ctl.names("profiles")
    profile = ctl.good("get", "profile", name, "-o", "yaml")
    assert "action: Allow" in profile
    assert "operation update is not supported" in ctl.bad("apply", "-f", "-", stdin=profile)
    assert "operation delete is not supported" in ctl.bad("delete", "profile", name)
    text = profile.replace("  resourceVersion: '1'\n", "")
    assert "resource already exists" in ctl.bad("create", "-f", "-", stdin=text)


def test_a_policy_needs_its_tier(ctl: Ctl) -> None:
    text = POLICY.format(tier="sec", selector="all()")
    assert "resource does not exist: Tier(sec)" in ctl.bad("apply", "-f", "-", stdin=text)
    ctl.apply(TIER)
    ctl.apply(text)
    message = ctl.bad("delete", "tier", "sec")
    assert "tier is not empty: NetworkPolicy(shop/web) is in it" in message
    ctl.good("delete", "np", "web", "-n", "shop")
    ctl.good("delete", "tier", "sec")


def test_policies_carry_tier_label_and_name_annotation_in_etcd_only(ctl: Ctl) -> None:
    ctl.apply(POLICY.format(tier="default", selector="all()"))
    key = "/calico/resources/v3/projectcalico.org/networkpolicies/shop/web"
    stored = ctl.run(ctl.client().store.get(key))
    assert stored is not None
    metadata = json.loads(stored.value)["metadata"]
    assert metadata["labels"] == {"projectcalico.org/tier": "default"}
    assert metadata["annotations"] == {"projectcalico.org/metadata": '{"name":"web"}'}
    assert "resourceVersion" not in metadata
    assert "annotations" not in ctl.get("np", "web", "shop")["metadata"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_directories_and_input_may_be_mixed(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.yaml").write_text(set_("one"))
    (tmp_path / "two.json").write_text(
        json.dumps(
            {
                "kind": "NetworkSet",
                "apiVersion": "projectcalico.org/v3",
                "metadata": {"name": "two", "namespace": "shop"},
                "spec": {},
            }
        )
    )
    (tmp_path / "deep" / "three.yml").write_text(set_("three"))
    (tmp_path / "four.txt").write_text(set_("four"))
    done = ctl.good("apply", "-R", "-f", str(tmp_path), "-f", "-", "-f", str(tmp_path / "four.txt"), stdin=set_("five"))
    assert done == "Successfully applied 5 'NetworkSet' resource(s)\n"
    assert ctl.names("netsets", "-n", "shop") == ["five", "four", "one", "three", "two"]


def test_files_without_resources(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert "No resources specified in file" in ctl.bad("apply", "-f", str(tmp_path))
    assert ctl.good("apply", "--skip-empty", "-f", str(tmp_path)) == "No resources specified\n"
    assert "No such file" in ctl.bad("apply", "-f", str(tmp_path / "none.yaml"))
