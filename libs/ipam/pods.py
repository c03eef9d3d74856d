"""What Kubernetes knows of pods and nodes, beside what the datastore has: who says that a pod is gone for good.

Without it, a workload endpoint is the proof that its pod lives. An endpoint outlives its pod when the CNI DEL got lost
(a force-deleted pod, a host that was off); then only the API server can tell, and garbage collection asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from libs.ipam.wire import Address

Pod = tuple[str, str]  # namespace, name


class ClusterUnknown(Exception):
    """The API server did not say yes or no."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod that exists. node: "" while it is not scheduled. addresses: empty while it has none yet. finished: its
    phase is Failed (an evicted one is such) or Succeeded: it has no network any more.
    """

    node: str = ""
    addresses: frozenset[Address] = frozenset()
    finished: bool = False

    def left(self, node: str) -> bool:
        """Does it run there no more? node: "" when nobody knows where it ran."""
        return self.finished or (node != "" and self.node not in ("", node))


@dataclass(frozen=True, slots=True)
class ClusterView:
    """unreadable: pods that exist and that nobody understands, or that could not be asked about: they count as there.
    nodes: names of Kubernetes' nodes.
    """

    pods: Mapping[Pod, PodView] = field(default_factory=dict)
    unreadable: frozenset[Pod] = frozenset()
    nodes: frozenset[str] = frozenset()

    def lost(self, pod: Pod, node: str) -> bool:
        """Is it sure that this pod does not run on that node?"""
        if pod in self.unreadable:
            return False
        found = self.pods.get(pod)
        return found is None or found.left(node)

    def may_use(self, pod: Pod, node: str, address: Address) -> bool:
        """Could it be that this pod, on that node, has the address?"""
        if self.lost(pod, node):
            return False
        found = self.pods.get(pod)
        return found is None or not found.addresses or address in found.addresses


class Kubernetes(Protocol):
    def view(self) -> ClusterView | None:
        """As last heard; None while not everything has been heard yet."""
        ...

    async def pod(self, pod: Pod) -> PodView | None:
        """From the API server, now; None: there is no such pod. Raises ClusterUnknown."""
        ...

    async def node_exists(self, node: str) -> bool:
        """From the API server, now. Raises ClusterUnknown."""
        ...
