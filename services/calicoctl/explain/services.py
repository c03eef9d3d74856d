"""Kubernetes' services as kube-proxy sees them: whose address one is, and which endpoints are behind a port. Pure.

Flows in: services and endpoint slices as the datastore has them (`libs.model.kubernetes`). Flows out: `Front`, what
packets are sent to, and `Chosen`, what kube-proxy may make of their destination. Every mode of kube-proxy chooses among
the same backends.

The datastore keeps a service's addresses and externalTrafficPolicy; of its endpoints addresses, node and whether they
are ready; and of its ports what slices say: name, protocol and the number at the endpoints. It keeps neither the
service's own numbers of ports (nor node ports) nor internalTrafficPolicy, nor which endpoints are terminating. So a
port is known by its name, which is the same in services and slices; a number can be taken only for the one port of a
protocol that is alone.
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
from services.calicoctl.explain.packet import NUMBERS, PacketProblem, port_number

PROTOCOLS = frozenset({"tcp", "udp", "sctp"})  # of services (core/v1, ServicePort)
NODE_PORTS = range(30000, 32768)  # kube-apiserver, --service-node-port-range when not given
CLUSTER_IP, EXTERNAL_IP, BALANCER = "cluster IP", "external IP", "load balancer's address"
NAMED = 10  # endpoints that are spelt out in an error


class NoBackends(EndProblem):
    """kube-proxy has nothing to send the packet to."""


@dataclass(frozen=True, slots=True)
class Front:
    """A service by those of its addresses that packets are sent to. kind: what they are to it. addresses: by family.
    local: of what comes from outside each node serves only its own endpoints.
    """

    namespace: str
    name: str
    kind: str
    addresses: Mapping[int, str]
    local: bool = False

    @property
    def shown(self) -> str:
        return f"service {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Port:
    """name: "" for the only port of a service. numbers: at the endpoints, which may differ when they have it by
    name.
    """

    name: str
    protocol: str
    numbers: tuple[int, ...]

    @property
    def shown(self) -> str:
        numbers = " or ".join(map(str, self.numbers))
        return f"{self.name or 'a port without name'} ({self.protocol}, {numbers} at its endpoints)"


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """node: "" where the slice names none."""

    address: str
    port: int
    node: str = ""

    @property
    def shown(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """backends: in order of their addresses; never empty. idle: endpoints with this port that are not ready."""

    port: Port
    backends: tuple[Backend, ...]
    idle: int = 0
    notes: tuple[str, ...] = ()


# --- which service ----------------------------------------------------------------------------------------------------


def target(text: str, cluster: Cluster, namespace: str = "", port: str = "") -> End | tuple[Front, ...]:
    """What a trace goes TO: `service:[NAMESPACE/]NAME`, an address of services (several may share one by their ports),
    or else an end. What is the address of a workload or a node as well stays that, with a note. Raises EndProblem.
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
    fronts = tuple(_at(address, cluster)) if address else ()
    if fronts and not end.node:
        return fronts
    notes = [
        f"{address} is {one.shown}'s {one.kind} as well: trace to service:{one.namespace}/{one.name} for its ports"
        for one in fronts
    ]
    if end.host and port.isdecimal() and int(port) in NODE_PORTS and any(map(_has_node_ports, _services(cluster))):
        notes.append(
            f"{port} may be a service's node port, which the datastore does not keep: this is the packet to the node"
            " itself; trace to service:NAMESPACE/NAME for what a service makes of it"
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
    return Front(within, name, CLUSTER_IP, addresses)


def _at(address: str, cluster: Cluster) -> Iterator[Front]:
    """The services that kube-proxy serves at the address."""
    for one in _services(cluster):
        spec, (namespace, name) = one.spec, _name(one)
        if spec.type == "ExternalName" or _headless(one) or not _cluster_ips(one):
            continue  # kube-proxy leaves these out, whatever other addresses they have
        balanced = [entry.ip for entry in one.status.load_balancer.ingress]
        for kind, given in ((CLUSTER_IP, _cluster_ips(one)), (EXTERNAL_IP, spec.external_ips), (BALANCER, balanced)):
            if address in _canonical(given):
                local = kind != CLUSTER_IP and spec.external_traffic_policy == "Local"
                yield Front(namespace, name, kind, {nets.version_of(address): address}, local)
                break


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


# --- which endpoints --------------------------------------------------------------------------------------------------


def slices(namespace: str, name: str, family: int, cluster: Cluster) -> list[KubernetesEndpointSlice]:
    return [
        one
        for one in cluster.of(KubernetesEndpointSlice)
        if one.metadata.namespace == namespace
        and one.metadata.labels.get(SERVICE_NAME_LABEL) == name
        and one.address_type == f"IPv{family}"
    ]


def ports(found: Iterable[KubernetesEndpointSlice]) -> list[Port]:
    """By protocol and name. A port without number is none to kube-proxy."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for one in found:
        for port in one.ports:
            if port.port:
                numbers.setdefault(_port_name(port.protocol, port.name), set()).add(port.port)
    return [Port(name, protocol, tuple(sorted(of))) for (protocol, name), of in sorted(numbers.items())]


def _port_name(protocol: str | None, name: str | None) -> tuple[str, str]:
    return (protocol or "TCP").lower(), name or ""


def choose(front: Front, family: int, protocol: int, port: str, cluster: Cluster) -> Chosen:
    """The backends of a port in one family. protocol: number. port: the service's, by name or number.

    Raises PacketProblem for a port or protocol that the service does not have, NoBackends when none is ready.
    """
    found = slices(front.namespace, front.name, family, cluster)
    wanted, notes = _port(front, NUMBERS.get(protocol, str(protocol)), port, ports(found), family)
    ready: dict[tuple[str, int], str] = {}
    idle: set[tuple[str, int]] = set()
    for one in found:
        numbers = [
            entry.port
            for entry in one.ports
            if entry.port and _port_name(entry.protocol, entry.name) == (wanted.protocol, wanted.name)
        ]
        for endpoint in one.endpoints if numbers else ():
            first = endpoint.addresses[0] if endpoint.addresses else ""  # kube-proxy looks at no others
            if not nets.valid_address(first, family) or "/" in first:
                notes.append(f"{first!r} in slice {one.metadata.name} is no IPv{family} address: left out")
                continue
            place = nets.canonical_address(first), numbers[0]
            if endpoint.conditions.ready is False:
                idle.add(place)
            else:
                ready[place] = ready.get(place) or endpoint.node_name or ""  # slices overlap while they are rewritten
    idle -= ready.keys()
    if not ready:
        raise NoBackends(_none_ready(front, family, wanted, len(idle)))
    prefix = keys.resource_prefix("KubernetesEndpointSlice", front.namespace)
    unread = [key.removeprefix(prefix) for key in cluster.bad if key.startswith(prefix)]
    notes += [
        f"slice {name} cannot be read, and may be this service's"
        for name in unread
        if f"{prefix}{name}" not in cluster.resources
    ]
    backends = sorted((Backend(*place, node) for place, node in ready.items()), key=_order)
    return Chosen(wanted, tuple(backends), len(idle), tuple(notes))


def _order(one: Backend) -> tuple[int, int]:
    return int(ip_address(one.address)), one.port


def _none_ready(front: Front, family: int, port: Port, idle: int) -> str:
    if not idle:
        return f"{front.shown} has no endpoints on IPv{family} for {port.shown}: kube-proxy refuses connections to it"
    return (
        f"{front.shown} has no ready endpoint on IPv{family} for {port.shown}: {idle} not ready. kube-proxy refuses"
        " connections to it, unless some of these are terminating and still serve, which the datastore does not keep"
    )


def _port(front: Front, protocol: str, text: str, known: Sequence[Port], family: int) -> tuple[Port, list[str]]:
    """Which port is meant, and what had to be assumed."""
    if protocol not in PROTOCOLS:
        raise PacketProblem(f"--protocol: {protocol} is none of services' protocols: {', '.join(sorted(PROTOCOLS))}")
    if not known:
        raise NoBackends(f"{front.shown} has no endpoints on IPv{family}: kube-proxy refuses connections to it")
    has = "it has " + ", ".join(one.shown for one in known)
    alike = [one for one in known if one.protocol == protocol]
    if not text:
        raise PacketProblem(f"--port: which port of {front.shown}? {has}")
    if not text.isdecimal():
        named = next((one for one in alike if one.name == text), None)
        if named is None:
            raise PacketProblem(f"--port: {front.shown} has no {protocol} port {text!r}; {has}")
        return named, []
    number = port_number(text)
    if not alike:
        raise PacketProblem(f"--port: {front.shown} has no {protocol} port; {has}")
    if len(alike) > 1:
        raise PacketProblem(
            f"--port: the datastore does not keep the numbers of services' ports, so it does not tell which of"
            f" {front.shown}'s is {number}: give its name; {has}"
        )
    note = f"the datastore does not keep the numbers of services' ports: {number} is taken for its only {protocol} port"
    return alike[0], [note]
