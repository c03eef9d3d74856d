"""Programs of a real Calico (3.28.5: calicoctl, calico-ipam) and ours on one etcd: each reads what the other wrote."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.ipam.client import IpamClient
from libs.store.api import Store
from libs.testkit.netns import can_make_namespaces, create, delete
from libs.testkit.servers import EtcdServer
from tests.contract.ipam_stage import Cluster, of_pod
from tests.contract.store_backends import EtcdBackend
from tests.contract.test_calico_data import Ctl, ctl, identity, listed  # noqa: F401 - a fixture

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("real-calico")]
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".cache" / "calico"
KNOWN = (
    "bgpconfigurations", "bgpfilters", "bgppeers", "felixconfigurations", "globalnetworkpolicies",
    "globalnetworksets", "hostendpoints", "ippools", "ipreservations", "kubecontrollersconfigurations",
    "networkpolicies", "networksets", "nodes", "profiles", "workloadendpoints",
)  # fmt: skip
"""Kinds that a calicoctl of that age has."""
NAMESPACED = ("networkpolicies", "networksets", "workloadendpoints")
RESOURCES = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: four}
spec: {cidr: 10.65.0.0/24, blockSize: 28, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: six}
spec: {cidr: 'fd00:65::/112', blockSize: 124}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: node1, labels: {rack: a}}
spec:
  bgp: {ipv4Address: 192.0.2.1/24, ipv6Address: '2001:db8::1/64'}
  orchRefs: [{nodeName: kube-1, orchestrator: k8s}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  order: 10
  selector: app == 'web' && has(tier)
  ingress:
    - action: Allow
      protocol: TCP
      source: {selector: role == 'client', notNets: [192.0.2.0/24]}
      destination: {ports: [80, '8000:8010']}
    - {action: Deny, protocol: ICMP, icmp: {type: 8, code: 0}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: hosts}
spec: {selector: all(), preDNAT: true, applyOnForward: true, types: [Ingress]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {kind: bad}}
spec: {nets: [198.51.100.0/24, '2001:db8:1::/64']}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {nodeSelector: rack == 'a', peerIP: 192.0.2.254, asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {logSeverityScreen: Info, reportingInterval: 0s}
"""


class Real:
    """Calico's own programs on the etcd of `ctl`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("ETCD", "CALICO", "K8S", "KUBE", "CNI"))}
        self.env = inherited | {"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": endpoint}

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAMS / "calicoctl"), *arguments]
        return subprocess.run(command, env=self.env, input=stdin, text=True, capture_output=True, timeout=60)

    def good(self, *arguments: str, stdin: str = "") -> str:
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self, plural: str) -> list[dict[str, Any]]:
        everywhere = ["-A"] if plural in NAMESPACED else []
        items: list[dict[str, Any]] = json.loads(self.good("get", plural, *everywhere, "-o", "json"))["items"]
        return items

    def ipam(self, command: str, container: str, netns: Path) -> list[str]:
        """calico-ipam as a runtime calls it; the addresses it gave."""
        config = {
            "cniVersion": "1.0.0", "name": "net1", "type": "calico-ipam", "nodename": "node1",
            "etcd_endpoints": self.endpoint, "log_level": "error",
            "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        }  # fmt: skip
        variables = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": str(netns), "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PROGRAMS), "CNI_ARGS": f"K8S_POD_NAME={container};K8S_POD_NAMESPACE=ns1;IgnoreUnknown=1",
        }  # fmt: skip
        done = subprocess.run(
            [str(PROGRAMS / "calico-ipam")], env=self.env | variables, input=json.dumps(config), text=True,
            capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [one["address"] for one in json.loads(done.stdout)["ips"]] if done.stdout else []


@pytest.fixture
def real(ctl: Ctl) -> Real:  # noqa: F811
    if not (PROGRAMS / "calicoctl").exists():
        pytest.skip("a real calicoctl is not here")
    return Real(ctl.server.endpoint)


@pytest.fixture
def netns() -> Iterator[Path]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    made = create("rci")
    yield made.path
    delete(made)


def within(part: Any, whole: Any) -> bool:
    """Everything that `part` says is also in `whole`: an older program does not know every field, and shows empty
    ones.
    """
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(one == {} or within(one, whole.get(name)) for name, one in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(within, part, whole))
    return bool(part == whole)


def _older(item: dict[str, Any]) -> tuple[str, str, str]:
    """As the older program calls it: without its tier, which it takes for a prefix that is not the user's."""
    kind, namespace, name = identity(item)
    return kind, namespace, name.removeprefix(f"{item['spec'].get('tier', '')}.")


def same(real: Real, ctl: Ctl) -> int:  # noqa: F811
    """Both list the same objects of the kinds that the real one knows, with the same contents; how many."""
    ours = {_older(item): item for item in listed(ctl).values()}
    theirs = {identity(item): item for plural in KNOWN for item in real.listed(plural)}
    kinds = {kind for kind, *_ in theirs}
    assert theirs.keys() == {key for key in ours if key[0] in kinds}
    for key, item in theirs.items():
        mine = ours[key]
        assert item["metadata"].get("uid") == mine["metadata"].get("uid"), key
        assert item["metadata"]["resourceVersion"] == mine["metadata"]["resourceVersion"], key
        assert within(item["spec"], mine["spec"]), (key, item["spec"], mine["spec"])
    return len(theirs)


