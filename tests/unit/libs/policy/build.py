"""Short ways to write resources and to ask the calculator, for the tests of this folder and the properties."""

from __future__ import annotations

from libs import model
from libs.policy.calculator import Calculator
from libs.policy.changes import NodeView
from libs.policy.output import PolicyKey, Workload, WorkloadKey


def entity(**fields: object) -> model.EntityRule:
    if "ports" in fields:
        fields["ports"] = [model.Port(port) for port in fields["ports"]]
    if "not_ports" in fields:
        fields["not_ports"] = [model.Port(port) for port in fields["not_ports"]]
    if "accounts" in fields:
        fields["service_accounts"] = model.ServiceAccountMatch(**fields.pop("accounts"))
    return model.EntityRule(**fields)


def rule(
    action: str = "Allow",
    protocol: str | int | None = None,
    source: dict[str, object] | None = None,
    destination: dict[str, object] | None = None,
    **fields: object,
) -> model.Rule:
    return model.Rule(
        action=action,
        protocol=None if protocol is None else model.Protocol(protocol),
        source=entity(**source) if source else None,
        destination=entity(**destination) if destination else None,
        **fields,
    )


def wep(
    name: str,
    node: str = "n1",
    namespace: str = "ns1",
    labels: dict[str, str] | None = None,
    nets: tuple[str, ...] = ("10.0.0.1/32",),
    profiles: tuple[str, ...] = (),
    ports: tuple[tuple[str, str, int], ...] = (),
    account: str = "",
) -> model.WorkloadEndpoint:
    return model.WorkloadEndpoint(
        metadata=model.ObjectMeta(name=f"{node}-k8s-{name}-eth0", namespace=namespace, labels=dict(labels or {})),
        spec=model.WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            pod=name,
            endpoint="eth0",
            ip_networks=list(nets),
            profiles=list(profiles),
            interface_name=f"cali{name}",
            service_account_name=account,
            ports=[
                model.WorkloadEndpointPort(name=n, protocol=model.Protocol(p), port=number) for n, p, number in ports
            ],
        ),
    )


def hep(
    name: str,
    node: str = "n1",
    labels: dict[str, str] | None = None,
    interface: str = "eth0",
    expected: tuple[str, ...] = (),
    profiles: tuple[str, ...] = (),
    ports: tuple[tuple[str, str, int], ...] = (),
) -> model.HostEndpoint:
    return model.HostEndpoint(
        metadata=model.ObjectMeta(name=name, labels=dict(labels or {})),
        spec=model.HostEndpointSpec(
            node=node,
            interface_name=interface,
            expected_ips=list(expected),
            profiles=list(profiles),
            ports=[model.EndpointPort(name=n, protocol=model.Protocol(p), port=number) for n, p, number in ports],
        ),
    )


def gnp(name: str, selector: str = "", *, staged: str = "", **fields: object) -> model.Resource:
    fields.setdefault("types", ["Ingress", "Egress"])
    fields.setdefault("tier", "default")
    metadata = model.ObjectMeta(name=name)
    if staged:
        spec = model.StagedGlobalNetworkPolicySpec(selector=selector, staged_action=staged, **fields)
        return model.StagedGlobalNetworkPolicy(metadata=metadata, spec=spec)
    return model.GlobalNetworkPolicy(metadata=metadata, spec=model.GlobalNetworkPolicySpec(selector=selector, **fields))


def np(name: str, namespace: str = "ns1", selector: str = "", **fields: object) -> model.NetworkPolicy:
    fields.setdefault("types", ["Ingress", "Egress"])
    fields.setdefault("tier", "default")
    return model.NetworkPolicy(
        metadata=model.ObjectMeta(name=name, namespace=namespace),
        spec=model.NetworkPolicySpec(selector=selector, **fields),
    )


def tier(name: str, order: float | None = None, action: str = "Deny") -> model.Tier:
    return model.Tier(metadata=model.ObjectMeta(name=name), spec=model.TierSpec(order=order, default_action=action))


def profile(name: str, labels: dict[str, str] | None = None, **fields: object) -> model.Profile:
    return model.Profile(
        metadata=model.ObjectMeta(name=name), spec=model.ProfileSpec(labels_to_apply=dict(labels or {}), **fields)
    )


def gns(name: str, labels: dict[str, str], nets: tuple[str, ...]) -> model.GlobalNetworkSet:
    return model.GlobalNetworkSet(
        metadata=model.ObjectMeta(name=name, labels=dict(labels)), spec=model.GlobalNetworkSetSpec(nets=list(nets))
    )


def ns(name: str, namespace: str, labels: dict[str, str], nets: tuple[str, ...]) -> model.NetworkSet:
    return model.NetworkSet(
        metadata=model.ObjectMeta(name=name, namespace=namespace, labels=dict(labels)),
        spec=model.NetworkSetSpec(nets=list(nets)),
    )


def node(name: str, ipv4: str = "", ipv6: str = "", vxlan: str = "") -> model.Node:
    return model.Node(
        metadata=model.ObjectMeta(name=name),
        spec=model.NodeSpec(
            bgp=model.NodeBGPSpec(ipv4_address=ipv4, ipv6_address=ipv6) if ipv4 or ipv6 else None,
            ipv4_vxlan_tunnel_addr=vxlan,
        ),
    )


def pool(name: str, cidr: str, **fields: object) -> model.IPPool:
    return model.IPPool(metadata=model.ObjectMeta(name=name), spec=model.IPPoolSpec(cidr=cidr, **fields))


def key_of(resource: model.Resource) -> str:
    return f"{resource.kind}/{resource.metadata.namespace}/{resource.metadata.name}"


def calculate(*resources: model.Resource) -> Calculator:
    calculator = Calculator()
    for resource in resources:
        calculator.update(key_of(resource), resource)
    calculator.flush()
    return calculator


def view_of(*resources: model.Resource, node: str = "n1") -> NodeView:
    return calculate(*resources).view(node)


def workload(view: NodeView, name: str, namespace: str = "ns1") -> Workload:
    return view.workloads[WorkloadKey("k8s", f"{namespace}/{name}", "eth0")]


def only_policy_sets(view: NodeView, name: str) -> list[frozenset[str]]:
    """Members of the sets that the policy of this name refers to, in order of use."""
    policy = next(policy for key, policy in view.policies.items() if key.name == name)
    return [
        view.ipsets[set_id].members
        for one in (*policy.inbound, *policy.outbound)
        for set_id in (
            *one.src_sets,
            *one.dst_sets,
            *one.not_src_sets,
            *one.not_dst_sets,
            *one.src_named_port_sets,
            *one.dst_named_port_sets,
            *one.dst_ip_port_sets,
        )
    ]


def gnp_key(name: str) -> PolicyKey:
    return PolicyKey("GlobalNetworkPolicy", name)


def np_key(name: str, namespace: str = "ns1") -> PolicyKey:
    return PolicyKey("NetworkPolicy", name, namespace)
