"""What every v3 structure shares: names in JSON, what is left out on the wire, and the base of all resources.

Python fields are the snake_case of the JSON names. Both directions are mechanical except for acronyms, listed below,
and a handful of exact names (`EXACT`). Fields that hold their zero value are left out, as Go's `omitempty` does; the
few that Calico always writes are declared with `always(...)`.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import field

API_VERSION = "projectcalico.org/v3"

T = TypeVar("T")

# Words that keep an unusual spelling after the first word of a name: not_icmp -> notICMP, expected_ips -> expectedIPs.
ACRONYMS = {
    **{
        word: word.upper()
        for word in (
            *(
                "api",
                "as",
                "bgp",
                "bpf",
                "ca",
                "cidr",
                "ctlb",
                "dnat",
                "dscp",
                "dsr",
                "gc",
                "gro",
                "guid",
                "icmp",
                "id",
                "ip",
            ),
            *("ipip", "jit", "l2", "l3", "mac", "mb", "mtu", "nat", "psnat", "rpf", "ttl", "v4", "v6", "vm", "vni"),
            *("vxlan", "xdp"),
        )
    },
    "cidrs": "CIDRs",
    "ips": "IPs",
    "ipv4": "IPv4",
    "ipv6": "IPv6",
    "nats": "NATs",
}

# Names that follow no rule.
EXACT = {
    "local_workload_peering_ipv4": "localWorkloadPeeringIPV4",
    "local_workload_peering_ipv6": "localWorkloadPeeringIPV6",
}


def json_name(python_name: str) -> str:
    """`not_icmp` -> `notICMP`."""
    if exact := EXACT.get(python_name):
        return exact
    first, *rest = python_name.rstrip("_").split("_")
    return first + "".join(ACRONYMS.get(word, word.capitalize()) for word in rest)


def always(value: T) -> T:
    """A field default that is written even when nothing else was said, where Calico has no `omitempty`.

    msgspec leaves out plain defaults and empty containers made by a factory, never scalars made by one.
    """
    made: T = field(default_factory=lambda: value)
    return made


class V3Struct(msgspec.Struct, kw_only=True, omit_defaults=True, rename=json_name):
    """A JSON object of the v3 API. Equal by value; changeable: readers that share one must not write to it."""


class OwnerReference(V3Struct):
    api_version: str = always("")
    kind: str = always("")
    name: str = always("")
    uid: str = always("")
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(V3Struct):
    """Kubernetes' ObjectMeta. Times are RFC 3339 text in whole seconds; "" when not set.

    resource_version: etcd's modification revision in decimal on what was read, "" on what is new; never stored.
    """

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    self_link: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    owner_references: list[OwnerReference] = field(default_factory=list)
    finalizers: list[str] = field(default_factory=list)
    managed_fields: list[dict[str, Any]] = field(default_factory=list)


class Condition(V3Struct):
    """Kubernetes' metav1.Condition: one observed fact about an object. status: True, False or Unknown."""

    type: str = always("")
    status: str = always("")
    observed_generation: int = 0
    last_transition_time: str = always("")
    reason: str = always("")
    message: str = always("")


class Resource(V3Struct):
    """Base of every kind. Subclasses declare `spec`, and `status` where the kind has one."""

    kind: ClassVar[str] = ""
    api_version: ClassVar[str] = API_VERSION

    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: V3Struct = field(default_factory=V3Struct)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace
