"""Does what address management has stored agree with itself and with who uses addresses: `ipam check`. Pure.

    ledger (blocks, handles), users (nodes, endpoints), pools ──► audit() ──► Audit

A problem is one of: an address that is allocated and used by nobody; one in use and in no pool that gives addresses;
one in use and in such a pool, but free; a handle without addresses; a block that contradicts itself or cannot be read.
An address that cools down is neither in use nor a problem. What cannot be judged counts as in use: addresses of load
balancers, whose services only Kubernetes knows, and of pods in a namespace with an endpoint that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from libs.ipam.block import Allocation, Block, contradictions
from libs.ipam.handles import WINDOWS_RESERVED
from libs.ipam.pools import Pool, pool_of
from libs.ipam.view import Ledger, Users
from libs.ipam.wire import Address

LOAD_BALANCER = "LoadBalancer"


@dataclass(frozen=True, slots=True)
class Entry:
    """An allocation with who uses it. node: of the attributes, else the block's host."""

    allocation: Allocation
    node: str
    borrowed: bool
    owners: tuple[str, ...]

    @property
    def leaked(self) -> bool:
        return not self.owners and self.allocation.released_at is None


@dataclass(frozen=True, slots=True)
class Audit:
    """in_use: address -> who has it. outside, unallocated: of in_use. invalid: block or key -> what is wrong."""

    entries: tuple[Entry, ...]
    in_use: dict[Address, tuple[str, ...]]
    outside: tuple[Address, ...]
    unallocated: tuple[Address, ...]
    leaked_handles: tuple[str, ...]
    missing_handles: tuple[str, ...]
    invalid: dict[str, str] = field(default_factory=dict)

    @property
    def leaked(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.leaked]

    @property
    def problems(self) -> int:
        found = len(self.leaked) + len(self.outside) + len(self.unallocated)
        return found + len(self.leaked_handles) + len(self.invalid)


def audit(ledger: Ledger, users: Users, pools: Iterable[Pool]) -> Audit:
    active = [pool for pool in pools if not pool.disabled]
    owners: dict[Address, list[str]] = {}
    for name, node in users.nodes.items():
        for address in node.tunnels.values():
            owners.setdefault(address, []).append(f"Node({name})")
    for workloads in users.pods.values():
        for workload in workloads:
            for address in workload.addresses:
                owners.setdefault(address, []).append(f"Workload({workload.name})")
    in_use = {address: tuple(owners[address]) for address in sorted(owners, key=_order)}
    entries = [
        _entry(block, allocation, in_use.get(allocation.address, ()), users)
        for block in ledger.blocks
        for allocation in block.allocated()
    ]
    entries.sort(key=lambda entry: _order(entry.allocation.address))
    allocated = {entry.allocation.address for entry in entries if entry.allocation.released_at is None}
    free = [address for address in in_use if address not in allocated]
    held = {entry.allocation.handle for entry in entries if entry.allocation.handle is not None} - {WINDOWS_RESERVED}
    invalid = {str(block.cidr): "; ".join(wrong) for block in ledger.blocks if (wrong := contradictions(block))}
    return Audit(
        tuple(entries),
        in_use,
        tuple(address for address in free if pool_of(active, address) is None),
        tuple(address for address in free if pool_of(active, address) is not None),
        tuple(handle for handle in ledger.handles if handle not in held),
        tuple(sorted(handle for handle in held if handle is not None and handle not in ledger.handles)),
        {**invalid, **dict.fromkeys(ledger.unreadable, "cannot be read")},
    )


def _entry(block: Block, allocation: Allocation, owners: tuple[str, ...], users: Users) -> Entry:
    host = block.owner.name if block.owner is not None and block.owner.kind == "host" else ""
    node = allocation.attrs.get("node") or host
    namespace = allocation.attrs.get("namespace", "")
    if allocation.handle == WINDOWS_RESERVED:
        owners = (*owners, "Reserved for Windows")
    elif allocation.attrs.get("type") == LOAD_BALANCER:
        owners = (*owners, f"Service({namespace}/{allocation.attrs.get('service', '')})")
    elif not owners and namespace in users.blind:
        owners = (f"Unreadable({namespace})",)
    return Entry(allocation, node, node != host, owners)


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
