"""Between a resource as users know it and the value under its key.

Writing forces what Calico's client forces: no resourceVersion; uid and creationTimestamp present; policies carry the
tier label and the annotation with their v3 name; workload endpoints carry their namespace and orchestrator as labels.
Reading undoes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from msgspec import field

from libs.model import keys, kinds
from libs.model.base import ObjectMeta, Resource, V3Struct
from libs.model.codec import DecodeError, decode_struct, encode
from libs.model.endpoints import WorkloadEndpoint
from libs.model.pools import (
    AllocationAttribute,
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMConfiguration,
    IPAMConfigurationSpec,
    IPAMHandle,
    IPAMHandleSpec,
)

R = TypeVar("R", bound=Resource)

METADATA_ANNOTATION = "projectcalico.org/metadata"
TIER_LABEL = "projectcalico.org/tier"
NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
DEFAULT_TIER = "default"


def rfc3339(moment: datetime) -> str:
    """Whole seconds, UTC: `2026-11-23T12:40:24Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_storage(resource: Resource, *, now: datetime | None = None, uid: str = "") -> bytes:
    """The value to store. now and uid are what a new resource gets; they do not replace what is there.

    Defaults are not filled in here. Raises ValueError when uid or creation time are missing and not given.
    """
    metadata = resource.metadata
    created = metadata.creation_timestamp or (rfc3339(now) if now is not None else "")
    identity = metadata.uid or uid
    if not created or not identity:
        raise ValueError(f"{resource.kind} {metadata.name!r} has no {'uid' if created else 'creation time'}")
    stored = msgspec.structs.replace(
        metadata, resource_version="", self_link="", uid=identity, creation_timestamp=created
    )
    _force_labels(resource, stored)
    return encode(msgspec.structs.replace(resource, metadata=stored))


def _force_labels(resource: Resource, metadata: ObjectMeta) -> None:
    """Give `metadata` (ours to change, its maps are not) what readers expect to find there."""
    if kinds.kind(type(resource)).policy:
        tier = getattr(resource.spec, "tier", "") or DEFAULT_TIER
        name = msgspec.json.encode({"name": metadata.name}).decode()
        metadata.labels = {**metadata.labels, TIER_LABEL: tier}
        metadata.annotations = {**metadata.annotations, METADATA_ANNOTATION: name}
    elif isinstance(resource, WorkloadEndpoint):
        forced = {NAMESPACE_LABEL: metadata.namespace, ORCHESTRATOR_LABEL: resource.spec.orchestrator}
        metadata.labels = {**metadata.labels, **forced}


def from_storage(key: str, value: bytes, mod_revision: int) -> Resource:
    """The resource under a key of `keys.parse_key`. IPAM's own values come as the kinds that show them.

    Raises DecodeError: the key is none of ours, or the value is not JSON of its kind.
    """
    parsed = keys.parse_key(key)
    match parsed:
        case None:
            raise DecodeError(f"{key} is not the key of a resource")
        case keys.ResourceKey():
            resource = decode_struct(kinds.kind(parsed.kind).struct, value)
            resource.metadata.name = resource.metadata.name or parsed.name
            resource.metadata.namespace = resource.metadata.namespace or parsed.namespace
            if kinds.kind(parsed.kind).policy:
                _strip_policy_metadata(resource)
        case keys.BlockKey():
            resource = _block(parsed, value)
        case keys.AffinityKey():
            resource = _affinity(parsed, value)
        case keys.HandleKey():
            handle = decode_struct(_HandleValue, value)
            resource = IPAMHandle(
                spec=IPAMHandleSpec(handle_id=parsed.handle_id, block=handle.block, deleted=handle.deleted)
            )
            resource.metadata.name = parsed.name
        case keys.IPAMConfigKey():
            resource = _config(value)
    resource.metadata.resource_version = str(mod_revision)
    return resource


def _strip_policy_metadata(resource: Resource) -> None:
    """Policies were once stored as `default.<name>`; the annotation says what the user called them."""
    metadata = resource.metadata
    tier = getattr(resource.spec, "tier", "")
    annotation = metadata.annotations.pop(METADATA_ANNOTATION, None)
    if annotation is not None:
        try:
            name = msgspec.json.decode(annotation, type=dict[str, object]).get("name")
        except msgspec.DecodeError as error:
            raise DecodeError(f"metadata.annotations[{METADATA_ANNOTATION}]: {error}") from error
        if isinstance(name, str) and name:
            metadata.name = name
    elif tier in ("", DEFAULT_TIER):
        metadata.name = metadata.name.removeprefix("default.")
    metadata.labels.setdefault(TIER_LABEL, tier or DEFAULT_TIER)


# --- values of IPAM's own keys ----------------------------------------------------------------------------------------


class _BlockValue(V3Struct):
    """host_affinity: what the oldest blocks have in place of affinity, a node's name."""

    cidr: str = ""
    affinity: str | None = None
    host_affinity: str | None = None
    affinity_claim_time: str | None = field(default=None, name="affinity_claim_time")
    allocations: list[int | None] = field(default_factory=list)
    unallocated: list[int] = field(default_factory=list)
    attributes: list[AllocationAttribute] = field(default_factory=list)
    sequence_number: int = 0
    sequence_number_for_allocation: dict[str, int] = field(default_factory=dict)
    deleted: bool = False


class _AffinityValue(V3Struct):
    state: str = ""
    deleted: bool = False


class _HandleValue(V3Struct):
    block: dict[str, int] = field(default_factory=dict)
    deleted: bool = False


class _ConfigValue(V3Struct):
    """Two of the names are in snake_case. What is absent is false, whatever the defaults of an absent key are."""

    strict_affinity: bool = field(default=False, name="strict_affinity")
    auto_allocate_blocks: bool = field(default=False, name="auto_allocate_blocks")
    max_blocks_per_host: int = 0
    kube_virt_vm_address_persistence: str | None = None
    ip_cooldown_seconds: int | None = None


def _block(key: keys.BlockKey, value: bytes) -> IPAMBlock:
    stored = decode_struct(_BlockValue, value)
    return IPAMBlock(
        metadata=ObjectMeta(name=key.name),
        spec=IPAMBlockSpec(
            cidr=stored.cidr or key.name,
            affinity=stored.affinity or (f"host:{stored.host_affinity}" if stored.host_affinity else None),
            affinity_claim_time=stored.affinity_claim_time,
            allocations=stored.allocations,
            unallocated=stored.unallocated,
            attributes=stored.attributes,
            sequence_number=stored.sequence_number,
            sequence_number_for_allocation=stored.sequence_number_for_allocation,
            deleted=stored.deleted,
        ),
    )


def _affinity(key: keys.AffinityKey, value: bytes) -> BlockAffinity:
    # The oldest clients wrote an empty value for a confirmed affinity.
    stored = decode_struct(_AffinityValue, value) if value else _AffinityValue()
    spec = BlockAffinitySpec(
        state=stored.state or "confirmed",
        node=key.owner,
        type=key.owner_type,
        cidr=str(key.cidr),
        deleted=stored.deleted,
    )
    return BlockAffinity(metadata=ObjectMeta(name=key.name), spec=spec)


def _config(value: bytes) -> IPAMConfiguration:
    stored = decode_struct(_ConfigValue, value)
    spec = IPAMConfigurationSpec(
        strict_affinity=stored.strict_affinity,
        auto_allocate_blocks=stored.auto_allocate_blocks,
        max_blocks_per_host=stored.max_blocks_per_host,
        kube_virt_vm_address_persistence=stored.kube_virt_vm_address_persistence,
        ip_cooldown_seconds=stored.ip_cooldown_seconds,
    )
    return IPAMConfiguration(metadata=ObjectMeta(name="default"), spec=spec)
