"""The network configuration as the plugin gets it on standard input (facts/cni-typha-node-bgp-ctl.md section
1.2). Pure.

Where no Kubernetes API is asked, what it would tell of a pod stands in `args.cni` (labels, ports, serviceAccount,
namespace …), the place that the CNI conventions give to runtimes. Keys that are not named here are ignored, and so is a
null.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.result import Dns
from services.felix.core.cni.versions import UNSAID, VERSIONS

CALICO_IPAM = "calico-ipam"
MAX_MTU_BYTES = 65535
_DEL_KEYS = ("cniVersion", "name", "type")
_IPAM_KEYS = ("cniVersion", "name", "ipam", "args", "runtimeConfig", "prevResult", "policy", "kubernetes",
              "cni.dev/valid-attachments", "cni.dev/attachments")  # fmt: skip


class Port(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    port: int
    protocol: str = "TCP"
    host_port: int = 0


class PodArgs(msgspec.Struct, frozen=True, rename="camel"):
    """`args.cni` of the configuration. labels: a map, or the conventions' list of {key, value}."""

    labels: dict[str, str] | list[dict[str, str]] = {}
    ports: tuple[Port, ...] = ()
    annotations: dict[str, str] = {}
    namespace_annotations: dict[str, str] = {}
    service_account: str = ""
    generate_name: str = ""
    namespace: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""

    def label_map(self) -> dict[str, str]:
        if isinstance(self.labels, dict):
            return dict(self.labels)
        return {entry["key"]: entry.get("value", "") for entry in self.labels if "key" in entry}


class Args(msgspec.Struct, frozen=True):
    cni: PodArgs = PodArgs()


class Bandwidth(msgspec.Struct, frozen=True, rename="camel"):
    """Capability `bandwidth` of the CNI conventions: rates in bit/s, bursts in bits; 0 is no limit."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


_RUNTIME_NAMES = {
    "device_id": "deviceID",
    "infiniband_guid": "infinibandGUID",
    "ip_ranges": "ipRanges",
    "pod_annotations": "io.kubernetes.cri.pod-annotations",
}


class RuntimeConfig(msgspec.Struct, frozen=True, rename=_RUNTIME_NAMES):
    """What a runtime fills in for the capabilities that the configuration declares (CNI conventions)."""

    bandwidth: Bandwidth = Bandwidth()
    mac: str = ""
    ips: tuple[str, ...] = ()
    device_id: str = ""
    infiniband_guid: str = ""
    ip_ranges: list[Any] = []
    pod_annotations: dict[str, str] = {}


class IpamConfig(msgspec.Struct, frozen=True):
    """Of calico-ipam; of any other plugin only `type` is read, the rest is for it alone."""

    type: str = CALICO_IPAM
    subnet: str = ""
    assign_ipv4: str | bool = "true"
    assign_ipv6: str | bool = "false"
    ipv4_pools: tuple[str, ...] = ()
    ipv6_pools: tuple[str, ...] = ()


class PolicyConfig(msgspec.Struct, frozen=True):
    type: str = ""


class KubernetesConfig(msgspec.Struct, frozen=True):
    kubeconfig: str = ""


class FeatureControl(msgspec.Struct, frozen=True):
    ip_addrs_no_ipam: bool = False
    floating_ips: bool = False


class ContainerSettings(msgspec.Struct, frozen=True):
    allow_ip_forwarding: bool = False


class Attachment(msgspec.Struct, frozen=True, rename={"container": "containerID"}):
    container: str
    ifname: str


_NET_NAMES = {
    "cni_version": "cniVersion",
    "runtime": "runtimeConfig",
    "prev_result": "prevResult",
    "valid_attachments": "cni.dev/valid-attachments",
    "attachments": "cni.dev/attachments",
}


class NetConfig(msgspec.Struct, frozen=True, rename=_NET_NAMES):
    name: str = ""
    cni_version: str = UNSAID
    type: str = "calico"
    ipam: IpamConfig = IpamConfig()
    policy: PolicyConfig = PolicyConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    nodename: str = ""
    nodename_file: str = ""
    nodename_file_optional: bool = False
    hostname: str = ""
    mtu: Annotated[int, msgspec.Meta(ge=0, le=MAX_MTU_BYTES)] = 0
    require_mtu_file: bool = False
    num_queues: int = 1
    device_type: str = ""
    feature_control: FeatureControl = FeatureControl()
    container_settings: ContainerSettings = ContainerSettings()
    include_default_routes: bool = False
    readiness_gates: tuple[str, ...] = ()
    peers_setup_timeout_seconds: float = 0.0
    policy_setup_timeout_seconds: Annotated[int, msgspec.Meta(ge=0)] = 0
    log_level: str = ""
    dns: Dns = Dns()
    args: Args = Args()
    runtime: RuntimeConfig = RuntimeConfig()
    prev_result: dict[str, Any] | None = None
    valid_attachments: tuple[Attachment, ...] | None = None  # of GC
    attachments: tuple[Attachment, ...] | None = None  # what libcni sends as well, for the sake of an older text


def decode_config(text: str, command: str, *, for_ipam: bool = False) -> tuple[NetConfig, dict[str, Any]]:
    """The configuration, and all of it as it came, for plugins that are called with it.

    For DEL only what it needs counts: a container whose ADD was refused for a bad key must still be deletable.
    for_ipam: as calico-ipam; the other keys are those of the plugin that calls it.
    Raises CniError: CANNOT_DECODE for what is not JSON, INVALID_CONFIG with the path of the key for a wrong type.
    """
    try:
        raw = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CniError(Code.CANNOT_DECODE, f"network configuration is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CniError(Code.INVALID_CONFIG, f"network configuration is no JSON object but {text[:20]!r}")
    wanted = {key: raw[key] for key in _IPAM_KEYS if key in raw} if for_ipam else raw
    wanted = _without_nulls(_for_del(wanted) if command == "DEL" else wanted)
    ipam = wanted.get("ipam")
    if isinstance(ipam, dict) and isinstance(ipam.get("type"), str) and ipam["type"] not in ("", CALICO_IPAM):
        wanted["ipam"] = {"type": ipam["type"]}
    elif isinstance(ipam, dict) and ipam.get("type") == "":
        wanted["ipam"] = {**ipam, "type": CALICO_IPAM}
    try:
        return msgspec.convert(wanted, NetConfig), raw
    except msgspec.ValidationError as error:
        refused = CniError(Code.INVALID_CONFIG, f"network configuration: {error}")
        refused.version = raw["cniVersion"] if raw.get("cniVersion") in VERSIONS else ""
        raise refused from error


def _for_del(raw: dict[str, Any]) -> dict[str, Any]:
    kept = {key: raw[key] for key in _DEL_KEYS if key in raw}
    ipam, args = raw.get("ipam"), raw.get("args")
    if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
        kept["ipam"] = {"type": ipam["type"]}
    cni = args.get("cni") if isinstance(args, dict) else None
    if isinstance(cni, dict) and isinstance(cni.get("namespace"), str):
        kept["args"] = {"cni": {"namespace": cni["namespace"]}}
    return kept


def _without_nulls(value: dict[str, Any], depth: int = 3) -> dict[str, Any]:
    """As Go reads it, where most configurations are made: null is the same as not being there."""
    return {
        key: _without_nulls(item, depth - 1) if isinstance(item, dict) and depth else item
        for key, item in value.items()
        if item is not None
    }
