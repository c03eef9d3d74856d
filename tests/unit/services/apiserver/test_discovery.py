"""Both forms of discovery say the same, and what the facts say."""

from __future__ import annotations

import re
from typing import Any

from services.apiserver.core import discovery
from services.apiserver.core.request import SERVED, WITH_STATUS

# facts/cni-typha-node-bgp-ctl.md section 6.2 and facts/datamodel.md section 1.1.
SHORT_NAMES = {
    "bgpconfigurations": "bgpconfig bgpconfigs",
    "bgpfilters": "",
    "bgppeers": "",
    "blockaffinities": "affinity affinities",
    "caliconodestatuses": "",
    "clusterinformations": "clusterinfo clusterinfos",
    "felixconfigurations": "felixconfig felixconfigs",
    "globalnetworkpolicies": "gnp cgnp",
    "globalnetworksets": "gns",
    "hostendpoints": "hep heps",
    "ipamconfigurations": "ipamconfig ipamconfigs",
    "ippools": "ipp ipps pool pools",
    "ipreservations": "",
    "kubecontrollersconfigurations": "kcc kccs kcconfig",
    "networkpolicies": "cnp caliconetworkpolicy caliconetworkpolicies",
    "networksets": "netset netsets",
    "profiles": "",
    "stagedglobalnetworkpolicies": "sgnp",
    "stagedkubernetesnetworkpolicies": "sknp",
    "stagednetworkpolicies": "scnp snp",
    "tiers": "",
}
NAMESPACED = {"networkpolicies", "networksets", "stagednetworkpolicies", "stagedkubernetesnetworkpolicies"}


def resources() -> dict[str, Any]:
    return {one["name"]: one for one in discovery.api_resource_list()["resources"]}


def test_all_kinds_are_there_with_their_short_names_and_scopes() -> None:
    found = {name: one for name, one in resources().items() if "/" not in name}
    assert {name: " ".join(one.get("shortNames", ())) for name, one in found.items()} == SHORT_NAMES
    assert {name for name, one in found.items() if one["namespaced"]} == NAMESPACED
    assert all(one["singularName"] == one["kind"].lower() for one in found.values())
    assert all(sorted(one["verbs"]) == one["verbs"] and "watch" in one["verbs"] for one in found.values())


def test_no_two_resources_share_a_name() -> None:
    names = [
        name for one in resources().values() for name in {one["name"], one["singularName"], *one.get("shortNames", ())}
    ]
    names = [name for name in names if name]
    assert len(names) == len(set(names))


def test_status_is_a_resource_of_its_own_that_is_read_and_written() -> None:
    found = {name: one for name, one in resources().items() if name.endswith("/status")}
    assert {one["kind"] for one in found.values()} == WITH_STATUS
    assert all(one["verbs"] == ["get", "patch", "update"] and one["singularName"] == "" for one in found.values())


def test_aggregated_discovery_says_the_same() -> None:
    for version in ("v2", "v2beta1"):
        whole = discovery.aggregated(version, core=False)
        assert whole["apiVersion"] == f"apidiscovery.k8s.io/{version}"
        assert whole["kind"] == "APIGroupDiscoveryList"
        group, *others = whole["items"]
        listed = {
            (group_version, one["name"], one["kind"], one["singularName"], tuple(one["verbs"]))
            for group_version in discovery.REVIEWS
            for one in discovery.review_resource_list(group_version)["resources"]
        }
        assert listed == {
            (f"{other['metadata']['name']}/{version['version']}", one["resource"], one["responseKind"]["kind"],
             one["singularResource"], tuple(one["verbs"]))
            for other in others for version in other["versions"] for one in version["resources"]
        }  # fmt: skip
        assert group["metadata"]["name"] == "projectcalico.org"
        (only,) = group["versions"]
        assert (only["version"], only["freshness"]) == ("v3", "Current")
        flat = {}
        for one in only["resources"]:
            response, namespaced = one["responseKind"], one["scope"] == "Namespaced"
            assert (response["group"], response["version"]) == ("projectcalico.org", "v3")
            flat[one["resource"]] = (
                response["kind"],
                namespaced,
                one["verbs"],
                one.get("shortNames"),
            )
            for below in one.get("subresources", ()):
                flat[f"{one['resource']}/{below['subresource']}"] = (
                    below["responseKind"]["kind"], namespaced, below["verbs"], None
                )  # fmt: skip
        assert flat == {
            name: (one["kind"], one["namespaced"], one["verbs"], one.get("shortNames"))
            for name, one in resources().items()
        }
        assert discovery.aggregated(version, core=True)["items"] == []


def test_groups_name_their_one_version() -> None:
    group, *_ = discovery.api_group_list()["groups"]
    version = {"groupVersion": "projectcalico.org/v3", "version": "v3"}
    assert group == {"name": "projectcalico.org", "versions": [version], "preferredVersion": version}
    assert discovery.api_group() == {"kind": "APIGroup", "apiVersion": "v1"} | group
    assert discovery.api_versions()["versions"] == []


def test_storage_hashes_are_eight_bytes_and_differ() -> None:
    hashes = {discovery.storage_version_hash(kind) for kind in SERVED.values()}
    assert len(hashes) == len(SERVED)
    # sha256("projectcalico.org/v3/Tier"), by hand: printf … | sha256sum | cut -c1-16 | xxd -r -p | base64
    assert discovery.storage_version_hash(SERVED["tiers"]) == "GP8vTBy1cjU="


def test_the_version_is_one_that_clients_can_read() -> None:
    info = discovery.version_info("0.1.0 (local)")
    assert re.fullmatch(r"v[0-9]+\.[0-9]+\.[0-9]+\+[0-9A-Za-z.-]+", info["gitVersion"]), "semantic versioning"
    assert info["gitVersion"].startswith(f"v{info['major']}.{info['minor']}.")
    assert set(info) == {
        "major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"
    }  # fmt: skip


def test_paths_are_sorted_and_have_those_of_others() -> None:
    paths = discovery.root_paths(["/healthz", "/apis"])["paths"]
    assert paths == sorted(set(paths))
    assert {"/healthz", "/apis/projectcalico.org/v3", "/openapi/v3/apis/projectcalico.org/v3", "/version"} <= set(paths)


def test_what_users_ask_of_themselves_is_listed_as_kubernetes_lists_it() -> None:
    """k8s.io/kubernetes, pkg/registry/authentication and pkg/registry/authorization: resources and their verbs."""
    groups = {one["name"]: one["preferredVersion"]["groupVersion"] for one in discovery.api_group_list()["groups"]}
    assert groups == {
        "projectcalico.org": "projectcalico.org/v3",
        "authentication.k8s.io": "authentication.k8s.io/v1",
        "authorization.k8s.io": "authorization.k8s.io/v1",
    }
    assert discovery.review_resource_list("authorization.k8s.io/v1") == {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "authorization.k8s.io/v1",
        "resources": [
            {
                "name": f"selfsubject{what}reviews", "singularName": f"selfsubject{what}review", "namespaced": False,
                "kind": f"SelfSubject{what.title()}Review", "verbs": ["create"],
            }
            for what in ("access", "rules")
        ],
    }  # fmt: skip
    (only,) = discovery.review_resource_list("authentication.k8s.io/v1")["resources"]
    assert (only["name"], only["kind"], only["namespaced"]) == ("selfsubjectreviews", "SelfSubjectReview", False)
