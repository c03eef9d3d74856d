"""datastore migrate export | import, migrate-policy-names: what is written, what is refused, what is left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libs.model import storage
from libs.store.memory import MemoryEtcd, MemoryStore
from tests.unit.services.calicoctl.ctl import Ctl

HEAD = "/calico/resources/v3/projectcalico.org/"
BLOCK = "/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26"
VALUE = (
    '{"cidr":"10.244.0.0/26","affinity":"host:etcd-node","allocations":[0],"unallocated":[1],'
    '"attributes":[{"handle_id":"vxlan-tunnel-addr-etcd-node","secondary":{"node":"etcd-node"}}],"deleted":false}'
)
OBJECTS = """\
apiVersion: projectcalico.org/v3
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: Node
  metadata: {name: etcd-node}
  spec: {orchRefs: [{nodeName: k8s-node, orchestrator: k8s}],
    bgp: {ipv4Address: 10.0.0.1/24, ipv6Address: "fd00::1/64"}}
- {apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: node.etcd-node},
   spec: {logSeverityScreen: Debug}}
- {apiVersion: projectcalico.org/v3, kind: BGPFilter, metadata: {name: none}, spec: {}}
- {apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: p},
   spec: {peerIP: "fd00::9", asNumber: 1, filters: [none]}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: pods}, spec: {cidr: 10.244.0.0/16}}
