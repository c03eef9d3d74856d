"""How full pools and blocks are, who borrows, who has an address: the facts behind `ipam show`. Pure.

In use: assigned or cooling down. Reserved: covered by an IPReservation, assigned or not. Free: neither; for a pool
that includes the space without blocks. An address may be in use and reserved, so the three columns need not add up to
the total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from libs.ipam.block import Allocation, Block
from libs.ipam.handles import WINDOWS_RESERVED
from libs.ipam.pools import Pool, Reservations, pool_of
from libs.ipam.wire import Address, Network

NO_POOL = "(no pool)"
EVERYWHERE: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; counts of addresses."""

    grouping: str  # "IP Pool" or "Block"
    cidr: Network
    total: int
    in_use: int
    reserved: int
    free: int
    owner: str = ""  # of a block: `host:node1`; "" when nobody owns it, and for pools
    pool: str = ""  # name; NO_POOL for blocks outside every pool

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """As the command prints them: GROUPING, CIDR, IPS TOTAL, IPS IN USE, IPS RESERVED, IPS FREE."""
        counts = (self.in_use, self.reserved, self.free)
        in_use, reserved, free = (f"{_short(n)} ({_percent(n, self.total)}%)" for n in counts)
        return self.grouping, str(self.cidr), _short(self.total), in_use, reserved, free


@dataclass(frozen=True, slots=True)
class PoolUsage:
    row: Row
    blocks: list[Row]


@dataclass(frozen=True, slots=True)
class Borrowed:
    """An address of one host's block that another host uses."""

    address: Address
    node: str
    block: Network
    owner: str  # `host:node1`, "" for a block without owner
    kind: str  # pod, service, tunnel's type, or "" when the attributes do not tell
    allocated_to: str  # `namespace/pod`, the tunnel's node, else the handle


@dataclass(frozen=True, slots=True)
class AddressInfo:
    """`allocation` None: not assigned. `borrowed`: used by another host than the block's owner."""

    address: Address
    pool: Pool | None
    block: Block | None
    allocation: Allocation | None
    reserved: bool
    borrowed: bool = field(default=False)


def usage(pools: Sequence[Pool], blocks: Iterable[Block], reservations: Reservations) -> list[PoolUsage]:
    """A line per pool in the given order with its blocks by address; blocks of no pool come last, one group per IP
    version.
    """
    grouped: dict[str, list[Block]] = {pool.name: [] for pool in pools}
    orphans: dict[int, list[Block]] = {4: [], 6: []}
    for block in blocks:
        pool = pool_of(pools, block.cidr.network_address)
        (grouped[pool.name] if pool else orphans[block.cidr.version]).append(block)
    found = []
    for pool in pools:
        rows = _block_rows(grouped[pool.name], reservations, pool.name)
        total, reserved = pool.cidr.num_addresses, reservations.count_in(pool.cidr)
        # Free of the whole pool: take away what is reserved, then what is used and not reserved as well.
        used_unreserved = sum(row.total - row.free - row.reserved for row in rows)
        in_use = sum(row.in_use for row in rows)
        free = total - reserved - used_unreserved
        found.append(PoolUsage(Row("IP Pool", pool.cidr, total, in_use, reserved, free, pool=pool.name), rows))
    for version, lost in orphans.items():
        if lost:
            rows = _block_rows(lost, reservations, NO_POOL)
            total, in_use = sum(row.total for row in rows), sum(row.in_use for row in rows)
            reserved, free = sum(row.reserved for row in rows), sum(row.free for row in rows)
            found.append(
                PoolUsage(Row("IP Pool", EVERYWHERE[version], total, in_use, reserved, free, pool=NO_POOL), rows)
            )
    return found


def _block_rows(blocks: list[Block], reservations: Reservations, pool: str) -> list[Row]:
    rows = []
    for block in sorted(blocks, key=lambda block: int(block.cidr.network_address)):
        used = {allocation.address for allocation in block.allocated()}
        reserved = reservations.count_in(block.cidr)
        both = sum(reservations.covers(address) for address in used) if reserved else 0
        free = block.size - len(used) - reserved + both
        owner = str(block.owner) if block.owner else ""
        rows.append(Row("Block", block.cidr, block.size, len(used), reserved, free, owner, pool))
    return rows


def borrowed(blocks: Iterable[Block]) -> list[Borrowed]:
    """Addresses whose attributes name another node than the block's owner, by address."""
    found = []
    for block in blocks:
        for allocation in block.allocated():
            if is_borrowed(block, allocation):
                kind, whose = _describe(allocation)
                owner = str(block.owner) if block.owner else ""
                node = allocation.attrs.get("node", "")
                found.append(Borrowed(allocation.address, node, block.cidr, owner, kind, whose))
    return sorted(found, key=lambda b: (b.address.version, int(b.address)))


def is_borrowed(block: Block, allocation: Allocation) -> bool:
    node = allocation.attrs.get("node")
    if node is None or allocation.released_at is not None or allocation.handle == WINDOWS_RESERVED:
        return False
    return block.owner is None or (block.owner.kind == "host" and block.owner.name != node)


def address_info(
    address: Address, pools: Sequence[Pool], blocks: Iterable[Block], reservations: Reservations
) -> AddressInfo:
    pool = pool_of(pools, address)
    block = next((block for block in blocks if address in block.cidr), None)
    allocation = block.allocation(address) if block else None
    lent = block is not None and allocation is not None and is_borrowed(block, allocation)
    return AddressInfo(address, pool, block, allocation, reservations.covers(address), lent)


def _describe(allocation: Allocation) -> tuple[str, str]:
    attrs: Mapping[str, str] = allocation.attrs
    if "pod" in attrs:
        return "pod", f"{attrs.get('namespace', '')}/{attrs['pod']}"
    if "service" in attrs:
        return "service", f"{attrs.get('namespace', '')}/{attrs['service']}"
    if "type" in attrs:
        return attrs["type"], attrs.get("node", "")
    return "", allocation.handle or ""


def _short(count: int) -> str:
    """Five significant digits: 65536, 1.3107e+05."""
    return f"{count:.5g}"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f}"
