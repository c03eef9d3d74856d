"""Whole clusters, drawn from small pools so that rules and packets meet: tiers, policies, profiles, endpoints, sets.

Everything comes out of one `random.Random`: the same seed, the same cluster. Pods a and b (ns1), c and d (ns2) are on
this node; r and s are pods elsewhere, h is another node's host endpoint, and the rest of the addresses are outside.
A third of the draws has one tier with 20 to 60 policies for the same pods, nearly all of whose rules name their peers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import Random
from typing import TypeVar

from libs import model
from libs.model import codec
from libs.model.kubernetes import SERVICE_NAME_LABEL, KubernetesEndpointSlice, SliceEndpoint, SlicePort
from tests.unit.libs.policy import build

T = TypeVar("T")

NODE = "n1"
PODS = {"a": "ns1", "b": "ns1", "c": "ns2", "d": "ns2"}
REMOTE_PODS = {"r": "ns1", "s": "ns2"}
NAMESPACES = ("ns1", "ns2")
SPOOFED = {4: "203.0.113.0/28", 6: "2001:db8:3::/64"}  # sources that pod d may use besides its own
SPOOFER = "d"
NODE_ADDRESS = {4: "192.0.2.1", 6: "2001:db8::1"}
GUARD = "e"  # this node's host endpoint
HOST = {4: "192.0.2.50", 6: "2001:db8::50"}  # h, the other node's host endpoint
OUTSIDE = {
    4: (HOST[4], "198.51.100.7", "198.51.100.130", "203.0.113.9", "10.77.0.200"),
    6: (HOST[6], "2001:db8:2::7", "2001:db8:2:1::7", "2001:db8:3::9", "fd77::200"),
}
NETS = {
    4: ("10.77.0.0/24", "10.77.0.0/30", "10.77.0.1/32", "10.77.0.2/31", "10.78.0.0/24", "198.51.100.0/25",
        "198.51.100.0/24", "203.0.113.0/24", "192.0.2.50/32", "0.0.0.0/0"),
    6: ("fd77::/64", "fd77::/126", "fd77::1/128", "fd77::2/127", "fd78::/64", "2001:db8:2::/64",
        "2001:db8:2::/48", "2001:db8:3::/48", "2001:db8::50/128", "::/0"),
}  # fmt: skip
LABELS = {"app": ("web", "db"), "zone": ("1", "2", "12")}
SELECTORS = (
    "app == 'web'", "app == 'db'", "zone == '1'", "has(app)", "!has(zone)", "app != 'web'", "zone in {'1', '2'}",
    "app not in {'db'}", "zone contains '1'", "zone starts with '1'", "all()", "app == 'web' && zone == '1'",
    "app == 'db' || has(zone)", "!(app == 'web')",
)  # fmt: skip
NAMESPACE_SELECTORS = ("env == 'prod'", "env == 'test'", "has(env)", "all()", "global()", "!has(team)", "team == 'x'")
ACCOUNTS, ACCOUNT_SELECTORS = ("sa1", "sa2"), ("role == 'x'", "has(role)", "all()", "role != 'y'")
PORT_NAMES = ("http", "dns", "sig")
PORTS = (53, 80, 81, 443, 3868, 8080, 9000)
SOURCE_PORTS = (53, 80, 1000, 5000, 40000)
RANGES = ("80:81", "53:443", "1:1023", "1024:65535", "8000:9000", "40000:60000")
# ICMP requests that a connection tracker takes for the start of a flow: echo, timestamp, information, address mask;
# echo and node information.
ICMP_TYPES = {4: (8, 13, 15, 17), 6: (128, 139)}
PROTOCOLS: tuple[str | int, ...] = (
    *("TCP",) * 4, "UDP", "UDP", "SCTP", "ICMP", "ICMP", "ICMPv6", "ICMPv6", "UDPLite",
    6, 6, 17, 132, 1, 58, 136, 47,
)  # fmt: skip
WITH_PORTS = ("TCP", "UDP", "SCTP", "6", "17", "132")


def own(name: str, version: int) -> str:
    """A pod's address."""
    number = "abcdrs".index(name) + 1
    third = 77 if name in PODS else 78
    return f"10.{third}.0.{number}" if version == 4 else f"fd{third}::{number}"


