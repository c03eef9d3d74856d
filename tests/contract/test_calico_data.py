"""Row M15: an etcd that a real Calico filled, read and moved by our calicoctl, on real etcds.

The data are the recorded dump of a real calicoctl and calico-ipam, and the clusters of the recorded scenarios. Beside
them stand keys that are not ours to know, which must outlive everything.
"""

from __future__ import annotations

import asyncio
import json
import lzma
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from click.testing import CliRunner, Result

from libs import model
from libs.ipam import keys as ipam_keys
from libs.model import keys
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.runtime import logs
from libs.store.api import Store
from libs.testkit.servers import EtcdServer
from services.calicoctl.app import cli
from services.calicoctl.session import Environment
from tests.contract.calico_data import SCENARIOS, recorded, recorded_text
from tests.contract.ipam_stage import wipe
from tests.contract.store_backends import EtcdBackend

pytestmark = pytest.mark.servers

STORED_FORM = "projectcalico.org/metadata"
"""The annotation by which policies tell their name in etcd; readers take it away."""
FOREIGN = {
    "/calico/felix/v2/no-region/host/node1/last_reported_status": '{"time":"2026-11-23T12:40:24Z","uptime":1.5}',
    "/calico/dhcp/v1/subnet/6a2d": '{"cidr":"10.0.0.0/24"}',
    "/calico/v1/policy/tier/default/policy/of-version-2": '{"order":1}',
    "/calico/ipam/v2/host/node3": "{}",
    "/calico/resources/v3/projectcalico.org/widgets/of-a-newer-version": '{"kind":"Widget","spec":{"a":1}}',
    "/registry/pods/default/web": "not JSON",
}


class Ctl:
    """calicoctl on an etcd, and the etcd's contents."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        environment = Environment(variables={"ETCD_ENDPOINTS": self.server.endpoint})
        return CliRunner().invoke(cli, list(arguments), obj=environment, input=stdin)

    def good(self, *arguments: str, stdin: str = "") -> str:
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout

    def on(self, work: Any) -> Any:
        async def inside() -> Any:
            backend = EtcdBackend(self.server, request_timeout_s=30.0)
            await backend.open()
            try:
                return await work(backend.store())
            finally:
                await backend.close()

        return asyncio.run(inside())

    def fill(self, values: dict[str, str]) -> None:
        async def work(store: Store) -> None:
            await asyncio.gather(*(store.put(key, value.encode()) for key, value in values.items()))

        self.on(work)

    def contents(self) -> dict[str, tuple[bytes, int]]:
        """Key -> (value, modification revision)."""

        async def work(store: Store) -> dict[str, tuple[bytes, int]]:
            return {kv.key: (kv.value, kv.mod_revision) for kv in (await store.list("/")).kvs}

        found: dict[str, tuple[bytes, int]] = self.on(work)
        return found


@pytest.fixture
def ctl(ipam_etcd: EtcdServer) -> Iterator[Ctl]:
    found = Ctl(ipam_etcd)

    async def empty(store: Store) -> None:
        await wipe(store)
        for key in FOREIGN:
            await store.delete(key)

    found.on(empty)
    yield found
    logs.close()


def shown(value: dict[str, Any]) -> dict[str, Any]:
    """What a reader sees of a stored resource, without its revision."""
    metadata = {name: one for name, one in value["metadata"].items() if name not in ("resourceVersion", "annotations")}
    annotations = {n: v for n, v in (value["metadata"].get("annotations") or {}).items() if n != STORED_FORM}
    return {**value, "metadata": metadata | ({"annotations": annotations} if annotations else {})}


def bare(value: Any) -> Any:
    """Without what is empty or false, which the scenarios store and Calico's writers never do, and without the zeros of
    ports, which those writers always store.
    """
    if isinstance(value, dict):
        zeros = [name for name in ("hostPort", "hostIP") if not value.get(name)]
        said = {name: one for name, one in value.items() if one is not False and one not in ([], {})}
        return {name: bare(one) for name, one in said.items() if name not in zeros}
    return [bare(one) for one in value] if isinstance(value, list) else value


def identity(value: dict[str, Any]) -> tuple[str, str, str]:
    return value["kind"], value["metadata"].get("namespace", ""), value["metadata"]["name"]


def listed(ctl: Ctl) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every kind of `calicoctl get`, all namespaces."""
    found = {}
    for kind in model.kinds.KINDS.values():
        if kind.kind in ("IPAMBlock", "IPAMHandle"):
            continue  # not in `get`: what they hold is in `ipam show`
        everywhere = ["-A"] if kind.namespaced else []
        for item in json.loads(ctl.good("get", kind.plural, *everywhere, "-o", "json"))["items"]:
            found[identity(item)] = item
    return found


