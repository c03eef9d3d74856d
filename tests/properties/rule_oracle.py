"""Selectors and rules worked out the plain way, from the facts of the data model: text is put together as the tables of
the facts say, and a rule becomes the words of the dataplane and a description of the sets that it needs.

Of the product it uses the selector's tree as parsed, the resources and the published values.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from libs import model
from libs.model import selector as sel
from libs.policy.output import Action, HttpMatch, Icmp, PortRange, Rule, RuleOrigin, ServiceAccountMatch

NS = "projectcalico.org/namespace"
SA = "projectcalico.org/serviceaccount"
ACTIONS = {"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS, "Log": Action.LOG}
PROTOCOLS = ("tcp", "udp", "icmp", "icmpv6", "sctp", "udplite")
WITH_PORTS = {"tcp": "tcp", "udp": "udp", "sctp": "sctp", 6: "tcp", 17: "udp", 132: "sctp"}


class WantedSet(NamedTuple):
    """Either a selector's networks; its ports of a name and protocol; or a service's addresses, or those and ports."""

    selector: str = ""
    protocol: str = ""
    port: str = ""
    service: str = ""
    with_ports: bool = False


Sets = dict[str, WantedSet]


# --- selectors --------------------------------------------------------------------------------------------------------


def truth(node: sel.Node, labels: dict[str, str]) -> bool:
    """Section 4 of the data model, operator by operator."""
    match node:
        case sel.All() | sel.Global():
            return True
        case sel.Has(key):
            return key in labels
        case sel.Equal(key, value):
            return key in labels and labels[key] == value
        case sel.NotEqual(key, value):
            return key not in labels or labels[key] != value
        case sel.In(key, values):
            return key in labels and labels[key] in values
        case sel.NotIn(key, values):
            return key not in labels or labels[key] not in values
        case sel.Contains(key, value):
            return key in labels and value in labels[key]
        case sel.StartsWith(key, value):
            return key in labels and labels[key].startswith(value)
        case sel.EndsWith(key, value):
            return key in labels and labels[key].endswith(value)
        case sel.Not(operand):
            return not truth(operand, labels)
        case sel.And(operands):
            return all(truth(operand, labels) for operand in operands)
        case sel.Or(operands):
            return any(truth(operand, labels) for operand in operands)


def written(node: sel.Node, prefix: str = "") -> str:
    """The canonical form, every label with a prefix."""
    match node:
        case sel.All():
            return "all()"
        case sel.Global():
            return "global()"
        case sel.Has(key):
            return f"has({prefix}{key})"
        case sel.Equal(key, value):
            return f"{prefix}{key} == {quoted(value)}"
        case sel.NotEqual(key, value):
            return f"{prefix}{key} != {quoted(value)}"
        case sel.In(key, values):
            return f"{prefix}{key} in {{{', '.join(map(quoted, sorted(set(values))))}}}"
        case sel.NotIn(key, values):
            return f"{prefix}{key} not in {{{', '.join(map(quoted, sorted(set(values))))}}}"
        case sel.Contains(key, value):
            return f"{prefix}{key} contains {quoted(value)}"
        case sel.StartsWith(key, value):
            return f"{prefix}{key} starts with {quoted(value)}"
        case sel.EndsWith(key, value):
            return f"{prefix}{key} ends with {quoted(value)}"
        case sel.Not(operand):
            return f"!{written(operand, prefix)}"
        case sel.And(operands):
            return f"({' && '.join(written(operand, prefix) for operand in operands)})"
        case sel.Or(operands):
            return f"({' || '.join(written(operand, prefix) for operand in operands)})"


def quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def canonical(text: str) -> str:
    """Raises ValueError for what is no selector."""
    return written(sel.parse(text).root)


def prefixed(text: str, prefix: str) -> str:
    return written(sel.parse(text).root, prefix)


def select(text: str, labels: dict[str, str]) -> bool:
    return truth(sel.parse(text).root, labels)


def hashed(prefix: str, text: str) -> str:
    digest = hashlib.sha224(f"{prefix}:{text}".encode()).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def policy_text(selector: str, namespace: str, namespaces: str, accounts: str) -> str:
    """What a policy selects. `all()` of a prefixed selector stands for "has one", and with it every other `all()`."""
    text = selector
    if namespace:
        text = f"({text}) && {NS} == '{namespace}'" if text else f"{NS} == '{namespace}'"
    for other, prefix, has in ((namespaces, "pcns.", NS), (accounts, "pcsa.", SA)):
        if other:
            term = prefixed(other, prefix)
            text = f"({text}) && {term}" if text else term
            text = text.replace("all()", f"has({has})")
    return canonical(text)


def entity_text(entity: model.EntityRule, namespace: str) -> str:
    """The positive selector of one side; "" matches everything."""
    accounts = []
    if entity.service_accounts is not None:
        if entity.service_accounts.selector:
            accounts.append(prefixed(entity.service_accounts.selector, "pcsa."))
        if entity.service_accounts.names:
            names = ", ".join(f"'{name}'" for name in entity.service_accounts.names)
            accounts.append(canonical(f"{SA} in {{{names}}}"))
    text = entity.selector
    if accounts:
        both = " && ".join(f"({one})" for one in accounts) if len(accounts) > 1 else accounts[0]
        text = f"({both}) && ({text})" if text else both
    outer = ""
    if entity.namespace_selector:
        outer = prefixed(entity.namespace_selector, "pcns.")
        outer = outer.replace("all()", f"has({NS})").replace("global()", f"!has({NS})")
    elif namespace and (text or entity.not_selector):
        outer = f"{NS} == '{namespace}'"
    if outer:
        text = f"({outer}) && ({text})" if text else outer
    return text


# --- networks, protocols ----------------------------------------------------------------------------------------------


def net(text: str) -> str:
    """A masked network; an address is one of its full length. Raises ValueError: only `address` and `address/bits`."""
    if not re.fullmatch(r"[0-9a-fA-F.:]+(/[0-9]+)?", text):
        raise ValueError(text)
    return str(ipaddress.ip_network(text, strict=False))


def address(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F.:]+", text):
        raise ValueError(text)
    return str(ipaddress.ip_address(text))


def protocol_word(protocol: model.Protocol | None) -> str | int | None:
    """Raises ValueError for a name that is no protocol."""
    if protocol is None:
        return None
    if protocol.isdecimal():
        return int(protocol)
    if protocol.lower() not in PROTOCOLS:
        raise ValueError(protocol)
    return protocol.lower()


# --- rules ------------------------------------------------------------------------------------------------------------


def rules(listed: Iterable[model.Rule], namespace: str, sets: Sets) -> tuple[Rule, ...]:
    return tuple(rule(one, namespace, sets) for one in listed)


def rule(one: model.Rule, namespace: str, sets: Sets) -> Rule:
    """Adds the sets that it needs. Raises ValueError when a part means nothing."""
    protocol = protocol_word(one.protocol)
    version = one.ip_version or {"icmp": 4, "icmpv6": 6}.get(str(protocol), 0)
    if version not in (0, 4, 6):
        raise ValueError(version)
    fields: dict[str, object] = {}
    words: dict[str, object] = {}
    for end, entity in (("src", one.source), ("dst", one.destination)):
        fields |= side(end, entity or model.EntityRule(), namespace, protocol, sets)
        words |= origin(end, entity or model.EntityRule())
    said = RuleOrigin(**words)
    return Rule(
        action=action(one.action),
        ip_version=version,
        protocol=protocol,
        not_protocol=protocol_word(one.not_protocol),
        icmp=icmp(one.icmp),
        not_icmp=icmp(one.not_icmp),
        http=http(one.http),
        annotations={} if one.metadata is None else one.metadata.annotations,
        origin=None if said == RuleOrigin() else said,
        **fields,
    )


def action(text: str) -> Action:
    if text not in ACTIONS:
        raise ValueError(text)
    return ACTIONS[text]


def side(
    end: str, entity: model.EntityRule, namespace: str, protocol: str | int | None, sets: Sets
) -> dict[str, object]:
    positive, negative = entity_text(entity, namespace), entity.not_selector
    if positive and negative:
        positive, negative = f"({positive}) && (!({negative}))", ""
    named = WITH_PORTS.get(protocol, "tcp") if protocol is not None else "any"

    def ports_set(name: str) -> str:
        text = canonical(positive)
        set_id = hashed("n", f"{hashed('s', text)},{named},{name}")
        sets[set_id] = WantedSet(selector=text, protocol=named, port=name)
        return set_id

    def nets_set(text: str) -> str:
        text = canonical(text)
        sets[hashed("s", text)] = WantedSet(selector=text)
        return hashed("s", text)

    numbers = [one for one in entity.ports if not one.is_name]
    names = [one for one in entity.ports if one.is_name]
    found: dict[str, object] = {
        f"{end}_nets": tuple(map(net, entity.nets)),
        f"not_{end}_nets": tuple(map(net, entity.not_nets)),
        f"{end}_ports": tuple(PortRange(one.min, one.max) for one in numbers),
        f"not_{end}_ports": tuple(PortRange(one.min, one.max) for one in entity.not_ports if not one.is_name),
        f"{end}_named_port_sets": tuple(map(ports_set, names)),
        f"not_{end}_named_port_sets": tuple(ports_set(one) for one in entity.not_ports if one.is_name),
    }
    inside: list[str] = []
    if positive and (numbers or not names):
        inside.append(nets_set(positive))
    if negative:
        found[f"not_{end}_sets"] = (nets_set(negative),)
    if entity.services is not None:
        service = f"{entity.services.namespace or namespace}/{entity.services.name}"
        set_id = hashed("svcnoport" if end == "src" else "svc", service)
        sets[set_id] = WantedSet(service=service, with_ports=end == "dst")
        if end == "dst":
            found["dst_ip_port_sets"] = (set_id,)
        else:
            inside.append(set_id)
    found[f"{end}_sets"] = tuple(inside)
    return found


def origin(end: str, entity: model.EntityRule) -> dict[str, object]:
    words: dict[str, object] = {
        f"{end}_selector": entity.selector,
        f"not_{end}_selector": entity.not_selector,
        f"{end}_namespace_selector": entity.namespace_selector,
    }
    if entity.services is not None:
        words |= {f"{end}_service": entity.services.name, f"{end}_service_namespace": entity.services.namespace}
    accounts = entity.service_accounts
    if accounts is not None:
        words[f"{end}_service_accounts"] = ServiceAccountMatch(accounts.selector, tuple(accounts.names))
    return words


def icmp(match: model.ICMPFields | None) -> Icmp | None:
    """A code without a type says nothing. Raises ValueError for what is no octet."""
    if match is None:
        return None
    if not 0 <= (match.type or 0) <= 254 or not 0 <= (match.code or 0) <= 255:
        raise ValueError(match)
    return None if match.type is None else Icmp(match.type, match.code)


def http(match: model.HTTPMatch | None) -> HttpMatch | None:
    if match is None:
        return None
    return HttpMatch(
        tuple(match.methods),
        tuple(path.exact for path in match.paths if path.exact),
        tuple(path.prefix for path in match.paths if path.prefix),
    )
