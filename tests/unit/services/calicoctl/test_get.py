"""get: every kind by every name, every form. Tables: tests/golden/calicoctl, rewritten with UPDATE_GOLDEN=1."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from libs.model import kinds
from services.calicoctl.columns import BY_KIND
from tests.unit.services.calicoctl.ctl import Ctl

GOLDEN = Path(__file__).parents[3] / "golden" / "calicoctl"
RESOURCES = str(GOLDEN / "resources.yaml")

ALIASES = {
    "BGPConfiguration": "bgpconfiguration bgpconfigurations bgpconfig bgpconfigs",
    "BGPFilter": "bgpfilter bgpfilters bgpf bf",
    "BGPPeer": "bgppeer bgppeers bgpp bgpps bp bps",
    "BlockAffinity": "blockaffinity blockaffinities affinity affinities",
    "CalicoNodeStatus": "caliconodestatus caliconodestatuses nodestatus nodestatuses",
    "ClusterInformation": "clusterinformation clusterinformations clusterinfo clusterinfos",
    "FelixConfiguration": "felixconfiguration felixconfigurations felixconfig felixconfigs",
    "GlobalNetworkPolicy": "globalnetworkpolicy globalnetworkpolicies gnp gnps cgnp",
    "GlobalNetworkSet": "globalnetworkset globalnetworksets gns gnetsets",
    "HostEndpoint": "hostendpoint hostendpoints hep heps",
    "IPAMConfiguration": "ipamconfiguration ipamconfigurations ipamconfig ipamconfigs",
    "IPPool": "ippool ippools ipp ipps pool pools",
    "IPReservation": "ipreservation ipreservations reservation reservations",
    "KubeControllersConfiguration": "kubecontrollersconfigurations kcc kccs kubecontrollersconfig",
    "NetworkPolicy": "networkpolicy networkpolicies policy np pol pols cnp caliconetworkpolicy",
    "NetworkSet": "networkset networksets netset netsets",
    "Node": "node nodes no nos",
    "Profile": "profile profiles pro pros",
    "StagedGlobalNetworkPolicy": "stagedglobalnetworkpolicy stagedglobalnetworkpolicies sgnp",
    "StagedKubernetesNetworkPolicy": "stagedkubernetesnetworkpolicy sknp skpol stagedkubernetespolicy",
    "StagedNetworkPolicy": "stagednetworkpolicy stagednetworkpolicies snp scnp spol stagedpolicy",
    "Tier": "tier tiers",
    "WorkloadEndpoint": "workloadendpoint workloadendpoints wep weps",
}


@pytest.fixture(scope="module")
def full() -> Ctl:
    ctl = Ctl()
    ctl.good("apply", "-f", RESOURCES)
    return ctl


def compare(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("kind", [kind for kind in BY_KIND if kind != "ClusterInformation"])
@pytest.mark.parametrize("form", ["ps", "wide"])
def test_tables_of_each_kind(full: Ctl, kind: str, form: str) -> None:
    everywhere = ("-A",) if kinds.kind(kind).namespaced else ()
    compare(f"{kind.lower()}.{form}.txt", full.good("get", kind, "-o", form, *everywhere))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ALIASES.items() for name in names.split()])
def test_every_name_of_a_kind_is_known_in_any_case(full: Ctl, kind: str, name: str) -> None:
    everywhere = ("-A",) if kinds.kind(kind).namespaced else ()
    expected = full.good("get", kind, "-o", "name", *everywhere)
    assert full.good("get", name, "-o", "name", *everywhere) == expected
    assert full.good("get", name.upper(), "-o", "name", *everywhere) == expected


def test_every_kind_has_a_table() -> None:
    stored = set(kinds.KINDS) - {"IPAMBlock", "IPAMHandle"}
    assert set(BY_KIND) == stored


@pytest.mark.parametrize("name", ["colour", "ipamblock", "ipamhandles", ""])
def test_unknown_kinds_are_refused(ctl: Ctl, name: str) -> None:
    result = ctl("get", name)
    assert result.exit_code in (1, 2)
    assert not result.stdout


def test_cluster_information(full: Ctl) -> None:
    guid = full.get("clusterinfo", "default")["spec"]["clusterGUID"]
    assert len(guid) == 32
    table = full.good("get", "clusterinfo")
    assert table.splitlines()[0].split() == ["NAME", "CLUSTERGUID", "CLUSTERTYPE", "CALICOVERSION", "DATASTOREREADY"]
    assert table.splitlines()[1].split() == ["default", guid, "true"]


def test_one_namespace_is_shown_without_its_column(full: Ctl) -> None:
    assert full.good("get", "np").splitlines()[0].split() == ["NAME", "TIER"]
    shown = full.good("get", "np", "-n", "shop").splitlines()
    assert shown[0].split() == ["NAMESPACE", "NAME", "TIER"]
    assert shown[1].split() == ["shop", "web", "default"]
    assert full.names("np", "-A") == ["all", "web"]
    assert full.good("get", "np", "-A") == full.good("get", "np", "-a")


def test_custom_columns(full: Ctl) -> None:
    assert full.good("get", "ippools", "-o", "custom-columns=cidr,NAT") == (
        "CIDR            NAT     \n10.244.0.0/16   true    \nfd00:244::/48   false   \n\n"
    )
    message = full.bad("get", "ippools", "-o", "custom-columns=NAME,COLOUR")
    assert message.startswith("Unknown heading COLOUR, valid values are: ASSIGNMENTMODE, CIDR, ")


def test_json_and_yaml_say_the_same(full: Ctl) -> None:
    for kind in ("ippools", "tiers", "gnp"):
        assert json.loads(full.good("get", kind, "-o", "json")) == yaml.safe_load(full.good("get", kind, "-o", "yaml"))


def test_lists_carry_the_revision_and_are_sorted(full: Ctl) -> None:
    listed = json.loads(full.good("get", "weps", "-A", "-o", "json"))
    assert (listed["kind"], listed["apiVersion"]) == ("WorkloadEndpointList", "projectcalico.org/v3")
    assert int(listed["metadata"]["resourceVersion"]) >= max(
        int(item["metadata"]["resourceVersion"]) for item in listed["items"]
    )
    assert [item["metadata"]["namespace"] for item in listed["items"]] == ["bank", "shop"]


def test_tiers_are_sorted_by_order(full: Ctl) -> None:
    assert full.names("tiers") == ["security", "kube-admin", "default", "kube-baseline"]


def test_what_is_missing_is_told_beside_what_is_there(full: Ctl) -> None:
    result = full("get", "ippool", "pods", "none", "pods6", "-o", "name")
    assert result.exit_code == 1
    assert result.stdout == "ippool.projectcalico.org/pods\nippool.projectcalico.org/pods6\n"
    assert result.stderr == "resource does not exist: IPPool(none)\n"


def test_get_by_file(full: Ctl) -> None:
    text = (
        "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: pods}\n---\nkind: Tier\nmetadata: {name: x}\n"
    )
    result = full("get", "-f", "-", "-o", "name", stdin=text)
    assert result.stdout == "ippool.projectcalico.org/pods\n"
    assert result.stderr == "-: document 2, line 5: resource does not exist: Tier(x)\n"


def test_all_namespaces_and_a_name_exclude_each_other(full: Ctl) -> None:
    assert "cannot use --all-namespace flag" in full.bad("get", "np", "web", "-A")
    assert "at the same time" in full.bad("get", "np", "-A", "-n", "shop")


def test_an_empty_name_is_refused(full: Ctl) -> None:
    assert full.bad("get", "ippool", "") == "resource name may not be empty\n"
    assert full.bad("delete", "ippool", "") == "resource name may not be empty\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{range .}}{{range .Items}}{{.Name}} {{.Spec.CIDR}} {{.Spec.NATOutgoing}};{{end}}{{end}}",
         "pods 10.244.0.0/16 true;pods6 fd00:244::/48 false;"),
        ('{{config "asnumber"}}', "65000"),
    ],
)  # fmt: skip
def test_go_templates(full: Ctl, template: str, expected: str, tmp_path: Path) -> None:
    assert full.good("get", "ippools", "-o", f"go-template={template}") == expected
    file = tmp_path / "template"
    file.write_text(template)
    assert full.good("get", "ippools", "-o", f"go-template-file={file}") == expected


def test_bad_templates_are_told(full: Ctl) -> None:
    assert "can't evaluate field Colour" in full.bad(
        "get", "ippool", "pods", "-o", "go-template={{range .}}{{.Colour}}{{end}}"
    )
    assert "unclosed action" in full.bad("get", "ippool", "pods", "-o", "go-template={{.Name")
    assert "need to specify a template" in full.bad("get", "ippools", "-o", "go-template")


def test_values_that_nobody_can_read_are_left_out(ctl: Ctl) -> None:
    ctl.apply("kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: ok}\n")
    key = "/calico/resources/v3/projectcalico.org/tiers/broken"
    ctl.run(ctl.client().store.put(key, b"{not json"))
    assert "broken" not in ctl.names("tiers")
    assert "what is stored is damaged" in ctl.bad("get", "tier", "broken")
