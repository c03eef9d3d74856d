"""Row M15: all of ours start on the recorded etcd of a real Calico, and change nothing there that is not their own."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack

import pytest

from libs.store.api import Store
from libs.testkit.cluster import Cluster
from tests.cluster.conftest import open_world, until
from tests.cluster.test_node_supervised import Stage
from tests.contract.calico_data import recorded_text
from tests.contract.test_calico_data import FOREIGN

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]
RESOURCES = "/calico/resources/v3/projectcalico.org/"
STATUS = "/calico/felix/v"


async def _fill(store: Store, cluster: Cluster) -> None:
    for key, value in (recorded_text() | FOREIGN).items():
        await store.put(key, value.encode())


async def contents(store: Store) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await store.list("/")).kvs}


async def test_m15_our_services_leave_a_real_calicos_data_as_they_are() -> None:
    """node1 of the recording starts, with another address than it had; a pod comes and goes."""
    recorded_text()
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=1, services=False, daemons=("bgp",), fill=_fill)
        world = await open_world(stack, cluster)
        stage = Stage(world)
        process = stage.nodes["node1"]
        stack.callback(process.kill)
        before = await contents(world.store)
        for one in (*cluster.typhas, process):
            one.start()

        async def at_work() -> bool:  # not ready: the recording's other nodes and its router are not here
            process.require_running()
            said = (await stage.probe("node1", "readiness"))[1]
            return all(re.search(rf"^{name} +ok", said, re.M) for name in ("felix", "bgp", "TunnelAddresses"))

        await until(at_work, 90, "felix, bgp and the tunnel addresses are there")
        await cluster.add_namespace("default")
        added = {key for key in await contents(world.store) if key.startswith(f"{RESOURCES}profiles/k")}
        pod = await cluster.add_pod("node1", "late")
        assert str(pod.address(4)) == "10.65.166.131", "the head of the queue of the block that calico-ipam claimed"
        assert str(pod.address(6)) == "fd00:65:0:df9b:fa8:334a:557b:7741"
        await cluster.remove_pod(pod)

        async def released() -> bool:
            return not [key for key in await contents(world.store) if pod.container_id in key]

        await until(released, 30, "the pod's handle is gone")
        after = await contents(world.store)
    changed = {key for key, value in before.items() if after.get(key) != value}
    blocks = {key for key in before if "/assignment/" in key and "10.66." not in key}
    own = {f"{RESOURCES}nodes/node1", f"{RESOURCES}clusterinformations/default"}
    assert changed == own | blocks
    made = {key for key in after.keys() - before.keys() if not key.startswith(STATUS)} - added
    # Pool pool-vxlan selects it: an address for its tunnel, out of a block of its own.
    (block,) = (key for key in made if "/assignment/" in key)
    assert json.loads(after[block])["affinity"] == "host:node1"
    affinity = block.replace("/assignment/", "/host/node1/")
    assert made == {block, affinity, "/calico/ipam/v2/handle/vxlan-tunnel-addr-node1"}
    felix = json.loads(after[f"{RESOURCES}felixconfigurations/node.node1"])
    assert felix["spec"]["defaultEndpointToHostAction"] == "Accept"
    was, node = (json.loads(found[f"{RESOURCES}nodes/node1"]) for found in (before, after))
    assert node["metadata"] == was["metadata"]
    assert node["spec"]["bgp"]["asNumber"] == 64512
    assert node["spec"]["bgp"]["ipv4Address"] == "172.31.0.11/24"
    for key in blocks:  # a pod came and went: the same addresses are in use, and the queue goes on behind it
        old, new = (json.loads(found[key]) for found in (before, after))
        assert (new["allocations"], new["attributes"]) == (old["allocations"], old["attributes"])
        first, *rest = old["unallocated"]
        assert new["unallocated"] == [*rest, first]
        assert new["sequenceNumber"] == old["sequenceNumber"] + 2