@dataclass
class Cluster:
    resources: list[model.Resource] = field(default_factory=list)
    many: bool = False  # one tier with many policies for the same endpoint
    guarded: bool = False  # this node has a host endpoint

    @property
    def by_key(self) -> dict[str, model.Resource]:
        return {build.key_of(one): one for one in self.resources}


class Draw:
    def __init__(self, random: Random) -> None:
        self.random = random
        self._version: int | None = None  # what a rule's networks are of
        self._guarded = False  # whether this node has a host endpoint
        self._about_peers = 1.0  # how much a rule says about its two ends, besides ports

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def one(self, pool: Sequence[T]) -> T:
        return self.random.choice(pool)

    def some(self, pool: Sequence[T], most: int = 2) -> list[T]:
        return self.random.sample(pool, self.random.randint(1, min(most, len(pool))))

    # --- things with labels ---

    def cluster(self, many: bool | None = None) -> Cluster:
        """many: whether it is one of the clusters with many policies; None: drawn."""
        out = Cluster(many=self.chance(1 / 3) if many is None else many)
        out.guarded = self._guarded = self.chance(0.35)
        out.resources += self.profiles()
        for name, namespace in {**PODS, **REMOTE_PODS}.items():
            out.resources.append(self.pod(name, namespace))
        if self.chance(0.8):
            host = build.hep("h", "n2", self.labels(), "", tuple(HOST.values()), ports=tuple(self.named_ports()))
            out.resources.append(host)
        if self._guarded:
            out.resources.append(self.guard())
        out.resources += self.network_sets()
        out.resources += self.services()
        out.resources += self.tiers()
        out.resources += self.many_policies() if out.many else self.policies()
        if self._guarded:
            out.resources += [self.guard_policy(f"x{number}") for number in range(self.random.randint(1, 4))]
        return out

    def labels(self) -> dict[str, str]:
        return {key: self.one(values) for key, values in LABELS.items() if self.chance(0.65)}

    def named_ports(self) -> list[tuple[str, str, int]]:
        pool = (("http", "TCP", 80), ("http", "TCP", 8080), ("http", "UDP", 80), ("dns", "UDP", 53), ("dns", "TCP", 53),
                ("sig", "SCTP", 3868), ("sig", "TCP", 3868))  # fmt: skip
        return [port for port in pool if self.chance(0.5)]

    def pod(self, name: str, namespace: str) -> model.Resource:
        account = self.one((*ACCOUNTS, ""))
        profiles = [f"kns.{namespace}", *([f"ksa.{namespace}.{account}"] if account else [])]
        if self.chance(0.3):
            profiles.insert(self.random.randint(0, len(profiles)), self.one(("p1", "p2", "p1", "p2", "missing")))
        if self.chance(0.1):
            profiles.append("projectcalico-default-allow")
        if self.chance(0.03):
            profiles.clear()
        made = build.wep(
            name,
            NODE if name in PODS else "n2",
            namespace,
            self.labels(),
            (f"{own(name, 4)}/32", f"{own(name, 6)}/128"),
            tuple(profiles),
            tuple(self.named_ports()),
            account,
        )
        if name == SPOOFER:
            made.spec.allow_spoofed_source_prefixes = list(SPOOFED.values())
        return made

    def guard(self) -> model.Resource:
        profiles = self.one((("projectcalico-default-allow",), ("p1", "p2"), ("p2",), ("missing",), ()))
        expected = tuple(NODE_ADDRESS.values()) if self.chance(0.5) else ()
        return build.hep(GUARD, NODE, self.labels(), "eth0", expected, profiles, tuple(self.named_ports()))

    def profiles(self) -> list[model.Resource]:
        out: list[model.Resource] = []
        for namespace in NAMESPACES:
            labels = {"pcns.env": self.one(("prod", "test")), "pcns.projectcalico.org/name": namespace}
            if self.chance(0.4):
                labels["pcns.team"] = self.one(("x", "y"))
            allow = [build.rule()]
            out.append(build.profile(f"kns.{namespace}", labels, ingress=allow, egress=allow))
            for account in ACCOUNTS:
                labels = {"pcsa.role": self.one(("x", "y"))} if self.chance(0.7) else {}
                out.append(build.profile(f"ksa.{namespace}.{account}", labels))
        for name in ("p1", "p2"):
            ingress, egress = (self.rules("", direction, 3) for direction in ("Ingress", "Egress"))
            out.append(build.profile(name, self.labels(), ingress=ingress, egress=egress))
        return out

    def network_sets(self) -> list[model.Resource]:
        everywhere = [name for name in ("g1", "g2") if self.chance(0.8)]
        inside = [namespace for namespace in NAMESPACES if self.chance(0.6)]
        return [
            *(build.gns(name, self.labels(), tuple(self.set_nets())) for name in everywhere),
            *(build.ns("n", namespace, self.labels(), tuple(self.set_nets())) for namespace in inside),
        ]

    def set_nets(self) -> list[str]:
        version = self.one((4, 6))
        hosts = [*OUTSIDE[4], *OUTSIDE[6]]
        return [*self.some(NETS[version][:-1]), *self.some(NETS[10 - version][:-1]), *self.some(hosts)]

    def services(self) -> list[model.Resource]:
        out: list[model.Resource] = []
        for namespace in NAMESPACES:
            for version in (4, 6):
                addresses = [*(own(name, version) for name in (*PODS, *REMOTE_PODS)), *OUTSIDE[version]]
                slice_ = KubernetesEndpointSlice(
                    metadata=model.ObjectMeta(
                        name=f"svc-{version}", namespace=namespace, labels={SERVICE_NAME_LABEL: "svc"}
                    ),
                    address_type=f"IPv{version}",
                    endpoints=[SliceEndpoint(addresses=[address]) for address in self.some(addresses, 5)],
                    ports=[
                        SlicePort(name=f"{protocol}-{port}", protocol=protocol, port=port)
                        for protocol in self.some(("TCP", "UDP", "SCTP"), 3)
                        for port in self.some(PORTS, 4)
                    ],
                )
                out.append(slice_)
        return out

    # --- policies ---

    def tiers(self) -> list[model.Resource]:
        out: list[model.Resource] = [build.tier("default", 1e6, "Deny" if self.chance(0.6) else "Pass")]
        for name in ("t1", "t2", "t3"):
            order = self.one((None, 1.0, 2.0, 2.0, 3e6))
            out.append(build.tier(name, order, "Pass" if self.chance(0.6) else "Deny"))
        return out

    def policies(self) -> list[model.Resource]:
        return [self.policy(f"p{number}") for number in range(self.random.randint(1, 8))]

    def policy(self, name: str, *, rules: int = 4) -> model.Resource:
        tier = self.one(("default", "default", "t1", "t2", "t3")) if self.chance(0.95) else "nowhere"
        types = self.one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        namespace = self.one((*NAMESPACES, "", ""))
        more: dict[str, object] = {direction.lower(): self.rules(namespace, direction, rules) for direction in types}
        if self.chance(0.15):
            more["service_account_selector"] = self.one(ACCOUNT_SELECTORS)
        selector = "" if self.chance(0.3) else self.one(SELECTORS)
        order = self.one((None, 1.0, 1.0, 2.0, 10.0, -1.0))
        staged = "Set" if self.chance(0.1) else ""
        if namespace:
            made = build.np(name, namespace, selector, tier=tier, types=types, order=order, **more)
            return staged_twin(made) if staged else made
        if self.chance(0.2):
            more["namespace_selector"] = self.one([one for one in NAMESPACE_SELECTORS if one != "global()"])
        if self.chance(0.5 if self._guarded else 0.08):  # the first changes nothing for pods, the others pass them by
            flags = ["apply_on_forward", "do_not_track", *(["pre_dnat"] * 2 if types == ["Ingress"] else [])]
            more |= {"apply_on_forward": True, self.one(flags): True}
        return build.gnp(name, selector, staged=staged, tier=tier, types=types, order=order, **more)

    def guard_policy(self, name: str) -> model.Resource:
        """A policy of the kinds that only host endpoints have, likely to select this node's."""
        flag = self.one(("apply_on_forward", "do_not_track", "pre_dnat"))
        types = ["Ingress"] if flag == "pre_dnat" else self.one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        rules: dict[str, object] = {one.lower(): self.rules("", one, 4) for one in types}
        return build.gnp(
            name,
            self.one(("", "all()", "!has(nothing)", "has(app)")),
            staged="",
            tier=self.one(("default", "t1", "t2")),
            types=types,
            order=self.one((None, 1.0, 2.0)),
            **(rules | {"apply_on_forward": True, flag: True}),
        )

    def many_policies(self) -> list[model.Resource]:
        """One tier, 20 to 60 policies for the same endpoints, most rules with a peer; a few ordinary ones elsewhere."""
        tier = self.one(("default", "t1"))
        direction = self.one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        selector = self.one(("", "all()", "has(app)", "!has(nothing)"))
        namespace = self.one((*NAMESPACES, "", "", ""))
        out: list[model.Resource] = []
        on_forward = self.chance(0.5)
        for number in range(self.random.randint(20, 60)):
            name = f"m{self.random.randint(0, 9)}-{number}"
            rules: dict[str, object] = {
                one.lower(): [self.peer_rule(namespace, one) for _ in range(self.one((0, 1, 1, 1, 2, 3)))]
                for one in direction
            }
            order = self.one((None, 1.0, 2.0, 3.0, 4.0))
            if namespace and self.chance(0.5):
                out.append(build.np(name, namespace, selector, tier=tier, types=direction, order=order, **rules))
            else:
                rules["apply_on_forward"] = on_forward
                out.append(build.gnp(name, selector, staged="", tier=tier, types=direction, order=order, **rules))
        return [*out, *(self.policy(f"p{number}") for number in range(self.random.randint(0, 3)))]

    def with_other_rules(self, resource: model.Resource) -> model.Resource:
        """A policy or profile that is new in nothing but some of its rules."""
        made = codec.copy(resource)
        assert isinstance(made, model.NetworkPolicy | model.GlobalNetworkPolicy | model.Profile)
        for direction, rules in (("Ingress", made.spec.ingress), ("Egress", made.spec.egress)):
            if rules or isinstance(made, model.Profile):
                kept = [rule for rule in rules if self.chance(0.5)]
                rules[:] = [*kept, self.peer_rule(made.metadata.namespace, direction)]
                self.random.shuffle(rules)
        return made

    def rules(self, namespace: str, direction: str, most: int) -> list[model.Rule]:
        return [self.rule(namespace, direction) for _ in range(self.random.randint(0, most))]

    def action(self) -> str:
        return self.random.choices(("Allow", "Deny", "Pass", "Log"), (50, 20, 17, 13))[0]

    def peer_rule(self, namespace: str, direction: str) -> model.Rule:
        """A rule that mostly says who the other end is, narrowly enough that many more get their turn."""
        if self.chance(0.06):
            return narrowed(self.rule(namespace, direction), self.one(PORTS))
        if self.chance(0.03):
            return build.rule("Log")
        peer, other = self.peer(namespace), dict[str, object]()
        protocol = None
        if "services" in peer:
            protocol = self.one(("TCP", "UDP", "SCTP"))
        elif self.chance(0.85):
            protocol = self.one(("TCP", "UDP", "SCTP"))
            ports = {"ports": [self.one((*PORTS, *PORT_NAMES, *RANGES[:2]))]}
            (other if direction == "Ingress" else peer).update(ports)
        source, destination = (peer, other) if direction == "Ingress" else (other, peer)
        return build.rule(self.action(), protocol, source, destination)

    def peer(self, namespace: str) -> dict[str, object]:
        version = self.one((4, 6))
        kind = self.random.choices(("selector", "nets", "namespace", "accounts", "service", "not selector", "not nets",
                                    "both", "none"), (38, 28, 8, 6, 4, 3, 3, 6, 4))[0]  # fmt: skip
        match kind:
            case "selector":
                return {"selector": self.one(SELECTORS)}
            case "nets":
                return {"nets": self.some(NETS[version][1:-1])}
            case "namespace":
                return {"namespace_selector": self.one(NAMESPACE_SELECTORS)}
            case "accounts":
                return {"accounts": {"names": self.some(ACCOUNTS)}}
            case "service":
                return {"services": model.ServiceMatch("svc", namespace or self.one(NAMESPACES))}
            case "not selector":
                return {"not_selector": self.one(SELECTORS)}
            case "not nets":
                return {"not_nets": self.some(NETS[version][:-1])}
            case "both":
                return {"selector": self.one(SELECTORS), "nets": self.some(NETS[version])}
            case _:
                return {}

    def rule(self, namespace: str, direction: str) -> model.Rule:
        """Any rule that the API admits."""
        fields: dict[str, object] = {}
        version: int | None = None
        protocol = self.one(PROTOCOLS) if self.chance(0.6) else None
        name = "" if protocol is None else str(protocol)
        # A third of the rules with a protocol leave it at that, so that ports and ICMP types often decide alone.
        self._about_peers = 0.1 if protocol is not None and self.chance(0.35) else 1.0
        if name in ("ICMP", "ICMPv6"):
            version = 4 if name == "ICMP" else 6
        if self.chance(0.12):
            negative = self.one(PROTOCOLS)
            fields["not_protocol"] = model.Protocol(negative)
            if negative in ("ICMP", "ICMPv6"):
                version = version or (4 if negative == "ICMP" else 6)
        if name in ("ICMP", "ICMPv6", "1", "58"):
            of = 4 if name in ("ICMP", "1") else 6
            for field_, share in (("icmp", 0.5), ("not_icmp", 0.5)):
                if self.chance(share):
                    types = (*ICMP_TYPES[of][:1] * 3, *ICMP_TYPES[of], 0)
                    fields[field_] = model.ICMPFields(self.one(types), self.one((None, None, 0, 1)))
        if self.chance(0.2):
            version = version or self.one((4, 6))
            fields["ip_version"] = version
        self._version = version
        if name in ("", "TCP", "6") and direction == "Ingress" and self.chance(0.03):
            # Left to the application layer: here the rule is what it is without.
            fields["http"] = model.HTTPMatch(methods=["GET"])
            self._version = version
            source = self.entity(namespace, name, services=True)
            return build.rule("Allow", protocol, source, self.entity(namespace, name, services=False), **fields)
        source = self.entity(namespace, name, services=direction == "Ingress")
        destination = self.entity(namespace, name, services=direction == "Egress")
        return build.rule(self.action(), protocol, source, destination, **fields)

    def entity(self, namespace: str, protocol: str, *, services: bool) -> dict[str, object]:
        if services and self.chance(0.1 * self._about_peers):
            return {"services": model.ServiceMatch("svc", namespace or self.one(NAMESPACES))}
        out: dict[str, object] = {}
        choices: tuple[tuple[str, float, Callable[[], object]], ...] = (
            ("nets", 0.14, lambda: self.nets()),
            ("not_nets", 0.14, lambda: self.nets(negated=True)),
            ("selector", 0.18, lambda: self.one(SELECTORS)),
            ("not_selector", 0.14, lambda: self.one(SELECTORS)),
            ("namespace_selector", 0.13, lambda: self.one((*NAMESPACE_SELECTORS, "global()"))),
            ("accounts", 0.1, self.accounts),
        )
        for key, share, make in choices:
            if self.chance(share * self._about_peers):
                out[key] = make()
        for key, share in (("ports", 0.25), ("not_ports", 0.3)):
            # Without a protocol only names may be given; with one that has no ports, none at all.
            if protocol in WITH_PORTS and self.chance(share):
                out[key] = self.some((*PORTS, *PORT_NAMES, *PORT_NAMES, *RANGES), 3)
            elif not protocol and self.chance(share / 2):
                out[key] = self.some(PORT_NAMES)
        return out

    def nets(self, *, negated: bool = False) -> list[str]:
        self._version = self._version or self.one((4, 6))
        return self.some(NETS[self._version][:-1] if negated else NETS[self._version])

    def accounts(self) -> dict[str, object]:
        roll = self.random.random()
        out: dict[str, object] = {}
        if roll < 0.65:
            out["names"] = self.some(ACCOUNTS)
        if roll > 0.45:
            out["selector"] = self.one(ACCOUNT_SELECTORS)
        return out


def staged_twin(policy: model.NetworkPolicy) -> model.Resource:
    values = {name: getattr(policy.spec, name) for name in policy.spec.__struct_fields__}
    spec = model.StagedNetworkPolicySpec(staged_action="Set", **values)
    return model.StagedNetworkPolicy(metadata=policy.metadata, spec=spec)


def narrowed(rule: model.Rule, port: int) -> model.Rule:
    """A rule that asks for nothing would end the walk for everybody; let it ask for a port."""
    if rule.protocol is None and rule.source is None and rule.destination is None:
        return build.rule(rule.action, "TCP", None, {"ports": [port]})
    return rule


def spoofed(version: int, random: Random) -> str:
    """An address that pod d may send from without having it."""
    network = ip_network(SPOOFED[version])
    return str(network[random.choice((1, 9, 12))])
