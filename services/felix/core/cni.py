"""CNI as values: what a runtime asks, what it gets back in each spec version, and the errors it understands.

Pure. Source: the CNI specification 1.1.0 (sections 2 and 4, "Well-known Error Codes") and
facts/cni-typha-node-bgp-ctl.md section 1. Pod facts come from CNI_ARGS (K8S_POD_NAME …) and from the configuration's
`args.cni` (labels, ports, serviceAccount, namespace), the place that the CNI conventions give to runtimes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePosixPath
from typing import Any

import msgspec

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
IP_ADDRS = "cni.projectcalico.org/ipAddrs"
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
IFNAME = re.compile(r"[^/:\s]{1,15}")
CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")

# Error codes of the specification.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
CANNOT_DECODE = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50  # STATUS: cannot serve ADD
# Above 99 is ours.
INTERNAL = 100
CHECK_FAILED = 101
NO_ADDRESS = 102


class CniError(Exception):
    """Becomes the error object that the runtime shows its user."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def object(self, version: str) -> dict[str, Any]:
        made: dict[str, Any] = {"cniVersion": version or VERSIONS[-2], "code": self.code, "msg": str(self)}
        return made | ({"details": self.details} if self.details else {})


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
    service_account: str = ""
    namespace: str = ""

    def label_map(self) -> dict[str, str]:
        if isinstance(self.labels, dict):
            return dict(self.labels)
        return {entry["key"]: entry.get("value", "") for entry in self.labels if "key" in entry}


class Args(msgspec.Struct, frozen=True):
    cni: PodArgs = PodArgs()


class IpamConfig(msgspec.Struct, frozen=True):
    type: str = "calico-ipam"
    assign_ipv4: str | bool = "true"
    assign_ipv6: str | bool = "false"
    ipv4_pools: tuple[str, ...] = ()
    ipv6_pools: tuple[str, ...] = ()


class PolicyConfig(msgspec.Struct, frozen=True):
    type: str = ""


class Attachment(msgspec.Struct, frozen=True, rename={"container": "containerID"}):
    container: str
    ifname: str


class NetConfig(
    msgspec.Struct, frozen=True, rename={"cni_version": "cniVersion", "valid_attachments": "cni.dev/valid-attachments"}
):
    """The network configuration as the plugin gets it; unknown keys are ignored, as the specification wants."""

    name: str = ""
    cni_version: str = "0.2.0"
    type: str = "calico"
    ipam: IpamConfig = IpamConfig()
    policy: PolicyConfig = PolicyConfig()
    nodename: str = ""
    mtu: int = 0
    args: Args = Args()
    valid_attachments: tuple[Attachment, ...] = ()  # of GC


class Posted(msgspec.Struct):
    """What the shim posts: its CNI_* environment and its standard input."""

    env: dict[str, str]
    config: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    container: str
    netns: str
    ifname: str
    args: dict[str, str]
    config: NetConfig

    @property
    def version(self) -> str:
        return self.config.cni_version

    @property
    def is_kubernetes(self) -> bool:
        return bool(self.args.get("K8S_POD_NAME"))

    @property
    def namespace(self) -> str:
        return self.args.get("K8S_POD_NAMESPACE") or self.config.args.cni.namespace or "default"

    @property
    def pod(self) -> str:
        return self.args.get("K8S_POD_NAME", "")

    @property
    def orchestrator(self) -> str:
        return "k8s" if self.is_kubernetes else "cni"

    @property
    def handle(self) -> str:
        """IPAM handle (facts/ipam.md section 3)."""
        return f"{self.config.name}.{self.container}"

    def host_interface(self, prefix: str) -> str:
        """prefix + 11 hex digits of SHA-1 of "<ns>.<pod>", or of the container id (facts section 1.4)."""
        if self.is_kubernetes:
            return prefix + hashlib.sha1(f"{self.namespace}.{self.pod}".encode()).hexdigest()[:11]
        return prefix + self.container[:11]

    def profiles(self) -> list[str]:
        """Namespace and service account; without Kubernetes or `policy.type: k8s`, one named after the network."""
        account = self.config.args.cni.service_account or self.args.get("K8S_POD_SERVICE_ACCOUNT", "")
        if not self.is_kubernetes and self.config.policy.type != "k8s":
            return [self.config.name]
        return [f"kns.{self.namespace}", *([f"ksa.{self.namespace}.{account}"] if account else [])]

    def fixed_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Of the annotation cni.projectcalico.org/ipAddrs: a JSON list, at most one of each family. Raises CniError."""
        text = self.config.args.cni.annotations.get(IP_ADDRS)
        if not text:
            return ()
        try:
            addresses = tuple(ip_address(item) for item in msgspec.json.decode(text, type=list[str]))
        except (msgspec.DecodeError, ValueError) as error:
            raise CniError(INVALID_CONFIG, f"annotation {IP_ADDRS}: {error}") from error
        versions = [address.version for address in addresses]
        if len(set(versions)) != len(versions):
            raise CniError(INVALID_CONFIG, f"annotation {IP_ADDRS}: more than one address of a family")
        return addresses

    def wants(self) -> tuple[int, int]:
        """Numbers of IPv4 and IPv6 addresses to assign."""
        return (int(_true(self.config.ipam.assign_ipv4)), int(_true(self.config.ipam.assign_ipv6)))


def parse(body: bytes) -> Request:
    """The shim's POST body as a request. Raises CniError with the spec's code and the name of what is wrong."""
    try:
        posted = msgspec.json.decode(body, type=Posted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CniError(CANNOT_DECODE, f"the request cannot be decoded: {error}") from error
    try:
        config = msgspec.json.decode(posted.config.encode(), type=NetConfig)
    except msgspec.ValidationError as error:
        raise CniError(INVALID_CONFIG, f"network configuration: {error}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CniError(CANNOT_DECODE, f"network configuration is not JSON: {error}") from error
    request = Request(
        command=posted.env.get("CNI_COMMAND", ""),
        container=posted.env.get("CNI_CONTAINERID", ""),
        netns=posted.env.get("CNI_NETNS", ""),
        ifname=posted.env.get("CNI_IFNAME", ""),
        args=parse_args(posted.env.get("CNI_ARGS", "")),
        config=config,
    )
    _check(request)
    return request


def parse_args(text: str) -> dict[str, str]:
    """`K=V;K2=V2` of CNI_ARGS. Unknown keys are kept; the facts say that IgnoreUnknown is always on."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        if not part:
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {part!r} is not KEY=VALUE")
        found[key] = value
    return found