def test_m15_every_object_of_the_dump_is_listed_as_it_is(ctl: Ctl) -> None:
    ctl.fill(recorded_text() | FOREIGN)
    before = ctl.contents()
    wanted = {
        identity(value): (shown(value), str(before[key][1]))
        for key, value in recorded().items()
        if isinstance(keys.parse_key(key), keys.ResourceKey)
    }
    assert len(wanted) > 25
    found = {identity: (shown(item), item["metadata"]["resourceVersion"]) for identity, item in listed(ctl).items()}
    built_in = found.pop(("Profile", "", "projectcalico-default-allow"))
    assert built_in[0]["spec"] == {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}
    assert found == wanted
    assert ctl.contents() == before, "reading wrote something"


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


SHOWN = """\
| GROUPING | CIDR | IPS TOTAL | IPS IN USE | IPS RESERVED | IPS FREE |
| IP Pool | 10.65.0.0/16 | 65536 | 2 (0%) | 4 (0%) | 65530 (100%) |
| Block | 10.65.166.128/26 | 64 | 2 (3%) | 0 (0%) | 62 (97%) |
| IP Pool | 10.66.0.0/16 | 65536 | 1 (0%) | 0 (0%) | 65535 (100%) |
| Block | 10.66.101.80/28 | 16 | 1 (6%) | 0 (0%) | 15 (94%) |
| IP Pool | fd00:65::/48 | 1.2089e+24 | 1 (0%) | 0 (0%) | 1.2089e+24 (100%) |
| Block | fd00:65:0:df9b:fa8:334a:557b:7740/122 | 64 | 1 (2%) | 0 (0%) | 63 (98%) |
"""
"""As recorded of Calico's own `ipam show`, but for the nonsense that it prints of large IPv6 pools, and the order."""


def test_m15_addresses_of_the_dump_are_shown_and_its_faults_named(ctl: Ctl) -> None:
    ctl.fill(recorded_text() | FOREIGN)
    before = ctl.contents()
    rows = table(ctl.good("ipam", "show", "--show-blocks"))
    assert sorted(rows) == sorted(table(SHOWN))
    one = ctl.good("ipam", "show", "--ip", "10.65.166.130")
    assert "10.65.166.130 is in use" in one
    assert "net1.podC" in one
    assert "10.65.166.129 is not assigned" in ctl.good("ipam", "show", "--ip", "10.65.166.129")
    # The recording has the pods' addresses without their endpoints, and two endpoints whose addresses were made up.
    checked = ctl("ipam", "check", "--show-problem-ips").output
    for leaked in ("10.65.166.128", "10.65.166.130", "fd00:65:0:df9b:fa8:334a:557b:7740", "10.66.101.80"):
        assert leaked in checked
    for made_up in ("10.65.0.10", "10.65.0.11"):
        assert made_up in checked
    assert "Check complete; found 6 problems." in checked
    assert ctl.contents() == before


def test_m15_with_its_endpoints_the_dump_is_clean(ctl: Ctl) -> None:
    """The same blocks; the endpoints are those that calico-cni would have written beside them."""
    values = {key: value for key, value in recorded_text().items() if "/workloadendpoints/" not in key}
    addresses = {
        ("node1", "podA"): ["10.65.166.128/32"],
        ("node1", "podC"): ["10.65.166.130/32", "fd00:65:0:df9b:fa8:334a:557b:7740/128"],
        ("node2", "podD"): ["10.66.101.80/32"],
    }
    for (node, pod), nets in addresses.items():
        name = f"{node}-k8s-{pod.lower()}-eth0"
        values[f"{ipam_keys.RESOURCES}workloadendpoints/ns1/{name}"] = json.dumps({
            "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name, "namespace": "ns1", "uid": pod, "creationTimestamp": "2026-11-23T12:40:25Z"},
            "spec": {"orchestrator": "k8s", "node": node, "pod": pod.lower(), "endpoint": "eth0", "ipNetworks": nets},
        })  # fmt: skip
    ctl.fill(values)
    assert "Check complete; found 0 problems." in ctl.good("ipam", "check")


