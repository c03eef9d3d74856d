"""`calicoctl ipam split`: one pool becomes several of equal size, with all its blocks and addresses kept.

One transaction takes the old pool away and puts the new ones in its place, on condition that the datastore is still
locked, so nobody ever sees an address without a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_network

import msgspec

from libs.ipam.wire import Network
from libs.model.base import ObjectMeta
from libs.model.cluster import ClusterInformation
from libs.model.pools import IPPool
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.store.api import Compare, Delete, Op, Put

MAX_PARTS = 64  # etcd takes 128 operations in a transaction
NAME_BYTES = 253


class SplitProblem(Exception):
    """Nothing was changed."""


def parts(cidr: Network, number: int, block_size: int) -> list[Network]:
    """Raises SplitProblem for a number that is no power of 2, and for parts smaller than a block."""
    power = number.bit_length() - 1
    if number < 2 or 1 << power != number:
        raise SplitProblem(f"number to split CIDR into is not a valid power of 2: {number}")
    if number > MAX_PARTS:
        raise SplitProblem(f"at most {MAX_PARTS} parts at once; split the parts again")
    if cidr.prefixlen + power > cidr.max_prefixlen:
        raise SplitProblem(f"the CIDR {cidr} is not large enough to be split into {number} parts")
    if cidr.prefixlen + power > block_size:
        raise SplitProblem(f"a part of {cidr} would be smaller than its blocks of size /{block_size}")
    return list(cidr.subnets(prefixlen_diff=power))


def children(pool: IPPool, number: int) -> list[IPPool]:
    """Named `split-<pool>-<i>`; everything but name, CIDR and history is the parent's. Raises SplitProblem."""
    if pool.metadata.deletion_timestamp:
        raise SplitProblem(f"IP pool {pool.metadata.name} is being deleted")
    try:
        cidr = ip_network(pool.spec.cidr, strict=False)
    except ValueError as error:
        raise SplitProblem(f"IP pool {pool.metadata.name}: {error}") from error
    made = []
    for index, part in enumerate(parts(cidr, number, pool.spec.block_size or cidr.max_prefixlen)):
        suffix = f"-{index}"
        name = f"split-{pool.metadata.name}"[: NAME_BYTES - len(suffix)] + suffix
        metadata = ObjectMeta(
            name=name,
            labels=pool.metadata.labels,
            annotations=pool.metadata.annotations,
            finalizers=pool.metadata.finalizers,
        )
        made.append(IPPool(metadata=metadata, spec=msgspec.structs.replace(pool.spec, cidr=str(part))))
    return made


async def split(
    client: ResourceClient, name: str, cidr: str, number: int, uids: Sequence[str], now: datetime
) -> list[IPPool]:
    """The new pools. uids: one for each. Raises SplitProblem, ResourceError."""
    cluster = await client.get("ClusterInformation", "default")
    assert isinstance(cluster, ClusterInformation)
    if cluster.spec.datastore_ready is not False:
        raise SplitProblem("the datastore is not locked: run `calicoctl datastore migrate lock` first")
    pool = await _find(client, name, cidr)
    made = children(pool, number)
    key = codec.key(codec.identity(pool))
    compares = [
        Compare(key, int(pool.metadata.resource_version)),
        Compare(codec.key(codec.identity(cluster)), int(cluster.metadata.resource_version)),
    ]
    ops: list[Op] = [Delete(key)]
    created = codec.timestamp(now)
    for child, uid in zip(made, uids, strict=True):
        child_key, value = codec.to_storage(codec.with_metadata(child, creation_timestamp=created, uid=uid))
        compares.append(Compare(child_key, 0))
        ops.append(Put(child_key, value))
    result = await client.store.txn(compares, ops)
    if not result.succeeded:
        taken = [c.metadata.name for c in made if result.current.get(codec.key(codec.identity(c))) is not None]
        why = f"IP pool {taken[0]} exists already" if taken else "the pool or the lock was changed meanwhile; try again"
        raise SplitProblem(why)
    return made


async def _find(client: ResourceClient, name: str, cidr: str) -> IPPool:
    pools = [pool for pool in (await client.list("IPPool")).items if isinstance(pool, IPPool)]
    found = [pool for pool in pools if (pool.metadata.name == name if name else pool.spec.cidr == cidr)]
    if not found:
        raise SplitProblem(f"unable to find IP pool {name or cidr}")
    return found[0]
