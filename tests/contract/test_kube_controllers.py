"""Real kube_controllers processes on a real etcd, without Kubernetes. Names of tests say which capability they show."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from libs.model import keys
from libs.model.codec import to_dict
from libs.policy import autohep
from services.kube_controllers.app import ELECTION_KEY
from tests.contract.controllers_stage import LEASE_S, MARK, OPEN, Stage, until
from tests.contract.typha_stage import eventually

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("controllers")]


@pytest_asyncio.fixture(loop_scope="module")
async def stage(tmp_path: Path, crash_etcd: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path, crash_etcd) as made:
        yield made


# --- configuration ----------------------------------------------------------------------------------------------------


async def test_k05_the_default_is_created_and_created_again_and_its_status_tells_what_runs(stage: Stage) -> None:
    replica = stage.replica(LOG_LEVEL="debug")
    await stage.until_auto_create("Disabled")
    first = await stage.configuration()
    assert first is not None
    assert first["spec"]["controllers"]["node"]["hostEndpoint"]["autoCreate"] == "Disabled"
    assert first["status"]["environmentVars"] == {"LOG_LEVEL": "debug"}
    assert first["status"]["runningConfig"]["logSeverityScreen"] == "Debug"
    assert await stage.store.get(keys.resource_key("ClusterInformation", "default")) is not None
    await stage.resources.delete("KubeControllersConfiguration", "default")

    async def recreated() -> bool:
        now = await stage.configuration()
        return now is not None and now["metadata"]["uid"] != first["metadata"]["uid"] and bool(now["status"])

    await until(recreated, 20.0, lambda: "the configuration is created again")
    # A user who applies a file without a status wipes it; it comes back.
    await stage.apply("KubeControllersConfiguration", "default", {"controllers": {"node": {}}})
    await stage.until_auto_create("Disabled")
    status, text = await replica.get("/readiness")
    assert (status, "leading" in text) == (200, True), text
    replica.process.send_signal(signal.SIGTERM)
    assert await replica.status() == 0
    assert await stage.leader() == "", "an orderly end frees the lead at once"


async def test_k03_the_controller_is_switched_off_and_on_and_leaves_what_it_made(stage: Stage) -> None:
    await stage.node("n1", 1)
    stage.replica()
    await stage.until_auto_create("Disabled")
    await stage.configure(autoCreate="Enabled")
    await stage.until_endpoints("n1-auto-hep")
    await stage.apply("KubeControllersConfiguration", "default", {"controllers": {"policy": {}}})
    await stage.until_auto_create(None)
    await stage.node("n2", 2)
    await stage.resources.delete("Node", "n1")  # takes its host endpoints along, whoever runs
    assert set(await stage.endpoints()) == set()
    await stage.configure(autoCreate="Enabled")
    await stage.until_endpoints("n2-auto-hep")


async def test_k05_the_environment_wins_over_the_resource(stage: Stage) -> None:
    await stage.node("n1", 1)
    await stage.apply("KubeControllersConfiguration", "default", {})
    replica = stage.replica(AUTO_HOST_ENDPOINTS="enabled", ENABLED_CONTROLLERS="node,loadbalancer")
    await stage.until_endpoints("n1-auto-hep")
    await stage.until_auto_create("Enabled")
    found = await stage.configuration()
    assert found is not None
    assert found["status"]["environmentVars"] == {
        "AUTO_HOST_ENDPOINTS": "enabled", "ENABLED_CONTROLLERS": "node,loadbalancer",
    }  # fmt: skip
    assert "loadBalancer (no access to a Kubernetes API)" in replica.log.read_text()
    bad = stage.replica(ENABLED_CONTROLLERS="nodes")
    assert await bad.status() == 2
    assert "no such controller: nodes" in bad.log.read_text()


# --- host endpoints ---------------------------------------------------------------------------------------------------


async def test_e06_every_node_gets_one_and_loses_it_and_users_keep_theirs(stage: Stage) -> None:
    await stage.node("n1", 1)
    await stage.node("n2", 2)
    mine = {"node": "n2", "interfaceName": "eth0"}
    await stage.apply("HostEndpoint", "n2-auto-hep", mine, labels={"a": "mine"})
    await stage.apply("HostEndpoint", "other", {"node": "n1", "interfaceName": "eth7"})
    replica = stage.replica()
    await stage.until_auto_create("Disabled")
    await stage.configure(autoCreate="Enabled")
    found = await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "other")
    made = found["n1-auto-hep"]
    assert made.metadata.labels == {"kubernetes.io/hostname": "n1"} | MARK
    assert to_dict(made)["spec"] == {
        "node": "n1", "interfaceName": "*", "expectedIPs": ["192.0.2.1", "2001:db8::1"], "profiles": [OPEN],
    }  # fmt: skip
    assert to_dict(found["n2-auto-hep"])["spec"] == mine
    assert found["n2-auto-hep"].metadata.labels == {"a": "mine"}
    assert "host endpoint n2-auto-hep exists and is not one of ours" in replica.log.read_text()

    await stage.node("n3", 3)
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "n3-auto-hep", "other")
    await stage.relabel("n1", {"rack": "7"})

    async def relabelled() -> bool:  # old labels are gone, not merged
        return (await stage.endpoints())["n1-auto-hep"].metadata.labels == {"rack": "7"} | MARK

    await until(relabelled, 20.0, lambda: "labels of the node on its host endpoint")
    assert (await stage.endpoints())["n1-auto-hep"].metadata.uid == made.metadata.uid
    await stage.resources.delete("HostEndpoint", "n3-auto-hep")  # by hand: it comes back
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "n3-auto-hep", "other")
    await stage.store.delete(keys.resource_key("Node", "n3"))  # without what a client takes along
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "other")
    await stage.store.put(keys.resource_key("Node", "n1"), b'{"spec": "damaged"}')
    await stage.node("n4", 4)
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "n4-auto-hep", "other")
    await stage.configure(autoCreate="Disabled")
    await stage.until_endpoints("n2-auto-hep", "other")


async def test_e06_templates_make_one_for_each_node_and_interface_they_match(stage: Stage) -> None:
    interfaces = [
        {"name": "eth0", "addresses": ["10.1.0.1"]},
        {"name": "eth1", "addresses": ["10.2.0.1"]},
        {"name": "lo", "addresses": ["127.0.0.1"]},
    ]
    await stage.node("n1", 1, labels={"rack": "a"}, interfaces=interfaces)
    await stage.node("n2", 2, labels={"rack": "b"}, interfaces=interfaces[:1])
    stage.replica()
    await stage.until_auto_create("Disabled")
    await stage.configure(
        autoCreate="Enabled",
        createDefaultHostEndpoint="Disabled",
        templates=[
            {"generateName": "eth", "interfacePattern": "^eth", "nodeSelector": "rack == 'a'", "labels": {"l": "eth"}},
            {"generateName": "lan", "interfaceCIDRs": ["192.0.2.0/24", "2001:db8::/64"], "nodeSelector": "all()"},
            {"generateName": "none", "interfaceCIDRs": ["198.51.100.0/24"]},
        ],
    )
    found = await stage.until_endpoints(
        "n1-eth-eth0-auto-hep", "n1-eth-eth1-auto-hep", "n1-lan-auto-hep", "n2-lan-auto-hep"
    )
    eth1 = found["n1-eth-eth1-auto-hep"]
    assert (eth1.spec.interface_name, eth1.spec.expected_ips) == ("eth1", ["10.2.0.1"])
    assert eth1.metadata.labels == {"kubernetes.io/hostname": "n1", "rack": "a", "l": "eth"} | MARK
    lan = found["n2-lan-auto-hep"]
    assert (lan.spec.interface_name, lan.spec.expected_ips) == ("", ["192.0.2.2", "2001:db8::2"])
    await stage.relabel("n2", {"rack": "a"})
    await stage.until_endpoints(*found, "n2-eth-eth0-auto-hep")
    await stage.configure(autoCreate="Enabled")
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep")


async def test_e06_three_hundred_nodes_that_come_and_go_at_once(stage: Stage) -> None:
    stage.replica()
    await stage.until_auto_create("Disabled")
    await stage.configure(autoCreate="Enabled")
    started = time.monotonic()
    for number in range(300):
        await stage.node(f"n{number}", number % 250 + 1)
    names = [f"n{number}-auto-hep" for number in range(300)]
    await stage.until_endpoints(*names, timeout_s=60)
    print(f"300 nodes written one by one, and their host endpoints: {time.monotonic() - started:.2f} s")
    for number in range(0, 300, 2):
        await stage.store.delete(keys.resource_key("Node", f"n{number}"))
    await stage.until_endpoints(*names[1::2], timeout_s=60)


# --- replicas and faults ----------------------------------------------------------------------------------------------


async def test_k07_of_two_replicas_one_writes_and_the_other_takes_over_when_it_is_killed(stage: Stage) -> None:
    await stage.node("n1", 1)
    first = await stage.replica(AUTO_HOST_ENDPOINTS="enabled").until_leading()
    second = await stage.replica(AUTO_HOST_ENDPOINTS="enabled").until_ready()
    await stage.until_endpoints("n1-auto-hep")
    assert await second.metric("kube_controllers_leader") == 0
    assert await second.metric("kube_controllers_tenures_total") == 0
    assert await stage.leader() == f"{os.uname().nodename}.{first.process.pid}"
    created = (await stage.endpoints())["n1-auto-hep"]
    first.kill()
    started = time.monotonic()
    await stage.node("n2", 2)
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep")
    print(f"taken over from a killed leader after {time.monotonic() - started:.2f} s with a lease of {LEASE_S} s")
    await second.until_leading()
    assert (await stage.endpoints())["n1-auto-hep"] == created, "the new leader found it right and did not touch it"


async def test_k07_a_paused_leader_that_wakes_after_its_lease_writes_nothing(stage: Stage) -> None:
    await stage.node("n1", 1)
    replica = await stage.replica(AUTO_HOST_ENDPOINTS="enabled").until_leading()
    await stage.until_endpoints("n1-auto-hep")
    os.kill(replica.process.pid, signal.SIGSTOP)
    try:

        async def gone() -> bool:
            return await stage.leader() == ""

        await until(gone, 30.0, lambda: "the lease of the paused leader ends")
        # Another leader, who does nothing: whatever is written from now on, the one that was paused wrote.
        lease = await stage.store.lease_grant(60)
        await stage.store.create(ELECTION_KEY, b'{"holder":"another"}', lease=lease)
        await stage.node("n2", 2)
        await stage.store.delete(keys.resource_key("Node", "n1"))
    finally:
        os.kill(replica.process.pid, signal.SIGCONT)
    await replica.until_leading(False)

    async def knows() -> bool:
        return "leader is another" in (await replica.get("/readiness"))[1]

    await replica.until(knows, what="it knows of the other leader")
    assert set(await stage.endpoints()) == {"n1-auto-hep"}
    await stage.store.lease_revoke(lease)
    await stage.until_endpoints("n2-auto-hep")
    assert await replica.metric("kube_controllers_tenures_total") == 2


async def test_k08_etcd_stops_and_starts_and_nothing_is_deleted(stage: Stage) -> None:
    await stage.node("n1", 1)
    await stage.node("n2", 2)
    replica = await stage.replica(AUTO_HOST_ENDPOINTS="enabled").until_ready()
    before = await stage.until_endpoints("n1-auto-hep", "n2-auto-hep")
    stage.etcd.kill()
    await replica.until_ready(False, 30.0)
    await replica.until_leading(False, 30.0)
    assert (await replica.get("/liveness"))[0] == 200
    await stage.etcd.start_async()
    await replica.until_ready(timeout_s=30.0)
    await stage.node("n3", 3)
    found = await stage.until_endpoints("n1-auto-hep", "n2-auto-hep", "n3-auto-hep", timeout_s=30.0)
    assert {name: found[name] for name in before} == before, "they are the same objects at the same revisions"


async def test_it_starts_before_etcd_does(stage: Stage) -> None:
    stage.etcd.kill()
    replica = await stage.replica(AUTO_HOST_ENDPOINTS="enabled").until_ready(False)
    await stage.etcd.start_async()
    await replica.until_leading(timeout_s=30.0)
    await stage.node("n1", 1)
    await stage.until_endpoints("n1-auto-hep")


async def test_a_configuration_that_cannot_be_read_changes_nothing(stage: Stage) -> None:
    await stage.node("n1", 1)
    replica = stage.replica()
    await stage.until_auto_create("Disabled")
    await stage.configure(autoCreate="Enabled")
    await stage.until_endpoints("n1-auto-hep")
    key = keys.resource_key("KubeControllersConfiguration", "default")
    await stage.store.put(key, b'{"spec": []}')
    await eventually(lambda: "what was in force before stays so" in replica.log.read_text())
    await stage.node("n2", 2)
    await stage.until_endpoints("n1-auto-hep", "n2-auto-hep")
    found = await stage.store.get(key)
    assert found is not None
    assert found.value == b'{"spec": []}', "what a user may still want to repair is not written over"
    assert autohep.is_ours((await stage.endpoints())["n2-auto-hep"])
