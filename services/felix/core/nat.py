"""Address translation: what leaves the pools wears the node's address, floating IPs stand for a workload's own.

Each hook has a chain only while something needs it: a nat hook costs every new connection of the node, ours or not.
Priorities are Calico's: destination NAT with everybody else's (-100), source NAT after kube-proxy's (110).
"""

from __future__ import annotations

from collections.abc import Iterable

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, ChainType, Field, Hook, Rule
from libs.policy.output import Nat
from services.felix.core.options import Family, NatOptions
from services.felix.core.tunnel_rules import ALL_HOSTS

ALL_POOLS = "network-ip-pools"
NAT_POOLS = "masq-ipam-pools"
FLOATING_DNAT, FLOATING_SNAT, OUTGOING = "fip-dnat", "fip-snat", "nat-outgoing"
SRCNAT_AFTER_SERVICES = 110


def chains(
    family: Family, options: NatOptions, any_nat_pool: bool, floating: Iterable[Nat], tunnels: Iterable[Rule] = ()
) -> list[Chain]:
    """floating: pairs of this family; of two for one external address that with the lowest internal one counts.
    tunnels: rules for what the host sends into overlays (tunnel_rules.py).
    """
    out: list[Chain] = []
    post: list[Rule] = []
    pairs = sorted({nat.external: nat for nat in sorted(floating, key=lambda n: n.internal, reverse=True)}.items())
    if pairs:
        dnat = [_rule(nft.Match(family.daddr, n.external), nft.Nat(source=False, addr=n.internal)) for _, n in pairs]
        # A workload that calls its own floating IP must not see its own address as the peer's.
        snat = [
            _rule(
                nft.Match(family.saddr, n.internal),
                nft.Match(family.daddr, n.internal),
                nft.Nat(source=True, addr=n.external),
            )
            for _, n in pairs
        ]
        out += [Chain(FLOATING_DNAT, tuple(dnat)), Chain(FLOATING_SNAT, tuple(snat))]
        for name, hook in (("hook-nat-prerouting", Hook.PREROUTING), ("hook-nat-output", Hook.OUTPUT)):
            out.append(Chain(name, (Rule((nft.jump(FLOATING_DNAT),)),), Base(hook, ChainType.NAT, nft.DSTNAT)))
        post.append(Rule((nft.jump(FLOATING_SNAT),)))
    if any_nat_pool:
        out.append(Chain(OUTGOING, tuple(_outgoing(family, options))))
        post.append(Rule((nft.jump(OUTGOING),)))
    post += tunnels
    if post:
        out.append(
            Chain("hook-nat-postrouting", tuple(post), Base(Hook.POSTROUTING, ChainType.NAT, SRCNAT_AFTER_SERVICES))
        )
    return out


def _outgoing(family: Family, options: NatOptions) -> Iterable[Rule]:
    match: list[nft.Expr] = [
        nft.InSet((family.saddr,), NAT_POOLS),
        nft.InSet((family.daddr,), ALL_POOLS, negate=True),
    ]
    if options.exclude_hosts:
        match.append(nft.InSet((family.daddr,), ALL_HOSTS, negate=True))
    if options.out_interface:
        match.insert(0, nft.Match(Field.OIFNAME, options.out_interface))
    address = options.address.get(family.version)
    if options.ports is not None:
        for protocol in (6, 17):
            yield _rule(nft.Match(Field.L4PROTO, protocol), *match, _translate(address, options.ports))
    yield _rule(*match, _translate(address, None))


def _translate(address: str | None, ports: tuple[int, int] | None) -> nft.Expr:
    if address:
        return nft.Nat(source=True, addr=address, ports=ports, fully_random=True)
    return nft.Masquerade(ports=ports, fully_random=True)


def _rule(*exprs: nft.Expr) -> Rule:
    return Rule((*exprs[:-1], nft.COUNTER, exprs[-1]))
