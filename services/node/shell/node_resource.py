"""This node's resource: its addresses, AS number and reference. Read, changed where it must be, and swapped, so that
what others wrote into it stays. Start-up and the watch over addresses use the same.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from libs.kube.api import KubeApi, KubeError
from libs.model import Node
from libs.model.base import ObjectMeta, Resource
from libs.model.node import NodeBGPSpec, OrchRef
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Identity, NotFound
from libs.store.api import Compacted
from services.node.core.addresses import AddressError, chosen, clashes, node_interfaces, wanted
from services.node.core.autodetect import (
    Address,
    AddressIn,
    HostInterface,
    Kind,
    Method,
    MethodError,
    Surroundings,
    detect,
    parse_method,
)
from services.node.shell.interfaces import host_interfaces, source_address
from services.node.shell.kubernetes import internal_addresses
from services.node.startup_config import StartupConfig

log = logging.getLogger(__name__)

K8S = "k8s"


class SettingError(ValueError):
    """A variable that is no good."""


class Clash(AddressError):
    """Another node has an address of ours. families: of those addresses."""

    def __init__(self, message: str, families: frozenset[int]) -> None:
        super().__init__(message)
        self.families = families


class NodeResource:
    """kube: None where there is no Kubernetes, or no method needs it."""

    def __init__(self, config: StartupConfig, resources: ResourceClient, kube: KubeApi | None) -> None:
        """Raises SettingError."""
        self._config = config
        self._resources = resources
        self._kube = kube
        self.name = config.node_name()
        self.methods: dict[int, Method] = {}
        for version, variable, text in (
            (4, "IP_AUTODETECTION_METHOD", config.ip_method), (6, "IP6_AUTODETECTION_METHOD", config.ip6_method),
        ):  # fmt: skip
            try:
                self.methods[version] = parse_method(text)
                wanted(version, self._text(version), "")
            except MethodError as error:
                raise SettingError(f"{variable}: {error}") from None
            except AddressError as error:
                raise SettingError(str(error)) from None
            if self.methods[version].kind is Kind.KUBERNETES and kube is None and self._asks(version, ""):
                raise SettingError(f"{variable}={text}: there is no Kubernetes API here; KUBECONFIG names one")

    def _text(self, version: int) -> str:
        return self._config.ip if version == 4 else self._config.ip6

    def _asks(self, version: int, current: str) -> bool:
        return self._config.backend != "none" and wanted(version, self._text(version), current).detect

    @property
    def watched(self) -> bool:
        """Addresses are detected anew while we run."""
        return self._config.backend != "none" and any(self._text(v).strip() == "autodetect" for v in (4, 6))

    async def update(self, *, first: bool) -> tuple[Node, bool]:
        """Creates or updates the resource; (as it stands, whether it was written). first: at start-up, where all
        settings are put in; else only addresses that are detected.

        Raises AddressError (Clash when another node has the address), StoreError, ResourceError, KubeError, OSError.
        """
        interfaces = await asyncio.to_thread(host_interfaces)
        while True:
            try:
                found = await self._resources.get("Node", self.name)
                assert isinstance(found, Node)
            except NotFound:
                if not first:
                    raise
                fresh = await self._changed(Node(metadata=ObjectMeta(name=self.name)), interfaces, first)
                try:
                    written = await self._resources.create(fresh)
                except AlreadyExists:
                    continue  # another of us, or an administrator, was faster
                log.info("node made", extra={"node": self.name, "revision": written.revision})
                assert isinstance(written.resource, Node)
                await self._check_again(written.resource, Node())
                return written.resource, True
            try:
                return await self._edit(interfaces, first)
            except NotFound:
                if not first:
                    raise

    async def _edit(self, interfaces: list[HostInterface], first: bool) -> tuple[Node, bool]:
        before = Node()

        async def change(current: Resource) -> Resource:
            nonlocal before
            assert isinstance(current, Node)
            before = current
            return await self._changed(current, interfaces, first)

        try:
            written = await self._resources.edit(Identity("Node", self.name), change)
        except Clash as clash:
            await self._give_up(clash)
            raise
        assert isinstance(written.resource, Node)
        changed = str(written.revision) != before.metadata.resource_version
        if changed:
            await self._check_again(written.resource, before)
        return written.resource, changed

    async def _check_again(self, node: Node, before: Node) -> None:
        """Two nodes that start together see nothing of each other before they write. The later one gives way.

        Only with addresses that this write brought: one that we have had is not lost to whoever claims it later.
        """
        fresh = _new_addresses(_addresses(before), _addresses(node))
        if not fresh or self._config.backend == "none" or self._config.disable_ip_check:
            return
        try:
            await self._check(fresh, int(node.metadata.resource_version))
        except Clash as clash:
            await self._give_up(clash, all_of_them=True)
            raise

    async def _changed(self, node: Node, interfaces: list[HostInterface], first: bool) -> Node:
        spec = node.spec
        bgp = spec.bgp or NodeBGPSpec()
        if self._config.backend != "none":
            texts = {}
            for version, current in ((4, bgp.ipv4_address), (6, bgp.ipv6_address)):
                texts[version] = await self._address(version, current, interfaces, first)
            fresh = _new_addresses(_addresses(node), texts)
            if fresh and not self._config.disable_ip_check:
                await self._check(fresh)
            bgp = msgspec.structs.replace(bgp, ipv4_address=texts[4], ipv6_address=texts[6])
            if first and self._config.as_number is not None:
                bgp = msgspec.structs.replace(bgp, as_number=self._config.as_number)
        refs = spec.orch_refs
        if first and self._config.node_ref:
            refs = [one for one in refs if one.orchestrator != K8S] + [OrchRef(self._config.node_ref, K8S)]
        told = node_interfaces(interfaces)
        spec = msgspec.structs.replace(
            spec, bgp=None if bgp == NodeBGPSpec() else bgp, orch_refs=refs, interfaces=told
        )  # fmt: skip
        return msgspec.structs.replace(node, spec=spec)

    async def _address(self, version: int, current: str, interfaces: list[HostInterface], first: bool) -> str:
        want = wanted(version, self._text(version), current)
        if not first and not want.detect:
            return current
        method = self.methods[version]
        try:
            detected = await self._detect(method, version, interfaces) if want.detect else None
        except KubeError as error:
            if not (first and current):
                raise
            log.warning("Kubernetes does not tell our addresses", extra={"error": str(error)})
            detected = None
        how = self._config.ip_method if version == 4 else self._config.ip6_method
        text, warning = chosen(version, want, current, detected, interfaces, how)
        if warning:
            log.warning(warning)
        if text != current:
            log.info("address of the node", extra={"family": version, "address": text, "before": current})
        return text

    async def _detect(self, method: Method, version: int, interfaces: list[HostInterface]) -> AddressIn | None:
        source: Address | None = None
        internal: list[Address] = []
        if method.kind is Kind.CAN_REACH:
            source = await source_address(method.destination, version)
        elif method.kind is Kind.KUBERNETES and self._kube is not None:
            internal = await internal_addresses(self._kube, self._config.kubernetes_name())
        return detect(method, version, Surroundings(interfaces, source, internal))

    async def _check(self, texts: dict[int, str], at: int = 0) -> None:
        """at: revision of our own write; who wrote later has to give way, not we. Raises Clash."""
        others = await self._nodes(at)
        found = clashes(self.name, texts, others)
        if found:
            words = "; ".join(f"{texts[version]} is the address of node {other}" for version, other in found.items())
            raise Clash(
                f"{words}: two nodes cannot share one (DISABLE_NODE_IP_CHECK=true does not look)", frozenset(found)
            )

    async def _nodes(self, revision: int) -> list[Node]:
        """As they were then, whatever they wrote since; as they are now for 0, or when that is no longer kept."""
        store, prefix = self._resources.store, codec.prefix("Node")
        try:
            listing = await store.list(prefix, revision=revision)
        except Compacted:
            listing = await store.list(prefix)
        found = (codec.readable("Node", kv) for kv in listing.kvs)
        return [one for one in found if isinstance(one, Node)]

    async def _give_up(self, clash: Clash, *, all_of_them: bool = False) -> None:
        """What we had is no longer ours either: free it for whoever has it now. Only what was detected, unless all."""

        async def cleared(current: Resource) -> Resource:
            assert isinstance(current, Node)
            bgp = current.spec.bgp or NodeBGPSpec()
            for version, field in ((4, "ipv4_address"), (6, "ipv6_address")):
                if version in clash.families and (all_of_them or self._text(version).strip() == "autodetect"):
                    bgp = msgspec.structs.replace(bgp, **{field: ""})
            bgp_or_none = None if bgp == NodeBGPSpec() else bgp
            return msgspec.structs.replace(current, spec=msgspec.structs.replace(current.spec, bgp=bgp_or_none))

        await self._resources.edit(Identity("Node", self.name), cleared)


def _addresses(node: Node) -> dict[int, str]:
    bgp = node.spec.bgp or NodeBGPSpec()
    return {4: bgp.ipv4_address, 6: bgp.ipv6_address}


def _new_addresses(before: dict[int, str], now: dict[int, str]) -> dict[int, str]:
    return {version: text for version, text in now.items() if text and text != before[version]}