def _check(request: Request) -> None:
    if request.version not in VERSIONS:
        text = f"cniVersion {request.version!r} is not one of {', '.join(VERSIONS)}"
        raise CniError(INCOMPATIBLE_VERSION, text)
    if request.command not in COMMANDS:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND is {request.command!r}, not one of {', '.join(COMMANDS)}")
    if not request.config.name:
        raise CniError(INVALID_CONFIG, "network configuration: `name` is missing")
    if request.command in ("STATUS", "GC"):
        return  # about the network, not about a container
    if not CONTAINER.fullmatch(request.container):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID is {request.container!r}, not an identifier")
    if not IFNAME.fullmatch(request.ifname) or request.ifname in (".", ".."):
        raise CniError(
            INVALID_ENVIRONMENT, f"CNI_IFNAME is {request.ifname!r}, not an interface name of 1 to 15 characters"
        )
    if not request.netns and request.command != "DEL":
        raise CniError(
            INVALID_ENVIRONMENT, f"CNI_NETNS is missing: {request.command} needs the container's network namespace"
        )
    if request.netns and not PurePosixPath(request.netns).is_absolute():
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS is {request.netns!r}, not an absolute path")
    if request.config.ipam.type != "calico-ipam":
        text = f"network configuration: ipam.type {request.config.ipam.type!r} is not supported, only calico-ipam"
        raise CniError(INVALID_CONFIG, text)
    request.fixed_addresses()
    if not any(request.wants()):
        raise CniError(INVALID_CONFIG, "network configuration: assign_ipv4 and assign_ipv6 are both false")
    if request.is_kubernetes and not request.args.get("K8S_POD_NAMESPACE"):
        raise CniError(INVALID_ENVIRONMENT, "CNI_ARGS: K8S_POD_NAME without K8S_POD_NAMESPACE")


def result(
    request: Request, host_interface: str, mac: str, addresses: Sequence[IPv4Address | IPv6Address]
) -> dict[str, Any]:
    """The success result in the form of the request's version: both interfaces, each address on the container's."""
    ips: list[dict[str, Any]] = []
    for address in addresses:
        entry: dict[str, Any] = {"address": f"{address}/{address.max_prefixlen}", "interface": 1}
        if request.version.startswith("0."):
            entry = {"version": str(address.version), **entry}
        ips.append(entry)
    return {
        "cniVersion": request.version,
        "interfaces": [{"name": host_interface, "mac": mac}, {"name": request.ifname, "sandbox": request.netns}],
        "ips": ips,
        "dns": {},
    }


def _true(value: str | bool) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise CniError(INVALID_CONFIG, f"network configuration: ipam.assign_ipv4/6 is {value!r}, not true or false")
