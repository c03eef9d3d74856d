"""Kubernetes' services as kube-proxy sees them: whose address, or node port, one is. Pure.

Flows in: services and endpoint slices as the datastore has them (`libs.model.kubernetes`). Flows out: `Front`, what
packets are sent to; `endpoints.py` tells what is behind it.

Services that an older kube_controllers stored are without their ports. Of those a port is known by its name, which is
the same in slices; a number can be taken only for the one port of a protocol that is alone, and node ports are not
known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import ip_address

from libs.model import keys
from libs.model.kubernetes import SERVICE_NAME_LABEL, KubernetesEndpointSlice, KubernetesService
from libs.policy import nets
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import NEAREST, SERVICE_PREFIXES, End, EndProblem, resolve
from services.calicoctl.explain.packet import NUMBERS, is_number

NODE_PORTS = range(30000, 32768)  # kube-apiserver, --service-node-port-range when not given
CLUSTER_IP, EXTERNAL_IP, BALANCER = "cluster IP", "external IP", "load balancer's address"
NODE_PORT = "node port"
TCP = 6
NAMED = 10  # endpoints that are spelt out in an error


@dataclass(frozen=True, slots=True)
class Port:
    """name: "" for the only port of a service. number: the service's, 0 where it is not known. targets: numbers at the
    endpoints, which may differ when they have it by name. wanted: the service's targetPort.
    """

    name: str
    protocol: str
    number: int = 0
    node_port: int = 0
    wanted: int | str | None = None
    targets: tuple[int, ...] = ()

    @property
    def listed(self) -> str:
        if not self.number:
            return self.shown
        return f"{self.number}/{self.protocol}" + (f" ({self.name})" if self.name else "")

    @property
    def shown(self) -> str:
        numbers = " or ".join(map(str, self.targets))
        there = f"{numbers} at its endpoints" if numbers else ""
        if not self.number:
            return f"{self.name or 'a port without name'} ({self.protocol}, {there})"
        within = "; ".join(part for part in (self.name, there) if part)
        return f"{self.number}/{self.protocol}" + (f" ({within})" if within else "")


@dataclass(frozen=True, slots=True)
class Front:
    """A service by those of its addresses that packets are sent to, or by a node port. kind: what they are to it.
    addresses: by family. local: each node serves only its own endpoints, by the traffic policy that counts for the
    kind. ports: none where they are not known, the one of a node port. entry: the node of a node port. ranges: CIDRs
    that alone may send to a load balancer's address; none: everybody may.
    """

    namespace: str
    name: str
    kind: str
    addresses: Mapping[int, str]
    local: bool = False
    ports: tuple[Port, ...] = ()
    entry: str = ""
    notes: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        return f"service {self.namespace}/{self.name}"

    @property
    def policy(self) -> str:
        return "internalTrafficPolicy" if self.kind == CLUSTER_IP else "externalTrafficPolicy"

    @property
    def masked(self) -> bool:
        """kube-proxy gives what it sends on to another node the node's address, whoever inside the cluster sent it."""
        return self.kind != CLUSTER_IP and not self.local

    def number(self, port: Port) -> int:
        """By which packets are sent to the port; 0 where it is not known."""
        return port.node_port if self.kind == NODE_PORT else port.number

    def enters(self, sender: str) -> str:
        """The node, other than the sender's, that makes a backend's packet of it; "" where the sender's own does, or
        from outside any. sender: its node, "" outside.
        """
        return self.entry if self.entry != sender else ""


# --- which service ----------------------------------------------------------------------------------------------------