def test_m15_a_real_calicoctl_reads_what_ours_wrote(real: Real, ctl: Ctl) -> None:  # noqa: F811
    ctl.good("apply", "-f", str(ROOT / "tests/golden/calicoctl/resources.yaml"))
    assert same(real, ctl) > 20


def test_m15_ours_reads_and_changes_what_a_real_calicoctl_wrote(real: Real, ctl: Ctl) -> None:  # noqa: F811
    real.good("apply", "-f", "-", stdin=RESOURCES)
    assert same(real, ctl) == 9  # the built-in profile besides
    ctl.good("label", "node", "node1", "seen=yes")
    ctl.good("patch", "ippool", "four", "-p", '{"spec": {"disabled": true}}')
    assert same(real, ctl) == 9
    real.good("apply", "-f", "-", stdin=RESOURCES)
    assert same(real, ctl) == 9
    assert json.loads(ctl.good("get", "ippool", "four", "-o", "json"))["spec"].get("disabled") in (None, False)


def test_m15_policies_of_an_older_calico_keep_their_stored_names_until_migrated(
    real: Real, ctl: Ctl  # noqa: F811
) -> None:  # fmt: skip
    """Before 3.32 they are stored as `default.NAME`: both list them; by name each finds its own form alone."""
    real.good("apply", "-f", "-", stdin=RESOURCES)
    assert ctl("get", "globalnetworkpolicy", "hosts").exit_code == 1
    assert "hosts" in real.good("get", "globalnetworkpolicy", "hosts")
    assert "migrated 2 policies" in ctl.good("datastore", "migrate-policy-names")
    assert "hosts" in ctl.good("get", "globalnetworkpolicy", "hosts")
    assert real("get", "globalnetworkpolicy", "hosts").returncode == 1
    assert [item["metadata"]["name"] for item in real.listed("globalnetworkpolicies")] == ["hosts"]
    assert [item["metadata"]["name"] for item in real.listed("networkpolicies")] == ["web"]


def test_m15_addresses_are_shared_with_a_real_calico_ipam(real: Real, ctl: Ctl, netns: Path) -> None:  # noqa: F811
    real.good("apply", "-f", "-", stdin=RESOURCES)
    first, second = real.ipam("ADD", "pod1", netns), real.ipam("ADD", "pod2", netns)
    real.ipam("DEL", "pod1", netns)

    async def assign(store: Store) -> list[str]:
        backend = EtcdBackend(ctl.server, request_timeout_s=30.0)
        await backend.open()
        try:
            client: IpamClient = Cluster(backend).client()
            got = await client.auto_assign(of_pod("ours", "node1", 1, 1))
            return [str(one) for one in (*got.v4, *got.v6)]
        finally:
            await backend.close()

    ours = ctl.on(assign)
    assert len({*first, *second, *ours}) == 6
    for address in ours:
        bare = address.split("/")[0]
        assert f"{bare} is in use" in real.good("ipam", "show", "--ip", bare)
    checked = ctl("ipam", "check", "--show-problem-ips").output
    assert "Found 0 invalid blocks." in checked, "its sequence numbers of addresses given back are no fault"
    assert "Check complete; found 4 problems." in checked, "four addresses without endpoints"
    real.good("ipam", "release", "--ip", ours[0].split("/")[0])
    ctl.good("ipam", "release", "--ip", second[0].split("/")[0])
    real.ipam("DEL", "pod2", netns)
    ctl.good("ipam", "release", "--ip", ours[1].split("/")[0])
    assert "found 0 problems" in ctl.good("ipam", "check")
    assert "found 0 problems" in real.good("ipam", "check")
    assert "10.65.0." not in real.good("ipam", "show", "--show-borrowed")


def test_m15_what_a_real_calicoctl_exported_is_imported(real: Real, ctl: Ctl, netns: Path) -> None:  # noqa: F811
    real.good("apply", "-f", "-", stdin=RESOURCES)
    real.ipam("ADD", "pod1", netns)
    real.good("datastore", "migrate", "lock")
    text = real.good("datastore", "migrate", "export")
    with EtcdServer() as server:
        other = Ctl(server)
        other.good("datastore", "migrate", "import", "-f", "-", stdin=text)
        other.good("datastore", "migrate", "unlock")
        there, here = listed(other), listed(ctl)
        spec = {key: item["spec"] for key, item in there.items() if key[0] not in ("ClusterInformation", "Tier")}
        for key, item in here.items():
            if key[0] in ("ClusterInformation", "Tier", "Profile"):
                continue
            moved = (key[0], key[1], "kube-1") if key[0] == "Node" else key
            assert within(item["spec"], spec[moved]), key
        before, after = (
            json.dumps({key: json.loads(value) for key, (value, _) in one.contents().items() if "/ipam/" in key})
            for one in (ctl, other)
        )
        renamed = before.replace("host:node1", "host:kube-1").replace("/host/node1/", "/host/kube-1/")
        assert json.loads(after) == json.loads(renamed.replace('"node": "node1"', '"node": "kube-1"'))
