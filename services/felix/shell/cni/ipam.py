"""calico-ipam called by itself: addresses for another plugin's devices (facts/ipam.md section 9).

Nothing but addresses is made, so there is no journal: what a crash leaves, the DEL that follows every ADD gives up.
"""

from __future__ import annotations

from typing import Any

from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import Ip, Result, Route, encode_result
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.check import Check
from services.felix.shell.cni.collect import Collect, raise_failed
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.pods import PodSource
from services.felix.shell.cni.turns import Turns


class Ipam:
    def __init__(
        self,
        datastore: Datastore,
        pods: PodSource,
        addresses: Addresses,
        check: Check,
        collect: Collect,
        turns: Turns,
    ) -> None:
        self._datastore = datastore
        self._pods = pods
        self._addresses = addresses
        self._check = check
        self._collect = collect
        self._turns = turns

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """Raises CniError, StoreError, ResourceError, IpamError."""
        if request.config.ipam.type != CALICO_IPAM:
            text = f"network configuration: ipam.type is {request.config.ipam.type}, and this is {CALICO_IPAM}"
            raise CniError(Code.INVALID_CONFIG, text)
        match request.command:
            case "STATUS":
                await self._check.status_of_addresses(request)
                return None
            case "GC":
                await self._gc(request)
                return None
        async with self._turns.of(f"addresses of {request.handle}"):
            match request.command:
                case "ADD":
                    return await self._add(request)
                case "DEL":
                    await self._delete(request)
                case "CHECK":
                    await self._check_held(request)
        return None

    async def _add(self, request: Request) -> dict[str, Any]:
        await self._datastore.check_unlocked()
        await self._datastore.check_node()
        facts = await self._pods.facts(request)
        before = await self._addresses.held(request.handle)
        try:
            given = await self._addresses.assign(request, facts)
        except BaseException:
            if not before:  # else an earlier ADD was answered with them
                await self._addresses.release(request.handle)
            raise
        made = Result(
            ips=tuple(Ip(one) for one in given.interfaces),
            routes=tuple(Route(one.network) for one in given.interfaces),
        )
        return encode_result(made, request.version)

    async def _delete(self, request: Request) -> None:
        await self._datastore.check_unlocked()
        await self._addresses.release(request.handle)
        # What versions before 3 called it.
        await self._addresses.release(
            f"{request.namespace}.{request.pod}" if request.is_kubernetes else request.container
        )

    async def _check_held(self, request: Request) -> None:
        held = await self._addresses.held(request.handle)
        if not held:
            raise CniError(Code.CHECK_FAILED, f"no address is assigned to {request.handle} in IPAM")
        previous = request.previous()
        answered = {ip.address.ip for ip in previous.ips} if previous is not None else set()
        lacking = [str(one) for one in held if one not in answered]
        if lacking:
            text = f"prevResult lacks what {request.handle} holds in IPAM: {', '.join(lacking)}"
            raise CniError(Code.CHECK_FAILED, text)

    async def _gc(self, request: Request) -> None:
        await self._datastore.check_unlocked()
        known = {request.handle_of(one.container, one.ifname) for one in request.valid_attachments()}
        failed: dict[str, str] = {}
        await self._collect.release_strays(request, known, failed)
        raise_failed(failed)
