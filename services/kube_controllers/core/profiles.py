"""Namespaces and service accounts as profiles: labels that endpoints inherit, and what a pod without policy may do.

    Namespace shop             → Profile kns.shop         allows everything, labels pcns.*
    ServiceAccount shop/web    → Profile ksa.shop.web     no rules, labels pcsa.*

Pure. Rules: facts/kubernetes-conversion.md section 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from libs import model
from libs.kube import objects
from libs.kube.objects import Key
from libs.model.base import Resource
from libs.model.keys import ResourceKey
from libs.policy import inputs
from services.kube_controllers.core.translation import Desired, metadata_for

NAMESPACE, SERVICE_ACCOUNT = "kns.", "ksa."
NAMESPACE_LABELS, SERVICE_ACCOUNT_LABELS = "pcns.", "pcsa."
NAME_LABEL = "projectcalico.org/name"


class Namespaces:
    source = objects.NAMESPACES
    kind = model.Profile
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        name = inputs.namespace_of_profile(key.name)
        return Key("", name) if name else None

    def desired(self, key: Key, found: objects.Namespace, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, NAMESPACE + key.name)
        spec = model.ProfileSpec(
            ingress=[model.Rule(action="Allow")],
            egress=[model.Rule(action="Allow")],
            labels_to_apply=_labels(NAMESPACE_LABELS, key.name, found.metadata.labels),
        )
        return Desired({at: model.Profile(metadata=metadata_for(at, stored), spec=spec)})


class ServiceAccounts:
    source = objects.SERVICE_ACCOUNTS
    kind = model.Profile
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        parts = inputs.service_account_of_profile(key.name)
        return Key(*parts) if parts is not None and all(parts) else None

    def desired(self, key: Key, found: objects.ServiceAccount, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, f"{SERVICE_ACCOUNT}{key.namespace}.{key.name}")
        spec = model.ProfileSpec(labels_to_apply=_labels(SERVICE_ACCOUNT_LABELS, key.name, found.metadata.labels))
        return Desired({at: model.Profile(metadata=metadata_for(at, stored), spec=spec)})


def _labels(prefix: str, name: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {prefix + label: value for label, value in labels.items()} | {prefix + NAME_LABEL: name}
