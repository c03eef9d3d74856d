"""Services whose pod is on another node, behind an overlay, where kube-proxy uses IPVS (rows S01, S07).

The node of the lab and the host outside, which has the pod FAR, are each other's nodes: VXLAN for both families, or IP
in IP for IPv4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from libs.policy.output import Action, Host, IPSet, IPSetType, NodeInfo, Pool
from libs.testkit.patience import patient
from libs.testkit.sniff import IPIP, Seen, Sniffer
from libs.testkit.topology import TopologyError
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6
from tests.kernel.ipvs_lab import ALLOW, BACKEND, DENY, FAR, OF_FAR, VIP, Services, policy, running, unmarked
from tests.kernel.ruleset_lab import NODE, OUT, Lab, address, tcp

pytestmark = [pytest.mark.kernel, pytest.mark.stock_kernel, pytest.mark.xdist_group("kernel-ipvs-overlay")]

HERE = {4: "10.77.2.1", 6: "fd77:0:0:2::1"}
THERE = {4: "10.77.3.1", 6: "fd77:0:0:3::1"}
"""The tunnels' own addresses."""
PODS = {4: "10.77.0.0/24", 6: "fd77::/64"}
FAR_PODS = {4: "10.77.1.0/24", 6: "fd77:0:0:1::/64"}
REACH_S = patient(0.6)
SYN = 0x02  # of TCP's flags, RFC 9293 section 3.1


@pytest.fixture(scope="module")
def made() -> Iterator[Services]:
    with running() as services:
        tunnel(services.lab, "node", NODE, OUT, HERE)
        tunnel(services.lab, "out", OUT, NODE, THERE)
        out = services.lab.spaces["out"]
        out.ip([f"addr add {FAR[version]}/{width} dev lo" for version, width in ((4, 32), (6, 128))])
        yield services


def tunnel(lab: Lab, where: str, local: dict[int, str], remote: dict[int, str], own: dict[int, str]) -> None:
    space = lab.spaces[where]
    for version, device in ((4, VXLAN), (6, VXLAN6)):
        ends = f"local {local[version]} remote {remote[version]}"
        space.ip([f"link add {device} type vxlan id 4096 dstport 4789 {ends}", f"link set {device} up"])
    with contextlib.suppress(TopologyError):  # the kernel makes it with its module, which an earlier one loaded
        space.ip([f"link add {TUNL} type ipip"])
    space.ip([f"link set {TUNL} up"])
    space.ip([f"addr add {own[4]}/32 dev {device}" for device in (VXLAN, TUNL)])
    space.ip([f"addr add {own[6]}/128 dev {VXLAN6} nodad"])


@pytest.fixture(params=[VXLAN, TUNL], ids=["vxlan", "ipip"])
def way(request: pytest.FixtureRequest, made: Services) -> str:
    """Device of IPv4; that of IPv6 is VXLAN's in either case. The host endpoint lets nothing but overlays pass."""
    device: str = request.param
    made.fresh()
    for version, used in ((4, device), (6, VXLAN6)):
        for where, own, remote, pods in (("node", THERE, OUT, FAR_PODS), ("out", HERE, NODE, PODS)):
            gateway = f"via {remote[4]} dev {used} onlink" if used == TUNL else f"via {own[version]} dev {used}"
            direct = gateway if used == TUNL else f"dev {used}"
            routes = (f"{own[version]} {direct}", f"{pods[version]} {gateway}")
            made.lab.spaces[where].ip([f"route replace {route}" for route in routes])
    builder = made.lab.builder
    node = NodeInfo(
        ipv4=f"{OUT[4]}/24", ipv6=f"{OUT[6]}/64", vxlan_ipv4=THERE[4], vxlan_ipv6=THERE[6], ipip_ipv4=THERE[4]
    )
    builder.set_node("there", node)
    builder.set_ipset("far", IPSet(IPSetType.NET, frozenset({f"{FAR[4]}/32", f"{FAR[6]}/128"})))
    builder.set_host("h", Host(name="eth0"))
    pools(made.lab, device, PODS, FAR_PODS)
    return device


