"""Settings of a node's start-up. Names of the environment are those of Calico's node container."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from libs.kube.api import credentials
from libs.model.scalars import ASNumber
from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.nodename import NODENAME_FILE, node_name
from services.node.core.default_pools import Variables

METHODS = (
    "first-found, kubernetes-internal-ip, interface=REGEX,…, skip-interface=REGEX,…, can-reach=HOST or cidr=CIDR,…"
)


@dataclass(frozen=True, kw_only=True)
class StartupConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "CALICO_NODE_"

    node: str = setting(
        "",
        "Name of this node; empty: the word of the nodename file, else HOSTNAME or the host's name in lower case.",
        env=("NODENAME",),
    )
    nodename_file: Path = setting(
        NODENAME_FILE, "File that keeps the name across restarts; the CNI plugin reads it.",
        env=("CALICO_NODENAME_FILE",),
    )  # fmt: skip
    datastore_type: Literal["etcdv3"] = setting(
        "etcdv3", "Where the resources are. The API server in front of etcd serves those who want Kubernetes' way.",
        env=("DATASTORE_TYPE",),
    )  # fmt: skip
    wait_for_datastore: bool = setting(
        False, "Start-up waits for the datastore as long as it takes; else it fails when there is no answer.",
        env=("WAIT_FOR_DATASTORE",),
    )  # fmt: skip
    backend: Literal["bird", "vxlan", "none"] = setting(
        "bird",
        "What carries pods' packets: bird: BGP, by our speaker; vxlan: overlays without BGP; none: somebody else,"
        " Calico only does policy, and the node gets no addresses.",
        env=("CALICO_NETWORKING_BACKEND",),
    )

    ip: str = setting(
        "", "IPv4 address: autodetect, none (what is stored stays) or an address, with its prefix length or without;"
        " empty: detected once.", env=("IP",),
    )  # fmt: skip
    ip6: str = setting(
        "", "IPv6 address: the same; empty: what is stored stays.", env=("IP6",)
    )  # fmt: skip
    ip_method: str = setting(
        "first-found", f"How the IPv4 address is detected: {METHODS}.", env=("IP_AUTODETECTION_METHOD",)
    )
    ip6_method: str = setting("first-found", "The same for IPv6.", env=("IP6_AUTODETECTION_METHOD",))
    autodetect_poll_s: float = setting(
        60.0, "How often addresses are detected again while we run; 0: never.", unit="s", minimum=0,
        env=("AUTODETECT_POLL_INTERVAL",),
    )  # fmt: skip
    disable_ip_check: bool = setting(
        False, "Start although another node has the same address.", env=("DISABLE_NODE_IP_CHECK",)
    )
    as_number: ASNumber | None = setting(
        None, "AS number of this node, plain or dotted; none: what is stored stays, else the cluster's.", env=("AS",),
        parse=ASNumber,
    )  # fmt: skip
    node_ref: str = setting(
        "", "Name of this host's Node in Kubernetes, where it has another; it is noted in ours.",
        env=("CALICO_K8S_NODE_REF",),
    )  # fmt: skip
    cluster_type: str = setting("", "Noted in ClusterInformation, comma list.", env=("CLUSTER_TYPE",))
    kubeconfig: Path | None = setting(
        None, "For the Kubernetes API; none: the pod's service account, and without one Kubernetes is left alone.",
        env=("KUBECONFIG",),
    )  # fmt: skip
    ipv6_support: bool = setting(
        True, "Pods may have IPv6 addresses: a default pool is made for them.", env=("FELIX_IPV6SUPPORT",)
    )

    no_default_pools: bool = setting(False, "Make no pools.", env=("NO_DEFAULT_POOLS",))
    ipv4_cidr: str = setting(
        "", "Of the default IPv4 pool; none: make none; empty: kubeadm's podSubnet, else 192.168.0.0/16, else the first"
        " of 172.16.0.0/16 … 172.31.0.0/16 that overlaps no network of this host.", env=("CALICO_IPV4POOL_CIDR",),
    )  # fmt: skip
    ipv4_ipip: str = setting("", "Its IP in IP: always, cross-subnet or never.", env=("CALICO_IPV4POOL_IPIP",))
    ipv4_vxlan: str = setting("", "Its VXLAN: always, cross-subnet or never.", env=("CALICO_IPV4POOL_VXLAN",))
    ipv4_nat_outgoing: bool = setting(
        True, "Packets from it to elsewhere leave with the node's address.", env=("CALICO_IPV4POOL_NAT_OUTGOING",)
    )
    ipv4_block_size: int = setting(26, "Prefix length of its blocks, 20 to 32.", env=("CALICO_IPV4POOL_BLOCK_SIZE",))
    ipv4_node_selector: str = setting("all()", "Nodes that use it.", env=("CALICO_IPV4POOL_NODE_SELECTOR",))
    ipv4_disable_bgp_export: bool = setting(
        False, "BGP does not tell of it.", env=("CALICO_IPV4POOL_DISABLE_BGP_EXPORT",)
    )
    ipv6_cidr: str = setting(
        "", "Of the default IPv6 pool; none: make none; empty: kubeadm's podSubnet, else a random /48 of fd00::/8.",
        env=("CALICO_IPV6POOL_CIDR",),
    )  # fmt: skip
    ipv6_vxlan: str = setting("", "Its VXLAN: always, cross-subnet or never.", env=("CALICO_IPV6POOL_VXLAN",))
    ipv6_nat_outgoing: bool = setting(
        False, "Packets from it to elsewhere leave with the node's address.", env=("CALICO_IPV6POOL_NAT_OUTGOING",)
    )
    ipv6_block_size: int = setting(122, "Prefix length of its blocks, 116 to 128.", env=("CALICO_IPV6POOL_BLOCK_SIZE",))
    ipv6_node_selector: str = setting("all()", "Nodes that use it.", env=("CALICO_IPV6POOL_NODE_SELECTOR",))
    ipv6_disable_bgp_export: bool = setting(
        False, "BGP does not tell of it.", env=("CALICO_IPV6POOL_DISABLE_BGP_EXPORT",)
    )

    def node_name(self) -> str:
        return node_name(self.node, self.nodename_file)

    def pool_variables(self) -> dict[int, Variables]:
        return {
            4: Variables(
                cidr=self.ipv4_cidr, ipip=self.ipv4_ipip, vxlan=self.ipv4_vxlan, nat_outgoing=self.ipv4_nat_outgoing,
                block_size=self.ipv4_block_size, node_selector=self.ipv4_node_selector,
                disable_bgp_export=self.ipv4_disable_bgp_export,
            ),
            6: Variables(
                cidr=self.ipv6_cidr, vxlan=self.ipv6_vxlan, nat_outgoing=self.ipv6_nat_outgoing,
                block_size=self.ipv6_block_size, node_selector=self.ipv6_node_selector,
                disable_bgp_export=self.ipv6_disable_bgp_export,
            ),
        }  # fmt: skip

    def kubernetes(self) -> Path | None:
        """Credentials for the Kubernetes API; None: this node is not in a cluster of it."""
        return credentials(self.kubeconfig, os.environ)

    def kubernetes_name(self) -> str:
        """What this node is called there."""
        return self.node_ref or os.environ.get("KUBERNETES_NODE_NAME", "") or self.node_name()
