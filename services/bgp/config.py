"""Settings of bgp. What peers there are comes from the cluster's resources, or from a file for a speaker by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from libs.runtime.config import RuntimeConfig, setting
from libs.runtime.nodename import node_name

SOCKET = Path("/var/run/calico/bgp.sock")


@dataclass(frozen=True, kw_only=True)
class BgpConfig(RuntimeConfig):
    env_prefix: ClassVar[str] = "CALICO_BGP_"

    node: str = setting(
        "",
        "Name of this node; empty: /var/lib/calico/nodename, else the host name in lower case.",
        env=("CALICO_BGP_NODE", "NODENAME"),
    )
    router_id: str = setting(
        "",
        "Router ID as an IPv4 address, or `hash` for one made from the node's name; empty: the node's IPv4 address.",
        env=("CALICO_ROUTER_ID",),
    )
    state_dir: Path = setting(
        Path("/var/lib/calico/bgp"),
        "Directory of the last good input: a start without NATS goes on from there.",
    )
    secrets_dir: Path | None = setting(
        None, "Directory of the peers' passwords, mounted from secrets: <name>/<key>, or <key> of a single secret."
    )
    control_socket: Path = setting(SOCKET, "Unix socket on which `calico-bgp peers`, `rib` and `explain` are answered.")
    settings: Path | None = setting(
        None, "Run by this file (JSON) instead of the cluster's resources; read again on SIGHUP. No NATS is needed."
    )
    interface_prefix: tuple[str, ...] = setting(
        ("cali",), "Names of workload interfaces begin with one of these.", env=("FELIX_INTERFACEPREFIX",)
    )

    def node_name(self) -> str:
        return node_name(self.node)
