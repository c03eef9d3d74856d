"""A pretend pod, and what a container runtime says about it to a CNI plugin."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import Any

from libs.testkit.processes import Probe
from libs.testkit.topology import Namespace

CNI_VERSION = "1.0.0"
VERSION_OF = {"STATUS": "1.1.0", "GC": "1.1.0"}  # commands that came with a later one
# Of the distribution's plugins, as `./dev test` unpacks or installs them, and everybody's.
PLUGIN_DIRS = (
    str(Path(__file__).resolve().parents[2] / ".cache" / "runtimes" / "usr" / "lib" / "cni"),
    "/usr/lib/cni",
    "/opt/cni/bin",
)


class CniError(RuntimeError):
    """The error object of a plugin: `code` as in the CNI specification, 11 for "try again later"."""

    def __init__(self, code: int, text: str, details: str = "") -> None:
        super().__init__(f"CNI error {code}: {text}" + (f" ({details})" if details else ""))
        self.code, self.text, self.details = code, text, details

    @classmethod
    def from_output(cls, output: bytes, noise: bytes) -> CniError:
        try:
            error = json.loads(output)
            return cls(int(error["code"]), str(error["msg"]), str(error.get("details", "")))
        except (ValueError, KeyError, TypeError):
            return cls(999, f"no error object: {output!r} {noise!r}")


@dataclass(eq=False)
class Pod:
    """`result` is what CNI ADD answered; `config` goes over the plugin's configuration. ifname: of the interface that
    is meant, since a pod may have several.
    """

    name: str
    namespace: str
    node: str
    netns: Namespace
    labels: dict[str, str] = field(default_factory=dict)
    service_account: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    ports: list[dict[str, Any]] = field(default_factory=list)  # {"name", "port", "protocol"}
    annotations: dict[str, str] = field(default_factory=dict)
    container_id: str = field(default_factory=lambda: secrets.token_hex(32))
    result: dict[str, Any] = field(default_factory=dict)
    probe: Probe | None = None
    ifname: str = "eth0"
    uid: str = ""  # Kubernetes' own, where there is one

    @property
    def addresses(self) -> list[IPv4Address | IPv6Address]:
        return [ip_interface(entry["address"]).ip for entry in self.result.get("ips", [])]

    def address(self, family: int = 4) -> IPv4Address | IPv6Address:
        """Raises LookupError when the pod has none of that family."""
        for address in self.addresses:
            if address.version == family:
                return address
        raise LookupError(f"{self.name} has no IPv{family} address, only {self.addresses}")


def cni_environment(command: str, pod: Pod, bin_dir: Path) -> dict[str, str]:
    """CNI_* as containerd sets them for a pod of Kubernetes."""
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
        **({"K8S_POD_UID": pod.uid} if pod.uid else {}),
    }
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": str(pod.netns.path),
        "CNI_IFNAME": pod.ifname,
        "CNI_ARGS": ";".join(f"{k}={v}" for k, v in arguments.items()),
        "CNI_PATH": ":".join((str(bin_dir), *PLUGIN_DIRS)),
    }


def cni_stdin(command: str, pod: Pod) -> Mapping[str, Any]:
    """One plugin's configuration out of the list, as libcni makes it; DEL and CHECK carry the result of ADD.

    What Kubernetes would tell about the pod stands in `args.cni`, the place that the CNI conventions give to runtimes.
    """
    facts: dict[str, Any] = {
        "labels": [{"key": k, "value": v} for k, v in sorted(pod.labels.items())],
        "ports": pod.ports,
        "annotations": pod.annotations,
        "serviceAccount": pod.service_account,
    }
    config: dict[str, Any] = {
        "cniVersion": VERSION_OF.get(command, CNI_VERSION),
        "name": "k8s-pod-network",
        "type": "calico",
        "log_level": "info",
        "nodename": pod.node,
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        "policy": {"type": "k8s"},
        "args": {"cni": facts},
    }
    config |= pod.config
    if command in ("DEL", "CHECK") and pod.result:
        config["prevResult"] = pod.result
    return config
