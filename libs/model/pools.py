"""Address management as users see it: pools, reservations, settings, and views of affinities, blocks and handles.

Allocation itself works on keys of its own below `/calico/ipam/v2/` (`libs.ipam`); in etcd the kinds here are not linked
to them.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Condition, Resource, V3Struct, always


class IPPoolSpec(V3Struct):
    """cidr: masked network. block_size: prefix length, 0 when not chosen. Modes: Never, Always, CrossSubnet."""

    cidr: str = always("")
    vxlan_mode: str = ""
    ipip_mode: str = ""
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = False
    block_size: int = 0
    node_selector: str = ""
    namespace_selector: str = ""
    allowed_uses: list[str] = field(default_factory=list)
    assignment_mode: str | None = None


class IPPoolStatus(V3Struct):
    conditions: list[Condition] = field(default_factory=list)


class IPPool(Resource):
    kind: ClassVar[str] = "IPPool"
    spec: IPPoolSpec = field(default_factory=IPPoolSpec)
    status: IPPoolStatus | None = None


class IPReservationSpec(V3Struct):
    reserved_cidrs: list[str] = field(default_factory=list)


class IPReservation(Resource):
    kind: ClassVar[str] = "IPReservation"
    spec: IPReservationSpec = field(default_factory=IPReservationSpec)


class IPAMConfigurationSpec(V3Struct):
    """kube_virt_vm_address_persistence: Enabled or Disabled; None means Enabled."""

    strict_affinity: bool = always(False)
    max_blocks_per_host: int = 0
    auto_allocate_blocks: bool = always(True)
    kube_virt_vm_address_persistence: str | None = None
    ip_cooldown_seconds: int | None = None


class IPAMConfiguration(Resource):
    kind: ClassVar[str] = "IPAMConfiguration"
    spec: IPAMConfigurationSpec = field(default_factory=IPAMConfigurationSpec)


class BlockAffinitySpec(V3Struct):
    """state: confirmed, pending or pendingDeletion. type: host or virtual."""

    state: str = always("")
    node: str = always("")
    type: str = ""
    cidr: str = always("")
    deleted: bool = False


class BlockAffinity(Resource):
    kind: ClassVar[str] = "BlockAffinity"
    spec: BlockAffinitySpec = field(default_factory=BlockAffinitySpec)


class AllocationAttribute(V3Struct):
    """Who holds an address: a handle and free text about it. released_at: it is free, but rests since then."""

    handle_id: str | None = field(default=None, name="handle_id")
    secondary: dict[str, str] = field(default_factory=dict)
    alternate_owner_attrs: dict[str, str] = field(default_factory=dict)
    released_at: str | None = None


class IPAMBlockSpec(V3Struct):
    """allocations[i] is an index into attributes, or null for a free address."""

    cidr: str = always("")
    affinity: str | None = None
    affinity_claim_time: str | None = None
    allocations: list[int | None] = field(default_factory=list)
    unallocated: list[int] = field(default_factory=list)
    attributes: list[AllocationAttribute] = field(default_factory=list)
    sequence_number: int = 0
    sequence_number_for_allocation: dict[str, int] = field(default_factory=dict)
    deleted: bool = False


class IPAMBlock(Resource):
    kind: ClassVar[str] = "IPAMBlock"
    spec: IPAMBlockSpec = field(default_factory=IPAMBlockSpec)


class IPAMHandleSpec(V3Struct):
    """block: addresses held, by block."""

    handle_id: str = always("")
    block: dict[str, int] = field(default_factory=dict)
    deleted: bool = False


class IPAMHandle(Resource):
    kind: ClassVar[str] = "IPAMHandle"
    spec: IPAMHandleSpec = field(default_factory=IPAMHandleSpec)
