"""The cluster-wide settings at `/calico/ipam/v2/config`.

    {"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,"kubeVirtVMAddressPersistence":"Enabled",
     "ipCooldownSeconds":30}

Every field is left out when zero. That makes an absent key and an absent field different things: without the key
blocks are allocated automatically, while a stored object without `auto_allocate_blocks` says false.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from libs.ipam import wire
from libs.ipam.errors import IpamError, Reason

DEFAULT_MAX_BLOCKS = 20
MAX_BLOCKS_BOUND = 1_000_000
MAX_COOLDOWN_S = 1200


class _Wire(msgspec.Struct, omit_defaults=True):
    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    max_blocks_per_host: int = msgspec.field(name="maxBlocksPerHost", default=0)
    persistence: str = msgspec.field(name="kubeVirtVMAddressPersistence", default="")
    cooldown_s: int = msgspec.field(name="ipCooldownSeconds", default=0)


_decoder = msgspec.json.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class IpamConfig:
    """The defaults are those of a cluster that stores no configuration."""

    strict_affinity: bool = False  # never take addresses from another host's block
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0  # 0: no limit of its own, then DEFAULT_MAX_BLOCKS holds
    vm_address_persistence: bool = True
    cooldown_s: int = 0  # a released address rests this long, 0 to 1200

    def check(self) -> None:
        """Raises IpamError(CONFIG_INVALID) for combinations that cannot work."""
        text = None
        if not self.strict_affinity and not self.auto_allocate_blocks:
            text = "strictAffinity false with autoAllocateBlocks false: every address would be borrowed from nobody"
        elif self.max_blocks_per_host > 0 and not self.strict_affinity:
            text = "maxBlocksPerHost needs strictAffinity true, else a full host borrows around the limit"
        elif not 0 <= self.max_blocks_per_host <= MAX_BLOCKS_BOUND:
            text = f"maxBlocksPerHost {self.max_blocks_per_host} is outside 0 to {MAX_BLOCKS_BOUND}"
        elif not 0 <= self.cooldown_s <= MAX_COOLDOWN_S:
            text = f"ipCooldownSeconds {self.cooldown_s} is outside 0 to {MAX_COOLDOWN_S}"
        if text:
            raise IpamError(Reason.CONFIG_INVALID, text)

    def block_limit(self, requested: int = 0) -> int:
        """The smaller of the two limits that are set, else DEFAULT_MAX_BLOCKS."""
        return min((n for n in (self.max_blocks_per_host, requested) if n > 0), default=DEFAULT_MAX_BLOCKS)


def decode_config(data: bytes | None) -> IpamConfig:
    """None (key absent) gives the defaults. Raises IpamError(CONFIG_INVALID) for text that is not such an object."""
    if data is None:
        return IpamConfig()
    try:
        raw = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise IpamError(Reason.CONFIG_INVALID, f"IPAM configuration: {error}") from error
    return IpamConfig(
        raw.strict_affinity,
        raw.auto_allocate_blocks,
        raw.max_blocks_per_host,
        raw.persistence != "Disabled",
        raw.cooldown_s,
    )


def encode_config(config: IpamConfig) -> bytes:
    return wire.encode(
        _Wire(
            config.strict_affinity,
            config.auto_allocate_blocks,
            config.max_blocks_per_host,
            "Enabled" if config.vm_address_persistence else "Disabled",
            config.cooldown_s,
        )
    )
