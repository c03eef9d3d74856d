"""BIRD configured as a real Calico node configures it: what confd renders for a member of the node mesh.

Calico's fork is BIRD 1.6; this is the same configuration in BIRD 2's words. Left out: `krt_tunnel`, which only the fork
has. The names of protocols, functions and filters are Calico's.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from libs.testkit.routers.bird import Bird
from libs.testkit.routers.model import Family, Router

POOLS: dict[Family, str] = {"ipv4": "10.65.0.0/16", "ipv6": "fd65::/48"}


class CalicoBird(Bird):
    """router.routes: this node's blocks; router.neighbours: the other nodes. Pods are given as addresses."""

    pods: tuple[str, ...] = ()
    pools: Mapping[Family, str] = POOLS
    recovers = True  # a Calico node always starts `bird -R`

    def write_config(self) -> None:
        (self.directory / "bird.conf").write_text(render(self.router, self.pods, self.pools))


def render(router: Router, pods: tuple[str, ...], pools: Mapping[Family, str]) -> str:
    parts = [
        f"""
router id {router.router_id};
log stderr all;
debug protocols {{ states }};
function apply_communities() {{ }}
function calico_export_to_bgp_peers_4(bool internal_peer) {{
  apply_communities();
  calico_aggr_4();
  if (net ~ {pools["ipv4"]}) then {{ accept; }}
}}
function calico_export_to_bgp_peers_6(bool internal_peer) {{
  apply_communities();
  calico_aggr_6();
  if (net ~ {pools["ipv6"]}) then {{ accept; }}
}}
protocol device {{ debug {{ states }}; scan time 2; }}
protocol direct {{ debug {{ states }}; ipv4; ipv6; interface -"cali*", -"kube-ipvs*", "*"; }}
template bgp bgp_template {{
  debug {{ states }};
  description "Connection to BGP peer";
  local as {router.asn};
  multihop;
  connect delay time 2;
  connect retry time 5;
  error wait time 5, 30;
  graceful restart;
}}
"""
    ]
    families: tuple[Family, ...] = ("ipv4", "ipv6")
    for family in families:
        digit = family[-1]
        blocks = [route.prefix for route in router.routes if route.family == family]
        aggregated = "".join(
            f"  if (net = {block}) then {{ accept; }}\n  if (net ~ {block}) then {{ reject; }}\n" for block in blocks
        )
        parts.insert(0, f"function calico_aggr_{digit}() {{\n{aggregated}}}\n")
        statics = "".join(f"  route {block} blackhole;\n" for block in blocks)
        mine = [pod for pod in pods if ip_network(pod).version == int(digit)]
        workloads = "".join(f'  route {pod} via "lo";\n' for pod in mine)
        parts.append(
            f"""
filter calico_kernel_programming_{digit} {{
  if source = RTS_BGP then accept;
  reject;
}}
protocol kernel kernel{digit} {{
  learn; persist; scan time 2;
  graceful restart;
  merge paths on;
  metric 0;
  {family} {{ import all; export filter calico_kernel_programming_{digit}; }};
}}
protocol static aggregates{digit} {{ {family};
{statics}}}
protocol static workloads{digit} {{ {family} {{ preference 10; }};
{workloads}}}
"""
        )
    for n in router.neighbours:
        family = n.spoken[0]
        parts.append(
            f"""
protocol bgp {n.key.replace("p_", "Mesh_")} from bgp_template {{
  neighbor {n.address} as {n.asn};
  source address {router.own(family)};
  {"passive on;" if n.passive else ""}
  {family} {{
    import filter {{ accept; }};
    export filter {{ calico_export_to_bgp_peers_{family[-1]}(true); reject; }};
    gateway recursive;
    add paths on;
  }};
}}
"""
        )
    return "".join(parts)
