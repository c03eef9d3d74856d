"""What may be written depends on other resources: tiers and their policies, overlapping pools, filters of peers, nodes.

Each function reads what it needs through the client that calls it and raises a `ResourceError`, or returns what the
write must be conditional on, so that the answer still holds when the write happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from libs.model import keys
from libs.model.base import ObjectMeta, Resource
from libs.model.bgp import BGPConfiguration, BGPPeer
from libs.model.cluster import ClusterInformation
from libs.model.endpoints import HostEndpoint, WorkloadEndpoint
from libs.model.felixconfig import FelixConfiguration
from libs.model.policy import (
    BUILT_IN_TIERS,
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
from libs.resources import codec, tier_state
from libs.resources.errors import FieldProblem, Identity, NotFound, NotSupported, ValidationError
from libs.store.api import Compare

if TYPE_CHECKING:
    from libs.resources.client import ResourceClient

CLUSTER_INFORMATION = Identity("ClusterInformation", "default")
DEFAULT_ALLOW = "projectcalico-default-allow"
ROUTE_OWNERS = (FelixConfiguration, BGPConfiguration)
ENDS = ("FelixConfiguration", "IPPool", "Node", "Tier")
"""Kinds whose deletion depends on what is there, or takes other things along."""
TIERED = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
_BLOCKS = "/calico/ipam/v2/assignment/ipv{}/block/"


# --- built in --------------------------------------------------------------------------------------------------------


def is_default_allow(kind: str, name: str) -> bool:
    return kind == "Profile" and name == DEFAULT_ALLOW


def refuse_default_allow(operation: str, identity: Identity) -> None:
    """Raises NotSupported."""
    if is_default_allow(identity.kind, identity.name):
        raise NotSupported(operation, identity, "it is built in and not stored")


def is_built_in(resource: Resource) -> bool:
    """Shown to every reader, and not stored."""
    return is_default_allow(resource.kind, resource.metadata.name)


def default_allow_profile() -> Profile:
    """Allows everything; never stored, but every reader finds it."""
    allow = [Rule(action="Allow")]
    metadata = ObjectMeta(name=DEFAULT_ALLOW, resource_version="1")
    return Profile(metadata=metadata, spec=ProfileSpec(ingress=list(allow), egress=list(allow)))


def builtin_tiers() -> list[Tier]:
    return [
        Tier(metadata=ObjectMeta(name=name), spec=TierSpec(order=order, default_action=action))
        for name, (order, action) in BUILT_IN_TIERS.items()
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
        held = codec.readable("Tier", found)
        if held is not None and held.metadata.deletion_timestamp:
            raise NotSupported("create", codec.identity(resource), f"its tier {tier.name} is being deleted")
        condition = Compare(found.key, found.mod_revision)
        client.tiers_seen[tier.name] = condition
        return [condition]
    if isinstance(resource, IPPool):
        await _check_new_pool(client, resource)
    if isinstance(resource, BGPPeer):
        await _check_filters(client, resource)
    if isinstance(resource, ROUTE_OWNERS):
        await _check_route_owners(client, resource, None)
    return []


def seen(client: ResourceClient, resource: Resource) -> list[Compare]:
    """The same from what was seen before; empty where that does not do. A tier that has changed fails the write."""
    held = client.tiers_seen.get(resource.spec.tier or "default") if isinstance(resource, TIERED) else None
    return [held] if held else []


async def before_update(client: ResourceClient, resource: Resource, current: Resource) -> None:
    """Raises ValidationError for what an update must leave as it is."""
    from libs.model import validation  # of all kinds: who only reads need not wait for it

    if problems := validation.validate_update(current, resource):
        raise ValidationError(codec.identity(resource), problems)
    if isinstance(resource, BGPPeer):
        await _check_filters(client, resource)
    if isinstance(resource, ROUTE_OWNERS):
        await _check_route_owners(client, resource, current)


async def before_delete(client: ResourceClient, identity: Identity, current: Resource) -> None:
    """Raises NotSupported for a built-in tier or one that still has policies and no controller that would wait for
    their end, and for a configuration without which some routes would have two owners or none.
    """
    if identity.kind == "FelixConfiguration":
        if problems := await _route_owners(client, identity, ""):
            raise NotSupported("delete", identity, "; ".join(problems))
        return
    if identity.kind != "Tier":
        return
    if identity.name in BUILT_IN_TIERS:
        raise NotSupported("delete", identity, "it is a built-in tier")
    if isinstance(current, Tier) and tier_state.waits(current):
        return
    if left := await policies_of(client, identity.name):
        raise NotSupported("delete", identity, f"tier is not empty: {left[0]} is in it")


async def policies_of(client: ResourceClient, tier: str) -> list[Identity]:
    return [
        codec.identity(item)
        for policy in TIERED
        for item in (await client.list(policy.kind)).items
        if isinstance(item, TIERED) and (item.spec.tier or "default") == tier
    ]


async def _check_filters(client: ResourceClient, peer: BGPPeer) -> None:
    from libs.model import conflicts

    filters = {item.metadata.name for item in (await client.list("BGPFilter")).items} if peer.spec.filters else set()
    if problems := conflicts.missing_filters(peer, filters):
        raise ValidationError(codec.identity(peer), problems)


# --- who programs routes to other nodes' blocks ----------------------------------------------------------------------


def _selects_route_owner(resource: Resource | None) -> bool:
    """bgp knows only the configurations of the cluster and of nodes by name, so it would not follow."""
    return isinstance(resource, FelixConfiguration) and bool(
        resource.spec.node_selector and resource.spec.program_cluster_routes
    )


async def _check_route_owners(
    client: ResourceClient, resource: FelixConfiguration | BGPConfiguration, current: Resource | None
) -> None:
    identity = codec.identity(resource)
    if _selects_route_owner(resource):
        if not _selects_route_owner(current):
            reason = "must not be set together with nodeSelector: it belongs to `default` or `node.<name>`"
            raise ValidationError(identity, [FieldProblem("spec.programClusterRoutes", reason)])
        return
    if problems := await _route_owners(client, identity, resource.spec.program_cluster_routes or ""):
        raise ValidationError(identity, [FieldProblem("spec.programClusterRoutes", text) for text in problems])


async def _route_owners(client: ResourceClient, changed: Identity, value: str) -> list[str]:
    """Problems there would be if `changed` had this value, that are not there now: what was wrong before must not keep
    other fields from being changed.
    """
    from libs.model import conflicts

    felix: dict[str, str] = {}
    bgp: dict[str, str] = {}
    for item in (*(await client.list("FelixConfiguration")).items, *(await client.list("BGPConfiguration")).items):
        if isinstance(item, ROUTE_OWNERS) and item.spec.program_cluster_routes and not _selects_route_owner(item):
            found = felix if isinstance(item, FelixConfiguration) else bgp
            found[item.metadata.name] = item.spec.program_cluster_routes
    before = set(conflicts.route_owners(felix, bgp))
    (felix if changed.kind == "FelixConfiguration" else bgp)[changed.name] = value
    return [problem for problem in conflicts.route_owners(felix, bgp) if problem not in before]


# --- pools -----------------------------------------------------------------------------------------------------------


async def _check_new_pool(client: ResourceClient, pool: IPPool) -> None:
    from libs.model import conflicts

    others = [other for other in (await client.list("IPPool")).items if isinstance(other, IPPool)]
    prefix = _BLOCKS.format(6 if ":" in pool.spec.cidr else 4)
    listing = await client.store.list(prefix, keys_only=True)
    blocks = [key.cidr for kv in listing.kvs if isinstance(key := keys.parse_key(kv.key), keys.BlockKey)]
    problems = conflicts.overlapping_pools(pool, others) or conflicts.blocks_of_other_size(pool, blocks)
    if problems:
        raise ValidationError(codec.identity(pool), problems)


async def earlier_overlap(client: ResourceClient, pool: IPPool, revision: int) -> FieldProblem | None:
    """The problem with a pool just created at `revision`, if an overlapping one was created before it."""
    from libs.model import conflicts

    listing = await client.store.list(codec.prefix("IPPool"))
    earlier = [codec.readable("IPPool", kv) for kv in listing.kvs if kv.create_revision < revision]
    problems = conflicts.overlapping_pools(pool, [other for other in earlier if isinstance(other, IPPool)])
    return problems[0] if problems else None


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