def test_m15_a_dump_moves_to_another_etcd_whole(ctl: Ctl) -> None:
    """lock, export --all, import: every resource and every key of IPAM, byte for byte where it is IPAM's."""
    ctl.fill(recorded_text() | FOREIGN)
    ctl.good("datastore", "migrate", "lock")
    before = ctl.contents()
    exported = ctl.good("datastore", "migrate", "export", "--all")
    assert ctl.contents() == before
    with EtcdServer() as server:
        other = Ctl(server)
        other.fill({"/registry/pods/default/web": "not JSON"})
        other.good("datastore", "migrate", "import", "-f", "-", stdin=exported)
        ours, theirs = other.contents(), {key: value for key, (value, _) in before.items()}
        dumped = recorded()
        assert ours.keys() == {*dumped, "/registry/pods/default/web"}
        for key in dumped:
            got, want = json.loads(ours[key][0]), json.loads(theirs[key])
            if key.startswith(ipam_keys.PREFIX):
                assert got == want, key
                continue
            for value in (got, want):  # of one datastore
                value["metadata"].pop("uid"), value["metadata"].pop("creationTimestamp")
            assert got == want, key
        other.good("datastore", "migrate", "unlock")
        again = listed(other)
    unlocked = {"datastoreReady": True}
    assert {key: shown(item)["spec"] for key, item in again.items()} == {
        key: item["spec"] | (unlocked if key[0] == "ClusterInformation" else {}) for key, item in listed(ctl).items()
    }


def test_m15_changing_what_calico_wrote_keeps_the_rest(ctl: Ctl) -> None:
    """Each verb on an object of the dump: that key changes, in what was asked for, and no other."""
    ctl.fill(recorded_text() | FOREIGN)
    before = ctl.contents()
    gnp = f"{ipam_keys.RESOURCES}globalnetworkpolicies/gnp1"
    ctl.good("patch", "globalnetworkpolicy", "gnp1", "-p", '{"spec": {"order": 101}}')
    ctl.good("label", "node", "node2", "rack=b")
    ctl.good("delete", "networkset", "ns-set", "-n", "ns1")
    after = ctl.contents()
    node, gone = (f"{ipam_keys.RESOURCES}{name}" for name in ("nodes/node2", "networksets/ns1/ns-set"))
    assert {key for key in before if after.get(key) != before[key]} == {gnp, node, gone}
    assert after.keys() == before.keys() - {gone}
    policy, labelled = json.loads(before[gnp][0]), json.loads(before[node][0])
    policy["spec"]["order"] = 101
    labelled["metadata"]["labels"]["rack"] = "b"
    assert [json.loads(after[key][0]) for key in (gnp, node)] == [policy, labelled]


def test_m15_recorded_clusters_are_listed_as_they_are(ctl: Ctl) -> None:
    """Every third of them, as it is at its end."""
    if not SCENARIOS.exists():
        pytest.skip("recorded samples are not here")
    count = 0

    async def work(store: Store) -> None:
        nonlocal count
        client = ResourceClient(store)
        with lzma.open(SCENARIOS, "rt") as lines:
            for line in islice(lines, 0, None, 3):
                final: dict[str, Any] = {}
                for step in json.loads(line)["steps"]:
                    for op in step["ops"]:
                        final[op["key"]] = json.loads(op["value"]) if op["op"] == "put" else None
                stored = {key: value for key, value in final.items() if value is not None}
                await wipe(store)
                await asyncio.gather(*(store.put(k, json.dumps(v).encode()) for k, v in stored.items()))
                found = {}
                for kind in model.kinds.KINDS.values():
                    for item in (await client.list(kind.kind)).items:
                        value = codec.to_json(item)
                        found[identity(value)] = bare(value["spec"])
                wanted = {
                    identity(value): bare(value["spec"])
                    for key, value in stored.items()
                    if isinstance(keys.parse_key(key), keys.ResourceKey)
                }
                found.pop(("Profile", "", "projectcalico-default-allow"))
                assert found == wanted
                count += len(wanted)

    ctl.on(work)
    assert count > 400
