"""kubectl on projectcalico.org/v3: against our apiserver itself, and through a real kube-apiserver (fixture `way`).

Rows A01 to A06, A08, A09, A11 of the feature table.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from libs.model.kinds import KINDS
from services.apiserver.core.request import SERVED
from tests.kube.objects import calico, global_policy, network_policy, network_set, tier
from tests.kube.ways import Way

EVERY_VERB = "create,delete,deletecollection,get,list,patch,update,watch"


@pytest.fixture(autouse=True)
def emptied(way: Way) -> Iterator[None]:
    """What a test left does not meet the next one; built-in tiers stay."""
    yield
    way.kubectl("delete", "networkpolicies.projectcalico.org,networksets", "--all", "--all-namespaces")
    way.kubectl("delete", "gnp,gns,ippools", "--all", timeout_s=150)
    way.kubectl("delete", "tiers", "-l", "test")


# --- discovery, explain (A01, A09) ---------------------------------------------------------------------------------


def test_api_resources_lists_every_kind_with_its_short_names_and_verbs(way: Way) -> None:
    table = way.kubectl(
        "api-resources", "--api-group=projectcalico.org", "-o", "wide", "--no-headers", "--cached=false"
    )
    listed = {line.split()[0]: line for line in table.splitlines()}
    assert set(listed) == set(SERVED)
    for plural, kind in SERVED.items():
        words = listed[plural].split()
        assert kind.kind in words, plural
        assert str(kind.namespaced).lower() in words, plural
        assert set(words[-1].split(",")) >= set(EVERY_VERB.split(",")), plural
        if kind.short_names:
            assert words[1].split(",") == list(kind.short_names)


def test_short_names_and_every_form_of_the_kind_find_the_same(way: Way) -> None:
    way.kubectl.apply(network_set("lan"))
    forms = ("gns", "globalnetworksets", "globalnetworkset", "GlobalNetworkSet", "gns.projectcalico.org",
             "globalnetworksets.v3.projectcalico.org")  # fmt: skip
    expected = "globalnetworkset.projectcalico.org/lan\n"
    assert {form: way.kubectl("get", form, "-o", "name") for form in forms} == dict.fromkeys(forms, expected)


def test_explain_knows_fields_and_their_descriptions(way: Way) -> None:
    told = way.kubectl("explain", "gnp.spec")
    assert re.search(r"^KIND:\s+GlobalNetworkPolicy$", told, re.M)
    assert re.search(r"^VERSION:\s+v3$", told, re.M)
    assert re.search(r"^FIELD: spec <", told, re.M)
    for name in ("selector", "order", "tier", "ingress", "egress", "types"):
        assert re.search(rf"^  {name}\t<", told, re.M), name
    ports = way.kubectl("explain", "caliconetworkpolicy.spec.ingress.destination.ports")
    assert re.search(r"^FIELD: ports <", ports, re.M)


def test_explain_recursive_goes_down_to_the_last_field_of_every_kind(way: Way) -> None:
    for plural, kind in SERVED.items():
        told = way.kubectl("explain", f"{plural}.projectcalico.org", "--recursive")
        assert re.search(rf"^KIND:\s+{kind.kind}$", told, re.M), plural
        assert re.search(r"^  metadata\t<ObjectMeta>", told, re.M), plural
        assert re.search(r"^  spec\t<", told, re.M), plural


def test_explain_of_a_field_that_is_not_there_says_so(way: Way) -> None:
    assert 'field "colour" does not exist' in way.kubectl.fails("explain", "gnp.spec.colour")


# --- get (A01, A03, A09) -------------------------------------------------------------------------------------------


def test_get_prints_a_table_with_name_and_age(way: Way) -> None:
    way.kubectl.apply(network_policy("allow-db"), network_set("lan"))
    head, line = way.kubectl("get", "caliconetworkpolicies", "allow-db").splitlines()
    columns = dict(zip(re.split(r"\s{2,}", head), re.split(r"\s{2,}", line), strict=True))
    assert columns["NAME"] == "allow-db"
    assert re.fullmatch(r"\d+[sm]", columns["AGE"])
    wide = way.kubectl("get", "gns", "lan", "-o", "wide").splitlines()
    assert wide[0].split()[0] == "NAME"
    assert wide[1].split()[0] == "lan"


def test_get_over_all_namespaces_names_them(way: Way) -> None:
    way.kubectl.apply(network_policy("a", "red"), network_policy("b", "blue"))
    lines = way.kubectl("get", "networkpolicies.projectcalico.org", "-A").splitlines()
    assert lines[0].split()[:2] == ["NAMESPACE", "NAME"]
    assert [line.split()[:2] for line in lines[1:]] == [["blue", "b"], ["red", "a"]]


def test_get_sorts_counts_and_shows_labels(way: Way) -> None:
    way.kubectl.apply(network_set("one", labels={"z": "1"}), network_set("two", labels={"z": "0"}))
    names = way.kubectl("get", "gns", "--sort-by=.metadata.labels.z", "--no-headers").split("\n")
    assert [line.split()[0] for line in names if line] == ["two", "one"]
    assert "z=1" in way.kubectl("get", "gns", "one", "--show-labels")
    head, line = way.kubectl("get", "gns", "one", "-L", "z").splitlines()
    assert (head.split()[-1], line.split()[-1]) == ("Z", "1")


def test_get_in_every_other_form(way: Way) -> None:
    written = network_set("lan", labels={"site": "b"})
    way.kubectl.apply(written)
    as_yaml = yaml.safe_load(way.kubectl("get", "gns", "lan", "-o", "yaml"))
    assert {key: as_yaml[key] for key in ("apiVersion", "kind", "spec")} == {
        key: written[key] for key in ("apiVersion", "kind", "spec")
    }
    assert as_yaml == way.kubectl.json("get", "gns", "lan")
    assert way.kubectl("get", "gns", "lan", "-o", "name") == "globalnetworkset.projectcalico.org/lan\n"
    assert way.kubectl("get", "gns", "lan", "-o", "jsonpath={.spec.nets[1]}") == "2001:db8::/64"
    custom = way.kubectl("get", "gns", "-o", "custom-columns=WHO:.metadata.name,SITE:.metadata.labels.site")
    assert [line.split() for line in custom.splitlines()] == [["WHO", "SITE"], ["lan", "b"]]
    assert way.kubectl("get", "gns", "lan", "-o", "go-template={{.metadata.name}}") == "lan"
    listed = way.kubectl.json("get", "gns")
    assert listed["kind"] == "List"
    assert [item["metadata"]["name"] for item in listed["items"]] == ["lan"]


def test_get_by_labels_and_fields(way: Way) -> None:
    way.kubectl.apply(tier("ops") | {"metadata": {"name": "ops", "labels": {"test": "1"}}})
    way.kubectl.apply(
        network_policy("p1", "red", labels={"team": "a"}), network_policy("p2", "red", labels={"team": "b"}),
        network_policy("p3", "blue", tier="ops"),
    )  # fmt: skip

    def names(*arguments: str) -> list[str]:
        found = way.kubectl("get", "networkpolicies.projectcalico.org", "-A", "--no-headers", *arguments)
        return [line.split()[1] for line in found.splitlines()]

    assert names("-l", "team") == ["p1", "p2"]
    assert names("-l", "team in (b, c)") == ["p2"]
    assert sorted(names("-l", "team!=a")) == ["p2", "p3"]
    assert names("-l", "projectcalico.org/tier=ops") == ["p3"]
    assert names("--field-selector", "spec.tier=ops") == ["p3"]
    assert names("--field-selector", "metadata.name=p1") == ["p1"]
    assert names("--field-selector", "metadata.namespace=blue") == ["p3"]
    assert "field label not supported: spec.order" in way.kubectl.fails(
        "get", "networkpolicies.projectcalico.org", "-A", "--field-selector", "spec.order=1"
    )


def test_what_is_not_there_is_said_as_kubernetes_says_it(way: Way) -> None:
    assert way.kubectl.fails("get", "gns", "nobody") == (
        'Error from server (NotFound): globalnetworksets.projectcalico.org "nobody" not found\n'
    )
    assert way.kubectl("get", "gns", "nobody", "--ignore-not-found") == ""
    assert way.kubectl.run("get", "caliconetworkpolicies", "-n", "empty").err == (
        "No resources found in empty namespace.\n"
    )


def test_many_objects_come_in_chunks_and_all_of_them(way: Way) -> None:
    sets = [network_set(f"set-{number:04}", f"10.{number // 256}.{number % 256}.0/24") for number in range(300)]
    # kubectl writes one after the other, and allows itself fifty requests a second.
    parts = [yaml.dump_all(sets[start : start + 60], Dumper=yaml.CSafeDumper) for start in range(0, 300, 60)]
    with ThreadPoolExecutor() as several:
        list(several.map(lambda text: way.kubectl("create", "-f", "-", stdin=text, timeout_s=150), parts))
    done = way.kubectl.run("get", "gns", "--chunk-size=30", "-o", "name", "-v=8")
    assert len(set(done.out.split())) == 300
    asked = re.findall(r"globalnetworksets\?\S*limit=30\S*", done.err)
    assert len({request for request in asked if "continue=" in request}) == 9
    assert [request for request in asked if "continue=" not in request]
    whole = way.kubectl("get", "gns", "--chunk-size=0", "--no-headers")
    assert [line.split()[0] for line in whole.splitlines()] == [f"set-{number:04}" for number in range(300)]
    way.kubectl("delete", "--raw", "/apis/projectcalico.org/v3/globalnetworksets")
    assert way.kubectl("get", "gns", "-o", "name") == ""


# --- writes (A04, A06, A08) ----------------------------------------------------------------------------------------


def test_create_twice_says_that_it_exists(way: Way) -> None:
    document = json.dumps(network_set("lan"))
    assert way.kubectl("create", "-f", "-", stdin=document) == "globalnetworkset.projectcalico.org/lan created\n"
    assert 'globalnetworksets.projectcalico.org "lan" already exists' in way.kubectl.fails(
        "create", "-f", "-", stdin=document
    )


def test_create_by_generated_name(way: Way) -> None:
    document = network_set("x")
    document["metadata"] = {"generateName": "burst-"}
    made = {way.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(document)).strip() for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch(r"globalnetworkset\.projectcalico\.org/burst-[a-z0-9]{5}", name) for name in made)


def test_client_side_apply_creates_leaves_alone_and_changes(way: Way) -> None:
    policy = network_policy("allow-db")
    named = "networkpolicy.projectcalico.org/allow-db"
    assert way.kubectl.apply(policy) == f"{named} created\n"
    assert way.kubectl.apply(policy) == f"{named} unchanged\n"
    policy["spec"]["order"] = 11
    del policy["spec"]["ingress"][0]["source"]
    assert way.kubectl.apply(policy) == f"{named} configured\n"
    stored = way.kubectl.json("get", "caliconetworkpolicies", "allow-db")
    assert stored["spec"]["order"] == 11
    assert "source" not in stored["spec"]["ingress"][0]
    last = json.loads(stored["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"])
    assert last["spec"] == policy["spec"]
    assert way.kubectl("apply", "view-last-applied", "caliconetworkpolicies", "allow-db")


def test_client_side_apply_removes_what_is_no_longer_in_the_file_and_keeps_what_others_wrote(way: Way) -> None:
    lan = network_set("lan", labels={"mine": "1"})
    way.kubectl.apply(lan)
    way.kubectl("label", "gns", "lan", "theirs=2")
    lan["metadata"]["labels"] = {"new": "3"}
    way.kubectl.apply(lan)
    assert way.kubectl.json("get", "gns", "lan")["metadata"]["labels"] == {"theirs": "2", "new": "3"}


def test_server_side_apply_tells_conflicts_and_takes_over_by_force(way: Way) -> None:
    policy = global_policy("p")
    ours = ("--server-side", "--field-manager=ours")
    assert way.kubectl.apply(policy, options=ours) == "globalnetworkpolicy.projectcalico.org/p serverside-applied\n"
    managers = way.kubectl.json("get", "gnp", "p", "--show-managed-fields")["metadata"]["managedFields"]
    assert [(entry["manager"], entry["operation"]) for entry in managers] == [("ours", "Apply")]
    assert managers[0]["apiVersion"] == "projectcalico.org/v3"
    theirs = global_policy("p") | {"spec": {"order": 30, "selector": "all()"}}
    text = yaml.safe_dump(theirs)
    told = way.kubectl.fails("apply", "-f", "-", "--server-side", "--field-manager=theirs", stdin=text)
    assert 'conflict with "ours": .spec.order' in told
    assert ".spec.selector" not in told  # both want the same
    assert "--force-conflicts" in told
    assert way.kubectl.json("get", "gnp", "p")["spec"]["order"] == 20
    way.kubectl.apply(theirs, options=("--server-side", "--field-manager=theirs", "--force-conflicts"))
    assert way.kubectl.json("get", "gnp", "p")["spec"]["order"] == 30
    assert ".spec.order" in way.kubectl.fails("apply", "-f", "-", *ours, stdin=yaml.safe_dump(policy))


def test_lists_that_are_sets_belong_to_all_who_applied_a_part(way: Way) -> None:
    for manager, net in (("a", "192.0.2.0/24"), ("b", "198.51.100.0/24"), ("a", "203.0.113.0/24")):
        way.kubectl.apply(network_set("lan", net), options=("--server-side", f"--field-manager={manager}"))
    assert sorted(way.kubectl.json("get", "gns", "lan")["spec"]["nets"]) == ["198.51.100.0/24", "203.0.113.0/24"]


def test_server_side_apply_removes_what_a_manager_no_longer_names_and_nothing_else(way: Way) -> None:
    lan = network_set("lan", labels={"a": "1", "b": "2"})
    ours = ("--server-side", "--field-manager=ours")
    way.kubectl.apply(lan, options=ours)
    way.kubectl("label", "gns", "lan", "c=3")
    lan["metadata"]["labels"] = {"a": "1"}
    way.kubectl.apply(lan, options=ours)
    assert way.kubectl.json("get", "gns", "lan")["metadata"]["labels"] == {"a": "1", "c": "3"}


def test_client_side_applied_objects_move_to_server_side_apply(way: Way) -> None:
    way.kubectl.apply(network_set("lan", labels={"a": "1", "b": "2"}))
    way.kubectl.apply(network_set("lan", labels={"a": "1"}), options=("--server-side",))
    assert way.kubectl.json("get", "gns", "lan")["metadata"]["labels"] == {"a": "1"}


def test_edit_opens_an_editor_and_writes_what_it_left(way: Way, tmp_path: Path) -> None:
    way.kubectl.apply(network_set("lan", "192.0.2.0/24"))
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s|192.0.2.0/24|203.0.113.0/24|" "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    told = way.kubectl("edit", "gns", "lan", env={"KUBE_EDITOR": str(editor)})
    assert told == "globalnetworkset.projectcalico.org/lan edited\n"
    assert way.kubectl.json("get", "gns", "lan")["spec"]["nets"] == ["203.0.113.0/24"]
    editor.write_text("#!/bin/sh\ntrue\n")
    assert "no changes made" in way.kubectl.run("edit", "gns", "lan", env={"KUBE_EDITOR": str(editor)}).err


def test_edit_of_something_invalid_comes_back_with_the_reason(way: Way, tmp_path: Path) -> None:
    way.kubectl.apply(network_set("lan", "192.0.2.0/24"))
    editor = tmp_path / "editor"
    # Opened again with the reason in a comment, it leaves the file alone, and kubectl gives up.
    seen = tmp_path / "seen"
    editor.write_text(f'#!/bin/sh\ncat "$1" >>{seen}\nsed -i "s|192.0.2.0/24|192.0.2.0/99|" "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    assert '"lan" is invalid' in way.kubectl.fails("edit", "gns", "lan", env={"KUBE_EDITOR": str(editor)})
    assert re.search(r"^# \* spec\.nets", seen.read_text(), re.M)
    assert way.kubectl.json("get", "gns", "lan")["spec"]["nets"] == ["192.0.2.0/24"]


def test_patch_of_each_type(way: Way) -> None:
    way.kubectl.apply(network_set("lan", "192.0.2.0/24", labels={"a": "1"}))
    merge = json.dumps({"metadata": {"labels": {"a": None, "b": "2"}}})
    told = way.kubectl("patch", "gns", "lan", "--type=merge", "-p", merge)
    assert told == "globalnetworkset.projectcalico.org/lan patched\n"
    added = json.dumps([{"op": "add", "path": "/spec/nets/-", "value": "198.51.100.0/24"}])
    way.kubectl("patch", "gns", "lan", "--type=json", "-p", added)
    stored = way.kubectl.json("get", "gns", "lan")
    assert stored["metadata"]["labels"] == {"b": "2"}
    assert stored["spec"]["nets"] == ["192.0.2.0/24", "198.51.100.0/24"]
    assert "patched (no change)" in way.kubectl("patch", "gns", "lan", "--type=merge", "-p", merge)
    strategic = json.dumps({"metadata": {"annotations": {"seen": "yes"}}})
    way.kubectl("patch", "gns", "lan", "--type=strategic", "-p", strategic)
    assert way.kubectl.json("get", "gns", "lan")["metadata"]["annotations"]["seen"] == "yes"
    failing = json.dumps([{"op": "test", "path": "/spec/nets/0", "value": "203.0.113.0/24"}])
    assert way.kubectl.run("patch", "gns", "lan", "--type=json", "-p", failing).status != 0
    assert way.kubectl.json("get", "gns", "lan")["spec"] == stored["spec"]


def test_label_and_annotate_add_overwrite_and_remove(way: Way) -> None:
    way.kubectl.apply(network_set("lan"))
    way.kubectl("label", "gns", "lan", "site=b", "floor=1")
    assert "already has a value" in way.kubectl.fails("label", "gns", "lan", "site=c")
    way.kubectl("label", "gns", "lan", "site=c", "--overwrite")
    way.kubectl("label", "gns", "lan", "floor-")
    way.kubectl("annotate", "gns", "lan", "owner=net team")
    metadata = way.kubectl.json("get", "gns", "lan")["metadata"]
    assert metadata["labels"] == {"site": "c"}
    assert metadata["annotations"]["owner"] == "net team"
    way.kubectl("annotate", "gns", "--all", "owner-")
    assert "owner" not in way.kubectl.json("get", "gns", "lan")["metadata"]["annotations"]


def test_replace_of_a_stale_copy_is_a_conflict_and_loses_nothing(way: Way) -> None:
    way.kubectl.apply(network_set("lan", "192.0.2.0/24"))
    stale = way.kubectl("get", "gns", "lan", "-o", "yaml")
    way.kubectl("label", "gns", "lan", "newer=1")
    told = way.kubectl.fails("replace", "-f", "-", stdin=stale)
    assert "Error from server (Conflict)" in told
    assert "the object has been modified; please apply your changes to the latest version and try again" in told
    fresh = way.kubectl.json("get", "gns", "lan")
    assert fresh["metadata"]["labels"] == {"newer": "1"}
    fresh["spec"]["nets"] = ["203.0.113.0/24"]
    way.kubectl("replace", "-f", "-", stdin=json.dumps(fresh))
    assert way.kubectl.json("get", "gns", "lan")["spec"]["nets"] == ["203.0.113.0/24"]


def test_a_dry_run_answers_as_if_and_stores_nothing(way: Way) -> None:
    lan = network_set("lan")
    assert "created (server dry run)" in way.kubectl.apply(lan, options=("--dry-run=server",))
    assert "serverside-applied (server dry run)" in way.kubectl.apply(
        lan, options=("--dry-run=server", "--server-side")
    )
    assert "not found" in way.kubectl.fails("get", "gns", "lan")
    way.kubectl.apply(lan)
    before = way.kubectl.json("get", "gns", "lan", "--show-managed-fields")
    dry = way.kubectl.json("label", "gns", "lan", "x=1", "--dry-run=server")
    assert dry["metadata"]["labels"] == {"x": "1"}
    way.kubectl("patch", "gns", "lan", "--dry-run=server", "--type=merge", "-p", '{"spec":{"nets":[]}}')
    way.kubectl("delete", "gns", "lan", "--dry-run=server")
    assert way.kubectl.json("get", "gns", "lan", "--show-managed-fields") == before


def test_diff_shows_what_apply_would_change(way: Way) -> None:
    way.kubectl.apply(global_policy("p"))
    same = way.kubectl.run("diff", "-f", "-", stdin=yaml.safe_dump(global_policy("p")))
    assert (same.status, same.out) == (0, "")
    changed = global_policy("p")
    changed["spec"]["order"] = 21
    for options in ((), ("--server-side", "--force-conflicts")):
        other = way.kubectl.run("diff", "-f", "-", *options, stdin=yaml.safe_dump(changed))
        assert other.status == 1, other.err
        assert re.search(r"^-  order: 20$", other.out, re.M)
        assert re.search(r"^\+  order: 21$", other.out, re.M)
    assert way.kubectl.json("get", "gnp", "p")["spec"]["order"] == 20


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"nets": ["192.0.2.0/99"]}, "spec.nets"),
        ({"nets": "192.0.2.0/24"}, "spec.nets"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_path_of_the_field(way: Way, spec: dict[str, object], field: str) -> None:
    document = json.dumps(calico("GlobalNetworkSet", "bad", spec))
    assert field in way.kubectl.fails("create", "--validate=ignore", "-f", "-", stdin=document)
    assert way.kubectl("get", "gns", "-o", "name") == ""


def test_unknown_fields_are_refused_warned_of_or_dropped_as_asked(way: Way) -> None:
    document = json.dumps(calico("GlobalNetworkSet", "typo", {"nets": [], "netz": ["192.0.2.0/24"]}))
    assert 'unknown field "spec.netz"' in way.kubectl.fails("create", "--validate=strict", "-f", "-", stdin=document)
    warned = way.kubectl.run("create", "--validate=warn", "-f", "-", stdin=document)
    assert warned.status == 0
    assert 'Warning: unknown field "spec.netz"' in warned.err
    way.kubectl("delete", "gns", "typo")
    ignored = way.kubectl.run("create", "--validate=ignore", "-f", "-", stdin=document)
    assert (ignored.status, ignored.err) == (0, "")
    assert "netz" not in way.kubectl("get", "gns", "typo", "-o", "yaml")


def test_the_status_of_an_object_is_written_by_itself(way: Way) -> None:
    way.kubectl.apply(calico("IPPool", "pool", {"cidr": "10.77.0.0/16"}))
    condition = {
        "type": "Allocatable", "status": "True", "reason": "Test", "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    patch = json.dumps({"spec": {"disabled": True}, "status": {"conditions": [condition]}})
    way.kubectl("patch", "ippool", "pool", "--subresource=status", "--type=merge", "-p", patch)
    stored = way.kubectl.json("get", "ippool", "pool")
    assert stored["status"]["conditions"][0]["reason"] == "Test"
    assert not stored["spec"].get("disabled")
    assert way.kubectl.json("get", "ippool", "pool", "--subresource=status")["status"] == stored["status"]
    way.kubectl(
        "patch", "ippool", "pool", "--type=merge", "-p", json.dumps({"status": None, "spec": {"disabled": True}})
    )
    stored = way.kubectl.json("get", "ippool", "pool")
    assert stored["status"]["conditions"][0]["reason"] == "Test"
    assert stored["spec"]["disabled"] is True


# --- delete (A04, A11) ---------------------------------------------------------------------------------------------


def test_delete_waits_until_it_is_gone(way: Way) -> None:
    way.kubectl.apply(network_set("lan"))
    assert way.kubectl("delete", "gns", "lan", "--wait") == 'globalnetworkset.projectcalico.org "lan" deleted\n'
    assert "not found" in way.kubectl.fails("delete", "gns", "lan")
    assert way.kubectl("delete", "gns", "lan", "--ignore-not-found") == ""


def test_delete_waits_for_finalizers(way: Way) -> None:
    lan = network_set("lan")
    lan["metadata"]["finalizers"] = ["example.org/last-will"]
    way.kubectl.apply(lan)
    with way.kubectl.background("delete", "gns", "lan", "--timeout=60s") as deletion:
        way.until(
            lambda: way.kubectl.json("get", "gns", "lan")["metadata"].get("deletionTimestamp"), "marked as deleted"
        )
        assert deletion.running
        way.kubectl("patch", "gns", "lan", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        assert deletion.wait() == 0
    assert way.kubectl("get", "gns", "-o", "name") == ""


def test_delete_by_label_and_of_all_in_a_namespace(way: Way) -> None:
    way.kubectl.apply(
        network_policy("a", "red", labels={"team": "x"}), network_policy("b", "red"), network_policy("c", "blue")
    )
    plural = "networkpolicies.projectcalico.org"
    assert way.kubectl("delete", plural, "-n", "red", "-l", "team=x").count("deleted") == 1
    assert way.kubectl("get", plural, "-A", "-o", "name").count("/") == 2
    way.kubectl("delete", plural, "-n", "red", "--all")
    assert way.kubectl("get", plural, "-A", "-o", "name") == "networkpolicy.projectcalico.org/c\n"


def test_a_whole_collection_goes_in_one_request(way: Way) -> None:
    way.kubectl.apply(*(network_set(f"set-{n}", labels={"go": str(n % 2)}) for n in range(6)))
    path = "/apis/projectcalico.org/v3/globalnetworksets?labelSelector=go%3D1"
    way.kubectl("delete", "--raw", path)
    assert way.kubectl("get", "gns", "-o", "jsonpath={.items[*].metadata.name}") == "set-0 set-2 set-4"


def test_what_is_built_in_stays(way: Way) -> None:
    assert "(Forbidden)" in way.kubectl.fails("delete", "tier", "default")
    assert "default" in way.kubectl("get", "tiers", "-o", "name")


def test_a_tier_with_policies_in_it_cannot_be_deleted(way: Way) -> None:
    way.kubectl.apply(
        tier("ops") | {"metadata": {"name": "ops", "labels": {"test": "1"}}}, global_policy("p", tier="ops")
    )
    assert way.kubectl.run("delete", "tier", "ops", "--wait=false").status != 0
    way.kubectl("delete", "gnp", "p")
    way.kubectl("delete", "tier", "ops", "--timeout=30s")


# --- watch (A02) ---------------------------------------------------------------------------------------------------


def test_a_watch_sees_changes_in_order(way: Way) -> None:
    way.kubectl.apply(network_set("first"))
    with way.kubectl.background("get", "gns", "--watch", "--output-watch-events", "-o", "json") as watch:
        watch.until(len, "what was there")
        way.kubectl.apply(network_set("lan"))
        way.kubectl("label", "gns", "lan", "a=1")
        way.kubectl("delete", "gns", "lan")
        lines = watch.until(lambda lines: sum('"DELETED"' in line for line in lines), "the deletion is told")
    assert [json.loads(line)["type"] for line in lines] == ["ADDED", "ADDED", "MODIFIED", "DELETED"]


def test_a_watch_of_tables_prints_rows(way: Way) -> None:
    way.kubectl.apply(network_set("first"))
    with way.kubectl.background("get", "gns", "-w") as watch:
        watch.until(lambda lines: any(line.startswith("first") for line in lines), "what was there")
        way.kubectl.apply(network_set("second"))
        lines = watch.until(lambda lines: any(line.startswith("second") for line in lines), "what came")
    assert [line.split()[0] for line in lines] == ["NAME", "first", "second"]


def test_a_wait_ends_when_its_condition_comes(way: Way) -> None:
    way.kubectl.apply(network_set("lan"))
    with way.kubectl.background(
        "wait", "gns/lan", "--for=jsonpath={.metadata.labels.ready}=yes", "--timeout=60s"
    ) as wait:
        way.kubectl("label", "gns", "lan", "ready=yes")
        assert wait.wait() == 0


def test_watches_go_on_after_the_server_restarted(way: Way) -> None:
    """kubectl itself ends with the connection, as with Kubernetes' own servers; who starts again from where it stood
    misses nothing.
    """
    way.kubectl.apply(network_set("before"))
    listed = json.loads(way.kubectl("get", "--raw", "/apis/projectcalico.org/v3/globalnetworksets"))
    since = listed["metadata"]["resourceVersion"]
    with way.kubectl.background("get", "gns", "--watch", "-o", "name") as watch:
        watch.until(lambda lines: any("before" in line for line in lines), "what was there")
        way.kubectl.apply(network_set("during"))
        watch.until(lambda lines: any("during" in line for line in lines), "a change before the restart")
        way.restart()
        assert watch.wait() == 0
    way.kubectl.apply(network_set("after"))
    path = f"/apis/projectcalico.org/v3/globalnetworksets?watch=1&resourceVersion={since}&timeoutSeconds=60"
    with way.kubectl.background("get", "--raw", path) as watch:
        lines = watch.until(
            lambda lines: sum('"ADDED"' in line for line in lines) >= 2, "what the first one saw, and the rest"
        )
    assert [json.loads(line)["object"]["metadata"]["name"] for line in lines][:2] == ["during", "after"]


def test_the_registry_of_kinds_is_what_is_served(way: Way) -> None:
    """A kind that is added to the model is served or named as not served, never forgotten."""
    listed = json.loads(way.kubectl("get", "--raw", "/apis/projectcalico.org/v3"))["resources"]
    plurals = {item["name"] for item in listed if "/" not in item["name"]}
    internal = {"ipamblocks", "ipamhandles", "livemigrations", "nodes", "workloadendpoints"}
    calicos = {kind.plural for kind in KINDS.values() if not kind.plural.startswith("kubernetes")}
    assert plurals == calicos - internal
