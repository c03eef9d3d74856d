"""What callers ask of address management and what they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from libs.ipam.affinity import Owner
from libs.ipam.errors import IpamError, Reason
from libs.ipam.pools import Labels, Use
from libs.ipam.wire import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignRequest:
    """Any free addresses: `num4` IPv4 and `num6` IPv6 ones."""

    handle: str  # who gets them: `k8s-pod-network.<containerID>`, `vxlan-tunnel-addr-<node>` …
    node: str  # whose blocks to use; for load balancers the shared virtual owner is used instead
    num4: int = 0
    num6: int = 0
    attrs: Mapping[str, str] = field(default_factory=dict)  # pod, namespace, node, type, timestamp …
    pools4: Sequence[str] = ()  # names or CIDRs; empty: every automatic pool that selects node and namespace
    pools6: Sequence[str] = ()
    namespace_labels: Labels | None = None  # None: the address is for no namespace
    use: Use = Use.WORKLOAD
    max_blocks_per_host: int = 0  # 0: only the cluster's limit
    max_per_handle: int = 0  # >0: at most so many per family; what the handle has already is given again

    @property
    def owner(self) -> Owner:
        return owner_for(self.node, self.use)

    def count(self, version: int) -> int:
        return self.num4 if version == 4 else self.num6

    def requested_pools(self, version: int) -> Sequence[str]:
        return self.pools4 if version == 4 else self.pools6


@dataclass(frozen=True, slots=True)
class AssignResult:
    """May hold fewer addresses than wanted; `reasons` then says why, by IP version. Masks are those of the blocks."""

    v4: list[IPv4Interface]
    v6: list[IPv6Interface]
    requested4: int
    requested6: int
    reasons: Mapping[int, Reason] = field(default_factory=dict)
    sequences: Mapping[Address, int] = field(default_factory=dict)  # to release exactly this allocation later

    @property
    def complete(self) -> bool:
        return len(self.v4) >= self.requested4 and len(self.v6) >= self.requested6


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignIpRequest:
    """One particular address. It must lie in an enabled pool; reservations and selectors do not matter."""

    address: Address
    handle: str
    node: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    use: Use | None = None  # given: the pool must allow it
    max_per_handle: int = 0  # >0: having it already under this handle is success

    @property
    def owner(self) -> Owner:
        return owner_for(self.node, self.use)


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What became of each address. `refused`: by block, all or nothing; the others were released all the same."""

    freed: list[tuple[Address, str | None]] = field(default_factory=list)  # with the handle it had
    unallocated: list[Address] = field(default_factory=list)
    refused: Mapping[Address, IpamError] = field(default_factory=dict)
    blocks: frozenset[Network] = frozenset()  # those that were written


def owner_for(node: str, use: Use | None) -> Owner:
    return Owner.load_balancer() if use is Use.LOAD_BALANCER else Owner.host(node)
