"""Which endpoints are behind a service's port, as kube-proxy chooses among them. Pure.

Flows in: `Front`, whose node the packet is from, endpoint slices. Flows out: `Chosen`, what kube-proxy may make of the
packet's destination. The rules are those of Kubernetes' pkg/proxy/topology.go (CategorizeEndpoints) but for topology
hints: ready endpoints, else those that terminate and still serve; of a traffic policy Local those of one node alone
(in its mode IPVS it takes all where that node has none).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import ip_address
from typing import NamedTuple

from libs.model import keys
from libs.model.kubernetes import KubernetesEndpointSlice, SliceConditions
from libs.policy import nets
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import EndProblem
from services.calicoctl.explain.packet import NUMBERS, PacketProblem, is_number, port_number
from services.calicoctl.explain.services import CLUSTER_IP, Front, Port, slices

PROTOCOLS = frozenset({"tcp", "udp", "sctp"})  # of services (core/v1, ServicePort)


class NoBackends(EndProblem):
    """kube-proxy has nothing to send the packet to."""


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """node: as Kubernetes calls it, "" where the slice names none."""

    address: str
    port: int
    node: str = ""

    @property
    def shown(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """backends: in order of their addresses; never empty. idle: endpoints with this port that are not ready and get
    nothing.
    """

    port: Port
    backends: tuple[Backend, ...]
    idle: int = 0
    notes: tuple[str, ...] = ()


class State(IntEnum):
    """The higher one counts where slices overlap while they are rewritten."""

    IDLE = 0
    SERVING = 1  # terminating
    READY = 2


class _Endpoint(NamedTuple):
    """told: the slice says whether it terminates."""

    backend: Backend
    state: State
    told: bool


def choose(front: Front, family: int, protocol: int, port: str, cluster: Cluster, sender: str = "") -> Chosen:
    """The backends of a port in one family. protocol: number. port: the service's, by name or number; a node port by
    its number. sender: the node that it is on, "" outside. Outside, with a policy Local, those of each node by itself.

    Raises PacketProblem for a port or protocol that the service does not have, NoBackends when none is ready.
    """
    found = slices(front.namespace, front.name, family, cluster)
    wanted, notes = _port(front, NUMBERS.get(protocol, str(protocol)), port, ports(found), family)
    endpoints, unusable = _endpoints(found, wanted, family)
    notes += unusable
    node = _only(front, sender)
    near = endpoints
    if node:
        known_as = cluster.kubernetes_name(node)
        near = [one for one in endpoints if one.backend.node == known_as]
    taken: list[Backend] = []
    for place, group in _groups(near, apart=front.local and not node and not sender).items():
        best = max(one.state for one in group)
        taken += [one.backend for one in group if one.state is best is not State.IDLE]
        if best is State.SERVING:
            where = f" on {node or place}" if node or place else ""
            notes.append(f"no endpoint is ready{where}: those that terminate and still serve get its connections")
    if not taken:
        raise NoBackends(_none(front, family, wanted, endpoints, node, any(one.endpoints for one in found)))
    elsewhere = _usable(endpoints) - _usable(near)
    if elsewhere:
        notes.append(f"{front.policy} Local: {elsewhere} on other nodes than {node} get nothing of it")
    prefix = keys.resource_prefix("KubernetesEndpointSlice", front.namespace)
    unread = [key.removeprefix(prefix) for key in cluster.bad if key.startswith(prefix)]
    notes += [
        f"slice {name} cannot be read, and may be this service's"
        for name in unread
        if f"{prefix}{name}" not in cluster.resources
    ]
    used = set(taken)
    idle = sum(one.state is not State.READY and one.backend not in used for one in near)
    return Chosen(wanted, tuple(sorted(taken, key=_order)), idle, tuple(notes))


def _only(front: Front, sender: str) -> str:
    """The node whose endpoints alone count; "" where all do, or those of whichever node it comes in by."""
    if not front.local:
        return ""
    return sender if front.kind == CLUSTER_IP else front.enters(sender)


def _groups(endpoints: Iterable[_Endpoint], *, apart: bool) -> dict[str, list[_Endpoint]]:
    """Among which kube-proxy chooses together. apart: those of each node, by its name, in its order."""
    found: dict[str, list[_Endpoint]] = {}
    for one in endpoints:
        found.setdefault(one.backend.node if apart else "", []).append(one)
    return dict(sorted(found.items()))


def _usable(endpoints: Iterable[_Endpoint]) -> int:
    return sum(one.state is not State.IDLE for one in endpoints)


def _endpoints(found: Iterable[KubernetesEndpointSlice], port: Port, family: int) -> tuple[list[_Endpoint], list[str]]:
    """Those that have the port, once each, and what is wrong with others."""
    seen: dict[tuple[str, int], _Endpoint] = {}
    notes: list[str] = []
    for one in found:
        numbers = [
            entry.port
            for entry in one.ports
            if entry.port and _port_name(entry.protocol, entry.name) == (port.protocol, port.name)
        ]
        for endpoint in one.endpoints if numbers else ():
            first = endpoint.addresses[0] if endpoint.addresses else ""  # kube-proxy looks at no others
            if not nets.valid_address(first, family) or "/" in first:
                notes.append(f"{first!r} in slice {one.metadata.name} is no IPv{family} address: left out")
                continue
            place = nets.canonical_address(first), numbers[0]
            made = _Endpoint(
                Backend(*place, endpoint.node_name or ""),
                _state(endpoint.conditions),
                endpoint.conditions.terminating is not None,
            )
            seen[place] = _better(seen.get(place, made), made)
    return list(seen.values()), notes


def _state(conditions: SliceConditions) -> State:
    if conditions.ready is not False:
        return State.READY
    return State.SERVING if conditions.serving is not False and conditions.terminating else State.IDLE


def _better(one: _Endpoint, other: _Endpoint) -> _Endpoint:
    first, second = (one, other) if one.state >= other.state else (other, one)
    return first if first.backend.node else first._replace(backend=second.backend)


def _order(one: Backend) -> tuple[int, int]:
    return int(ip_address(one.address)), one.port


def _none(
    front: Front, family: int, port: Port, endpoints: Sequence[_Endpoint], node: str, pods: bool
) -> str:  # fmt: skip
    """pods: there are some, with this port or without."""
    usable = _usable(endpoints)
    of = f"on IPv{family} for {port.shown}"
    if usable:
        return (
            f"{front.shown} has no ready endpoint on {node} {of}, and {front.policy} is Local: kube-proxy there drops"
            f" what is sent to it, whatever the {usable} on other nodes (in its mode IPVS it takes these)"
        )
    if not endpoints:
        lacking = pods and isinstance(port.wanted, str)
        name = f", whose targetPort {port.wanted!r} none of its pods has" if lacking else ""
        return f"{front.shown} has no endpoints {of}{name}: kube-proxy refuses connections to it"
    unless = "" if all(one.told for one in endpoints) else (
        ", unless some of these are terminating and still serve, which an older kube_controllers did not store"
    )  # fmt: skip
    return (
        f"{front.shown} has no ready endpoint {of}: {len(endpoints)} not ready. kube-proxy refuses connections to it"
        f"{unless}"
    )


# --- which port -------------------------------------------------------------------------------------------------------


def ports(found: Iterable[KubernetesEndpointSlice]) -> list[Port]:
    """By protocol and name, as slices have them. A port without number is none to kube-proxy."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for one in found:
        for port in one.ports:
            if port.port:
                numbers.setdefault(_port_name(port.protocol, port.name), set()).add(port.port)
    return [Port(name, protocol, targets=tuple(sorted(of))) for (protocol, name), of in sorted(numbers.items())]


