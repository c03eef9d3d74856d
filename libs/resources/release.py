"""What IPAM has to do when a pool or a node is deleted, done with `libs.ipam`."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from typing import TYPE_CHECKING

from libs import model
from libs.resources import codec
from libs.store.api import Store

if TYPE_CHECKING:
    from libs.ipam.client import IpamClient


class IpamRelease:
    """`libs.resources.client.AddressRelease` over one store. Address management is imported when something has to be
    released: most clients never do.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _ipam(self) -> IpamClient:
        from libs.ipam.client import IpamClient

        return IpamClient(self._store)

    async def release_pool(self, cidr: str) -> None:
        await self._ipam.release_pool_affinities(ip_network(cidr, strict=False))

    async def finish_pool(self, name: str) -> None:
        from libs.resources.pool_lifecycle import PoolLifecycle

        await PoolLifecycle(self._store, ipam=self._ipam).round(name)

    async def release_node(self, node: str) -> None:
        """Addresses are given up with the handle and sequence number seen, so that nobody else's is ever released."""
        from libs.ipam.block import ReleaseOption
        from libs.ipam.errors import HandleMissing
        from libs.ipam.tunnels import Tunnel

        wanted = await self._addresses_of_workloads(node)
        options = [
            ReleaseOption(allocation.address, allocation.handle, allocation.sequence)
            for block in await self._ipam.blocks()
            for allocation in block.allocated()
            if allocation.address in wanted and allocation.attrs.get("node", node) == node
        ]
        if options:
            await self._ipam.release_ips(options)
        for tunnel in Tunnel:
            with suppress(HandleMissing):
                await self._ipam.release_by_handle(tunnel.handle(node))
        await self._ipam.remove_host(node)

    async def _addresses_of_workloads(self, node: str) -> set[IPv4Address | IPv6Address]:
        found = set()
        for kv in (await self._store.list(codec.prefix("WorkloadEndpoint"))).kvs:
            endpoint = codec.readable("WorkloadEndpoint", kv)
            if isinstance(endpoint, model.WorkloadEndpoint) and endpoint.spec.node == node:
                found |= {ip_interface(network).ip for network in endpoint.spec.ip_networks}
        return found
