"""What Calico's nodes take from Kubernetes' nodes: labels and pod networks; and which are to go. Pure.

The link is the reference `{orchestrator: k8s, nodeName: …}` in a node's spec. A node without it is no node of
Kubernetes and is left alone, whatever its name is. One whose Kubernetes node is gone is deleted, with its endpoints and
addresses.

Labels: the annotation `projectcalico.org/kube-labels` remembers what was copied, so that a label that goes there goes
here, and labels that a user gave to Calico's node stay (facts/kubernetes-conversion.md section 7).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from libs import model
from libs.kube import objects
from libs.kube.objects import Key
from libs.model import names
from libs.model.base import ObjectMeta, Resource
from libs.model.keys import ResourceKey
from services.kube_controllers.core.translation import Desired

ANNOTATION = "projectcalico.org/kube-labels"


class Nodes:
    """sync_labels: without it labels stay as they are."""

    source = objects.NODES
    kind = model.Node
    creates = False
    deletes = True

    def __init__(self, *, sync_labels: bool) -> None:
        self._sync_labels = sync_labels

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        if not isinstance(stored, model.Node):
            return None
        name = next((ref.node_name for ref in stored.spec.orch_refs if ref.orchestrator == names.KUBERNETES), "")
        return Key("", name) if name else None

    def desired(self, key: Key, found: objects.Node, stored: Mapping[ResourceKey, Resource]) -> Desired:
        made: dict[ResourceKey, Resource] = {}
        problems: list[str] = []
        cidrs = found.spec.cidrs
        for at, node in stored.items():
            assert isinstance(node, model.Node)
            metadata = node.metadata
            if self._sync_labels:
                metadata = _labelled(metadata, found.metadata.labels, problems)
            status = msgspec.structs.replace(node.status, pod_cidrs=cidrs) if cidrs else node.status
            made[at] = model.Node(metadata=metadata, spec=node.spec, status=status)
        return Desired(made, tuple(problems))


def _labelled(metadata: ObjectMeta, labels: Mapping[str, str], problems: list[str]) -> ObjectMeta:
    copied = _copied(metadata.annotations.get(ANNOTATION, "{}"), problems)
    kept = {label: value for label, value in metadata.labels.items() if label not in copied or label in labels}
    text = msgspec.json.encode(dict(labels), order="sorted").decode()
    return msgspec.structs.replace(
        metadata, labels={**kept, **labels}, annotations={**metadata.annotations, ANNOTATION: text}
    )


def _copied(text: str, problems: list[str]) -> Mapping[str, str]:
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError as error:
        problems.append(f"annotation {ANNOTATION} is damaged, so labels of before stay: {error}")
        return {}
