"""The controllers that keep the datastore in order (`core/upkeep.py` switches them), wired."""

from __future__ import annotations

from collections.abc import Iterator

from libs.ipam.client import IpamClient
from libs.resources.mirror import Mirror
from libs.resources.pool_lifecycle import PoolLifecycle
from libs.store.fenced import FencedStore
from services.kube_controllers.core.controller import Controller
from services.kube_controllers.ipam_metrics import IpamMetrics
from services.kube_controllers.shell.cluster_view import KubernetesPods
from services.kube_controllers.shell.compaction import Compaction
from services.kube_controllers.shell.ipam_garbage import IpamGarbage
from services.kube_controllers.shell.kubernetes import Kubernetes
from services.kube_controllers.shell.load_balancers import LoadBalancers
from services.kube_controllers.shell.pools import Pools
from services.kube_controllers.shell.tiers import Tiers

NAMES = (IpamGarbage.name, LoadBalancers.name, Pools.name, Tiers.name, Compaction.name)
KINDS = IpamGarbage.reads | LoadBalancers.reads | Pools.reads | Tiers.reads | Compaction.reads


def upkeep(
    mirror: Mirror, store: FencedStore, kubernetes: Kubernetes | None, metrics: IpamMetrics
) -> Iterator[Controller]:
    """All work with one client of address management: concurrent calls of it share transactions."""
    ipam = IpamClient(store)
    pods = None if kubernetes is None else KubernetesPods(kubernetes)
    yield IpamGarbage(mirror, store, ipam, metrics, pods)
    yield Pools(PoolLifecycle(store, ipam=ipam))
    yield Tiers(mirror, store)
    yield Compaction(store)
    if kubernetes is not None:
        yield LoadBalancers(mirror, ipam, kubernetes, store.confirm)