- {apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: sec, labels: {a: b}}, spec: {order: 5}}
- {apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {tier: sec}}
- {apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: kns.shop}, spec: {labelsToApply: {a: b}}}
"""


@pytest.fixture
def full(ctl: Ctl) -> Ctl:
    ctl.apply(OBJECTS)
    store = MemoryStore(ctl.server)
    ctl.run(store.put(BLOCK, VALUE.encode()))
    ctl.run(
        store.put("/calico/ipam/v2/host/etcd-node/ipv4/block/10.244.0.0-26", b'{"state":"confirmed","deleted":false}')
    )
    ctl.run(
        store.put(
            "/calico/ipam/v2/handle/vxlan-tunnel-addr-etcd-node", b'{"block":{"10.244.0.0/26":1},"deleted":false}'
        )
    )
    ctl.run(store.put("/calico/ipam/v2/config", b'{"auto_allocate_blocks":true}'))
    ctl.run(ctl.client().ensure_initialized("v3.33.0", "k8s,bgp"))
    return ctl


def exported(ctl: Ctl, *options: str) -> str:
    ctl.good("datastore", "migrate", "lock")
    result = ctl("datastore", "migrate", "export", *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_only_a_locked_datastore_is_exported(full: Ctl) -> None:
    assert "datastore is not locked" in full.bad("datastore", "migrate", "export")


def test_the_form_is_calicos(full: Ctl) -> None:
    resources, cluster, ipam = exported(full).split("===\n")
    kinds = [line.split()[1] for line in resources.splitlines() if line.startswith("kind: ")]
    assert kinds[:4] == ["IPPoolList", "BGPPeerList", "TierList", "GlobalNetworkPolicyList"]
    assert len(kinds) == 17
    assert resources.endswith("---\n")
    assert "uid" not in resources
    assert json.loads(cluster)["spec"]["clusterGUID"]
    found = json.loads(ipam)
    assert list(found) == ["block_affinities", "blocks", "handles", "config"]
    assert found["config"] == {"Key": "/calico/ipam/v2/config", "Value": {"auto_allocate_blocks": True}, "TTL": 0}


def test_nodes_and_what_names_them_take_kubernetes_name(full: Ctl) -> None:
    text = exported(full)
    assert "etcd-node" not in text
    assert "name: node.k8s-node" in text
    assert '"Key": "/calico/ipam/v2/host/k8s-node/ipv4/block/10.244.0.0-26"' in text
    assert '"affinity": "host:k8s-node"' in text
    assert '"handle_id": "vxlan-tunnel-addr-k8s-node"' in text


def test_a_node_that_kubernetes_does_not_know_keeps_its_name_and_is_told(full: Ctl) -> None:
    full.apply("kind: Node\napiVersion: projectcalico.org/v3\nmetadata: {name: bare}\n")
    full.good("datastore", "migrate", "lock")
    result = full("datastore", "migrate", "export")
    assert result.stderr == (
        "Note: node bare has no k8s orchestrator reference: it keeps its name, and is no node for Kubernetes\n"
    )


def plain(server: MemoryEtcd) -> dict[str, object]:
    """Keys and values of a datastore without what every write makes anew."""
    found: dict[str, object] = {}

    async def read() -> None:
        for kv in (await MemoryStore(server).list("/calico/")).kvs:
            value = json.loads(kv.value)
            for name in ("uid", "creationTimestamp"):
                value.get("metadata", {}).pop(name, None)
            found[kv.key] = value

    Ctl().run(read())
    return found


def test_another_etcd_ends_up_equal(full: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "all"
    file.write_text(exported(full, "--all"))
    other = Ctl()
    shown = other.good("datastore", "migrate", "import", "-f", str(file))
    assert "Successfully applied 4 IPAM resource(s)\n" in shown
    assert plain(other.server) == plain(full.server)
    assert other.get("clusterinfo", "default")["spec"]["datastoreReady"] is False
    assert other.good("datastore", "migrate", "unlock") == "Datastore unlocked.\n"


def test_import_from_standard_input(full: Ctl) -> None:
    other = Ctl()
    other.good("datastore", "migrate", "import", "-f", "-", stdin=exported(full))
    assert other.names("nodes") == ["k8s-node"]
    assert other.names("profiles") == ["projectcalico-default-allow"]


@pytest.mark.parametrize("what", ["resource", "ipam", "unlocked"])
def test_a_datastore_with_anything_in_it_is_refused_and_left_alone(full: Ctl, what: str) -> None:
    text = exported(full)
    other = Ctl()
    if what == "resource":
        other.apply("kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: mine}\n")
    elif what == "ipam":
        other.run(MemoryStore(other.server).put(BLOCK, VALUE.encode()))
    else:
        other.run(other.client().ensure_initialized())
    before = other.server.snapshot()
    message = other.bad("datastore", "migrate", "import", "-f", "-", stdin=text)
    expected = {"resource": "Tier(mine)", "ipam": "already has IPAM", "unlocked": "datastore is not locked"}
    assert expected[what] in message
    assert other.server.snapshot() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.split("===\n")[0], "expected three parts"),
        (lambda text: text[:-40], "not valid JSON"),
        (lambda text: text.replace("kind: TierList", "kind: [TierList"), "not valid YAML"),
        (lambda text: text.replace('"/calico/ipam/v2/config"', '"/other"').replace('"config"', '"handles"'), ""),
        (lambda text: text.replace('"/calico/ipam/v2/assignment/', '"/etc/'), "expected a Key below"),
        (lambda text: text.replace('"kind": "ClusterInformation"', '"kind": "Tier"'), "cluster information"),
    ],
)  # fmt: skip
def test_a_damaged_file_changes_nothing(full: Ctl, change, message: str) -> None:  # type: ignore[no-untyped-def]
    other = Ctl()
    error = other.bad("datastore", "migrate", "import", "-f", "-", stdin=change(exported(full)))
    assert error.startswith("Error while reading migration file: -")
    assert message in error
    assert plain(other.server) == {}


def test_a_missing_file_is_told(ctl: Ctl) -> None:
    assert "No such file" in ctl.bad("datastore", "migrate", "import", "-f", "/none/such")


# --- policies under old names ----------------------------------------------------------------------------------------


def legacy(ctl: Ctl, plural: str, stored: str, text: str) -> str:
    key = f"{HEAD}{plural}/{stored}"
    ctl.run(MemoryStore(ctl.server).put(key, text.encode()))
    return key


OLD = (
    '{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.%s","uid":"u-1",'
    '"creationTimestamp":"2020-01-02T03:04:05Z"},"spec":{"tier":"default","order":%s,"selector":"all()"}}'
)


def keys(ctl: Ctl) -> list[str]:
    return [key for key in plain(ctl.server) if "policies" in key]


def test_policies_move_to_their_own_names(ctl: Ctl) -> None:
    ctl.apply("kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: sec}\n")
    legacy(ctl, "globalnetworkpolicies", "default.old", OLD % ("old", 7))
    named = "kind: GlobalNetworkPolicy\napiVersion: projectcalico.org/v3\nmetadata: {name: default.new}\nspec: {}\n"
    ctl.apply(named)
    assert "does not exist" in ctl.bad("get", "gnp", "old")
    assert ctl.good("datastore", "migrate-policy-names") == "Policy name migration complete, migrated 1 policies.\n"
    assert keys(ctl) == [f"{HEAD}globalnetworkpolicies/default.new", f"{HEAD}globalnetworkpolicies/old"]
    found = ctl.get("gnp", "old")
    assert (found["metadata"]["name"], found["metadata"]["uid"], found["spec"]["order"]) == ("old", "u-1", 7)
    assert found["metadata"]["creationTimestamp"] == "2020-01-02T03:04:05Z"
    assert ctl.get("gnp", "default.new")["metadata"]["name"] == "default.new"
    stored = plain(ctl.server)[f"{HEAD}globalnetworkpolicies/old"]
    assert isinstance(stored, dict)
    assert stored["metadata"]["annotations"] == {storage.METADATA_ANNOTATION: '{"name":"old"}'}
    assert ctl.good("datastore", "migrate-policy-names") == "Policy name migration complete, migrated 0 policies.\n"


def test_namespaced_and_staged_policies_move_too(ctl: Ctl) -> None:
    text = (OLD % ("old", 7)).replace('"name"', '"namespace":"shop","name"')
    legacy(ctl, "networkpolicies", "shop/default.old", text.replace("Global", ""))
    legacy(ctl, "stagednetworkpolicies", "shop/default.old", text.replace("Global", "Staged"))
    legacy(ctl, "stagedglobalnetworkpolicies", "default.old", (OLD % ("old", 7)).replace("Global", "StagedGlobal"))
    assert "migrated 3" in ctl.good("datastore", "migrate-policy-names")
    assert keys(ctl) == [
        f"{HEAD}networkpolicies/shop/old",
        f"{HEAD}stagedglobalnetworkpolicies/old",
        f"{HEAD}stagednetworkpolicies/shop/old",
    ]


def test_two_that_differ_stay_and_are_told(ctl: Ctl) -> None:
    ctl.run(ctl.client().ensure_initialized())
    old = legacy(ctl, "globalnetworkpolicies", "default.old", OLD % ("old", 7))
    ctl.apply(
        "kind: GlobalNetworkPolicy\napiVersion: projectcalico.org/v3\nmetadata: {name: old}\n"
        "spec: {order: 9, selector: all()}\n"
    )
    message = ctl.bad("datastore", "migrate-policy-names")
    assert f"stored at {old} and, with another content, at {HEAD}globalnetworkpolicies/old" in message
    assert len(keys(ctl)) == 2


def test_two_that_are_equal_become_one(ctl: Ctl) -> None:
    ctl.run(ctl.client().ensure_initialized())
    legacy(ctl, "globalnetworkpolicies", "default.old", OLD % ("old", 7))
    ctl.apply(
        "kind: GlobalNetworkPolicy\napiVersion: projectcalico.org/v3\nmetadata: {name: old}\n"
        "spec: {order: 7, selector: all()}\n"
    )
    before = ctl.get("gnp", "old")
    assert "migrated 1" in ctl.good("datastore", "migrate-policy-names")
    assert len(keys(ctl)) == 1
    assert ctl.get("gnp", "old") == before
