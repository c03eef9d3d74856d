"""Which addresses of services are announced one by one, and from where (facts/cni-typha-node-bgp-ctl.md section 4.5).

With externalTrafficPolicy Local a service's addresses are announced by the nodes that have a ready endpoint of their
family. With Cluster the whole ranges that every node announces are enough, but for load balancers' addresses when these
are not aggregated, or when the range is that one address: those are announced by all nodes while there is an endpoint.
What lies in no configured range is never announced; cluster addresses need any range at all, as in Calico.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

import msgspec

from libs.policy import nets
from libs.policy.bgp_output import BgpSettings, ServiceRoutes

ADVERTISE_CLUSTER_IPS = "CALICO_ADVERTISE_CLUSTER_IPS"
"""Variable of the environment from before BGPConfiguration had `serviceClusterIPs`, and what counts where it has none:
ranges with commas between. Speakers announce them whole; typha finds the services that are announced one by one."""
FAMILIES = {4: "IPv4", 6: "IPv6"}
TYPES = frozenset({"ClusterIP", "NodePort", "LoadBalancer"})


class Service(msgspec.Struct, frozen=True):
    """Addresses in canonical form."""

    local: bool
    cluster: tuple[str, ...]
    external: tuple[str, ...]
    balanced: tuple[str, ...]


class Endpoints(msgspec.Struct, frozen=True):
    """One slice. nodes: of its ready endpoints, "" where none is named."""

    service: str
    version: int
    nodes: frozenset[str]


class Ranges(msgspec.Struct, frozen=True):
    """The announced ranges, parsed."""

    cluster: tuple[nets.Net, ...] = ()
    external: tuple[nets.Net, ...] = ()
    balanced: tuple[nets.Net, ...] = ()
    aggregated: bool = True

    @classmethod
    def of(cls, settings: BgpSettings) -> Ranges:
        return cls(
            cluster=tuple(map(nets.parse, settings.cluster_ips)),
            external=tuple(map(nets.parse, settings.external_ips)),
            balanced=tuple(map(nets.parse, settings.load_balancer_ips)),
            aggregated=settings.load_balancer_aggregation != "Disabled",
        )


def cluster_ranges(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the variable's parts say: ranges, and what is wrong with the others."""
    found, problems = [], []
    for text in texts:
        try:
            found.append(str(ip_network(text.strip(), strict=False)))
        except ValueError:
            problems.append(f"{text.strip()!r} is no range of addresses such as 10.96.0.0/12")
    return tuple(dict.fromkeys(found)), tuple(problems)


class ServiceTable:
    """Names of services and slices are `namespace/name`. cluster_ips: ranges, where the settings have none."""

    def __init__(self, cluster_ips: Iterable[str] = ()) -> None:
        self._cluster = tuple(map(nets.parse, cluster_ips))
        self._ranges = Ranges(cluster=self._cluster)
        self._services: dict[str, Service] = {}
        self._slices: dict[str, Endpoints] = {}
        self._slices_of: dict[str, set[str]] = {}
        self._dirty: set[str] = set()

    def put_settings(self, settings: BgpSettings | None) -> None:
        """Those of the whole cluster."""
        ranges = Ranges() if settings is None else Ranges.of(settings)
        if not ranges.cluster:
            ranges = msgspec.structs.replace(ranges, cluster=self._cluster)
        if ranges != self._ranges:
            self._ranges = ranges
            self._dirty.update(self._services)

    def put_service(self, name: str, service: Service | None) -> None:
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
        self._dirty.add(name)

    def put_slice(self, name: str, endpoints: Endpoints | None) -> None:
        old = self._slices.pop(name, None)
        if old is not None:
            self._slices_of[old.service].discard(name)
            if not self._slices_of[old.service]:
                del self._slices_of[old.service]
            self._dirty.add(old.service)
        if endpoints is not None:
            self._slices[name] = endpoints
            self._slices_of.setdefault(endpoints.service, set()).add(name)
            self._dirty.add(endpoints.service)

    def flush(self) -> dict[str, ServiceRoutes | None]:
        """`namespace/name/family` -> what is announced one by one now; None for nothing."""
        dirty, self._dirty = self._dirty, set()
        return {
            f"{name}/{family}": self._routes(name, version) for name in dirty for version, family in FAMILIES.items()
        }

    def _routes(self, name: str, version: int) -> ServiceRoutes | None:
        service = self._services.get(name)
        if service is None:
            return None
        slices = (self._slices[one] for one in self._slices_of.get(name, ()))
        nodes = frozenset().union(*(one.nodes for one in slices if one.version == version))
        ranges = self._ranges
        if service.local:
            nodes -= {""}
            cluster = service.cluster if ranges.cluster else ()
            chosen = (
                *cluster,
                *_inside(service.external, ranges.external),
                *_inside(service.balanced, ranges.balanced),
            )
        elif not ranges.aggregated:
            chosen = _inside(service.balanced, ranges.balanced)
        else:
            chosen = _inside(service.balanced, [one for one in ranges.balanced if one.is_host])
        addresses = sorted({nets.canonical(one) for one in chosen if nets.version_of(one) == version})
        if not addresses or not nodes:
            return None
        return ServiceRoutes(addresses=tuple(addresses), nodes=tuple(sorted(nodes)) if service.local else None)


def _inside(addresses: Iterable[str], ranges: Iterable[nets.Net]) -> tuple[str, ...]:
    wide = tuple(ranges)
    return tuple(one for one in addresses if any(net.contains(nets.parse(one)) for net in wide))
