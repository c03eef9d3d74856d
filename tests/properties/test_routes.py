"""Routes kept up to date against routes resolved from scratch, and against the plain rules."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.policy.output import Block, NodeInfo, Pool, RouteType
from libs.policy.routes import Route, RouteResolver, resolve_routes

NODES = ("n1", "n2", "n3")
ADDRESSES = ("10.0.0.1", "10.0.0.5", "10.0.1.1", "10.1.0.1", "fd00::1", "0.0.0.0")
OWN = ("", "192.0.2.1/24", "192.0.2.2/24", "198.51.100.1/24", "10.0.0.5/16")
MODES = ("Never", "Always", "CrossSubnet")
POOLS = st.one_of(
    st.none(),
    st.builds(
        Pool,
        cidr=st.sampled_from(("10.0.0.0/16", "10.0.0.0/24", "fd00::/64")),
        nat_outgoing=st.booleans(),
        vxlan_mode=st.sampled_from(MODES),
    ),
)
BLOCKS = st.one_of(
    st.none(),
    st.builds(
        Block,
        cidr=st.sampled_from(("10.0.0.0/24", "10.0.0.0/26", "10.0.1.0/26", "10.0.0.5/32", "fd00::/122")),
        node=st.sampled_from(("", *NODES)),
        borrowed=st.dictionaries(st.sampled_from(ADDRESSES[:5]), st.sampled_from(NODES), max_size=2),
    ),
)
INFOS = st.one_of(
    st.none(),
    st.builds(
        NodeInfo,
        ipv4=st.sampled_from(OWN),
        ipv6=st.sampled_from(("", "2001:db8::1/64", "fd00::1/64")),
        vxlan_ipv4=st.sampled_from(("", "10.0.0.1", "10.0.1.1")),
        wireguard_ipv4=st.sampled_from(("", "10.0.1.1")),
    ),
)
NETWORKS = st.one_of(
    st.none(),
    st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True).map(
        lambda found: tuple(f"{one}/{128 if ':' in one else 32}" for one in found)
    ),
)
STEPS = st.one_of(
    st.tuples(st.just("pool"), st.sampled_from("pq"), POOLS),
    st.tuples(st.just("block"), st.sampled_from("abc"), BLOCKS),
    st.tuples(st.just("node"), st.sampled_from(NODES), INFOS),
    st.tuples(st.just("workload"), st.sampled_from("xy"), st.tuples(st.sampled_from(NODES), NETWORKS)),
    st.tuples(st.just("flush"), st.none(), st.none()),
)
EXAMPLES = settings(max_examples=max(300, settings().max_examples))


@EXAMPLES
@given(st.lists(STEPS, max_size=25))
def test_incremental_routes_are_the_routes_from_scratch(steps: list[tuple]) -> None:
    resolver = RouteResolver("n1")
    known: dict[str, dict] = {"pool": {}, "block": {}, "node": {}, "workload": {}}
    told: dict[str, Route] = {}

    def flush() -> None:
        for dst, route in resolver.flush().items():
            if route is None:
                del told[dst]
            else:
                assert told.get(dst) != route, "told again without a change"
                told[dst] = route

    for kind, key, value in steps:
        if kind == "flush":
            flush()
            continue
        if kind == "workload":
            node, networks = value
            resolver.put_workload(key, node, networks)
            value = None if networks is None else (node, networks)
        else:
            {"pool": resolver.put_pool, "block": resolver.put_block, "node": resolver.put_node}[kind](key, value)
        known[kind].pop(key, None)
        if value is not None:
            known[kind][key] = value
    flush()
    assert told == resolver.routes
    again = (dict(sorted(known[kind].items())) for kind in ("pool", "block", "node", "workload"))
    assert resolver.routes == resolve_routes("n1", *again)
    for dst, route in resolver.routes.items():
        check_plainly(dst, route, known)


def check_plainly(dst: str, route: Route, known: dict[str, dict]) -> None:
    """What can be said of one route without knowing the others."""
    network = ipaddress.ip_network(dst)
    pools = [ipaddress.ip_network(pool.cidr) for pool in known["pool"].values()]
    around = [pool for pool in pools if pool.version == network.version and network.subnet_of(pool)]
    assert (route.pool_type == "NONE") is not bool(around)
    owners = {name for name, info in known["node"].items() if dst in (host(info.ipv4), host(info.ipv6))}
    assert bool(route.types & (RouteType.LOCAL_HOST | RouteType.REMOTE_HOST)) is bool(owners)
    assert not route.local_workload or any(
        node == "n1" and dst in networks for node, networks in known["workload"].values()
    )
    info = known["node"].get(route.dst_node)
    if info is not None:
        own = info.ipv4 if network.version == 4 else info.ipv6
        assert route.dst_node_ip == own.partition("/")[0]
    else:
        assert not route.dst_node_ip
    assert dst not in ("0.0.0.0/32", "::/128")


def host(address: str) -> str:
    text = address.partition("/")[0]
    return f"{text}/{128 if ':' in text else 32}"
