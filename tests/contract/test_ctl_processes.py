"""calicoctl as a process of its own, against a real etcd and through an API server: what users see and scripts read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs import model
from libs.model import keys
from libs.resources.client import ResourceClient
from libs.store import StoreConfig
from libs.store.etcd import connect
from libs.testkit.servers import EtcdServer
from tests.contract.calico_data import recorded
from tests.contract.rest_stage import rest_stage

pytestmark = pytest.mark.servers
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
TIER = "kind: Tier\napiVersion: projectcalico.org/v3\nmetadata: {name: %s}\nspec: {order: %s}\n"


@dataclass
class Ctl:
    """Runs processes; `variables` say where they connect to."""

    variables: dict[str, str]
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, *arguments: str, cwd: Path | None = None) -> asyncio.subprocess.Process:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ETCD", "NATS", "CALICO", "K8S", "KUBE", "DATASTORE"))
        }
        environment = inherited | {"PYTHONPATH": str(ROOT)} | self.variables
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.calicoctl", *arguments, env=environment, cwd=cwd or ROOT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.running.append(process)
        return process

    async def __call__(self, *arguments: str, stdin: str = "", cwd: Path | None = None) -> tuple[int, str, str]:
        process = await self.start(*arguments, cwd=cwd)
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def good(self, *arguments: str, stdin: str = "", cwd: Path | None = None) -> str:
        status, out, err = await self(*arguments, stdin=stdin, cwd=cwd)
        assert status == 0, out + err
        return out

    async def stop(self) -> None:
        for process in self.running:
            if process.returncode is None:
                process.kill()
                await process.wait()


@dataclass
class World:
    ctl: Ctl
    server: EtcdServer
    direct: ResourceClient


@asynccontextmanager
async def world_of(way: str, etcd: Path | None = None) -> AsyncIterator[World]:
    async with EtcdServer(binary=etcd) as server:
        store = await connect(StoreConfig(endpoints=(server.endpoint,)))
        ctl = Ctl({"ETCD_ENDPOINTS": server.endpoint})
        try:
            direct = ResourceClient(store)
            await direct.ensure_initialized()
            if way == "etcd":
                yield World(ctl, server, direct)
                return
            async with rest_stage(store) as stage:
                ctl.variables = {"DATASTORE_TYPE": "kubernetes", "K8S_API_ENDPOINT": stage.url}
                yield World(ctl, server, direct)
        finally:
            await ctl.stop()
            await store.close()


@pytest.fixture(params=["etcd", "rest"])
async def world(request: pytest.FixtureRequest, crash_etcd: Path) -> AsyncIterator[World]:
    async with world_of(request.param, crash_etcd) as found:
        yield found


@pytest.fixture
async def on_etcd() -> AsyncIterator[World]:
    async with world_of("etcd") as found:
        yield found


async def test_commands_load_no_server_and_nothing_of_other_ways(on_etcd: World) -> None:
    """Half of the time of a command was once the loading of an HTTP server and its metrics."""
    ctl = Ctl(on_etcd.ctl.variables | {"PYTHONPROFILEIMPORTTIME": "1"}, on_etcd.ctl.running)
    tier = TIER % ("lean", 7)
    for arguments, stdin in ((["apply", "-f", "-"], tier), (["get", "tiers"], ""), (["delete", "tier", "lean"], "")):
        status, _, err = await ctl(*arguments, stdin=stdin)
        assert status == 0, err
        loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in err.splitlines() if "import time:" in line}
        assert "grpc" in loaded
        heavy = {"aiohttp", "prometheus_client", "nats", "opentelemetry", "uvloop", "pyroute2", "rich"}
        assert not loaded & heavy, arguments


async def test_the_same_commands_by_both_ways(world: World) -> None:
    ctl = world.ctl
    assert await ctl.good("apply", "-f", "-", stdin=TIER % ("sec", 5)) == "Successfully applied 1 'Tier' resource(s)\n"
    assert (await ctl.good("get", "tier", "sec")).split() == ["NAME", "ORDER", "sec", "5"]
    assert await ctl.good("patch", "tier", "sec", "-p", '{"spec": {"order": 6}}')
    assert await ctl.good("label", "tier", "sec", "a=b") == "Successfully set label a on tier sec\n"
    found = yaml.safe_load(await ctl.good("get", "tier", "sec", "-o", "yaml"))
    assert (found["spec"]["order"], found["metadata"]["labels"]) == (6, {"a": "b"})
    diff = await ctl.good("apply", "--dry-run=server", "-f", "-", stdin=TIER % ("sec", 7))
    assert "-  order: 6\n+  order: 7\n" in diff
    assert "\x1b" not in diff
    assert (await ctl("create", "-f", "-", stdin=TIER % ("sec", 7)))[0] == 1
    assert await ctl.good("delete", "tier", "sec") == "Successfully deleted 1 'Tier' resource(s)\n"
    status, _, err = await ctl("get", "tier", "sec")
    assert (status, err) == (1, "resource does not exist: Tier(sec)\n")
    assert await ctl.good("datastore", "migrate", "lock") == "Datastore locked.\n"


async def test_what_needs_etcd_says_so_through_an_api_server() -> None:
    async with world_of("rest") as world:
        for arguments in (("ipam", "show"), ("datastore", "migrate", "export"), ("datastore", "migrate-policy-names")):
            status, _, err = await world.ctl(*arguments)
            assert status == 1
            assert "set DATASTORE_TYPE=etcdv3 and ETCD_ENDPOINTS" in err
        status, _, err = await world.ctl("get", "nodes")
        assert status == 1
        assert "DATASTORE_TYPE=etcdv3" in err


async def lines_until(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        return [(await process.stdout.readline()).decode().rstrip("\n") for _ in range(count)]


async def test_watch_shows_changes_across_a_restart_of_etcd(world: World) -> None:
    process = await world.ctl.start("get", "globalnetworksets", "--watch", "-o", "wide")
    gns = "kind: GlobalNetworkSet\napiVersion: projectcalico.org/v3\nmetadata: {name: %s}\nspec: {nets: [%s]}\n"
    other = Ctl({"ETCD_ENDPOINTS": world.server.endpoint})
    # Until it watches nobody knows whether a change comes as part of the listing.
    await other.good("apply", "-f", "-", stdin=gns % ("a", "192.0.2.0/24"))
    heading, first = await lines_until(process, 2)
    assert heading.split() == ["EVENT", "NAME", "NETS"]
    assert first.split()[-2:] == ["a", "192.0.2.0/24"]
    world.server.kill()
    await world.server.start_async()
    await other.good("apply", "-f", "-", stdin=gns % ("a", "'2001:db8::/32'"))
    await other.good("delete", "globalnetworkset", "a")
    changed, deleted = await lines_until(process, 2)
    assert changed.split() == ["MODIFIED", "a", "2001:db8::/32"]
    assert deleted.split() == ["DELETED", "a", "2001:db8::/32"]
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == 0
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    await other.stop()


async def test_watch_as_json_of_some_names_only(on_etcd: World) -> None:
    process = await on_etcd.ctl.start("get", "tiers", "sec", "--watch", "-o", "json")
    await on_etcd.ctl.good("apply", "-f", "-", stdin=TIER % ("other", 1))
    await on_etcd.ctl.good("apply", "-f", "-", stdin=TIER % ("sec", 1))
    lines = await lines_until(process, 1)  # so it watches, or has listed what is there
    await on_etcd.ctl.good("delete", "tier", "sec")
    lines += await lines_until(process, 1)
    found = [json.loads(line) for line in lines]
    assert [one["type"] for one in found] == ["ADDED", "DELETED"]
    assert {one["object"]["metadata"]["name"] for one in found} == {"sec"}


async def test_watch_only_leaves_out_what_there_is(on_etcd: World) -> None:
    await on_etcd.ctl.good("apply", "-f", "-", stdin=TIER % ("there", 1))
    process = await on_etcd.ctl.start("get", "tiers", "--watch-only", "-o", "name")
    for number in range(200):  # until it watches
        await on_etcd.direct.apply(model.Tier(metadata=model.ObjectMeta(name="new"), spec=model.TierSpec(order=number)))
        assert process.stdout is not None
        try:
            async with asyncio.timeout(0.5):
                line = (await process.stdout.readline()).decode()
                break
        except TimeoutError:
            continue
    assert line in ("ADDED tier.projectcalico.org/new\n", "MODIFIED tier.projectcalico.org/new\n")


# --- the bytes that Calico's own client wrote ------------------------------------------------------------------------


def normal(value: dict[str, Any]) -> dict[str, Any]:
    metadata = {name: one for name, one in value["metadata"].items() if name not in ("uid", "creationTimestamp")}
    return {**value, "metadata": metadata}


async def test_what_it_writes_is_what_calicos_client_wrote(on_etcd: World, tmp_path: Path) -> None:
    """The recorded values as input, as a user would have them: without uid, times and what clients add."""
    wanted, documents, skipped = {}, [], []
    for key, value in recorded().items():
        parsed = keys.parse_key(key)
        if not isinstance(parsed, keys.ResourceKey):
            continue
        if value["kind"] == "ClusterInformation" or parsed.name.startswith("knp."):
            skipped.append(key)
            continue
        wanted[key] = normal(value)
        metadata = {n: v for n, v in normal(value)["metadata"].items() if n not in ("annotations",)}
        labels = {n: v for n, v in metadata.pop("labels", {}).items() if not n.startswith("projectcalico.org/")}
        documents.append({**value, "metadata": metadata | ({"labels": labels} if labels else {})})
    assert len(wanted) > 20
    ranks = {"Tier": 0, "BGPFilter": 1, "Node": 2}
    documents.sort(key=lambda one: ranks.get(one["kind"], 9))
    file = tmp_path / "all.json"
    file.write_text(json.dumps(documents))
    await on_etcd.ctl.good("apply", "-f", str(file))
    stored = {kv.key: kv.value for kv in (await on_etcd.direct.store.list("/calico/resources/")).kvs}
    for key, value in wanted.items():
        written = json.loads(stored[key])
        assert normal(written) == value, key
        assert json.dumps(normal(written)) == json.dumps(value), f"{key}: another order of fields"


async def test_it_reads_everything_that_calicos_client_wrote(on_etcd: World, tmp_path: Path) -> None:
    """One process shows it all: the bundle holds every kind as YAML and as the wide table, IPAM besides."""
    values = recorded()
    for key, value in values.items():
        await on_etcd.direct.store.put(key, json.dumps(value, separators=(",", ":")).encode())
    await on_etcd.ctl.good("cluster", "diags", cwd=tmp_path)
    files = unpacked(only(tmp_path, "calico-diagnostics-*.tar.gz"))
    for key, value in values.items():
        parsed = keys.parse_key(key)
        if isinstance(parsed, keys.ResourceKey):
            plural = model.kinds.kind(parsed.kind).plural
            shown = yaml.safe_load(files[f"calico-diagnostics/resources/{plural}.yaml"])["items"]
            (item,) = (one for one in shown if one["metadata"].get("uid") == value["metadata"]["uid"])
            assert item["spec"] == value["spec"], key
            assert item["metadata"]["name"].encode() in files[f"calico-diagnostics/resources/{plural}.txt"], key
    assert b"10.65.166.128/26" in files["calico-diagnostics/ipam/show.txt"]


# --- migration between two etcds -------------------------------------------------------------------------------------


async def test_export_and_import_between_two_etcds(on_etcd: World, tmp_path: Path) -> None:
    resources = (ROOT / "tests" / "golden" / "calicoctl" / "resources.yaml").read_text()
    await on_etcd.ctl.good("apply", "-f", "-", stdin=resources)
    store = on_etcd.direct.store
    block = '{"cidr":"10.244.0.0/26","affinity":"host:n","allocations":[null],"unallocated":[0],"attributes":[]}'
    await store.put("/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26", block.encode())
    await store.put("/calico/ipam/v2/handle/h", b'{"block":{"10.244.0.0/26":1},"deleted":false}')
    await store.put("/calico/ipam/v2/config", b'{"auto_allocate_blocks":true,"strict_affinity":true}')
    await on_etcd.ctl.good("datastore", "migrate", "lock")
    text = await on_etcd.ctl.good("datastore", "migrate", "export", "--all")
    async with world_of("etcd") as other:
        refused = await other.ctl("datastore", "migrate", "import", "-f", "-", stdin=text)
        assert refused[0] == 1
        assert "datastore is not locked" in refused[2]
        await other.ctl.good("datastore", "migrate", "lock")
        await other.ctl.good("datastore", "migrate", "import", "-f", "-", stdin=text)
        await other.ctl.good("datastore", "migrate", "unlock")
        await on_etcd.ctl.good("datastore", "migrate", "unlock")
        both = []
        for world in (on_etcd, other):
            listing = (await world.direct.store.list("/calico/")).kvs
            both.append({kv.key: normal({"metadata": {}, **json.loads(kv.value)}) for kv in listing})
        assert both[0] == both[1]
        assert len(both[0]) > 25


# --- bundles ---------------------------------------------------------------------------------------------------------

PLANTED = {
    "etcd-password": "Pl4ntedEtcdPassword", "nats-token": "Pl4ntedNatsToken99", "api-token": "Pl4ntedApiToken1234",
    "wireguard": "Pl4ntedWireguardKey0000000000000000000000000=", "url": "Pl4ntedUrlCredential",
    "pem": "Pl4ntedPemBody",
}  # fmt: skip


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for one in archive:
            if one.isfile():
                file = archive.extractfile(one)
                assert file is not None
                found[one.name] = file.read()
    return found


async def test_no_secret_is_in_the_bundle_of_a_cluster(on_etcd: World, tmp_path: Path) -> None:
    """Planted where people put them: in resources, in calicoctl's configuration, in its environment."""
    await on_etcd.ctl.good("apply", "-f", str(ROOT / "tests" / "golden" / "calicoctl" / "resources.yaml"))
    planted = (
        "kind: BGPPeer\napiVersion: projectcalico.org/v3\nmetadata:\n  name: secret\n  annotations:\n"
        f"    note: 'password={PLANTED['etcd-password']}'\n    url: nats://u:{PLANTED['url']}@bus:4222\n"
        f"    key: |\n      -----BEGIN PRIVATE KEY-----\n      {PLANTED['pem']}\n      -----END PRIVATE KEY-----\n"
        f"    wg: 'private key: {PLANTED['wireguard']}'\n    api: 'token: {PLANTED['api-token']}'\n"
        "spec:\n  peerIP: 2001:db8::9\n  asNumber: 65001\n"
        "  password: {secretKeyRef: {name: bgp-secrets, key: rack-a}}\n"
    )
    await on_etcd.ctl.good("apply", "-f", "-", stdin=planted)
    await on_etcd.direct.store.put(
        "/calico/felix/v2/no-region/host/n/status", f'{{"token":"{PLANTED["nats-token"]}"}}'.encode()
    )
    on_etcd.ctl.variables |= {
        "NATS_URL": f"nats://u:{PLANTED['url']}@127.0.0.1:1",
        "K8S_API_TOKEN": PLANTED["api-token"],
    }
    shown = await on_etcd.ctl.good("cluster", "diags", cwd=tmp_path)
    path = only(tmp_path, "calico-diagnostics-*.tar.gz")
    assert str(path) in shown
    files = unpacked(path)
    names = {name.removeprefix("calico-diagnostics/") for name in files}
    for part in ("resources/bgppeers.yaml", "resources/nodes.txt", "ipam/show.txt", "ipam/check.txt",
                 "datastore/etcd.txt", "datastore/status.txt", "nodes/PROBLEM.txt", "version.txt"):  # fmt: skip
        assert part in names
    assert any(name.startswith("kubernetes/") for name in names)
    assert len([name for name in names if name.endswith(".yaml") and name.startswith("resources/")]) == 24
    everything = b"\n".join(files.values())
    assert not re.findall(rb"Pl4nted\w+", everything)
    assert b"bgp-secrets" in everything


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces")
async def test_no_secret_is_in_the_bundle_of_a_node(tmp_path: Path) -> None:
    """Planted in its logs and in the environment of a service that runs there."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "felix.log").write_text(
        f"connecting to https://u:{PLANTED['url']}@etcd:2379 token={PLANTED['nats-token']}\n"
    )
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(600)", "-m", "services.felix",
        env={"ETCD_PASSWORD": PLANTED["etcd-password"], "NODENAME": "planted-node"},
    )  # fmt: skip
    ctl = Ctl({"TMPDIR": str(tmp_path)})
    try:
        shown = await ctl.good("node", "diags", "--log-dir", str(logs))
    finally:
        service.kill()
        await service.wait()
        await ctl.stop()
    path = only(tmp_path, "calico*/diags-*.tar.gz")
    assert f"Diags saved to {path}" in shown
    files = unpacked(path)
    names = {name.removeprefix("diagnostics/") for name in files}
    for part in ("date", "hostname", "ipv4_route", "ipv6_route", "ipv4_rule", "ipv6_rule", "ipv4_neigh", "fdb",
                 "wireguard", "nft_ruleset", "iptables_save", "logs/felix.log", "bgp/state.json",
                 f"services/felix-{service.pid}.txt"):  # fmt: skip
        assert part in names
    everything = b"\n".join(files.values())
    assert b"planted-node" in everything
    assert not re.findall(rb"Pl4nted\w+", everything)
