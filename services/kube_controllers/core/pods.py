"""Labels and service account of pods on the workload endpoints that there are. Pure.

The CNI plugin makes endpoints and takes them away; this never does. A pod that is gone or has moved to another node
says nothing about an endpoint of before.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from libs import model
from libs.kube import objects
from libs.kube.objects import Key
from libs.model import names
from libs.model.base import Resource
from libs.model.keys import ResourceKey
from libs.model.storage import NAMESPACE_LABEL, ORCHESTRATOR_LABEL
from services.kube_controllers.core.translation import Desired, with_labels

SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
_LABEL_CHARACTERS = 63


class Pods:
    source = objects.PODS
    kind = model.WorkloadEndpoint
    creates = deletes = False

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        try:
            parts = names.parse_workload_endpoint_name(key.name)
        except ValueError:
            return None
        return Key(key.namespace, parts.workload) if parts.orchestrator == names.KUBERNETES else None

    def desired(self, key: Key, found: objects.Pod, stored: Mapping[ResourceKey, Resource]) -> Desired:
        labels = endpoint_labels(found)
        account = found.spec.service_account_name
        made: dict[ResourceKey, Resource] = {}
        for at, endpoint in stored.items():
            assert isinstance(endpoint, model.WorkloadEndpoint)
            if endpoint.spec.node == found.spec.node_name and not found.spec.host_network:
                made[at] = model.WorkloadEndpoint(
                    metadata=with_labels(endpoint.metadata, labels),
                    spec=msgspec.structs.replace(endpoint.spec, service_account_name=account),
                )
        return Desired(made)


def endpoint_labels(pod: objects.Pod) -> dict[str, str]:
    """As the CNI plugin gives them (facts/kubernetes-conversion.md section 6)."""
    labels = {
        **pod.metadata.labels, NAMESPACE_LABEL: pod.metadata.namespace, ORCHESTRATOR_LABEL: names.KUBERNETES
    }  # fmt: skip
    account = pod.spec.service_account_name
    if account and len(account) < _LABEL_CHARACTERS:
        labels[SERVICE_ACCOUNT_LABEL] = account
    return labels