def _port_name(protocol: str | None, name: str | None) -> tuple[str, str]:
    return (protocol or "TCP").lower(), name or ""


def _port(front: Front, protocol: str, text: str, behind: Sequence[Port], family: int) -> tuple[Port, list[str]]:
    """Which port is meant, and what had to be assumed. behind: as slices have them."""
    if protocol not in PROTOCOLS:
        raise PacketProblem(f"--protocol: {protocol} is none of services' protocols: {', '.join(sorted(PROTOCOLS))}")
    if not front.ports and not behind:
        raise NoBackends(f"{front.shown} has no endpoints on IPv{family}: kube-proxy refuses connections to it")
    known = front.ports or behind
    has = "it has " + ", ".join(one.listed for one in known)
    alike = [one for one in known if one.protocol == protocol]
    if not text:
        raise PacketProblem(f"--port: which port of {front.shown}? {has}")
    if text.isdecimal() and not front.ports:
        return _only_one(front, port_number(text), protocol, alike, has)
    number = int(text) if is_number(text) else 0
    named = next((one for one in alike if number and front.number(one) == number), None)
    named = named or next((one for one in alike if text == one.name), None)  # which may be of digits alone
    if named is None:
        written = str(port_number(text)) if text.isdecimal() else repr(text)
        served = next((one for one in alike if text == str(one.node_port)), None)
        hint = "" if served is None else f"; {text} is the node port of {served.listed}: trace to a node with it"
        raise PacketProblem(f"--port: {front.shown} has no {protocol} port {written}; {has}{hint}")
    targets: Mapping[tuple[str, str], Port] = {(one.protocol, one.name): one for one in behind}
    there = targets.get((protocol, named.name))
    return named if there is None else replace(named, targets=there.targets), []


def _only_one(front: Front, number: int, protocol: str, alike: Sequence[Port], has: str) -> tuple[Port, list[str]]:
    """Of a service that an older kube_controllers stored."""
    if not alike:
        raise PacketProblem(f"--port: {front.shown} has no {protocol} port; {has}")
    unknown = f"the numbers of {front.shown}'s ports are not in the datastore (an older kube_controllers stored it)"
    if len(alike) > 1:
        raise PacketProblem(f"--port: {unknown}, so it does not tell which of them is {number}: give its name; {has}")
    return alike[0], [f"{unknown}: {number} is taken for its only {protocol} port"]
