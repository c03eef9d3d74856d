"""calicoctl as its users run it: a process with the environment of somebody outside the cluster.

Names of tests say which capability they show.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from libs import model
from libs.resources.errors import NotFound
from libs.testkit.cluster import PROJECT, Pod
from tests.cluster.conftest import ALLOW, DENY, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DENY_ALL = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: %s}
spec: {order: 1, selector: "role == 'server'", types: [Ingress], ingress: [{action: %s}]}
"""
NETWORK_SET = """
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: %s, namespace: %s}
spec: {nets: [192.0.2.0/24]}
"""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


async def ctl(world: World, *arguments: str, stdin: str = "", timeout_s: float = 80.0) -> Done:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD", "NATS", "CALICO"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.calicoctl", *arguments,
        env=inherited | world.cluster.outside_env(), cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@dataclass(frozen=True)
class Pods:
    server: Pod
    client: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    await world.cluster.add_namespace("ns2")
    return Pods(
        await world.cluster.add_pod("node1", "server", namespace="ns1", labels={"role": "server"}),
        await world.cluster.add_pod("node2", "client", namespace="ns1", labels={"role": "client"}),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: Pods) -> AsyncIterator[None]:
    yield
    await world.clean()


async def stored(world: World, kind: str, name: str, namespace: str = "") -> bool:
    try:
        await world.resources.get(kind, name, namespace)
    except NotFound:
        return False
    return True


