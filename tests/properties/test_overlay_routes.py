"""Any history of pools, nodes, blocks, workloads, settings ends in the routes and overlays of its end alone, and what
each flush tells adds up to them. Every route leads somewhere: to a tunnel that is wanted and knows the gateway.
"""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from libs.policy.output import Block, NodeInfo, Pool, Workload, WorkloadKey
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6, ClusterRoutes, OverlaySettings
from services.felix.core.routing import Network, RouteClass, Routing, WantedRoute

NODES = ("n1", "n2", "n3")
POOLS = ("10.0.0.0/16", "10.1.0.0/16", "fd00::/48")
BLOCKS = ("10.0.1.0/26", "10.0.2.0/26", "10.0.3.0/32", "10.1.1.0/26", "fd00::40/122", "fd00::80/122")
PODS = ("10.0.1.5", "10.0.2.6", "10.1.1.7", "fd00::45")
KEY = WorkloadKey("k8s", "ns1/web", "eth0")

Op = tuple[str, str, object]

pools = st.builds(
    lambda mode, kind: {"vxlan_mode" if kind else "ipip_mode": mode},
    st.sampled_from(("Never", "Always", "CrossSubnet")), st.booleans(),
)  # fmt: skip
infos = st.builds(
    NodeInfo,
    ipv4=st.sampled_from(("", "192.0.2.1/24", "192.0.2.2/24", "198.51.100.3/24")),
    ipv6=st.sampled_from(("", "2001:db8::1/64", "2001:db8::2/64", "2001:db8:1::3/64")),
    vxlan_ipv4=st.sampled_from(("", "10.0.1.0", "10.0.2.0", "10.0.3.0", "10.1.1.1")),
    vxlan_ipv6=st.sampled_from(("", "fd00::40", "fd00::80", "fd00::99")),
    ipip_ipv4=st.sampled_from(("", "10.1.1.0")),
)
blocks = st.tuples(st.sampled_from(("", *NODES)), st.sampled_from(("", *NODES)))
settings = st.tuples(
    st.sampled_from(list(ClusterRoutes)),
    st.builds(OverlaySettings, vxlan=st.sampled_from((None, False, True)), ipip=st.sampled_from((None, False, True))),
)
ops = st.one_of(
    st.tuples(st.just("pool"), st.sampled_from(POOLS), st.none() | pools),
    st.tuples(st.just("node"), st.sampled_from(NODES), st.none() | infos),
    st.tuples(st.just("block"), st.sampled_from(BLOCKS), st.none() | blocks),
    st.tuples(st.just("pod"), st.just(""), st.none() | st.sampled_from(PODS)),
    st.tuples(st.just("settings"), st.just(""), settings),
)


def tell(made: Routing, op: Op) -> None:
    kind, key, value = op
    match kind:
        case "pool":
            made.put_pool(key, None if value is None else Pool(cidr=key, **value))  # type: ignore[arg-type]
        case "node":
            made.put_node(key, value)  # type: ignore[arg-type]
        case "block":
            made.put_block(key, None if value is None else block(key, *value))  # type: ignore[misc]
        case "pod":
            made.put_workload(KEY, None if value is None else pod(str(value)))
        case _:
            made.configure(*value)  # type: ignore[misc]


def block(cidr: str, node: str, user: str) -> Block:
    borrowed = {str(ip_network(cidr)[-1]): user} if user and "/32" not in cidr else {}
    return Block(cidr=cidr, node=node, borrowed=borrowed)


def pod(address: str) -> Workload:
    if ":" in address:
        return Workload(name="cali1", nets6=(f"{address}/128",))
    return Workload(name="cali1", nets4=(f"{address}/32",))


def leads_somewhere(made: Routing, network: Network, route: WantedRoute) -> None:
    wanted = made.overlays.wanted
    if route.kind is RouteClass.LOCAL_WORKLOAD:
        assert route.interface == "cali1"
    elif route.interface:
        assert route.interface in wanted.enabled, (network, route)
        vxlan = VXLAN if network.version == 4 else VXLAN6
        assert route.interface == (TUNL if route.kind is RouteClass.IPIP_TUNNEL else vxlan)
        if route.interface == vxlan and vxlan in wanted.devices and route.via is not None:
            ends = {end.address for end in wanted.ends if end.device == vxlan}
            own = wanted.devices[vxlan].address  # two nodes may claim one address: then nobody knows
            assert route.via in ends | {own}, (network, route)
    if route.via is not None:
        assert route.via.version == network.version


@given(st.lists(st.tuples(ops, st.booleans()), max_size=30))
def test_any_history_ends_in_what_its_end_says(history: list[tuple[Op, bool]]) -> None:
    made = Routing("n1")
    told: dict[Network, WantedRoute] = {}
    last: dict[tuple[str, str], Op] = {}
    for op, flush in [*history, (("block", BLOCKS[0], ("n1", "")), True)]:
        tell(made, op)
        last[op[0], op[1]] = op
        if flush:
            for network, wanted in made.flush().items():
                if wanted is None:
                    del told[network]
                else:
                    told[network] = wanted
    assert told == made.wanted
    fresh = Routing("n1")
    for key in sorted(last):
        tell(fresh, last[key])
    fresh.flush()
    assert made.wanted == fresh.wanted
    assert made.overlays.wanted == fresh.overlays.wanted
    for network, route in made.wanted.items():
        leads_somewhere(made, network, route)
