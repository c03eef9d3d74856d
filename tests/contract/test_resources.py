"""ResourceClient over the store in memory and over a real etcd: the same suite, and what the stored bytes look like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignIpRequest
from libs.model.base import Resource
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Conflict, NotFound, NotSupported, ValidationError
from libs.resources.patch import PatchType
from libs.resources.release import IpamRelease
from libs.store import Store, StoreConfig
from libs.store.etcd import connect
from libs.store.memory import MemoryStore
from libs.testkit.servers import EtcdServer

NOW = datetime(2026, 11, 23, 12, 40, 24, tzinfo=UTC)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    async with EtcdServer() as server:
        found = await connect(StoreConfig(endpoints=(server.endpoint,)))
        try:
            yield found
        finally:
            await found.close()


@pytest.fixture
async def client(store: Store) -> ResourceClient:
    async def at_once(_seconds: float) -> None:
        return

    made = ResourceClient(store, release=IpamRelease(store), now=lambda: NOW, sleep=at_once)
    await made.ensure_initialized()
    return made


def resource(kind: str, name: str, spec: dict[str, object] | None = None, namespace: str = "") -> Resource:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return codec.from_json(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec or {}}
    )


def pool(name: str, cidr: str, **spec: object) -> Resource:
    return resource("IPPool", name, {"cidr": cidr, **spec})


async def test_create_stamps_and_get_returns_what_create_returned(client: ResourceClient) -> None:
    written = await client.create(resource("Tier", "sec", {"order": 5}))
    assert written.created
    assert written.resource.metadata.creation_timestamp == "2026-11-23T12:40:24Z"
    assert len(written.resource.metadata.uid) == 36
    assert written.resource.metadata.resource_version == str(written.revision)
    assert await client.get("Tier", "sec") == written.resource


async def test_stored_bytes_are_calicos(client: ResourceClient, store: Store) -> None:
    policy = resource(
        "NetworkPolicy",
        "web",
        {"selector": "a == 'b' && c", "order": 10, "egress": [{"action": "Allow"}]}
        | {"selector": "a == 'b' && has(c)"},
        "shop",
    )
    written = await client.create(policy)
    kv = await store.get("/calico/resources/v3/projectcalico.org/networkpolicies/shop/web")
    assert kv is not None
    uid = written.resource.metadata.uid
    assert kv.value.decode() == (
        '{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"web","namespace":"shop",'
        f'"uid":"{uid}","creationTimestamp":"2026-11-23T12:40:24Z","labels":{{"projectcalico.org/tier":"default"}},'
        '"annotations":{"projectcalico.org/metadata":"{\\"name\\":\\"web\\"}"}},"spec":{"tier":"default","order":10,'
        '"egress":[{"action":"Allow"}],"selector":"a == \'b\' \\u0026\\u0026 has(c)","types":["Egress"]}}'
    )
    assert kv.mod_revision == written.revision


async def test_create_of_what_exists_is_refused(client: ResourceClient) -> None:
    await client.create(resource("Tier", "sec"))
    with pytest.raises(AlreadyExists):
        await client.create(resource("Tier", "sec", {"order": 1}))


async def test_update_is_compare_and_swap(client: ResourceClient) -> None:
    first = (await client.create(resource("Tier", "sec", {"order": 5}))).resource
    second = await client.update(model.Tier(metadata=first.metadata, spec=model.TierSpec(order=6)))
    assert second.resource.metadata.uid == first.metadata.uid
    with pytest.raises(Conflict) as caught:
        await client.update(model.Tier(metadata=first.metadata, spec=model.TierSpec(order=7)))
    assert caught.value.latest == str(second.revision)
    with pytest.raises(ValidationError, match="resourceVersion"):
        await client.update(resource("Tier", "sec"))
    await client.delete("Tier", "sec")
    with pytest.raises(NotFound):
        await client.update(second.resource)


async def test_apply_creates_then_replaces_then_leaves_alone(client: ResourceClient) -> None:
    created = await client.apply(resource("Tier", "sec", {"order": 5}))
    changed = await client.apply(resource("Tier", "sec", {"order": 6}))
    same = await client.apply(resource("Tier", "sec", {"order": 6}))
    assert (created.created, changed.created, same.created) == (True, False, False)
    assert created.revision < changed.revision == same.revision


async def test_patch_keeps_what_it_does_not_name(client: ResourceClient) -> None:
    await client.create(pool("p", "10.0.0.0/16", natOutgoing=True))
    patched = await client.patch("IPPool", "p", {"spec": {"disabled": True}}, PatchType.MERGE)
    spec = codec.to_json(patched.resource)["spec"]
    assert (spec["natOutgoing"], spec["disabled"]) == (True, True)


async def test_list_is_sorted_and_scoped(client: ResourceClient) -> None:
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y"), ("ab", "w")):
        await client.create(resource("NetworkSet", name, namespace=namespace))
    listed = await client.list("NetworkSet")
    assert [(item.namespace, item.name) for item in listed.items] == [("a", "y"), ("a", "z"), ("ab", "w"), ("b", "x")]
    assert [item.name for item in (await client.list("NetworkSet", "a")).items] == ["y", "z"]
    assert listed.revision >= max(int(item.metadata.resource_version) for item in listed.items)


async def test_delete_returns_what_went_and_its_revision(client: ResourceClient) -> None:
    created = await client.create(resource("Tier", "sec"))
    gone = await client.delete("Tier", "sec")
    assert gone.resource == created.resource
    assert gone.revision > created.revision
    with pytest.raises(NotFound):
        await client.delete("Tier", "sec")
    await client.create(resource("NetworkSet", "n", namespace="a"))
    with pytest.raises(Conflict):
        await client.delete("NetworkSet", "n", "a", resource_version="1")


async def test_initialisation_is_done_once_and_merges(client: ResourceClient) -> None:
    before = await client.get("ClusterInformation", "default")
    await client.ensure_initialized()
    assert await client.get("ClusterInformation", "default") == before
    await client.ensure_initialized("v3.33.0", "k8s,bgp")
    await client.ensure_initialized("", "bgp,kdd")
    spec = codec.to_json(await client.get("ClusterInformation", "default"))["spec"]
    assert spec == {
        "clusterGUID": codec.to_json(before)["spec"]["clusterGUID"],
        "clusterType": "k8s,bgp,kdd",
        "calicoVersion": "v3.33.0",
        "datastoreReady": True,
    }
    tiers = {item.name: codec.to_json(item)["spec"] for item in (await client.list("Tier")).items}
    assert tiers == {
        "default": {"order": 1000000, "defaultAction": "Deny"},
        "kube-admin": {"order": 1000, "defaultAction": "Pass"},
        "kube-baseline": {"order": 10000000, "defaultAction": "Pass"},
    }


async def test_a_locked_datastore_stays_locked(client: ResourceClient) -> None:
    await client.patch("ClusterInformation", "default", {"spec": {"datastoreReady": False}}, PatchType.MERGE)
    await client.ensure_initialized("v2", "x")
    assert codec.to_json(await client.get("ClusterInformation", "default"))["spec"]["datastoreReady"] is False


async def test_many_initialise_at_once(store: Store) -> None:
    clients = [ResourceClient(store) for _ in range(5)]
    await asyncio.gather(*(client.ensure_initialized("v1", f"t{n}") for n, client in enumerate(clients)))
    spec = codec.to_json(await clients[0].get("ClusterInformation", "default"))["spec"]
    assert sorted(spec["clusterType"].split(",")) == ["t0", "t1", "t2", "t3", "t4"]


async def test_a_policy_is_not_created_in_a_tier_deleted_meanwhile(client: ResourceClient) -> None:
    policy = resource("GlobalNetworkPolicy", "p", {"tier": "sec"})
    with pytest.raises(NotFound, match=r"Tier\(sec\)"):
        await client.create(policy)
    await client.create(resource("Tier", "sec"))
    await client.create(policy)
    with pytest.raises(NotSupported, match="not empty"):
        await client.delete("Tier", "sec")


async def test_a_tier_deleted_between_look_and_write_stops_the_policy(client: ResourceClient, store: Store) -> None:
    await client.create(resource("Tier", "sec"))
    original = store.txn

    async def txn(compares: object, ops: object) -> object:
        await store.delete(codec.key(codec.identity_of("Tier", "sec")))
        return await original(compares, ops)  # type: ignore[arg-type]

    store.txn = txn  # type: ignore[method-assign, assignment]
    with pytest.raises(NotFound, match=r"Tier\(sec\)"):
        await client.create(resource("GlobalNetworkPolicy", "p", {"tier": "sec"}))
    assert (await client.list("GlobalNetworkPolicy")).items == []


async def test_a_tier_changed_meanwhile_does_not_stop_a_policy(client: ResourceClient, store: Store) -> None:
    await client.create(resource("Tier", "sec"))
    key = codec.key(codec.identity_of("Tier", "sec"))
    original = store.txn
    changed: list[int] = []

    async def txn(compares: object, ops: object) -> object:
        if not changed:
            changed.append(1)
            kv = await store.get(key)
            assert kv is not None
            await store.put(key, kv.value)
        return await original(compares, ops)  # type: ignore[arg-type]

    store.txn = txn  # type: ignore[method-assign, assignment]
    await client.create(resource("GlobalNetworkPolicy", "p", {"tier": "sec"}))
    assert (await client.get("GlobalNetworkPolicy", "p")).name == "p"


async def test_what_was_seen_of_a_tier_holds_only_as_long_as_the_tier_does(
    client: ResourceClient, store: Store
) -> None:
    other = ResourceClient(store)
    await client.create(resource("Tier", "sec", {"order": 5}))
    await client.create(resource("GlobalNetworkPolicy", "sec.a", {"tier": "sec"}))
    with pytest.raises(AlreadyExists):
        await client.create(resource("GlobalNetworkPolicy", "sec.a", {"tier": "sec"}))
    await other.apply(resource("Tier", "sec", {"order": 6}))
    assert (await client.create(resource("GlobalNetworkPolicy", "sec.b", {"tier": "sec"}))).created

    for name in ("sec.a", "sec.b"):
        gone = await other.delete("GlobalNetworkPolicy", name)
        assert (gone.deleted, gone.resource.metadata.name) == (True, name)
    with pytest.raises(NotFound):
        await other.delete("GlobalNetworkPolicy", "sec.a")
    await other.delete("Tier", "sec")
    with pytest.raises(NotFound, match=r"Tier\(sec\)"):
        await client.create(resource("GlobalNetworkPolicy", "sec.c", {"tier": "sec"}))
    await other.create(resource("Tier", "sec"))
    assert (await client.create(resource("GlobalNetworkPolicy", "sec.c", {"tier": "sec"}))).created


async def test_a_policy_costs_one_request_once_its_tier_is_known(client: ResourceClient, store: Store) -> None:
    await client.create(resource("NetworkPolicy", "first", namespace="a"))
    asked: list[str] = []
    for name in ("get", "list", "txn", "update", "delete"):
        original = getattr(store, name)

        async def counted(*args: object, name: str = name, original: object = original, **kwargs: object) -> object:
            asked.append(name)
            return await original(*args, **kwargs)  # type: ignore[operator]

        setattr(store, name, counted)
    policy = resource("NetworkPolicy", "second", {"selector": "has(x)"}, "a")
    await client.create(policy)
    await client.apply(policy)
    await client.delete("NetworkPolicy", "second", "a")
    assert asked == ["txn", "txn", "delete"]


async def test_deleting_a_pool_gives_its_blocks_back(client: ResourceClient, store: Store) -> None:
    await client.create(resource("Node", "node1"))
    await client.create(pool("p", "10.0.0.0/16"))
    await client.create(pool("q", "10.1.0.0/16"))
    ipam = IpamClient(store)
    for address in ("10.0.0.1", "10.1.0.1"):
        await ipam.assign_ip(AssignIpRequest(address=ip_address(address), handle="h", node="node1"))
    await client.delete("IPPool", "p")
    owners = {str(block.cidr): str(block.owner) for block in await ipam.blocks()}
    assert owners == {"10.0.0.0/26": "None", "10.1.0.0/26": "host:node1"}
    assert [item.name for item in (await client.list("IPPool")).items] == ["q"]


async def test_deleting_a_node_takes_along_what_is_its_own(client: ResourceClient, store: Store) -> None:
    for node in ("node1", "node2"):
        await client.create(resource("Node", node))
    await client.create(pool("p", "10.0.0.0/16"))
    ipam = IpamClient(store)
    held = [("10.0.0.1", "h1", "node1"), ("10.0.0.2", "vxlan-tunnel-addr-node1", "node1"), ("10.0.9.1", "h2", "node2")]
    for address, handle, node in held:
        request = AssignIpRequest(address=ip_address(address), handle=handle, node=node, attrs={"node": node})
        await ipam.assign_ip(request)
    # A stale endpoint of node1 whose address node2 has by now: it must not be released.
    stale: dict[str, object] = {
        "orchestrator": "k8s",
        "node": "node1",
        "pod": "old",
        "endpoint": "eth0",
        "containerID": "c",
    }
    stale |= {"ipNetworks": ["10.0.9.1/32"], "interfaceName": "cali9"}
    await client.create(resource("WorkloadEndpoint", "node1-k8s-old-eth0", stale, "shop"))
    for address, node in (("10.0.0.1", "node1"), ("10.0.9.1", "node2")):
        spec: dict[str, object] = {"orchestrator": "k8s", "node": node, "pod": "web", "endpoint": "eth0"}
        spec |= {"ipNetworks": [f"{address}/32"], "interfaceName": "cali1", "containerID": "c"}
        await client.create(resource("WorkloadEndpoint", f"{node}-k8s-web-eth0", spec, "shop"))
        await client.create(resource("BGPPeer", f"peer-{node}", {"node": node, "peerIP": "192.0.2.1", "asNumber": 1}))
        await client.create(resource("FelixConfiguration", f"node.{node}"))
        await client.create(resource("BGPConfiguration", f"node.{node}"))
        await client.create(resource("HostEndpoint", f"hep-{node}", {"node": node, "interfaceName": "eth0"}))
    await client.create(resource("FelixConfiguration", "default"))
    await client.delete("Node", "node1")

    async def names(kind: str) -> list[str]:
        return [item.name for item in (await client.list(kind)).items]

    assert await names("Node") == ["node2"]
    assert await names("WorkloadEndpoint") == ["node2-k8s-web-eth0"]
    assert await names("BGPPeer") == ["peer-node2"]
    assert await names("FelixConfiguration") == ["default", "node.node2"]
    assert await names("BGPConfiguration") == ["node.node2"]
    assert await names("HostEndpoint") == ["hep-node2"]
    left = [str(allocation.address) for block in await IpamClient(store).blocks() for allocation in block.allocated()]
    assert left == ["10.0.9.1"]


async def test_values_written_by_the_real_calicoctl_are_read(client: ResourceClient, store: Store) -> None:
    """Legacy key with a `default.` prefix and no annotation, as clients before v3.32 wrote it."""
    value = {
        "kind": "GlobalNetworkPolicy",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default.old", "uid": "u", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"selector": "all()", "types": ["Ingress"]},
    }
    key = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/default.old"
    await store.put(key, json.dumps(value).encode())
    (found,) = (await client.list("GlobalNetworkPolicy")).items
    assert found.name == "old"
    assert found.metadata.labels == {"projectcalico.org/tier": "default"}
