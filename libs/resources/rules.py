"""What may be written depends on other resources: tiers and their policies, overlapping pools, filters of peers, nodes.

Each function reads what it needs through the client that calls it and raises a `ResourceError`, or returns what the
write must be conditional on, so that the answer still holds when the write happens.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

import msgspec

from libs.model import validation
from libs.model.base import ObjectMeta, Resource
from libs.model.bgp import BGPPeer
from libs.model.cluster import ClusterInformation
from libs.model.endpoints import HostEndpoint, WorkloadEndpoint
from libs.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    Profile,
    ProfileSpec,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
    TierSpec,
)
from libs.model.pools import IPPool
from libs.resources import codec
from libs.resources.errors import FieldProblem, Identity, NotFound, NotSupported, ValidationError
from libs.store.api import Compare

if TYPE_CHECKING:
    from libs.resources.client import ResourceClient

Network = IPv4Network | IPv6Network

CLUSTER_INFORMATION = Identity("ClusterInformation", "default")
DEFAULT_ALLOW = "projectcalico-default-allow"
TIERED = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
BUILTIN_TIERS = {"default": (1e6, "Deny"), "kube-admin": (1e3, "Pass"), "kube-baseline": (1e7, "Pass")}
"""name -> (order, default action). They cannot be deleted, and these two fields cannot be changed."""

_BLOCKS = "/calico/ipam/v2/assignment/ipv{}/block/"


# --- built in --------------------------------------------------------------------------------------------------------


def is_default_allow(kind: str, name: str) -> bool:
    return kind == "Profile" and name == DEFAULT_ALLOW


def default_allow_profile() -> Profile:
    """Allows everything; never stored, but every reader finds it."""
    allow = [Rule(action="Allow")]
    metadata = ObjectMeta(name=DEFAULT_ALLOW, resource_version="1")
    return Profile(metadata=metadata, spec=ProfileSpec(ingress=list(allow), egress=list(allow)))


def builtin_tiers() -> list[Tier]:
    return [
        Tier(metadata=ObjectMeta(name=name), spec=TierSpec(order=order, default_action=action))
        for name, (order, action) in BUILTIN_TIERS.items()
    ]


def cluster_information(
    current: ClusterInformation | None, guid: str, version: str, cluster_type: str
) -> ClusterInformation:
    """What there is, with only what is missing or changed put in; cluster types are merged, in order of arrival.

    guid: 32 hexadecimal digits, used when the cluster has none yet.
    """
    base = current or ClusterInformation(metadata=ObjectMeta(name="default"))
    spec = base.spec
    types = [part for part in spec.cluster_type.split(",") if part]
    types += [part for part in cluster_type.split(",") if part and part not in types]
    merged = msgspec.structs.replace(
        spec,
        cluster_guid=spec.cluster_guid or guid,
        cluster_type=",".join(types),
        calico_version=version or spec.calico_version,
        datastore_ready=True if spec.datastore_ready is None else spec.datastore_ready,
    )
    return msgspec.structs.replace(base, spec=merged)


# --- before a write --------------------------------------------------------------------------------------------------


async def before_create(client: ResourceClient, resource: Resource) -> list[Compare]:
    """Conditions for the creating transaction. Raises NotFound for a missing tier, ValidationError for the rest."""
    if isinstance(resource, TIERED):
        # The tier is part of the condition: it cannot be deleted between this look and the write.
        tier = Identity("Tier", resource.spec.tier or "default")
        found = await client.store.get(codec.key(tier))
        if found is None:
            raise NotFound(tier)
        return [Compare(found.key, found.mod_revision)]
    if isinstance(resource, IPPool):
        await _check_new_pool(client, resource)
    if isinstance(resource, BGPPeer):
        await _check_filters(client, resource)
    return []


async def before_update(client: ResourceClient, resource: Resource, current: Resource) -> None:
    """Raises ValidationError for what an update must leave as it is."""
    if problems := validation.validate_update(current, resource):
        raise ValidationError(codec.identity(resource), problems)
    if isinstance(resource, BGPPeer):
        await _check_filters(client, resource)


async def before_delete(client: ResourceClient, identity: Identity) -> None:
    """Raises NotSupported for a built-in tier or one that still has policies."""
    if identity.kind != "Tier":
        return
    if identity.name in BUILTIN_TIERS:
        raise NotSupported("delete", identity, "it is a built-in tier")
    for policy in TIERED:
        for item in (await client.list(policy.kind)).items:
            if isinstance(item, TIERED) and (item.spec.tier or "default") == identity.name:
                raise NotSupported("delete", identity, f"tier is not empty: {codec.identity(item)} is in it")


async def _check_filters(client: ResourceClient, peer: BGPPeer) -> None:
    problems = []
    for index, name in enumerate(peer.spec.filters):
        if await client.store.get(codec.key(Identity("BGPFilter", name))) is None:
            problems.append(FieldProblem(f"spec.filters[{index}]", f"BGPFilter {name} does not exist", name))
    if problems:
        raise ValidationError(codec.identity(peer), problems)


# --- pools -----------------------------------------------------------------------------------------------------------


def cidr_of(pool: IPPool) -> Network | None:
    try:
        return ip_network(pool.spec.cidr, strict=False)
    except ValueError:
        return None


async def _check_new_pool(client: ResourceClient, pool: IPPool) -> None:
    cidr = cidr_of(pool)
    if cidr is None:
        return  # validation has said so
    for other in (await client.list("IPPool")).items:
        if isinstance(other, IPPool) and other.metadata.name != pool.metadata.name and _overlap(cidr, cidr_of(other)):
            raise ValidationError(codec.identity(pool), [_overlaps(pool, other)])
    wanted = pool.spec.block_size
    for kv in (await client.store.list(_BLOCKS.format(cidr.version), keys_only=True)).kvs:
        address, _, length = kv.key.rsplit("/", 1)[1].rpartition("-")
        try:
            block = ip_network(f"{address}/{length}", strict=False)
        except ValueError:
            continue
        if _overlap(cidr, block) and block.prefixlen != wanted:
            message = f"must be {block.prefixlen}, the size of existing IPAM block {block}, or release that block first"
            raise ValidationError(codec.identity(pool), [FieldProblem("spec.blockSize", message, wanted)])


async def earlier_overlap(client: ResourceClient, pool: IPPool, revision: int) -> FieldProblem | None:
    """The problem with a pool just created at `revision`, if an overlapping one was created before it."""
    cidr = cidr_of(pool)
    listing = await client.store.list(codec.prefix("IPPool"))
    for kv in listing.kvs:
        if kv.create_revision < revision and (other := codec.readable("IPPool", kv)) is not None:
            assert isinstance(other, IPPool)
            if other.metadata.name != pool.metadata.name and _overlap(cidr, cidr_of(other)):
                return _overlaps(pool, other)
    return None


def _overlap(one: Network | None, other: Network | None) -> bool:
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)


def _overlaps(pool: IPPool, other: IPPool) -> FieldProblem:
    message = f"{pool.spec.cidr} overlaps with the CIDR {other.spec.cidr} of IPPool({other.metadata.name})"
    return FieldProblem("spec.cidr", message, pool.spec.cidr)


# --- nodes -----------------------------------------------------------------------------------------------------------


async def belonging_to_node(client: ResourceClient, node: str) -> list[Identity]:
    """Resources that go with a node, in the order in which Calico deletes them."""
    endpoints = (await client.list("WorkloadEndpoint")).items
    found = [
        codec.identity(item) for item in endpoints if isinstance(item, WorkloadEndpoint) and item.spec.node == node
    ]
    peers = (await client.list("BGPPeer")).items
    found += [codec.identity(item) for item in peers if isinstance(item, BGPPeer) and item.spec.node == node]
    found += [Identity(kind, f"node.{node}") for kind in ("FelixConfiguration", "BGPConfiguration")]
    hosts = (await client.list("HostEndpoint")).items
    found += [codec.identity(item) for item in hosts if isinstance(item, HostEndpoint) and item.spec.node == node]
    return found
