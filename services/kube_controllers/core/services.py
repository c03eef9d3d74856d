"""Services and endpoint slices, stored for rules that name services and for the announcement of their addresses. Pure.

Calico has neither in etcd; the keys are those that its table of kinds provides for them (`libs.model.kubernetes`).
"""

from __future__ import annotations

from collections.abc import Mapping

from libs.kube import objects
from libs.kube.objects import Key
from libs.model.base import Resource
from libs.model.keys import ResourceKey
from libs.model.kubernetes import SERVICE_NAME_LABEL, KubernetesEndpointSlice, KubernetesService, ServiceSpec
from services.kube_controllers.core.translation import Desired, metadata_for, with_labels


class Services:
    source = objects.SERVICES
    kind = KubernetesService
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        return Key(key.namespace, key.name)

    def desired(self, key: Key, found: objects.Service, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, key.name, key.namespace)
        spec = ServiceSpec(**{name: getattr(found.spec, name) for name in ServiceSpec.__struct_fields__})
        return Desired({at: KubernetesService(metadata=metadata_for(at, stored), spec=spec, status=found.status)})


class EndpointSlices:
    """Of a slice's labels only the one that names its service is kept: others change without need."""

    source = objects.ENDPOINT_SLICES
    kind = KubernetesEndpointSlice
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        return Key(key.namespace, key.name)

    def desired(self, key: Key, found: objects.EndpointSlice, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, key.name, key.namespace)
        service = found.metadata.labels.get(SERVICE_NAME_LABEL, "")
        metadata = with_labels(metadata_for(at, stored), {SERVICE_NAME_LABEL: service} if service else {})
        made = KubernetesEndpointSlice(
            metadata=metadata, address_type=found.address_type, endpoints=found.endpoints, ports=found.ports
        )
        return Desired({at: made})
