"""Automatic host endpoints: from nodes and the settings of kube-controllers to the HostEndpoints that there should be.

    nodes, AutoHostEndpointConfig ──► desired() ──► HostEndpoints by name ──► changes(what is stored) ──► create,
                                                                                            update, delete

Pure; whoever runs it reads, writes and repeats. Rules: facts/kubernetes-conversion.md section 9.4. What is ours is told
by the label `projectcalico.org/created-by`; a host endpoint without it is a user's and is never touched, even when it
has a name that we would give.

    <node>-auto-hep                              the default one, of all interfaces (`*`)
    <node>-<template>-auto-hep                   of a template without interfacePattern: found by expectedIPs
    <node>-<template>-<interface>-auto-hep       of a template with interfacePattern, one for each interface

A name that is no DNS name, because it is longer than 253 characters or an interface is called `eth_0`, is replaced by a
digest: SHA-256 of the name, base64url without `-`, `_` and `=`, in lower case, and `-auto-hep`; Calico does so with
long names (and fails on the others). The same is done when two nodes and templates come to one name (`a` and `b-c`,
`a-b` and `c`): the lower node and template keep it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

import msgspec

from libs import model
from libs.model import selector
from libs.model.selector import SelectorError

CREATED_BY, CONTROLLERS = "projectcalico.org/created-by", "calico-kube-controllers"
PROFILE = "projectcalico-default-allow"
SUFFIX = "auto-hep"
EVERY_INTERFACE = "*"
INTERNAL_IP = "InternalIP"
MAX_NAME_CHARS = 253  # of a DNS subdomain (RFC 1123)
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Desired:
    """problems: parts of nodes or configuration that were left out, and why; for the log."""

    endpoints: dict[str, model.HostEndpoint] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What to write, in any order. update: what is stored, with our labels and spec; it carries the resource version
    that was read. problems: names that a user's host endpoint has.
    """

    create: tuple[model.HostEndpoint, ...] = ()
    update: tuple[model.HostEndpoint, ...] = ()
    delete: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


def is_ours(endpoint: model.HostEndpoint) -> bool:
    return endpoint.metadata.labels.get(CREATED_BY) == CONTROLLERS


def desired(nodes: Iterable[model.Node], config: model.AutoHostEndpointConfig | None) -> Desired:
    """Of all nodes. The result does not depend on their order; of two with one name the last counts."""
    if config is None or config.auto_create != "Enabled":
        return Desired()
    problems: list[str] = []
    templates = list(_usable(config.templates, problems))
    endpoints: dict[str, model.HostEndpoint] = {}
    for _, node in sorted({node.metadata.name: node for node in nodes}.items()):
        addresses = _addresses_of(node, problems)
        if config.create_default_host_endpoint != "Disabled":
            _add(endpoints, node, None, EVERY_INTERFACE, addresses)
        for template in templates:
            if template.selector is None or template.selector.matches(node.metadata.labels):
                for interface, expected in _matches(node, template, addresses, problems):
                    _add(endpoints, node, template.of, interface, expected)
    return Desired(endpoints, tuple(problems))


def changes(stored: Iterable[model.HostEndpoint], wanted: Mapping[str, model.HostEndpoint]) -> Changes:
    """stored: every HostEndpoint of the datastore, users' own as well. Annotations that we do not set stay."""
    have = {endpoint.metadata.name: endpoint for endpoint in stored}
    create, update, problems = [], [], []
    for name, want in sorted(wanted.items()):
        old = have.get(name)
        if old is None:
            create.append(want)
        elif not is_ours(old):
            problems.append(f"host endpoint {name} exists and is not one of ours: left alone")
        else:
            annotations = old.metadata.annotations | want.metadata.annotations
            metadata = msgspec.structs.replace(old.metadata, labels=want.metadata.labels, annotations=annotations)
            new = msgspec.structs.replace(old, metadata=metadata, spec=want.spec)
            if new != old:
                update.append(new)
    delete = [name for name, endpoint in sorted(have.items()) if is_ours(endpoint) and name not in wanted]
    return Changes(tuple(create), tuple(update), tuple(delete), tuple(problems))


def endpoint_name(node: str, template: str = "", interface: str = "") -> str:
    """See the module."""
    plain = "-".join(part for part in (node, template, interface, SUFFIX) if part)
    return plain if len(plain) <= MAX_NAME_CHARS and _DNS_NAME.fullmatch(plain) else hashed_name(plain)