def pools(lab: Lab, device: str, *wanted: dict[int, str], nat: bool = True) -> None:
    """Exactly these. Those of IPv4 use this device."""
    for cidr in (*PODS.values(), *FAR_PODS.values()):
        lab.builder.set_pool(cidr, None)
    for cidr in (cidr for one in wanted for cidr in one.values()):
        ipip = device == TUNL and ":" not in cidr
        modes = {"ipip_mode" if ipip else "vxlan_mode": "Always"}
        lab.builder.set_pool(cidr, Pool(cidr=cidr, nat_outgoing=nat, **modes))  # type: ignore[arg-type]


def carried(wire: Sniffer, device: str, version: int) -> list[tuple[Seen, Seen]]:
    """(packet, what it carries) of all that went to the far pod since the last call, by connections that were opened
    meanwhile: one of an earlier question may still be answered, and have its answer acknowledged.
    """
    found, opened = [], set()
    for packet in wire.packets():
        wrapped = packet.protocol == IPIP if version == 4 and device == TUNL else packet.is_vxlan()
        inner = packet.inner() if wrapped else None
        if inner and (str(inner.target), inner.target_port) == (FAR[version], BACKEND):
            found.append((packet, inner))
            if inner.payload[5] & SYN:
                opened.add(inner.source_port)
    return [(packet, inner) for packet, inner in found if inner.source_port in opened]


def test_the_senders_policy_sees_the_pod_behind_the_tunnel(made: Services, way: str) -> None:
    lab = made.lab
    lab.apply()
    made.reached(VIP, OF_FAR, a=True, b=True, node=True)
    lab.pod("a", *policy(lab, "to-far", outbound=(tcp(BACKEND, dst_sets=("far",)),)))
    lab.pod("b", *policy(lab, "to-service", outbound=(tcp(OF_FAR),)))
    lab.apply()
    made.reached(VIP, OF_FAR, a=True, b=False, node=True)
    lab.pod("a", *policy(lab, "to-far", outbound=(tcp(BACKEND, action=Action.DENY, dst_sets=("far",)), ALLOW)))
    lab.pod("b", state="inactive")
    lab.apply()
    made.reached(VIP, OF_FAR, a=False, b=False, node=True)


def test_host_endpoints_judge_the_pods_packet_at_the_tunnel_and_not_what_carries_it(made: Services, way: str) -> None:
    lab = made.lab
    nothing = policy(lab, "nothing", (DENY,), (DENY,))
    lab.builder.set_host("h", Host(name="eth0", forward_tiers=nothing))
    lab.apply()
    made.reached(VIP, OF_FAR, a=True, node=True)
    lab.builder.set_host("all", Host(name="*", forward_tiers=policy(lab, "all", (ALLOW,), (tcp(OF_FAR),))))
    lab.apply()
    made.reached(VIP, OF_FAR, a=False)
    lab.builder.set_host("all", Host(name="*", forward_tiers=policy(lab, "all", (ALLOW,), (tcp(BACKEND),))))
    lab.apply()
    made.reached(VIP, OF_FAR, a=True)


def test_the_source_is_the_senders_but_where_masquerading_is_configured(made: Services, way: str) -> None:
    lab = made.lab
    own = {version: address("a", version) for version in (4, 6)}
    for known, nat, wanted in (((PODS, FAR_PODS), True, own), ((PODS,), False, own), ((PODS,), True, HERE)):
        pools(lab, way, *known, nat=nat)
        lab.apply()
        for version in (4, 6):
            for sender, source in (("a", wanted[version]), ("node", HERE[version])):
                with Sniffer(lab.spaces["out"], "eth0") as wire:
                    there = lab.reach(sender, VIP[version], OF_FAR, timeout_s=REACH_S, wanted=True)
                    assert there, (version, sender, known, nat)
                    seen = carried(wire, way, version)
                assert {(str(outer.source), str(inner.source)) for outer, inner in seen} == {(NODE[version], source)}


def test_nothing_leaves_with_the_mark_neither_in_the_tunnel_nor_outside(made: Services, way: str) -> None:
    lab = made.lab
    lab.apply()
    ways = ('postrouting oifname { "tunl0", "vxlan.calico", "vxlan-v6.calico" }', 'output oifname "eth0"')
    with unmarked(lab, *ways, 'postrouting oifname "eth0"'):
        made.reached(VIP, OF_FAR, a=True, node=True)
