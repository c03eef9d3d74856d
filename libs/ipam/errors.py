"""What address management can refuse, each with a reason that commands and metrics can show.

A refusal is not a failure of the datastore: `StoreUnavailable` and `StoreAuthError` pass through this package
unchanged.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why fewer addresses than wanted were given, or why a call was refused."""

    NO_POOLS = "no-pools"  # nothing enabled and automatic selects this node, namespace and use
    UNKNOWN_POOL = "unknown-pool"  # a requested name or CIDR is not an enabled pool of the family
    USE_NOT_ALLOWED = "use-not-allowed"  # pools match but none allows the intended use
    NODE_MISSING = "node-missing"  # node selectors need the labels of a node that is not stored
    NO_FREE_ADDRESSES = "no-free-addresses"  # no free block and nothing left to borrow
    BLOCK_LIMIT = "block-limit"  # the host owns as many blocks as it may, borrowing is off or found nothing
    NO_AUTO_BLOCKS = "no-auto-blocks"  # autoAllocateBlocks is off and the host's blocks are full
    NOT_IN_POOL = "not-in-pool"  # an explicit address outside every enabled pool
    ADDRESS_IN_USE = "address-in-use"
    ADDRESS_COOLING = "address-cooling"  # released, its cooldown has not passed
    NOT_ASSIGNED = "not-assigned"
    STRICT_AFFINITY = "strict-affinity"  # the block belongs to another host
    BLOCK_CLAIMED = "block-claimed"  # another host was faster, or owns it already
    BLOCK_NOT_EMPTY = "block-not-empty"
    BLOCK_CORRUPT = "block-corrupt"
    STALE_RELEASE = "stale-release"  # handle or sequence number is not that of the present allocation
    HANDLE_MISSING = "handle-missing"
    HANDLE_CORRUPT = "handle-corrupt"
    CONFIG_INVALID = "config-invalid"
    TOO_MANY_CONFLICTS = "too-many-conflicts"  # compare-and-swap lost 100 times


class IpamError(Exception):
    """A refused call. `reason` is stable, the text is for people."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class BlockCorrupt(IpamError):
    def __init__(self, text: str) -> None:
        super().__init__(Reason.BLOCK_CORRUPT, text)


class AddressInUse(IpamError):
    """`handle` holds the address; None while it is cooling down."""

    def __init__(self, address: object, handle: str | None, *, cooling: bool = False) -> None:
        text = (
            f"{address} is cooling down after its release"
            if cooling
            else f"{address} is assigned to {handle or '(no handle)'}"
        )
        super().__init__(Reason.ADDRESS_COOLING if cooling else Reason.ADDRESS_IN_USE, text)
        self.handle = handle


class StaleRelease(IpamError):
    """The caller releases an allocation that is no longer there: the address has another handle or was given anew
    since.
    """

    def __init__(self, text: str) -> None:
        super().__init__(Reason.STALE_RELEASE, text)


class HandleMissing(IpamError):
    def __init__(self, handle: str) -> None:
        super().__init__(Reason.HANDLE_MISSING, f"handle {handle!r} holds no address")


class BlockClaimed(IpamError):
    def __init__(self, text: str) -> None:
        super().__init__(Reason.BLOCK_CLAIMED, text)


class BlockNotEmpty(IpamError):
    def __init__(self, cidr: object) -> None:
        super().__init__(Reason.BLOCK_NOT_EMPTY, f"block {cidr} still holds addresses")


class TooManyConflicts(IpamError):
    def __init__(self, what: str, tries: int) -> None:
        super().__init__(Reason.TOO_MANY_CONFLICTS, f"{what}: lost the compare-and-swap {tries} times")