async def test_e01_get_wep_wide_lists_node_interface_and_networks(world: World, pods: Pods) -> None:
    done = await ctl(world, "get", "wep", "-n", "ns1", "-o", "wide")
    assert (done.status, done.err) == (0, "")
    heading, *rows = done.out.splitlines()
    for column in ("NAME", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE", "PROFILES"):
        assert column in heading
    for pod in (pods.server, pods.client):
        row = next(line for line in rows if f" {pod.name} " in line)
        networks = ",".join(f"{a}/{a.max_prefixlen}" for a in pod.addresses)
        for word in (
            f"{pod.node}-k8s-{pod.name}-eth0",
            pod.node,
            networks,
            pod.result["interfaces"][0]["name"],
            "kns.ns1",
        ):
            assert word in row.split(), (word, row)


async def test_l01_create_apply_replace_get_delete_by_file_and_standard_input(
    world: World, pods: Pods, tmp_path: Path
) -> None:
    file = tmp_path / "set.yaml"
    file.write_text(NETWORK_SET % ("one", "ns1") + "---" + NETWORK_SET % ("two", "ns1"))
    done = await ctl(world, "create", "-f", str(file))
    assert (done.status, "Successfully created 2" in done.out) == (0, True), done
    done = await ctl(world, "create", "-f", str(file))
    assert (done.status, done.err.count("already exists")) == (1, 2), done
    assert (await ctl(world, "create", "--skip-exists", "-f", str(file))).status == 0
    changed = file.read_text().replace("192.0.2.0/24", "198.51.100.0/24")
    for verb in ("apply", "replace"):
        done = await ctl(world, verb, "-f", "-", stdin=changed)
        assert (done.status, done.out.startswith("Successfully")) == (0, True), done
    shown = await ctl(world, "get", "networkset", "one", "-n", "ns1", "-o", "yaml")
    assert yaml.safe_load(shown.out)["spec"]["nets"] == ["198.51.100.0/24"]
    done = await ctl(world, "replace", "-f", "-", stdin=NETWORK_SET % ("three", "ns1"))
    assert (done.status, "does not exist" in done.err) == (1, True), done
    done = await ctl(world, "delete", "-f", str(file))
    assert (done.status, await stored(world, "NetworkSet", "one", "ns1")) == (0, False), done
    done = await ctl(world, "delete", "-f", str(file))
    assert (done.status, done.err.count("does not exist")) == (1, 2), done
    assert (await ctl(world, "delete", "--skip-not-exists", "-f", str(file))).status == 0


async def test_l01_directory_namespace_and_all_namespaces(world: World, pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.yaml").write_text(NETWORK_SET % ("one", "ns1"))
    (tmp_path / "b.json").write_text(json.dumps(yaml.safe_load(NETWORK_SET % ("two", "ns2"))))
    (tmp_path / "deeper" / "c.yml").write_text((NETWORK_SET % ("three", "ns1")).replace(", namespace: ns1", ""))
    (tmp_path / "ignored.txt").write_text("not a resource")
    done = await ctl(world, "apply", "-R", "-n", "ns2", "-f", str(tmp_path))
    assert (done.status, "does not match client namespace" in done.err) == (1, True), done  # a.yaml says ns1
    assert (await ctl(world, "apply", "-f", str(tmp_path))).status == 0
    for namespace, names in (("ns1", {"one"}), ("ns2", {"two", "three"})):
        done = await ctl(world, "get", "netset", "-n", namespace, "-o", "name")
        assert {line.rsplit("/")[-1] for line in done.out.split()} == names, done
    done = await ctl(world, "get", "networksets", "-A")
    assert [line.split()[:2] for line in done.out.splitlines() if line.strip()] == [
        ["NAMESPACE", "NAME"], ["ns1", "one"], ["ns2", "three"], ["ns2", "two"],
    ]  # fmt: skip
    done = await ctl(world, "get", "networkset", "none", "-n", "ns1")
    assert (done.status, "does not exist" in done.err) == (1, True)
    assert (await ctl(world, "get")).status == 2
    assert (await ctl(world, "get", "starship")).status == 1


async def test_apply_wait_returns_when_the_change_is_enforced(world: World, pods: Pods) -> None:
    flow = (pods.client, pods.server, 8080, "tcp")
    for action, verdict in (("Deny", DENY), ("Allow", ALLOW), ("Deny", DENY)):
        done = await ctl(world, "apply", "--wait", "-f", "-", stdin=DENY_ALL % ("front", action))
        await world.check([(*flow, verdict)])  # at once
        assert (done.status, "Applied on 1 node(s): node1" in done.out) == (0, True), done
    done = await ctl(world, "delete", "gnp", "front", "--wait")
    await world.check([(*flow, ALLOW)])
    assert done.status == 0, done


async def test_apply_wait_names_the_node_that_does_not_answer(world: World, pods: Pods) -> None:
    felix = world.cluster.node("node1").felix
    felix.signal(signal.SIGSTOP)
    try:
        policy = (DENY_ALL % ("front", "Deny")).replace("role == 'server'", "has(role)")
        done = await ctl(world, "apply", "--wait", "--timeout", "5s", "-f", "-", stdin=policy)
    finally:
        felix.signal(signal.SIGCONT)
    assert done.status == 1
    assert "Successfully applied 1" in done.out
    assert "timed out" in done.err
    assert "node1" in done.err
    assert "node2" not in done.err
    await world.cluster.eventually([(pods.client, pods.server, 8080, "tcp")], DENY)


GOOD = NETWORK_SET % ("good", "ns1")
BAD = [
    ("invalid-yaml", "kind: [NetworkSet\n", ["yaml"]),
    ("unknown-field", DENY_ALL.replace("order: 1", "ordre: 1") % ("bad", "Deny"), ["spec.ordre", "unknown"]),
    ("wrong-kind", "apiVersion: projectcalico.org/v3\nkind: NetworkPolice\nmetadata: {name: bad}\n", ["NetworkPolice"]),
    ("wrong-type", DENY_ALL.replace("order: 1", "order: first") % ("bad", "Deny"), ["spec.order", "first"]),
    ("bad-selector", DENY_ALL.replace("role ==", "role =") % ("bad", "Deny"), ["spec.selector"]),
    ("bad-action", DENY_ALL % ("bad", "Dney"), ["spec.ingress[0].action", "Dney"]),
    (
        "overlapping-pool",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: bad}\nspec: {cidr: 10.65.128.0/17}\n",
        ["default-ipv4-ippool", "overlap"],
    ),
    (
        "conflicting-update",
        DENY_ALL.replace("{name: %s}", "{name: %s, resourceVersion: '1'}") % ("bad", "Deny"),
        ["conflict"],
    ),
]


@pytest.mark.parametrize(("name", "document", "words"), BAD, ids=[name for name, _, _ in BAD])
async def test_bad_document_is_told_with_its_place_and_changes_nothing_while_the_others_are_done(
    world: World, pods: Pods, tmp_path: Path, name: str, document: str, words: list[str]
) -> None:
    file = tmp_path / f"{name}.yaml"
    if name == "conflicting-update":
        await world.apply(DENY_ALL % ("bad", "Allow"))
    file.write_text(GOOD + "---\n" + document)
    done = await ctl(world, "apply", "-f", str(file))
    assert done.status == 1, done
    assert "Traceback" not in done.text
    for word in (str(file), "document 2", *words):
        assert word.lower() in done.err.lower(), (word, done.err)
    assert "applied the first 1 out of 2" in done.out
    assert await stored(world, "NetworkSet", "good", "ns1")
    if name == "conflicting-update":
        kept = await world.resources.get("GlobalNetworkPolicy", "bad")
        assert isinstance(kept, model.GlobalNetworkPolicy)
        assert [rule.action for rule in kept.spec.ingress or []] == ["Allow"]
    else:
        assert not await stored(world, "GlobalNetworkPolicy", "bad")
        assert not await stored(world, "IPPool", "bad")


async def test_i01_overlapping_pools_are_refused_in_each_family(world: World, pods: Pods) -> None:
    pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: bad}\nspec: {cidr: '%s'}\n"
    for cidr, other in (
        ("10.64.0.0/15", "default-ipv4-ippool"),
        ("10.65.0.0/16", "default-ipv4-ippool"),
        ("fd00:65:0:1::/64", "default-ipv6-ippool"),
    ):
        done = await ctl(world, "create", "-f", "-", stdin=pool % cidr)
        assert (done.status, other in done.err) == (1, True), done
        assert not await stored(world, "IPPool", "bad")
    done = await ctl(world, "create", "-f", "-", stdin=pool % "10.66.0.0/16")
    assert done.status == 0, done
    assert (await ctl(world, "delete", "ippool", "bad")).status == 0


