"""What a runtime asks, as a value, from the body that the shim posts (CNI specification 1.1.0, section 2). Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from services.felix.core.cni.config import Attachment, NetConfig, decode_config
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.result import Result, decode_result
from services.felix.core.cni.versions import SINCE, VERSIONS, at_least

COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
FIRST_IFNAME = "eth0"  # of the interface that every runtime gives a pod first
_IFNAME = re.compile(r"[^/:\s\0]{1,15}")
_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


class Posted(msgspec.Struct):
    """What the shim posts: its CNI_* environment and its standard input."""

    env: dict[str, str]
    config: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """environment: all CNI_*, and `raw` all of the configuration, for a plugin that is called on behalf of this one."""

    command: str
    container: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    config: NetConfig
    environment: Mapping[str, str]
    raw: Mapping[str, Any]

    @property
    def version(self) -> str:
        return self.config.cni_version

    @property
    def network(self) -> str:
        return self.config.name

    @property
    def is_kubernetes(self) -> bool:
        """Both names are given. Podman fills in K8S_POD_NAME and leaves K8S_POD_NAMESPACE empty."""
        return bool(self.args.get("K8S_POD_NAME") and self.args.get("K8S_POD_NAMESPACE"))

    @property
    def namespace(self) -> str:
        return self.args.get("K8S_POD_NAMESPACE") or self.config.args.cni.namespace or "default"

    @property
    def pod(self) -> str:
        return self.args["K8S_POD_NAME"] if self.is_kubernetes else ""

    @property
    def orchestrator(self) -> str:
        return "k8s" if self.is_kubernetes else "cni"

    @property
    def handle(self) -> str:
        return self.handle_of(self.container)

    def handle_of(self, container: str, ifname: str = "") -> str:
        """IPAM handle (facts/ipam.md section 3). Further interfaces of a container have one each, because their
        addresses come and go alone; "@" is part of no name.
        """
        ifname = ifname or self.ifname
        return f"{self.network}.{container}" + ("" if ifname == FIRST_IFNAME else f"@{ifname}")

    def host_interface(self, prefix: str) -> str:
        """prefix + 11 hex digits of SHA-1 of "<ns>.<pod>", or of the container id (facts section 1.4).

        Calico knows one interface of a pod. The names of further ones hash the interface's name as well.
        """
        first = self.ifname == FIRST_IFNAME
        if self.is_kubernetes:
            return prefix + _digest(f"{self.namespace}.{self.pod}" + ("" if first else f".{self.ifname}"))
        return prefix + (self.container[:11] if first else _digest(f"{self.container}.{self.ifname}"))

    def profiles(self, service_account: str) -> list[str]:
        """Namespace and service account with `policy.type: k8s`; else one named after the network."""
        if not self.is_kubernetes or self.config.policy.type != "k8s":
            return [self.network]
        return [f"kns.{self.namespace}", *([f"ksa.{self.namespace}.{service_account}"] if service_account else [])]

    def previous(self) -> Result | None:
        """`prevResult`. Raises CniError when it cannot be read."""
        raw = self.config.prev_result
        return None if raw is None else decode_result(raw, "prevResult")

    def valid_attachments(self) -> tuple[Attachment, ...]:
        """Of GC. Raises CniError when there is no list: an empty one and none are not the same."""
        found = self.config.valid_attachments
        found = self.config.attachments if found is None else found
        if found is None:
            raise CniError(Code.INVALID_CONFIG, "network configuration: GC needs `cni.dev/valid-attachments`")
        return found


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:11]


def parse(body: bytes, *, for_ipam: bool = False) -> Request:
    """The shim's POST body as a request, of `calico` or of `calico-ipam`.

    Raises CniError with the spec's code and the name of what is wrong.
    """
    try:
        posted = msgspec.json.decode(body, type=Posted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.CANNOT_DECODE, f"the request cannot be decoded: {error}") from error
    command = posted.env.get("CNI_COMMAND", "")
    config, raw = decode_config(posted.config, command, for_ipam=for_ipam)
    try:
        return _request(posted, config, raw)
    except CniError as error:
        error.version = config.cni_version if config.cni_version in VERSIONS else ""
        raise


def _request(posted: Posted, config: NetConfig, raw: dict[str, Any]) -> Request:
    command = posted.env.get("CNI_COMMAND", "")
    _check_version(config.cni_version, command)
    request = Request(
        command=command,
        container=posted.env.get("CNI_CONTAINERID", ""),
        netns=posted.env.get("CNI_NETNS", ""),
        ifname=posted.env.get("CNI_IFNAME", ""),
        args=parse_args(posted.env.get("CNI_ARGS", "")),
        config=config,
        environment={name: value for name, value in posted.env.items() if name.startswith("CNI_")},
        raw=raw,
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


def _check_version(version: str, command: str) -> None:
    if version not in VERSIONS:
        text = f"cniVersion {version!r} is not one of {', '.join(VERSIONS)}"
        raise CniError(Code.INCOMPATIBLE_VERSION, text)
    if command in SINCE and not at_least(version, SINCE[command]):
        text = f"cniVersion {version!r} has no {command}, which came with {SINCE[command]}"
        raise CniError(Code.INCOMPATIBLE_VERSION, text)


def _check(request: Request) -> None:
    if request.command not in COMMANDS:
        text = f"CNI_COMMAND is {request.command!r}, not one of {', '.join(COMMANDS)}"
        raise CniError(Code.INVALID_ENVIRONMENT, text)
    if not _IDENTIFIER.fullmatch(request.network):
        text = f"`name` is {request.network!r}, not a name of letters, digits and _.-" if request.network else ""
        raise CniError(Code.INVALID_CONFIG, f"network configuration: {text or '`name` is missing'}")
    if "/" in request.config.ipam.type or request.config.ipam.type in (".", ".."):
        text = f"ipam.type {request.config.ipam.type!r} is not the name of a program"
        raise CniError(Code.INVALID_CONFIG, f"network configuration: {text}")
    if request.command in ("STATUS", "GC"):
        return  # about the network, not about a container
    if not _IDENTIFIER.fullmatch(request.container):
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_CONTAINERID is {request.container!r}, not an identifier")
    if not _IFNAME.fullmatch(request.ifname) or request.ifname in (".", ".."):
        text = f"CNI_IFNAME is {request.ifname!r}, not an interface name of 1 to 15 characters"
        raise CniError(Code.INVALID_ENVIRONMENT, text)
    if request.command == "DEL":
        return  # the namespace may be gone, and whatever else is wrong must not keep the rest from going
    if not request.netns:
        text = f"CNI_NETNS is missing: {request.command} needs the container's network namespace"
        raise CniError(Code.INVALID_ENVIRONMENT, text)
    if not PurePosixPath(request.netns).is_absolute() or "\0" in request.netns:
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS is {request.netns!r}, not an absolute path")
    _check_config(request)
    if request.command == "CHECK" and request.config.prev_result is None:
        raise CniError(Code.INVALID_CONFIG, "network configuration: CHECK needs `prevResult`, the result of ADD")
    request.previous()


def _check_config(request: Request) -> None:
    config = request.config
    if config.device_type.lower() not in ("", "veth", "netkit"):
        text = f"network configuration: device_type is {config.device_type!r}, not veth or netkit"
        raise CniError(Code.INVALID_CONFIG, text)
    for name, value in (
        ("deviceID", config.runtime.device_id),
        ("infinibandGUID", config.runtime.infiniband_guid),
    ):
        if value:
            text = f"runtimeConfig.{name} = {value!r} is not supported: pods are connected by virtual devices"
            raise CniError(Code.UNSUPPORTED_FIELD, text)
    if config.ipam.type != "calico-ipam" and not request.environment.get("CNI_PATH"):
        text = f"CNI_PATH is missing: ipam.type {config.ipam.type} is looked for there"
        raise CniError(Code.INVALID_ENVIRONMENT, text)
