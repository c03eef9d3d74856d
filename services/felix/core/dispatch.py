"""The fixed part of the ruleset, and the chains that belong to an endpoint: where a packet meets which policy.

A packet from or to a workload passes two stages, each its own base chain, so that `accept` ends only its own stage and
no accept mark is needed (docs/adr/0007-nftables-layout.md):

    raw prerouting          source address must be the workload's own, per interface
    forward -1, input -1    from-wl-dispatch → fw-<interface>   the sender's egress policy
    forward  0              to-wl-dispatch   → tw-<interface>   the receiver's ingress policy
    input    0              DefaultEndpointToHostAction, for what the egress policy let through
    (host → local workload passes the output hook, where no chain is about workloads: never policed)

With kube-proxy's mode IPVS there are two more ways (ipvs.py).

Every stage lets established and related packets out first, so policy decides on new flows only. Packets that neither
come from nor go to a workload interface meet no rule that could drop them. Host endpoints have their own stages
outside these (hosts.py), limits one before them (qos.py); nothing here depends on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Field, Hook, Rule, Set
from libs.policy.output import STAGED_KINDS, PolicyKey, Tier, Workload
from services.felix.core import ipvs, names
from services.felix.core.options import V6, Family, RulesetOptions

RAW, MANGLE = -300, -150
FROM_WL, TO_WL = "from-wl", "to-wl"  # verdict maps, interface → its chain
FROM_DISPATCH, TO_DISPATCH = "from-wl-dispatch", "to-wl-dispatch"
ADDRESSES = "wl-addrs"  # interface . source address that it may use
SPOOF_ALLOWED = "spoof-allowed"  # verdict map, interface → chain of foreign prefixes that it may use
SPOOFED = "spoofed-source"
WORKLOAD_DOWN = "wl-down"  # chain, and set of interfaces
NEIGHBOUR_TYPES = "wl-icmpv6"
# What IPv6 needs between a workload and its host to work at all: multicast listener query, report, done; router
# solicitation; neighbour solicitation and advertisement (facts: Felix's wl-to-host chain).
NEIGHBOUR_DISCOVERY = frozenset({"130", "131", "132", "133", "135", "136"})
ESTABLISHED = Rule((nft.ct_state(nft.CtState.ESTABLISHED, nft.CtState.RELATED), nft.COUNTER, nft.ACCEPT), "established")


class TierList(msgspec.Struct, frozen=True, cache_hash=True):
    """The policies of one tier that apply to an endpoint in one direction, in order; one chain for all who share it.

    policies: enforced ones only. drop: whether a packet that no rule decided is dropped at the end.
    """

    inbound: bool
    tier: str
    policies: tuple[PolicyKey, ...]
    drop: bool

    @property
    def chain(self) -> str:
        content = "\n".join((self.tier, str(self.drop), *(f"{key.kind}/{key}" for key in self.policies)))
        return names.tier_chain(self.tier, self.inbound, content)


def tier_lists(tiers: Iterable[Tier], inbound: bool) -> tuple[TierList, ...]:
    """The tiers that take part in this direction: those with an enforced policy there (datamodel facts, section 5).

    A tier with staged policies only neither drops nor jumps, so it needs no chain at all.
    """
    out = []
    for tier in tiers:
        enforced = tuple(key for key in (tier.ingress if inbound else tier.egress) if key.kind not in STAGED_KINDS)
        if enforced:
            out.append(TierList(inbound, tier.name, enforced, tier.default_action != "Pass"))
    return tuple(out)


def workload_chain(
    interface: str, inbound: bool, lists: Iterable[TierList], profiles: Sequence[str], deny: Rule
) -> Chain:
    """Tiers in order, then profiles in order, then drop."""
    targets = [tier_list.chain for tier_list in lists]
    targets += [names.profile_chain(profile, inbound) for profile in profiles]
    rules = [Rule((nft.jump(target),)) for target in targets]
    return Chain(names.workload_chain(interface, inbound), (*rules, deny))


class Sources(msgspec.Struct, frozen=True):
    """Source addresses that one interface may use: exact ones, and prefixes that need a chain of their own."""

    addresses: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()


def sources(workload: Workload, family: Family, options: RulesetOptions) -> Sources:
    full = f"/{family.bits}"
    allowed = workload.allowed_source_prefixes if options.allow_source_spoofing else ()
    nets = {*family.nets(workload), *family.mine(allowed)}
    exact = {net.removesuffix(full) for net in nets if "/" not in net or net.endswith(full)}
    return Sources(frozenset(exact), tuple(sorted(net for net in nets if "/" in net and not net.endswith(full))))


def spoof_chain(interface: str, prefixes: Iterable[str], family: Family) -> Chain:
    accept = [
        Rule((nft.Match(family.saddr, prefix), nft.COUNTER, nft.ACCEPT), "allowed source prefix") for prefix in prefixes
    ]
    dropped = Rule((nft.COUNTER, nft.DROP), "spoofed source")
    return Chain(names.spoof_chain(interface), (*accept, dropped))


def fixed_sets(family: Family, addresses: frozenset[str], down: frozenset[str]) -> list[Set]:
    sets = [
        Set(ADDRESSES, (nft.DataType.IFNAME, family.address), addresses),
        Set(WORKLOAD_DOWN, (nft.DataType.IFNAME,), down),
    ]
    if family.version == 6:
        sets.append(Set(NEIGHBOUR_TYPES, (nft.DataType.ICMPV6_TYPE,), NEIGHBOUR_DISCOVERY))
    return sets


def fixed_chains(family: Family, options: RulesetOptions, any_down: bool, any_prefixes: bool) -> list[Chain]:
    """Base chains and the chains they lead to. any_down, any_prefixes: whether the rare rules for them are needed."""
    prefixes = [f"{prefix}*" for prefix in options.interface_prefixes]
    drop = (nft.COUNTER, nft.DROP)

    raw = [
        Rule(
            (
                nft.Match(Field.IIFNAME, p),
                nft.InSet((Field.IIFNAME, family.saddr), ADDRESSES, negate=True),
                nft.goto(SPOOFED),
            ),
        )
        for p in prefixes
    ]
    spoofed = []
    if any_down:
        spoofed.append(Rule((nft.InSet((Field.IIFNAME,), WORKLOAD_DOWN), *drop), "workload is administratively down"))
    if family.version == 6:
        # Link-local sources never leave the link; `::` asks whether an address is free. Policy still applies to both.
        spoofed.append(Rule((nft.Match(family.saddr, "fe80::/10"), nft.COUNTER, nft.ACCEPT), "link-local source"))
        unspecified = (nft.Match(family.saddr, "::"), nft.Match(Field.L4PROTO, family.icmp_protocol))
        spoofed.append(Rule((*unspecified, nft.COUNTER, nft.ACCEPT), "duplicate address detection"))
    if any_prefixes:
        spoofed.append(Rule((nft.Vmap((Field.IIFNAME,), SPOOF_ALLOWED),)))
    spoofed.append(Rule(drop, "spoofed source"))

    invalid = [Rule((nft.ct_state(nft.CtState.INVALID), *drop), "invalid")] if options.check_invalid else []
    unknown = Rule(drop, "unknown workload interface")
    encapsulated = []
    if not options.allow_vxlan_from_workloads:
        vxlan = (nft.Match(Field.L4PROTO, 17), nft.Match(Field.DPORT, options.overlay.port))
        encapsulated.append(Rule((*vxlan, *drop), "VXLAN sent by a workload"))
    if not options.allow_ipip_from_workloads:
        encapsulated.append(Rule((nft.Match(Field.L4PROTO, 4), *drop), "IP in IP sent by a workload"))

    down = (
        [Rule((nft.InSet((Field.OIFNAME,), WORKLOAD_DOWN), *drop), "workload is administratively down")]
        if any_down
        else []
    )
    sender = (ESTABLISHED, *(Rule((nft.Match(Field.IIFNAME, p), nft.goto(FROM_DISPATCH))) for p in prefixes))
    receiver = (*down, ESTABLISHED, *(Rule((nft.Match(Field.OIFNAME, p), nft.goto(TO_DISPATCH))) for p in prefixes))
    to_host = list(sender[1:])
    if family.version == 6:
        to_host[:0] = [neighbour_discovery(NEIGHBOUR_TYPES, nft.Match(Field.IIFNAME, p)) for p in prefixes]

    chains = [
        Chain("hook-raw-prerouting", tuple(raw), Base(Hook.PREROUTING, priority=RAW)),
        Chain(SPOOFED, tuple(spoofed)),
        Chain("hook-forward-from", sender, Base(Hook.FORWARD, priority=-1)),
        Chain(FROM_DISPATCH, (*invalid, *encapsulated, Rule((nft.Vmap((Field.IIFNAME,), FROM_WL),)), unknown)),
        Chain("hook-forward-to", receiver, Base(Hook.FORWARD, priority=0)),
        Chain(TO_DISPATCH, (*invalid, Rule((nft.Vmap((Field.OIFNAME,), TO_WL),)), unknown)),
        Chain("hook-input-from", (ESTABLISHED, *to_host), _input(-1, options)),
        Chain(WORKLOAD_DOWN, (Rule(drop, "workload is administratively down"),)),
        *ipvs.chains(options, sender, receiver),
    ]
    if options.endpoint_to_host == "Drop":
        host = [Rule((nft.Match(Field.IIFNAME, p), *drop), "DefaultEndpointToHostAction Drop") for p in prefixes]
        if family.version == 6:
            host[:0] = [neighbour_discovery(NEIGHBOUR_TYPES, nft.Match(Field.IIFNAME, p)) for p in prefixes]
        chains.append(Chain("hook-input-host", (ESTABLISHED, *host), _input(0, options)))
    return chains


def _input(usual: int, options: RulesetOptions) -> Base:
    return Base(Hook.INPUT, priority=ipvs.priority(Hook.INPUT, usual, options))


def neighbour_discovery(types: str, *matches: nft.Expr) -> Rule:
    """types: the set of ICMPv6 types that pass."""
    icmp = (nft.Match(Field.L4PROTO, V6.icmp_protocol), nft.InSet((Field.ICMPV6_TYPE,), types))
    return Rule((*matches, *icmp, nft.COUNTER, nft.ACCEPT), "neighbour discovery")
