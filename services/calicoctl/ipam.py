"""`calicoctl ipam show`: how full pools and blocks are, who has an address, which addresses are borrowed.

The facts come from `libs.ipam.usage`; here they get Calico's words and frames. An address that was assigned before it
was reserved counts as both, so the columns need not add up; free is what is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.ipam import keys
from libs.ipam.block import Block, decode_block
from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.ipam.usage import NO_POOL, PoolUsage, borrowed
from libs.store import Store
from services.calicoctl.output import boxed

Address = IPv4Address | IPv6Address

HEADINGS = ["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"]
BORROWED_HEADINGS = ["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"]


class AddressProblem(Exception):
    """Not an IP address."""


def parse_address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise AddressProblem(f"Invalid IP address specified: {text}") from None


async def show_usage(store: Store, *, with_blocks: bool) -> tuple[str, list[str]]:
    """(table, keys of blocks that cannot be read and are not counted). Raises IpamError for contradictory settings."""
    _blocks, broken = await _read_blocks(store)
    return usage_table(await IpamClient(store).usage(), with_blocks=with_blocks), broken


def usage_table(pools: list[PoolUsage], *, with_blocks: bool) -> str:
    """A row per pool, its blocks below when asked for; blocks in no pool come last, without a pool's row."""
    rows: list[list[str]] = [HEADINGS]
    for pool in pools:
        if pool.row.pool != NO_POOL:
            rows.append(list(pool.row.cells()))
        if with_blocks:
            rows += [list(block.cells()) for block in pool.blocks]
    return boxed(rows, right=frozenset({2, 3, 4, 5}))


async def show_address(store: Store, address: Address) -> str:
    info = await IpamClient(store).address_info(address)
    allocation = info.allocation
    if allocation is None or allocation.released_at is not None:
        return f"{address} is not assigned\n"
    lines = [f"IP {address} is in use", f"Handle ID: {allocation.handle or '<none>'}"]
    lines += _attributes("Active Owner Attributes", allocation.attrs) or ["No Active Owner attributes defined"]
    lines += _attributes("Alternate Owner Attributes", allocation.alternate)
    return "\n".join(lines) + "\n"


def _attributes(title: str, attributes: Mapping[str, str]) -> list[str]:
    return [f"{title}:", *(f"  {name}: {attributes[name]}" for name in sorted(attributes))] if attributes else []


async def show_borrowed(store: Store) -> str:
    blocks, _broken = await _read_blocks(store)
    rows = [BORROWED_HEADINGS]
    for lent in borrowed(blocks):
        owner = lent.owner.partition(":")[2]
        rows.append([str(lent.address), lent.node, str(lent.block), owner, lent.kind, lent.allocated_to])
    table = boxed(rows)
    nameless = sum(
        "node" not in allocation.attrs and allocation.released_at is None
        for block in blocks
        for allocation in block.allocated()
    )
    if nameless:
        table += (
            f"\nNote: found {nameless} IP allocations without an explicit node association. "
            "Unable to determine if they are borrowed.\n"
        )
    return table


async def _read_blocks(store: Store) -> tuple[list[Block], list[str]]:
    """All blocks, and the keys of those that cannot be read."""
    found, broken = [], []
    for version in (4, 6):
        for kv in (await store.list(keys.blocks(version))).kvs:
            try:
                found.append(decode_block(kv.value))
            except IpamError:
                broken.append(kv.key)
    return found, broken


async def show_configuration(store: Store) -> str:
    config = await IpamClient(store).get_config()
    rows = [
        ["PROPERTY", "VALUE"],
        ["StrictAffinity", str(config.strict_affinity).lower()],
        ["AutoAllocateBlocks", str(config.auto_allocate_blocks).lower()],
        ["MaxBlocksPerHost", str(config.max_blocks_per_host)],
        ["KubeVirtVMAddressPersistence", "Enabled" if config.vm_address_persistence else "Disabled"],
        ["IPCooldownSeconds", str(config.cooldown_s)],
    ]
    return boxed(rows)
