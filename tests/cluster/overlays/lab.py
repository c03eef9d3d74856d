"""What tests of overlays ask of their cluster: modes, ways of packets, what a node's overlay is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from libs.model.node import Node
from libs.testkit.cluster import Pod
from libs.testkit.sniff import IPIP as IPPROTO_IPIP
from libs.testkit.sniff import Seen, Sniffer
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, World, until

FAMILIES = (4, 6)
POOLS = {4: ("default-ipv4-ippool", "10.65.0.0/16", 26), 6: ("default-ipv6-ippool", "fd00:65::/48", 122)}
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
RECOVER_S = 30.0  # what the feature table allows for a change of encapsulation
HEAL_S = 10.0  # through events; the period of comparing is 90 s


@dataclass(frozen=True)
class Overlay:
    """kind: of its links, and what pools call it. devices: of each family that it carries."""

    kind: str
    devices: Mapping[int, str]

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(self.devices)

    def carries(self, packet: Seen) -> bool:
        return packet.is_vxlan() if self is VXLAN else packet.protocol == IPPROTO_IPIP


VXLAN, IPIP = Overlay("vxlan", DEVICES), Overlay("ipip", {4: "tunl0"})
ON_STOCK_KERNEL = pytest.param(IPIP, marks=pytest.mark.stock_kernel)
each = pytest.mark.parametrize("overlay", [VXLAN, IPIP], indirect=True, ids=["vxlan", "ipip"])
each_also_on_stock_kernel = pytest.mark.parametrize(
    "overlay", [VXLAN, ON_STOCK_KERNEL], indirect=True, ids=["vxlan", "ipip"]
)


@dataclass(frozen=True)
class Pods:
    """One on each node; far stands behind the router."""

    one: Pod
    two: Pod
    far: Pod


async def tunnel_addresses(world: World, overlay: Overlay, *, there: bool) -> None:
    """The node service gives and takes them as pools change."""

    async def as_wanted() -> bool:
        nodes = [node for node in (await world.resources.list("Node")).items if isinstance(node, Node)]
        return all(_has_tunnel(node, overlay) == there for node in nodes)

    await until(as_wanted, RECOVER_S, f"tunnel addresses of all nodes: {there}")


def _has_tunnel(node: Node, overlay: Overlay) -> bool:
    if overlay is IPIP:
        return bool(node.spec.bgp and node.spec.bgp.ipv4_ipip_tunnel_addr)
    return bool(node.spec.ipv4_vxlan_tunnel_addr and node.spec.ipv6_vxlan_tunnel_addr)


async def set_mode(world: World, mode: str = "Never", overlay: Overlay = VXLAN, *, nat: bool = True) -> None:
    await world.apply(pools(mode, overlay, nat=nat))
    await tunnel_addresses(world, overlay, there=mode != "Never")
    await world.known()  # not in etcd alone


def pools(mode: str, overlay: Overlay, *, nat: bool = True) -> str:
    """nat: natOutgoing; what pods send to pods must keep its source all the same. Pools of a family that the overlay
    does not carry are not encapsulated.
    """
    documents = []
    for family, (name, cidr, size) in POOLS.items():
        modes = {one.kind: mode if one is overlay and family in one.families else "Never" for one in (VXLAN, IPIP)}
        documents.append(f"""
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {{name: {name}}}
spec:
  {{cidr: "{cidr}", blockSize: {size}, vxlanMode: {modes["vxlan"]}, ipipMode: {modes["ipip"]},
    natOutgoing: {str(nat).lower()}}}
""")
    return "---".join(documents)


async def reachable(
    world: World, *pairs: tuple[Pod, Pod], families: Sequence[int] = FAMILIES, timeout_s: float = RECOVER_S
) -> None:
    for family in families:
        for protocol in ("tcp", "udp"):
            questions = [(a, b, 8080, protocol) for a, b in pairs]
            await world.cluster.eventually(questions, ALLOW, family=family, timeout_s=timeout_s)  # type: ignore[arg-type]


def between(seen: list[Seen], a: Pod, b: Pod, family: int) -> list[Seen]:
    ends = {a.address(family), b.address(family)}
    return [packet for packet in seen if {packet.source, packet.target} == ends]


async def ways(world: World, a: Pod, b: Pod, family: int, overlay: Overlay = VXLAN) -> tuple[int, int]:
    """(packets of the pair seen without a tunnel, in one) at the second one's node, of one exchange."""
    with Sniffer(world.cluster.fabric, b.node) as wire:
        await world.cluster.eventually([(a, b, 8080, "tcp")], ALLOW, family=family)
        seen = wire.packets()
    inner = [packet.inner() for packet in seen if overlay.carries(packet)]
    return len(between(seen, a, b, family)), len(between([one for one in inner if one is not None], a, b, family))


def links(world: World, node: str) -> set[str]:
    """Those that are up: the kernel keeps an idle tunl0 in every namespace."""
    words = [line.split() for line in world.run(node, "ip", "-br", "link").splitlines()]
    return {one[0].split("@")[0] for one in words if "UP" in one[-1].strip("<>").split(",")}


def route(world: World, node: str, pod: Pod, family: int) -> str:
    return world.run(node, "ip", f"-{family}", "route", "get", str(pod.address(family)))


def state(world: World, node: str, overlay: Overlay = VXLAN) -> dict[str, str]:
    """All that an overlay is made of, without what counts or ages."""
    shown = {}
    for device in overlay.devices.values():
        shown[f"{device} link"] = world.run(node, "ip", "-o", "-br", "link", "show", device).split(" <")[0]
        addresses = world.run(node, "ip", "-o", "addr", "show", device, "scope", "global").splitlines()
        shown[f"{device} address"] = "\n".join(line.split()[3] for line in addresses)
        entries = world.run(node, "bridge", "fdb", "show", "dev", device) if overlay is VXLAN else ""
        shown[f"{device} fdb"] = "\n".join(sorted(entries.splitlines()))
        neighbours = world.run(node, "ip", "neigh", "show", "dev", device, "nud", "permanent").splitlines()
        shown[f"{device} neighbours"] = "\n".join(sorted(neighbours))
        for family in FAMILIES:
            routes = world.run(node, "ip", f"-{family}", "route", "show", "dev", device, "proto", "80").splitlines()
            shown[f"{device} routes {family}"] = "\n".join(sorted(line.strip() for line in routes))
    return shown


async def another(load: Load, packets: int) -> None:
    wanted = load.snapshot().udp_sent + packets

    async def sent() -> bool:
        return load.snapshot().udp_sent >= wanted

    await until(sent, 30, f"{packets} more packets")
