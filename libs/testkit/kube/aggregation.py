"""An API server of ours behind kube-apiserver: the Service it is found by, and the APIService that says so."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from libs.testkit.kube.control_plane import ControlPlane

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where the extension's server listens, and the CA that signed its certificate, which must be for `server_name`.

    On loopback it is found by the name `localhost`, which many machines know as 127.0.0.1 alone.
    """

    port: int
    ca: Path
    address: str = "127.0.0.1"
    service: str = "calico-api"
    namespace: str = "calico-system"

    @property
    def server_name(self) -> str:
        """The name that kube-apiserver asks the server's certificate for."""
        return f"{self.service}.{self.namespace}.svc"


def register(
    cp: ControlPlane,
    backend: Backend,
    *,
    group: str = "projectcalico.org",
    version: str = "v3",
    timeout_s: float = 60.0,
) -> None:
    """Make kube-apiserver pass the group's requests on, and wait until it found the server to answer discovery.

    The namespace must exist. Raises TimeoutError, which tells kube-apiserver's own reason.
    """
    cp.kubectl.apply(*_service(backend), api_service(backend, group, version))
    name = f"{version}.{group}"
    try:
        cp.until(lambda: condition(cp, name).get("status") == "True", f"APIService {name} available", timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"{condition(cp, name).get('message', 'no condition yet')}\n{error}") from error

    # Available comes first; what kube-apiserver then tells of the group itself follows.
    def told() -> bool:
        done = cp.kubectl.run("api-resources", f"--api-group={group}", "--output=name")
        return done.status == 0 and bool(done.out)

    cp.until(told, f"/apis tells of {group}", timeout_s)


def condition(cp: ControlPlane, name: str) -> JsonObject:
    """Whether that APIService is available, and why not; empty when kube-apiserver has not said yet."""
    status = cp.kubectl.json("get", "apiservice", name).get("status", {})
    return next((item for item in status.get("conditions", []) if item["type"] == "Available"), {})


def api_service(backend: Backend, group: str, version: str) -> JsonObject:
    """Priorities as Calico's own APIService has them (facts/cni-typha-node-bgp-ctl.md section 6.1)."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 1500,
            "versionPriority": 200,
            "caBundle": base64.b64encode(backend.ca.read_bytes()).decode(),
            "service": {"name": backend.service, "namespace": backend.namespace, "port": backend.port},
        },
    }


def _service(backend: Backend) -> list[JsonObject]:
    metadata = {"name": backend.service, "namespace": backend.namespace}
    port = {"name": "https", "port": backend.port, "protocol": "TCP"}
    service: JsonObject = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [port]}}
    address = ip_address(backend.address)
    if address.is_loopback:
        service["spec"] |= {"type": "ExternalName", "externalName": "localhost"}
        return [service]
    endpoints: JsonObject = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata | {"labels": {"kubernetes.io/service-name": backend.service}},
        "addressType": f"IPv{address.version}",
        "ports": [port],
        "endpoints": [{"addresses": [str(address)], "conditions": {"ready": True}}],
    }
    return [service, endpoints]
