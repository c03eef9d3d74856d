"""What a runtime asks, as a value, from the body that the shim posts (CNI specification 1.1.0, section 2). Pure."""

from __future__ import annotations

import hashlib
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePosixPath

import msgspec

from services.felix.core.cni.config import NetConfig
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.versions import VERSIONS

IP_ADDRS = "cni.projectcalico.org/ipAddrs"
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
IFNAME = re.compile(r"[^/:\s]{1,15}")
CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


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
            raise CniError(Code.INVALID_CONFIG, f"annotation {IP_ADDRS}: {error}") from error
        versions = [address.version for address in addresses]
        if len(set(versions)) != len(versions):
            raise CniError(Code.INVALID_CONFIG, f"annotation {IP_ADDRS}: more than one address of a family")
        return addresses

    def wants(self) -> tuple[int, int]:
        """Numbers of IPv4 and IPv6 addresses to assign."""
        return (int(_true(self.config.ipam.assign_ipv4)), int(_true(self.config.ipam.assign_ipv6)))


def parse(body: bytes) -> Request:
    """The shim's POST body as a request. Raises CniError with the spec's code and the name of what is wrong."""
    try:
        posted = msgspec.json.decode(body, type=Posted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CniError(Code.CANNOT_DECODE, f"the request cannot be decoded: {error}") from error
    try:
        config = msgspec.json.decode(posted.config.encode(), type=NetConfig)
    except msgspec.ValidationError as error:
        raise CniError(Code.INVALID_CONFIG, f"network configuration: {error}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CniError(Code.CANNOT_DECODE, f"network configuration is not JSON: {error}") from error
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
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {part!r} is not KEY=VALUE")
        found[key] = value
    return found


def _check(request: Request) -> None:
    if request.version not in VERSIONS:
        text = f"cniVersion {request.version!r} is not one of {', '.join(VERSIONS)}"
        raise CniError(Code.INCOMPATIBLE_VERSION, text)
    if request.command not in COMMANDS:
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_COMMAND is {request.command!r}, not one of {', '.join(COMMANDS)}"
        )
    if not request.config.name:
        raise CniError(Code.INVALID_CONFIG, "network configuration: `name` is missing")
    if request.command in ("STATUS", "GC"):
        return  # about the network, not about a container
    if not CONTAINER.fullmatch(request.container):
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_CONTAINERID is {request.container!r}, not an identifier")
    if not IFNAME.fullmatch(request.ifname) or request.ifname in (".", ".."):
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_IFNAME is {request.ifname!r}, not an interface name of 1 to 15 characters"
        )
    if not request.netns and request.command != "DEL":
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_NETNS is missing: {request.command} needs the container's network namespace"
        )
    if request.netns and not PurePosixPath(request.netns).is_absolute():
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS is {request.netns!r}, not an absolute path")
    if request.config.ipam.type != "calico-ipam":
        text = f"network configuration: ipam.type {request.config.ipam.type!r} is not supported, only calico-ipam"
        raise CniError(Code.INVALID_CONFIG, text)
    request.fixed_addresses()
    if not any(request.wants()):
        raise CniError(Code.INVALID_CONFIG, "network configuration: assign_ipv4 and assign_ipv6 are both false")
    if request.is_kubernetes and not request.args.get("K8S_POD_NAMESPACE"):
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_ARGS: K8S_POD_NAME without K8S_POD_NAMESPACE")


def _true(value: str | bool) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise CniError(Code.INVALID_CONFIG, f"network configuration: ipam.assign_ipv4/6 is {value!r}, not true or false")
