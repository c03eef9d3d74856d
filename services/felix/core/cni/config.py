"""The network configuration as the plugin gets it on standard input (facts/cni-typha-node-bgp-ctl.md section
1.2). Pure.

What the Kubernetes API would tell of a pod stands in `args.cni` (labels, ports, serviceAccount, namespace), the place
that the CNI conventions give to runtimes.
"""

from __future__ import annotations

import msgspec


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
    peers_setup_timeout_seconds: float = 0.0
    args: Args = Args()
    valid_attachments: tuple[Attachment, ...] = ()  # of GC
