"""What the plugin needs of the kernel, of the dataplane and of other plugins."""

from __future__ import annotations

from typing import Any, Protocol

from libs.netlink.podlink import PodVeth
from libs.policy.output import WorkloadKey
from services.felix.core.journal import Delegation

NO_POLICY = "this node has no policy from typha yet; is typha reachable?"


class PodLinks(Protocol):
    """The kernel side of an attachment (services/felix/drivers/podlinks.py). All raise CniError."""

    def connect(self, pod: PodVeth) -> None:
        """Make the pair with addresses and routes. One of that host name is replaced; a failure leaves nothing."""
        ...

    def check(self, pod: PodVeth) -> list[str]:
        """What is wrong with it, in words; empty when all is well. mtu_bytes 0: both ends' must be equal."""
        ...

    def mtu_bytes(self, host: str) -> int:
        """Of a pair that is there; 0 where it is not."""
        ...

    async def remove(self, host: str, netns: str, ifname: str) -> None:
        """Gone when this returns, whatever was there before, also when it is cancelled. The kernel takes its time."""
        ...


class Enforcement(Protocol):
    """What the dataplane tells CNI."""

    def ready(self) -> bool:
        """Has the kernel a ruleset of ours? Before that an interface we do not know would pass everything."""
        ...

    def following(self) -> bool:
        """Do changes of policy reach this node?"""
        ...

    def failing(self) -> str:
        """Why the kernel does not hold the policy that it should; empty when it does."""
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


class AddressPlugins(Protocol):
    """Other plugins that give addresses (services/felix/drivers/ipam_plugin.py)."""

    def find(self, delegation: Delegation) -> object:
        """Raises CniError when there is no such plugin."""
        ...

    async def run(self, command: str, delegation: Delegation) -> dict[str, Any] | None:
        """The plugin's result, None where it has none. Raises CniError."""
        ...