def target(
    text: str, cluster: Cluster, namespace: str = "", port: str = "", protocol: int = TCP
) -> End | tuple[Front, ...]:
    """What a trace goes TO: `service:[NAMESPACE/]NAME`, an address of services (several may share one by their ports),
    a node's with a node port, or else an end. What is the address of a workload or a node as well stays that
    otherwise, with a note. protocol: number. Raises EndProblem.
    """
    text = text.strip()
    prefix, colon, rest = text.partition(":")
    if colon and prefix in SERVICE_PREFIXES:
        return (_named(rest, cluster, namespace or "default"),)
    end = resolve(text, cluster, namespace)
    addressed = rest if prefix == "ip" else text
    try:
        address = str(ip_address(addressed))
    except ValueError:
        address = ""
    if end.host and is_number(port):
        by_node_port = _by_node_port(end, NUMBERS.get(protocol, ""), int(port), cluster)
        if by_node_port is not None:
            return (by_node_port,)
    fronts = tuple(_at(address, cluster)) if address else ()
    if fronts and not end.node:
        meant = tuple(one for one in fronts if _takes(one, NUMBERS.get(protocol, ""), port))
        if meant:
            return meant
        left = [f"{address} is {one.shown}'s {one.kind}, but kube-proxy leaves such packets alone" for one in fronts]
        return replace(end, notes=(*end.notes, *left))
    notes = [
        f"{address} is {one.shown}'s {one.kind} as well: trace to service:{one.namespace}/{one.name} for its ports"
        for one in fronts
    ]
    unknown = (one for one in _services(cluster) if _has_node_ports(one) and not one.spec.ports)
    if end.host and is_number(port) and int(port) in NODE_PORTS and any(unknown):
        notes.append(
            f"{port} may be the node port of a service that an older kube_controllers stored without its ports: this is"
            " the packet to the node itself; trace to service:NAMESPACE/NAME for what a service makes of it"
        )
    return replace(end, notes=(*end.notes, *notes)) if notes else end


def _services(cluster: Cluster) -> Iterator[KubernetesService]:
    return cluster.of(KubernetesService)


def _has_node_ports(service: KubernetesService) -> bool:
    return service.spec.type in ("NodePort", "LoadBalancer")


def _named(text: str, cluster: Cluster, namespace: str) -> Front:
    within, slash, name = text.partition("/")
    if not slash:
        within, name = namespace, text
    found = next((one for one in _services(cluster) if _name(one) == (within, name)), None)
    if found is None:
        raise EndProblem(_unknown(within, name, cluster))
    if found.spec.type == "ExternalName":
        raise EndProblem(
            f"service {within}/{name} is an ExternalName: its name leads to another by DNS, and no packet is sent to it"
        )
    if _headless(found):
        raise EndProblem(_headless_words(within, name, cluster))
    addresses = _by_family(_cluster_ips(found))
    if not addresses:
        raise EndProblem(f"service {within}/{name} has no cluster IP yet")
    return Front(within, name, CLUSTER_IP, addresses, _local(found, CLUSTER_IP), _ports(found))


def _at(address: str, cluster: Cluster) -> Iterator[Front]:
    """The services that kube-proxy serves at the address: none of another family than their cluster IPs'."""
    version = nets.version_of(address)
    for one in _services(cluster):
        spec, (namespace, name) = one.spec, _name(one)
        if not _served(one) or version not in _by_family(_cluster_ips(one)):
            continue
        balanced = [entry.ip for entry in one.status.load_balancer.ingress if entry.ip_mode != "Proxy"]
        for kind, given in ((CLUSTER_IP, _cluster_ips(one)), (EXTERNAL_IP, spec.external_ips), (BALANCER, balanced)):
            if address in _canonical(given):
                ranges = tuple(spec.load_balancer_source_ranges) if kind == BALANCER else ()
                yield Front(namespace, name, kind, {version: address}, _local(one, kind), _ports(one), ranges=ranges)
                break


def _takes(front: Front, protocol: str, port: str) -> bool:
    """Whether kube-proxy has a say: at a cluster IP always, at other addresses about the service's ports alone."""
    if front.kind == CLUSTER_IP or not front.ports:
        return True
    alike = [one for one in front.ports if one.protocol == protocol]
    return any(not port or port in (one.name, str(front.number(one))) for one in alike)


