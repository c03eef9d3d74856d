"""Gives a node the tunnel addresses that its pools call for, and takes back those they do not: at the node's start-up
and whenever pools or the node change.

The new address is assigned first, then the Node object says it, and only then the old one is released, so nobody sends
to an address that is somebody else's. A round may be cut short anywhere: what the handle holds already is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from libs.ipam.block import Allocation, ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing, IpamError
from libs.ipam.pools import Pool, Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.ipam.tunnels import Choice, Tunnel, choose, told_addresses, wanted, with_addresses
from libs.ipam.wire import Address
from libs.model.node import Node
from libs.model.pools import IPPool
from libs.resources.client import MAX_TRIES, ResourceClient
from libs.resources.errors import Conflict, Identity


@dataclass(slots=True)
class Tunnels:
    """addresses: what the node has now. failures: tunnels that it should have and got no address for."""

    addresses: dict[Tunnel, Address] = field(default_factory=dict)
    released: list[Address] = field(default_factory=list)
    failures: dict[Tunnel, str] = field(default_factory=dict)


async def ensure_tunnel_addresses(
    resources: ResourceClient, ipam: IpamClient, node: str, *, host_encryption: bool = False
) -> Tunnels:
    """Raises NotFound for an unknown node, StoreError, Conflict when the node is changed over and over."""
    for _ in range(MAX_TRIES):
        present = await resources.get("Node", node)
        pools = [pool for pool in (await resources.list("IPPool")).items if isinstance(pool, IPPool)]
        assert isinstance(present, Node)
        needed, told = wanted(pools, present, host_encryption=host_encryption), told_addresses(present)
        done, surplus = Tunnels(), []
        for tunnel in Tunnel:
            held = await _held(ipam, tunnel.handle(node))
            choice = choose(tunnel, node, told.get(tunnel), held, needed.get(tunnel, []))
            surplus += [(tunnel, one) for one in choice.release]
            if tunnel in needed:
                try:
                    done.addresses[tunnel] = await _obtain(ipam, tunnel, node, choice, needed[tunnel])
                except IpamError as error:
                    done.failures[tunnel] = str(error)
        changed = with_addresses(present, done.addresses)
        try:
            if changed != present:
                await resources.update(changed)
        except Conflict:
            continue
        done.released = await _release(ipam, node, surplus)
        return done
    raise Conflict(Identity("Node", node))


async def _held(ipam: IpamClient, handle: str) -> list[Allocation]:
    with suppress(HandleMissing):
        return await ipam.ips_by_handle(handle)
    return []


async def _obtain(ipam: IpamClient, tunnel: Tunnel, node: str, choice: Choice, pools: Sequence[Pool]) -> Address:
    """Raises IpamError."""
    if choice.keep is not None:
        return choice.keep
    handle, attrs = tunnel.handle(node), tunnel.attributes(node)
    if choice.ask is not None:
        with suppress(IpamError):  # in use by somebody else, or the block is another's: any other will do
            await ipam.assign_ip(
                AssignIpRequest(address=choice.ask, handle=handle, node=node, attrs=attrs, use=Use.TUNNEL)
            )
            return choice.ask
    names = [pool.name for pool in pools]
    v6 = tunnel.version == 6
    got = await ipam.auto_assign(
        AssignRequest(
            handle=handle,
            node=node,
            num4=0 if v6 else 1,
            num6=1 if v6 else 0,
            attrs=attrs,
            pools4=() if v6 else names,
            pools6=names if v6 else (),
            use=Use.TUNNEL,
        )
    )
    found = got.v6 if v6 else got.v4
    if not found:
        reason = got.reasons[tunnel.version]
        raise IpamError(reason, f"no address for {tunnel.value[0]} in pools {', '.join(names)}: {reason}")
    return found[0].ip


async def _release(ipam: IpamClient, node: str, surplus: Sequence[tuple[Tunnel, Allocation]]) -> list[Address]:
    options = [ReleaseOption(one.address, tunnel.handle(node), one.sequence) for tunnel, one in surplus]
    if not options:
        return []
    return [address for address, _ in (await ipam.release_ips(options)).freed]
