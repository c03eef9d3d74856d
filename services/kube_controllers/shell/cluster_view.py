"""Pods and nodes of Kubernetes for garbage collection (`libs.ipam.pods`): from the informers, and asked live."""

from __future__ import annotations

from ipaddress import ip_address

from libs.ipam.pods import ClusterUnknown, ClusterView, Pod, PodView
from libs.kube import objects
from libs.kube.api import KubeError
from libs.kube.objects import NODES, PODS, Key
from services.kube_controllers.shell.kubernetes import NOT_FOUND, Kubernetes

_FINISHED = frozenset({"Failed", "Succeeded"})


class KubernetesPods:
    """`libs.ipam.pods.Kubernetes`."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self._kubernetes = kubernetes
        self._api = kubernetes.api

    def view(self) -> ClusterView | None:
        known_pods, known_nodes = self._kubernetes.follow(PODS), self._kubernetes.follow(NODES)
        if not known_pods.in_sync or not known_nodes.in_sync:
            return None
        pods: dict[Pod, PodView] = {}
        unreadable: set[Pod] = {(key.namespace, key.name) for key in known_pods.unreadable}
        for key, pod in known_pods.objects.items():
            try:
                pods[key.namespace, key.name] = view_of(pod)
            except ValueError:
                unreadable.add((key.namespace, key.name))
        nodes = {key.name for key in (*known_nodes.objects, *known_nodes.unreadable)}
        return ClusterView(pods, frozenset(unreadable), frozenset(nodes))

    async def pod(self, pod: Pod) -> PodView | None:
        try:
            document = await self._api.get(PODS.path_of(Key(*pod)))
            return view_of(PODS.decode(document))
        except KubeError as error:
            if error.code == NOT_FOUND:
                return None
            raise ClusterUnknown(str(error)) from error
        except ValueError as error:
            raise ClusterUnknown(f"pod {'/'.join(pod)} cannot be read: {error}") from error

    async def node_exists(self, node: str) -> bool:
        try:
            await self._api.get(NODES.path_of(Key("", node)))
        except KubeError as error:
            if error.code == NOT_FOUND:
                return False
            raise ClusterUnknown(str(error)) from error
        return True


def view_of(pod: objects.Pod) -> PodView:
    """Raises ValueError for an address that is none."""
    texts = [one.ip for one in pod.status.pod_ips] or [pod.status.pod_ip]
    addresses = frozenset(ip_address(text) for text in texts if text)
    return PodView(pod.spec.node_name, addresses, pod.status.phase in _FINISHED)