def _by_node_port(end: End, protocol: str, number: int, cluster: Cluster) -> Front | None:
    """kube-proxy serves node ports at every address of a node, whoever listens there, in the service's families."""
    for one in _services(cluster):
        if not _has_node_ports(one):
            continue
        port = next((port for port in _ports(one) if (port.node_port, port.protocol) == (number, protocol)), None)
        families = _by_family(_cluster_ips(one)).keys()
        addresses = {family: address for family, address in end.addresses.items() if family in families}
        if port is None or number == 0 or not addresses:
            continue
        namespace, name = _name(one)
        lacking = sorted(end.addresses.keys() - families)
        notes = [f"service {namespace}/{name} has no IPv{family}: there {number} is no node port" for family in lacking]
        return Front(
            namespace, name, NODE_PORT, addresses, _local(one, NODE_PORT), (port,), end.node, (*end.notes, *notes)
        )
    return None


def _served(one: KubernetesService) -> bool:
    """kube-proxy leaves others out, whatever other addresses they have."""
    return one.spec.type != "ExternalName" and not _headless(one) and bool(_cluster_ips(one))


def _local(one: KubernetesService, kind: str) -> bool:
    spec = one.spec
    return (spec.internal_traffic_policy if kind == CLUSTER_IP else spec.external_traffic_policy) == "Local"


def _ports(one: KubernetesService) -> tuple[Port, ...]:
    return tuple(
        Port(port.name, (port.protocol or "TCP").lower(), port.port, port.node_port, port.target_port)
        for port in one.spec.ports
    )


def _name(one: KubernetesService | KubernetesEndpointSlice) -> tuple[str, str]:
    return one.metadata.namespace or "", one.metadata.name


def _headless(one: KubernetesService) -> bool:
    return "None" in (one.spec.cluster_ip, *one.spec.cluster_ips)


def _cluster_ips(one: KubernetesService) -> list[str]:
    return _canonical(one.spec.cluster_ips or [one.spec.cluster_ip])


def _canonical(texts: Iterable[str]) -> list[str]:
    return [nets.canonical_address(text) for text in texts if nets.valid_address(text) and "/" not in text]


def _by_family(addresses: Sequence[str]) -> dict[int, str]:
    return {nets.version_of(text): text for text in reversed(addresses)}


def _unknown(namespace: str, name: str, cluster: Cluster) -> str:
    bad = cluster.bad.get(keys.resource_key("KubernetesService", name, namespace)) if namespace and name else None
    if bad is not None:
        return f"service {namespace}/{name} cannot be read: {bad}"
    known = ["/".join(_name(one)) for one in _services(cluster)]
    if not known:
        return (
            f"no service '{namespace}/{name}': the datastore has no services at all; kube-controllers brings them from"
            " Kubernetes (SYNC_SERVICES)"
        )
    near = get_close_matches(f"{namespace}/{name}", sorted(known), NEAREST, 0.5)
    return f"no service '{namespace}/{name}'" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _headless_words(namespace: str, name: str, cluster: Cluster) -> str:
    ready = sorted({
        nets.canonical_address(text)
        for family in (4, 6)
        for one in slices(namespace, name, family, cluster)
        for endpoint in one.endpoints
        if endpoint.conditions.ready is not False
        for text in endpoint.addresses
        if nets.valid_address(text, family) and "/" not in text
    })  # fmt: skip
    more = f" and {len(ready) - NAMED} more" if len(ready) > NAMED else ""
    where = f"{', '.join(ready[:NAMED])}{more}; trace to one of these" if ready else "nothing: no endpoint is ready"
    return (
        f"service {namespace}/{name} is headless: it has no address, clients reach its endpoints directly. Its name"
        f" resolves to {where}"
    )


def slices(namespace: str, name: str, family: int, cluster: Cluster) -> list[KubernetesEndpointSlice]:
    return [
        one
        for one in cluster.of(KubernetesEndpointSlice)
        if one.metadata.namespace == namespace
        and one.metadata.labels.get(SERVICE_NAME_LABEL) == name
        and one.address_type == f"IPv{family}"
    ]