def hashed_name(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"{re.sub('[-_=]', '', digest).lower()}-{SUFFIX}"


# --- inside -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Template:
    """A template that can be used. selector None: every node. pattern None: no interface is named."""

    of: model.HostEndpointTemplate
    selector: selector.Selector | None
    pattern: re.Pattern[str] | None


def _usable(templates: Iterable[model.HostEndpointTemplate], problems: list[str]) -> Iterator[_Template]:
    """A template that says something impossible is left out as a whole: it must not match more than it should."""
    for template in templates:
        name = template.generate_name
        if not name:
            problems.append("a template without generateName: its host endpoints would be named as the default one")
            continue
        try:
            for cidr in template.interface_cidrs:
                ip_network(cidr, strict=False)
            yield _Template(
                template,
                selector.parse(template.node_selector) if template.node_selector else None,
                re.compile(template.interface_pattern) if template.interface_pattern else None,
            )
        except (ValueError, SelectorError, re.error) as error:
            problems.append(f"template {name}: {error}")


def _matches(
    node: model.Node, template: _Template, addresses: tuple[Address, ...], problems: list[str]
) -> Iterator[tuple[str, tuple[Address, ...]]]:
    """Interface ("" is found by address) and expected addresses of each host endpoint of one node and template."""
    networks = [ip_network(cidr, strict=False) for cidr in template.of.interface_cidrs]
    inside = tuple(ip for ip in addresses if any(ip in network for network in networks))
    if template.pattern is None:
        if inside:  # else nothing would say which interface is meant
            yield "", inside
        return
    for interface in sorted(node.spec.interfaces, key=lambda one: one.name):
        if template.pattern.search(interface.name):
            its_own = _parsed(interface.addresses, f"node {node.metadata.name}, interface {interface.name}", problems)
            yield interface.name, tuple(dict.fromkeys((*inside, *its_own)))


def _add(
    endpoints: dict[str, model.HostEndpoint],
    node: model.Node,
    template: model.HostEndpointTemplate | None,
    interface: str,
    expected: tuple[Address, ...],
) -> None:
    template_name = template.generate_name if template is not None else ""
    part = "" if interface == EVERY_INTERFACE else interface
    name = endpoint_name(node.metadata.name, template_name, part)
    if name in endpoints:
        name = hashed_name(f"{node.metadata.name}/{template_name}/{part}")
    labels = node.metadata.labels | (template.labels if template is not None else {}) | {CREATED_BY: CONTROLLERS}
    annotations = dict(template.annotations) if template is not None else {}
    endpoints[name] = model.HostEndpoint(
        metadata=model.ObjectMeta(name=name, labels=labels, annotations=annotations),
        spec=model.HostEndpointSpec(
            node=node.metadata.name,
            interface_name=interface,
            expected_ips=[str(ip) for ip in expected],
            profiles=[PROFILE],
        ),
    )


def _addresses_of(node: model.Node, problems: list[str]) -> tuple[Address, ...]:
    """All that are known, in Calico's order, each once."""
    spec, bgp, wireguard = node.spec, node.spec.bgp, node.spec.wireguard
    texts = [
        *((bgp.ipv4_address, bgp.ipv6_address, bgp.ipv4_ipip_tunnel_addr) if bgp is not None else ()),
        spec.ipv4_vxlan_tunnel_addr,
        spec.ipv6_vxlan_tunnel_addr,
        *((wireguard.interface_ipv4_address, wireguard.interface_ipv6_address) if wireguard is not None else ()),
        *(address.address for address in spec.addresses if address.type == INTERNAL_IP),
        *(text for interface in spec.interfaces for text in interface.addresses),
    ]
    return tuple(dict.fromkeys(_parsed(texts, f"node {node.metadata.name}", problems)))


def _parsed(texts: Iterable[str], where: str, problems: list[str]) -> Iterator[Address]:
    """With or without a prefix length. Addresses that every host may have are nobody's mark: link-local, loopback."""
    for text in texts:
        if not text:
            continue
        try:
            address = ip_interface(text).ip
        except ValueError as error:
            problem = f"{where}: {error}"
            if problem not in problems:
                problems.append(problem)
            continue
        if not address.is_link_local and not address.is_loopback:
            yield address
