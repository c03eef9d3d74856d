"""What a Pod and its Namespace, as the Kubernetes API tells them, say to the plugin (facts/kubernetes-conversion.md
section 6). Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from libs.kube.objects import Namespace
from services.felix.core.cni.config import Port
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts

MIRROR = "kubernetes.io/config.mirror"  # on the API's copy of a static pod: the uid that the kubelet knows the pod by


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    generate_name: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0


class _Container(msgspec.Struct, frozen=True):
    ports: list[_ContainerPort] | None = None


class _PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    service_account_name: str = ""
    host_network: bool = False


class Pod(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _PodSpec = _PodSpec()


def decode_pod(document: dict[str, Any]) -> Pod:
    """Raises msgspec.ValidationError."""
    return msgspec.convert(document, Pod)


def check_identity(pod: Pod, uid: str, name: str) -> None:
    """uid: K8S_POD_UID of the request, "" from runtimes that do not tell it. A name may be another pod's by now, whose
    labels would open this one to the wrong policies. Raises CniError.
    """
    known = {pod.metadata.uid, (pod.metadata.annotations or {}).get(MIRROR, "")}
    if uid and pod.metadata.uid and uid not in known:
        text = f"pod {name} is another one by now: the request is for uid {uid}, Kubernetes has {pod.metadata.uid}"
        raise CniError(Code.TRY_AGAIN, text)
    if pod.spec.host_network:
        raise CniError(Code.INVALID_ENVIRONMENT, f"pod {name} is in the host's network: it has no interface of its own")


def pod_facts(pod: Pod, namespace: Namespace) -> PodFacts:
    """Ports: of all containers, those that have a name or a host port."""
    containers = [*(pod.spec.containers or ()), *(pod.spec.init_containers or ())]
    ports = tuple(
        Port(port.name, port.container_port, port.protocol, port.host_port)
        for container in containers
        for port in container.ports or ()
        if port.name or port.host_port
    )
    return PodFacts(
        labels=pod.metadata.labels or {},
        annotations=pod.metadata.annotations or {},
        ports=ports,
        service_account=pod.spec.service_account_name,
        generate_name=pod.metadata.generate_name,
        namespace_annotations=namespace.metadata.annotations,
    )
