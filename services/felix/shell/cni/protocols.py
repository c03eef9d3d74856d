"""What the plugin needs of the kernel and of the dataplane."""

from __future__ import annotations

from typing import Protocol

from libs.policy.output import WorkloadKey
from services.felix.core.routing import Address

NO_POLICY = "this node has no policy from typha yet; is typha reachable?"


class PodLinks(Protocol):
    """The kernel side of an attachment (services/felix/drivers/podlinks.py), synchronous. All raise CniError.

    `connect` and `check` are quick; `remove` is called from a thread of its own.
    """

    def connect(
        self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str, mtu_bytes: int
    ) -> None:
        """Make the pair with addresses and routes. One of that host name is replaced; a failure leaves nothing."""
        ...

    def check(self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str) -> list[str]:
        """What is wrong with it, in words; empty when all is well."""
        ...

    def remove(self, host: str, netns: str, ifname: str) -> None:
        """Gone when this returns, whatever was there before."""
        ...


class Enforcement(Protocol):
    """What the dataplane tells CNI."""

    def ready(self) -> bool:
        """Has the kernel a ruleset of ours? Before that an interface we do not know would pass everything."""
        ...

    async def programmed(self, key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        """Wait until the kernel holds the endpoint's policy as of `rev`."""
        ...

    def enforced(self, key: WorkloadKey) -> bool: ...


class Peers(Protocol):
    """Other nodes (services/felix/shell/cni/peers.py)."""

    async def wait(self, rev: int, timeout_s: float) -> bool:
        """Until those that revision `rev` concerns have it in their kernels; False when that is not known by then."""
        ...
