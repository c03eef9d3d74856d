"""A pod's addresses: from Calico's IPAM, from another plugin, or from the pod's annotation past both."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Sequence
from ipaddress import ip_interface
from typing import Any

from libs import model
from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing
from libs.ipam.pools import Use, select_pools
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.ipam.source import read_inputs, read_node_labels
from libs.netlink.podlink import host_interface
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from services.felix.core.cni.addressing import Given, Wanted, needs_pod_cidrs, wanted, with_pod_cidrs
from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.endpoint import addresses_of
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import Address, decode_result
from services.felix.core.journal import Delegation
from services.felix.shell.cni.pods import PodSource
from services.felix.shell.cni.protocols import AddressPlugins

_ANY_CIDR = {4: "0.0.0.0/0", 6: "::/0"}  # host-local gives addresses up by container, whatever the subnet says
_SANDBOX = re.compile(r"[0-9a-f]{64}")  # ids that container runtimes make


class NothingGiven(CniError):
    """Another plugin refused: it has nothing to take back."""


class Addresses:
    def __init__(
        self, node: str, resources: ResourceClient, ipam: IpamClient, plugins: AddressPlugins, pods: PodSource
    ) -> None:
        self._node = node
        self._resources = resources
        self._ipam = ipam
        self._plugins = plugins
        self._pods = pods

    # --- giving and taking ---

    async def assign(
        self,
        request: Request,
        facts: PodFacts,
        delegation: Delegation | None = None,
        former: model.WorkloadEndpoint | None = None,
    ) -> Given:
        """All that are wanted. After a failure some may be held: `release`. former: the endpoint that is replaced.

        Raises CniError, IpamError, StoreError.
        """
        wish = wanted(request, facts)
        if delegation is not None:
            if former is not None and former.spec.container_id == request.container:
                await self._plugins.run("DEL", delegation)  # most refuse to give a container its addresses twice
            return await self._from_plugin(request, delegation)
        if wish.unmanaged:
            return Given(tuple(map(host_interface, wish.unmanaged)))
        if wish.fixed:
            if former is not None:
                await self._free_from(request, wish.fixed, former)
            return await self._assign_fixed(request, wish.fixed)
        return await self._assign_any(request, wish)

    async def release(self, handle: str, delegation: Delegation | None = None) -> None:
        """Having none is fine. Raises CniError, IpamError, StoreError."""
        if delegation is not None:
            await self._plugins.run("DEL", delegation)
            return
        with contextlib.suppress(HandleMissing):
            await self._ipam.release_by_handle(handle)

    # --- asking ---

    async def held(self, handle: str) -> tuple[Address, ...]:
        """What Calico's IPAM has given to a handle."""
        try:
            return tuple(one.address for one in await self._ipam.ips_by_handle(handle))
        except HandleMissing:
            return ()

    async def problems(self, request: Request, addresses: Collection[Address]) -> list[str]:
        """Of CHECK: is every address held for this container?"""
        held = await self.held(request.handle)
        lacking = [str(one) for one in addresses if one not in held]
        return [f"address {one} is not assigned to {request.handle} in IPAM" for one in lacking]

    async def check_pools(self, request: Request) -> None:
        """Could any pool serve this node? Raises IpamError, StoreError, CniError."""
        wish = wanted(request, PodFacts())
        store = self._resources.store
        inputs, labels = await read_inputs(store), await read_node_labels(store, self._node)
        for version, number, requested in ((4, wish.num4, wish.pools4), (6, wish.num6, wish.pools6)):
            if number:
                select_pools(
                    inputs.pools,
                    version=version,
                    use=Use.WORKLOAD,
                    requested=requested,
                    node_labels=labels,
                    namespace_labels={},
                )

    async def strays(self, network: str, known: Collection[str]) -> list[str]:
        """Handles of the network's containers on this node that are not among the known ones.

        Only what follows the pattern of container runtimes counts: others' handles may begin with the same name.
        """
        found = set()
        for block in await self._ipam.blocks():
            for one in block.allocated():
                handle = one.handle or ""
                if one.attrs.get("node") != self._node or handle in known or not handle.startswith(f"{network}."):
                    continue
                container, _, _ = handle.removeprefix(f"{network}.").partition("@")
                if _SANDBOX.fullmatch(container):
                    found.add(handle)
        return sorted(found)

    # --- other plugins ---

    async def delegation(self, request: Request) -> Delegation | None:
        """How to call another plugin for ADD and CHECK; None where Calico's IPAM serves.

        Raises CniError when there is no such plugin, StoreError.
        """
        if request.config.ipam.type == CALICO_IPAM:
            return None
        config = dict(request.raw)
        if request.config.ipam.type == "host-local" and needs_pod_cidrs(config):
            cidrs = await self._pods.pod_cidrs(self._node)

            def cidr(version: int) -> str:
                if version not in cidrs:
                    text = f"ipam.subnet asks for the IPv{version} pod CIDR of Node {self._node}, which has none"
                    raise CniError(Code.INVALID_CONFIG, text)
                return cidrs[version]

            config = with_pod_cidrs(config, cidr)
        made = _delegation(request, config)
        self._plugins.find(made)
        return made

    def can_call(self, delegation: Delegation) -> bool:
        try:
            self._plugins.find(delegation)
        except CniError:
            return False
        return True

    def undoing(self, request: Request, container: str = "", ifname: str = "") -> Delegation | None:
        """How to call another plugin for DEL, of the request's container or of another one."""
        if request.config.ipam.type == CALICO_IPAM:
            return None
        config = {key: value for key, value in request.raw.items() if not key.startswith("cni.dev/")}
        if request.config.ipam.type == "host-local":
            with contextlib.suppress(CniError):  # then the plugin may say what it thinks of it
                config = with_pod_cidrs(config, lambda version: _ANY_CIDR[version])
        return _delegation(request, config, container, ifname)

    async def forward(self, request: Request) -> None:
        """CHECK, STATUS and GC are for the other plugin too. Raises CniError."""
        delegation = await self.delegation(request)
        if delegation is not None:
            await self._plugins.run(request.command, delegation)

    async def _from_plugin(self, request: Request, delegation: Delegation) -> Given:
        what = f"result of IPAM plugin {delegation.plugin}"
        try:
            answer = await self._plugins.run("ADD", delegation)
        except CniError as error:
            # As the specification wants it. One that refuses a configuration refuses it for DEL as well.
            with contextlib.suppress(CniError):
                await self._plugins.run("DEL", delegation)
            raise NothingGiven(error.code, str(error), error.details) from error
        if answer is None:
            raise CniError(Code.CANNOT_DECODE, f"{what}: there is none")
        given = decode_result(answer, what)
        if not given.ips:
            raise CniError(Code.NO_ADDRESS, f"{what} has no address")
        routes = tuple(route.dst for route in given.routes)
        if routes and request.config.include_default_routes:
            defaults = [ip_interface(text).network for text in _ANY_CIDR.values()]
            routes = (*defaults, *(route for route in routes if route not in defaults))
        return Given(tuple(ip.address for ip in given.ips), routes or None, given.dns)

    # --- Calico's IPAM ---

    async def _assign_any(self, request: Request, wish: Wanted) -> Given:
        asked = AssignRequest(
            handle=request.handle,
            node=self._node,
            num4=wish.num4,
            num6=wish.num6,
            attrs=self._attributes(request),
            pools4=wish.pools4,
            pools6=wish.pools6,
            namespace_labels=await self._namespace_labels(request),
            max_per_handle=1,
        )
        result = await self._ipam.auto_assign(asked)
        if not result.complete:
            why = ", ".join(f"IPv{version}: {reason}" for version, reason in result.reasons.items())
            await self.release(request.handle)
            raise CniError(Code.NO_ADDRESS, f"no address for the pod on node {self._node}: {why}")
        return Given((*result.v4, *result.v6))

    async def _assign_fixed(self, request: Request, fixed: tuple[Address, ...]) -> Given:
        for address in fixed:
            await self._ipam.assign_ip(
                AssignIpRequest(
                    address=address,
                    handle=request.handle,
                    node=self._node,
                    attrs=self._attributes(request),
                    use=Use.WORKLOAD,
                    max_per_handle=1,
                )
            )
        return Given(tuple(map(host_interface, fixed)))

    async def _free_from(self, request: Request, fixed: Sequence[Address], former: model.WorkloadEndpoint) -> None:
        """The same pod's former container may still hold them: its DEL comes late, or never."""
        if former.spec.container_id == request.container:
            return
        old = request.handle_of(former.spec.container_id)
        shared = [ReleaseOption(one, old) for one in fixed if one in addresses_of(former)]
        if shared:
            await self._ipam.release_ips(shared)

    def _attributes(self, request: Request) -> dict[str, str]:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now // 10**9))
        attributes = {
            "namespace": request.namespace,
            "node": self._node,
            "pod": request.pod,
            "timestamp": f"{stamp}.{now % 10**9:09d} +0000 UTC",
        }
        return {name: value for name, value in attributes.items() if value}

    async def _namespace_labels(self, request: Request) -> dict[str, str] | None:
        """Labels of the pod's namespace, as its profile passes them on (pcns.…)."""
        if not request.is_kubernetes:
            return None
        try:
            profile = await self._resources.get("Profile", f"kns.{request.namespace}")
        except NotFound:
            return {}
        labels: dict[str, str] = getattr(profile.spec, "labels_to_apply", None) or {}
        return {name.removeprefix("pcns."): value for name, value in labels.items() if name.startswith("pcns.")}


def _delegation(request: Request, config: dict[str, Any], container: str = "", ifname: str = "") -> Delegation:
    environment = dict(request.environment)
    environment["CNI_ARGS"] = ";".join(filter(None, ("IgnoreUnknown=1", environment.get("CNI_ARGS", ""))))
    if container:
        environment |= {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": ""}
    return Delegation(
        plugin=request.config.ipam.type, environment=tuple(sorted(environment.items())), config=json.dumps(config)
    )
