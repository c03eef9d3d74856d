"""What the datastore holds of policy, calculated as typha does it: what trace and what-if reason with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from libs import model
from libs.model import keys
from libs.model.base import Resource
from libs.policy import nets
from libs.policy.calculator import Calculator
from libs.policy.changes import NodeView
from libs.policy.inputs import kubernetes_name
from libs.policy.output import Workload, WorkloadKey
from libs.policy.path import Failsafe, HostRules
from libs.resources.client import ResourceClient
from libs.store.api import KeyValue, Listing

R = TypeVar("R", bound=Resource)
Found = tuple[str, WorkloadKey, Workload]
"""A workload with its node."""


@dataclass
class Cluster:
    """resources: by their keys. revision: of the reading. bad: keys whose value nobody can read, with the reason; they
    count as absent, as everywhere. Nothing changes here after reading, so what is looked up often is kept.
    """

    resources: dict[str, Resource] = field(default_factory=dict)
    revision: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    calculator: Calculator = field(default_factory=Calculator)
    _views: dict[str, NodeView] = field(default_factory=dict)

    def view(self, node: str) -> NodeView:
        if node not in self._views:
            self._views[node] = self.calculator.view(node)
        return self._views[node]

    def of(self, kind: type[R]) -> Iterator[R]:
        """All resources of a kind, by key."""
        for _, resource in sorted(self.resources.items()):
            if type(resource) is kind:
                yield resource

    def workloads(self) -> Iterable[Found]:
        return self.calculator.workloads()

    def workload_at(self, address: str) -> Found | None:
        """Whose a canonical address is."""
        asked = nets.parse(address)
        return self._single.get(address) or next((one for net, one in self._wide if net.contains(asked)), None)

    @cached_property
    def floating(self) -> dict[str, tuple[str, Found]]:
        """Floating address → where what it gets goes to."""
        return {
            nat.external: (nat.internal, found)
            for found in reversed([*self.workloads()])
            for nat in (*found[2].nat4, *found[2].nat6)
        }

    @cached_property
    def by_interface(self) -> dict[str, list[model.WorkloadEndpoint]]:
        found: dict[str, list[model.WorkloadEndpoint]] = {}
        for one in self.of(model.WorkloadEndpoint):
            found.setdefault(one.spec.interface_name, []).append(one)
        return found

    @cached_property
    def _nets(self) -> list[tuple[nets.Net, str, Found]]:
        return [
            (nets.parse(net), nets.address(net), found)
            for found in self.workloads()
            for net in (*found[2].nets4, *found[2].nets6)
        ]

    @cached_property
    def _single(self) -> dict[str, Found]:
        return {address: found for net, address, found in reversed(self._nets) if net.is_host}

    @cached_property
    def _wide(self) -> list[tuple[nets.Net, Found]]:
        return [(net, found) for net, _, found in self._nets if not net.is_host]

    def node_addresses(self, node: str) -> dict[int, str]:
        """By family; empty for a node that is not known, or has none."""
        info = self.calculator.node_infos.get(node)
        texts = (info.ipv4, info.ipv6) if info is not None else ()
        return {nets.version_of(text): nets.address(text) for text in texts if text}

    def kubernetes_name(self, node: str) -> str:
        """What endpoint slices call it."""
        found = self.resources.get(keys.resource_key("Node", node))
        return (kubernetes_name(found) if isinstance(found, model.Node) else "") or node

    def host_rules(self, node: str) -> HostRules:
        """By FelixConfiguration; what a node has in its environment is not known here."""
        found = HostRules()
        action, into, out = found.endpoint_to_host, found.failsafe_in, found.failsafe_out
        for name in ("default", f"node.{node}"):
            resource = self.resources.get(keys.resource_key("FelixConfiguration", name))
            if not isinstance(resource, model.FelixConfiguration):
                continue
            spec = resource.spec
            action = (spec.default_endpoint_to_host_action or action).capitalize()
            if spec.failsafe_inbound_host_ports is not None:
                into = _failsafes(spec.failsafe_inbound_host_ports)
            if spec.failsafe_outbound_host_ports is not None:
                out = _failsafes(spec.failsafe_outbound_host_ports)
        return HostRules(failsafe_in=into, failsafe_out=out, endpoint_to_host=action)


def _failsafes(ports: Iterable[model.ProtoPort]) -> tuple[Failsafe, ...]:
    return tuple(Failsafe(one.protocol.lower(), one.port, one.net) for one in ports)


async def listing(client: ResourceClient) -> Listing:
    """All resources at one revision, kinds that no API server shows (endpoints, nodes) included. Raises StoreError."""
    return await client.store.list(keys.RESOURCES)


async def read(client: ResourceClient) -> Cluster:
    """As `listing`."""
    found = await listing(client)
    return of_listing(found.kvs, found.revision)


def of_listing(kvs: Iterable[KeyValue], revision: int) -> Cluster:
    cluster = Cluster(revision=revision)
    for kv in kvs:
        if keys.parse_key(kv.key) is None:
            continue
        try:
            resource = model.from_storage(kv.key, kv.value, kv.mod_revision)
        except model.DecodeError as error:
            cluster.bad[kv.key] = str(error)
            continue
        cluster.resources[kv.key] = resource
        cluster.calculator.update(kv.key, resource)
    changes = cluster.calculator.flush()
    cluster.bad |= changes.refused
    return cluster
