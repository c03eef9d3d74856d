"""What nftables has to do for WireGuard between hosts (host encryption).

A node's address then lies behind the tunnel device, but the encrypted packets from it come in by the underlay: the
kernel's check of source addresses would take them for spoofed. They get WireGuard's mark before that check, so that it
looks into the main table (with the sysctl `src_valid_mark`).
"""

from __future__ import annotations

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Field, Hook, Rule
from services.felix.core.dispatch import RAW
from services.felix.core.options import RulesetOptions

UDP = 17


def mark_chains(options: RulesetOptions, version: int) -> tuple[Chain, ...]:
    port = options.wireguard_ports.get(version)
    if port is None or not options.wireguard_mark:
        return ()
    match = (nft.Match(Field.L4PROTO, UDP), nft.Match(Field.DPORT, port))
    rule = Rule((*match, nft.COUNTER, nft.mark_or(options.wireguard_mark)), "WireGuard from the underlay")
    return (Chain("hook-wireguard-mark", (rule,), Base(Hook.PREROUTING, priority=RAW)),)