async def test_tap_shows_readable_lines(world: World, pods: Pods) -> None:
    tapping = asyncio.create_task(ctl(world, "tap", "--count", "3", timeout_s=80))

    async def enough() -> bool:
        await world.apply(DENY_ALL % ("front", "Deny"))
        await world.apply(DENY_ALL % ("front", "Allow"))
        return tapping.done()

    await until(enough, 60, "tap has seen three messages")
    done = await tapping
    assert done.status == 0, done
    lines = done.out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.isprintable()
        assert "calico." in line or "rev" in line, line


async def test_tap_of_events_names_the_resource(world: World, pods: Pods) -> None:
    tapping = asyncio.create_task(ctl(world, "tap", "calico.typha.*.event.>", "--count", "1", timeout_s=80))

    async def enough() -> bool:
        await world.apply(NETWORK_SET % ("one", "ns1"))
        await world.delete("NetworkSet", "one", "ns1")
        return tapping.done()

    await until(enough, 60, "tap has seen an event")
    assert "NetworkSet" in (await tapping).out or "networkset" in (await tapping).out


async def test_i17_ipam_show_counts_addresses_by_pool_and_block(world: World, pods: Pods) -> None:
    done = await ctl(world, "ipam", "show", "--show-blocks")
    assert done.status == 0, done
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.out.splitlines() if "|" in line]
    heading, *table = rows
    assert heading[:2] == ["GROUPING", "CIDR"]
    pools = [row for row in table if row[0] == "IP Pool"]
    assert {row[1] for row in pools} == {"10.65.0.0/16", "fd00:65::/48"}
    blocks = [row for row in table if row[0] == "Block"]
    assert len(blocks) == 4  # each node has one of each family
    assert "65536" in next(row for row in pools if row[1] == "10.65.0.0/16")[2]
    used = next(row for row in pools if row[1] == "10.65.0.0/16")[3]
    assert used.split()[0] == "2"
    one = await ctl(world, "ipam", "show", "--ip", str(pods.server.address(4)))
    assert (one.status, "is in use" in one.out, "server" in one.out) == (0, True, True), one
    free = await ctl(world, "ipam", "show", "--ip", "10.65.255.254")
    assert "not assigned" in free.out or "not currently assigned" in free.out or "free" in free.out, free


async def test_node_status_tells_what_every_node_holds_and_what_has_no_effect(world: World, pods: Pods) -> None:
    done = await ctl(world, "node", "status")
    assert done.status == 0, done
    assert [line.split("|")[1:3] for line in done.out.splitlines()[3:5]] == [
        [" node1 ", " up to date "], [" node2 ", " up to date "],
    ]  # fmt: skip
    await world.apply("kind: FelixConfiguration\nmetadata: {name: node.node2}\nspec: {bpfEnabled: true}\n")
    try:
        done = await ctl(world, "node", "status", "node2")
        assert (done.status, "node1" in done.out) == (0, False), done
        assert "node2: without effect: " in done.out
        assert "bpfEnabled" in done.out
    finally:
        await world.delete("FelixConfiguration", "node.node2")
    world.cluster.kill_felix("node2")
    try:
        done = await ctl(world, "node", "status", "--timeout", "1s")
        assert (done.status, "no report" in done.out or "behind" in done.out) == (1, True), done
    finally:
        await world.cluster.start_felix("node2")
    unknown = await ctl(world, "node", "status", "node9")
    assert (unknown.status, unknown.err) == (1, "no such node: node9\n"), unknown
