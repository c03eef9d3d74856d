"""What people write for the two ends of a trace, and what it means in this cluster.

ns1/web, web                 a pod, or a workload endpoint by its own name; `ns1/web/net1` another of its interfaces
node1                        a node itself
10.65.0.1, fd00::1           an address: of a workload, of a node, or somewhere outside
pod:…, node:…, hep:…, netset:ns1/name, netset:name (of the whole cluster)      when a name alone is not enough

Services, which a trace can go to, are not here (`services.py`): each of their backends is such an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address

from libs import model
from libs.model.kubernetes import KubernetesService
from libs.policy import nets
from libs.policy.output import Workload, WorkloadKey
from services.calicoctl.explain.cluster import Cluster

NEAREST = 3
SERVICE_PREFIXES = ("service", "svc")


class EndProblem(Exception):
    """The text names nothing, or more than one thing; says what to write instead."""


@dataclass(frozen=True, slots=True)
class End:
    """shown: as people call it. node: where it is, "" outside. workload or host: what it is there; neither outside.

    addresses: by family. ports: named ports of a workload, (protocol, name) -> number.
    """

    shown: str
    node: str = ""
    workload: WorkloadKey | None = None
    host: bool = False
    addresses: Mapping[int, str] = field(default_factory=dict)
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def resolve(text: str, cluster: Cluster, namespace: str = "") -> End:
    """namespace: of pods without one. Raises EndProblem."""
    return _Resolver(cluster, namespace or "default").resolve(text.strip())


class _Resolver:
    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._prefixes: dict[str, Callable[[str], End | None]] = {
            "pod": self._pod,
            "wep": self._pod,
            "node": self._node,
            "hep": self._host_endpoint,
            "netset": self._network_set,
            "ip": self._address,
        }

    def resolve(self, text: str) -> End:
        if not text:
            raise EndProblem("an end must not be empty: give a pod, a node or an address")
        address = self._address(text)
        if address is not None:
            return address
        prefix, colon, rest = text.partition(":")
        if colon and prefix in self._prefixes:
            found = self._prefixes[prefix](rest)
            if found is None:
                raise EndProblem(self._unknown(prefix, rest))
            return found
        if colon and prefix in SERVICE_PREFIXES:
            raise EndProblem(f"{text}: a service sends nothing; only what a trace goes TO can be one")
        candidates = {
            kind: end for kind in ("pod", "node", "hep", "netset") if (end := self._prefixes[kind](text)) is not None
        }
        if not candidates:
            raise EndProblem(self._unknown("pod", text))
        pod = candidates.get("pod")
        if len(candidates) > 1:
            ways = ", ".join(f"{kind}:{text} ({end.shown})" for kind, end in candidates.items())
            raise EndProblem(f"{text!r} may be several things: write one of {ways}")
        return pod if pod is not None else next(iter(candidates.values()))

    # --- pods ---

    def _pod(self, text: str) -> End | None:
        namespace, slash, name = text.partition("/")
        if not slash:
            namespace, name = self._namespace, text
        name, _, interface = name.partition("/")
        found = [
            (node, key, workload)
            for node, key, workload in self._cluster.workloads()
            if key.workload in (f"{namespace}/{name}", name if not slash else "")
            and (not interface or key.endpoint == interface)
        ]
        if not found:
            return self._by_endpoint_name(namespace, name)
        if len({key.workload for _, key, _ in found}) > 1 or len({node for node, _, _ in found}) > 1:
            places = ", ".join(f"{key} on {node}" for node, key, _ in found)
            raise EndProblem(f"{text!r} is on several nodes: {places}; give its address instead")
        first = next((one for one in found if one[1].endpoint == "eth0"), min(found, key=lambda one: one[1]))
        notes: tuple[str, ...] = ()
        if len(found) > 1 and not interface:
            others = ", ".join(sorted(key.endpoint for _, key, _ in found if key != first[1]))
            notes = (f"of its interfaces {first[1].endpoint} is meant; it also has {others}",)
        return self._workload(*first, notes=notes)

    def _by_endpoint_name(self, namespace: str, name: str) -> End | None:
        """By the name of the WorkloadEndpoint; one that has no address cannot be traced, and is told as such."""
        for one in self._cluster.of(model.WorkloadEndpoint):
            meta, spec = one.metadata, one.spec
            if meta.namespace != namespace or name not in (meta.name, spec.pod, spec.workload):
                continue
            if not spec.ip_networks:
                raise EndProblem(f"pod {namespace}/{name} has an endpoint on {spec.node} but no address yet")
            for node, key, workload in self._cluster.workloads():
                if node == spec.node and key.endpoint == spec.endpoint and workload.name == spec.interface_name:
                    return self._workload(node, key, workload)
            reason = next((why for key, why in self._cluster.bad.items() if key.endswith(f"/{meta.name}")), "")
            because = f": {reason}" if reason else ""
            raise EndProblem(f"workload endpoint {namespace}/{meta.name} is not in force{because}")
        return None

    def _workload(
        self, node: str, key: WorkloadKey, workload: Workload, *, shown: str = "", notes: tuple[str, ...] = ()
    ) -> End:
        addresses = {
            nets.version_of(text): nets.address(text) for text in (*reversed(workload.nets4), *reversed(workload.nets6))
        }
        return End(
            shown=shown or f"pod {key.workload}",
            node=node,
            workload=key,
            addresses=addresses,
            ports=self._named_ports(workload),
            notes=notes,
        )

    def _named_ports(self, workload: Workload) -> dict[tuple[str, str], int]:
        for one in self._cluster.by_interface.get(workload.name, ()):
            if set(map(nets.canonical, one.spec.ip_networks)) == {*workload.nets4, *workload.nets6}:
                return {(str(port.protocol).lower(), port.name): port.port for port in one.spec.ports if port.name}
        return {}

    # --- the rest ---

    def _node(self, name: str) -> End | None:
        if name not in self._cluster.calculator.node_infos:
            return None
        addresses = self._cluster.node_addresses(name)
        if not addresses:
            raise EndProblem(f"node {name} has no address (spec.bgp) that could be traced")
        return End(shown=f"node {name}", node=name, host=True, addresses=addresses)

    def _host_endpoint(self, name: str) -> End | None:
        for one in self._cluster.of(model.HostEndpoint):
            if one.metadata.name == name:
                expected = {nets.version_of(text): text for text in reversed(one.spec.expected_ips)}
                addresses = {**self._cluster.node_addresses(one.spec.node), **expected}
                if not addresses:
                    raise EndProblem(f"neither host endpoint {name} nor its node {one.spec.node} has an address")
                return End(shown=f"host endpoint {name}", node=one.spec.node, host=True, addresses=addresses)
        return None

    def _network_set(self, text: str) -> End | None:
        namespace, _, name = text.rpartition("/")
        sets: Iterable[model.NetworkSet | model.GlobalNetworkSet] = (
            self._cluster.of(model.NetworkSet) if namespace else self._cluster.of(model.GlobalNetworkSet)
        )
        for one in sets:
            if one.metadata.name != name or (one.metadata.namespace or "") != namespace:
                continue
            firsts = {nets.version_of(text): nets.address(nets.canonical(text)) for text in reversed(one.spec.nets)}
            if not firsts:
                raise EndProblem(f"network set {text} is empty: there is no address to trace")
            note = f"of network set {text} the first address is meant: {', '.join(firsts.values())}"
            return End(shown=f"network set {text}", addresses=firsts, notes=(note,))
        return None

    def _address(self, text: str) -> End | None:
        try:
            address = str(ip_address(text))
        except ValueError:
            return None
        version = nets.version_of(address)
        found = self._cluster.workload_at(address)
        if found is not None:
            node, key, workload = found
            end = self._workload(node, key, workload, shown=f"{address} of pod {key.workload}")
            return End(end.shown, node, key, False, {version: address}, end.ports)
        if address in self._cluster.floating:
            internal, (node, key, workload) = self._cluster.floating[address]
            note = f"{address} is a floating address: what it gets goes to {internal}"
            end = self._workload(node, key, workload)
            return End(end.shown, node, key, False, {version: internal}, end.ports, (note,))
        for name, info in self._cluster.calculator.node_infos.items():
            texts = (info.ipv4, info.ipv6, info.vxlan_ipv4, info.vxlan_ipv6, info.ipip_ipv4, info.wireguard_ipv4,
                     info.wireguard_ipv6)  # fmt: skip
            if address in {nets.address(one) for one in texts}:
                return End(f"{address} of node {name}", name, None, True, {version: address})
        return End(f"outside address {address}", addresses={version: address})

    def _unknown(self, kind: str, text: str) -> str:
        """Which names are like it."""
        match kind:
            case "node":
                known = list(self._cluster.calculator.node_infos)
            case "hep":
                known = [one.metadata.name for one in self._cluster.of(model.HostEndpoint)]
            case "netset":
                known = [one.metadata.name for one in self._cluster.of(model.GlobalNetworkSet)]
                known += [f"{one.metadata.namespace}/{one.metadata.name}" for one in self._cluster.of(model.NetworkSet)]
            case _:
                known = [key.workload for _, key, _ in self._cluster.workloads()]
                known += list(self._cluster.calculator.node_infos)
                text = text if "/" in text else f"{self._namespace}/{text}"
                prefix, slash, rest = text.partition("/")
                service = rest if slash and prefix in SERVICE_PREFIXES else text
                if any(f"{one.metadata.namespace}/{one.metadata.name}" == service
                       for one in self._cluster.of(KubernetesService)):  # fmt: skip
                    return f"no pod or node {text!r}; the service is written service:{service}"
        near = get_close_matches(text, sorted(set(known)), NEAREST, 0.5)
        names = {"pod": "pod, node, network set or address", "wep": "workload endpoint", "hep": "host endpoint"}
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"no {names.get(kind, 'network set' if kind == 'netset' else kind)} {text!r}{hint}"
