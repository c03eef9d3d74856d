"""What a node announces by itself, and what it must not pass on or take."""

from __future__ import annotations

from collections.abc import Iterator

from libs.policy.bgp_output import OwnBlock
from libs.policy.encryption import encrypting
from services.bgp.core.paths import Attributes, Family, IPAddress, IPNetwork, nlri
from services.bgp.core.plan_filters import community
from services.bgp.core.settings import Originated, PoolExport
from services.bgp.core.view import View, parse_network

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
PLAIN = Attributes()


def own_blocks(view: View) -> tuple[IPNetwork, ...]:
    found = (parse_network(entry.cidr) for entry in view.tables.local.values() if isinstance(entry, OwnBlock))
    return tuple(sorted(found, key=_order))


def originated(view: View) -> tuple[Originated, ...]:
    """Blocks and services; each prefix once, a block before a service. Addresses of workloads come from the kernel."""
    found: dict[IPNetwork, Originated] = {}
    for network in own_blocks(view):
        found[network] = _originated(network, block=True)
    for network in _services(view):
        found.setdefault(network, _originated(network, service=True))
    return tuple(found[network] for network in sorted(found, key=_order))


def _originated(network: IPNetwork, *, block: bool = False, service: bool = False) -> Originated:
    return Originated(Family.IPV4 if network.version == 4 else Family.IPV6, nlri(network), PLAIN, block, service)


def _services(view: View) -> Iterator[IPNetwork]:
    """Whole ranges, and addresses of services that this node answers for; nothing from an excluded node."""
    info = view.tables.nodes.get(view.node)
    if info is not None and info.labels.get(EXCLUDE_LABEL) == "true":
        return
    cluster = view.cluster
    yield from map(parse_network, (*cluster.cluster_ips, *cluster.external_ips))
    if cluster.load_balancer_aggregation != "Disabled":
        yield from (network for network in map(parse_network, cluster.load_balancer_ips) if network.num_addresses > 1)
    name = view.part_of(view.node).kubernetes_name or view.node
    for routes in view.tables.services.values():
        if routes.nodes is None or name in routes.nodes:
            yield from map(parse_network, routes.addresses)


def rejected(view: View) -> tuple[IPNetwork, ...]:
    """Ranges of services: routes inside never go into the kernel, excluded node or not."""
    cluster = view.cluster
    texts = {*cluster.cluster_ips, *cluster.external_ips, *cluster.load_balancer_ips}
    return tuple(sorted(map(parse_network, texts), key=_order))


def reflected(view: View) -> tuple[IPNetwork, ...]:
    """What a route reflector passes on besides pools: addresses of services that others can reach."""
    texts = {*view.cluster.external_ips, *view.cluster.load_balancer_ips}
    return tuple(sorted(map(parse_network, texts), key=_order))


def pools(view: View) -> tuple[PoolExport, ...]:
    found = (
        PoolExport(
            parse_network(cidr),
            export=not pool.disable_bgp_export,
            ipip_mode=pool.ipip_mode,
            vxlan=pool.vxlan_mode != "Never",
        )
        for cidr, pool in view.tables.pools.items()
    )
    return tuple(sorted(found, key=lambda pool: _order(pool.network)))


def subnets(view: View) -> tuple[IPNetwork, ...]:
    """Of this node's own addresses."""
    info = view.tables.nodes.get(view.node)
    return () if info is None else tuple(parse_network(text) for text in (info.ipv4, info.ipv6) if text)


def encrypted(view: View) -> tuple[IPAddress, ...]:
    """Addresses of nodes to which WireGuard takes the traffic: those with a usable key for a family that we have one
    for. Exactly what felix sends through the tunnel, or some would go by the default route.
    """
    own = view.tables.nodes.get(view.node)
    if own is None or not (own.wireguard_key or own.wireguard_key6):
        return ()
    found: list[IPAddress] = []
    for family, version in ((Family.IPV4, 4), (Family.IPV6, 6)):
        nodes = encrypting(view.tables.nodes, version)
        if view.node in nodes:
            found += [view.addresses_of(node)[family] for node in sorted(nodes - {view.node})]
    return tuple(found)


def advertisements(view: View) -> tuple[tuple[IPNetwork, tuple[tuple[int, ...], ...]], ...]:
    """Communities for what lies inside a range. Those of the node stand in the place of the cluster's, all of them."""
    own = bool(view.own.advertisements)
    chosen, name = (view.own, f"node.{view.node}") if own else (view.cluster, "default")
    found = []
    for entry in chosen.advertisements:
        values: set[tuple[int, ...]] = set()
        for text in entry.communities:
            try:
                values.add(community(chosen.communities.get(text, text)))
            except ValueError:
                view.report("BGPConfiguration", name, f"prefixAdvertisements: no community is called {text!r}")
        if values:
            found.append((parse_network(entry.cidr), tuple(sorted(values))))
    return tuple(found)


def _order(network: IPNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
