"""Removes what a real calico-node left in the kernel, after ours is live, so that no packet is without rules.

What it has in common with us, Felix has taken over by then: nftables tables `ip calico` and `ip6 calico` were replaced
in one transaction, routes of protocol 80 and overlay devices adopted. Left are the rules of its iptables mode with
their sets, the ARP table of its nftables mode, routes of BIRD and of workloads that another of ours now stands for.
Nothing else is touched, and a second run finds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_network

from libs.model import IPPool
from libs.netlink.bird import bird_runs
from libs.netlink.routes import TABLE_MAIN, IPNetwork
from libs.resources.client import ResourceClient
from libs.store.api import Store
from services.node.core.iptables import CHAIN, counted, removal
from services.node.core.leftovers import NFT_ARP, is_ipset, old_routes
from services.node.drivers import xtables
from services.node.drivers.kernel import HostKernel

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """In words, for people. left: what should have gone and did not."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


async def pools_of(store: Store) -> list[IPNetwork]:
    """Raises StoreError, ResourceError."""
    listed = await ResourceClient(store).list("IPPool")
    return [ip_network(one.spec.cidr) for one in listed.items if isinstance(one, IPPool)]


def take_over(pools: Collection[IPNetwork], *, dry_run: bool = False) -> Outcome:
    """Blocking. pools: of the cluster. dry_run: `removed` tells what would go."""
    outcome = Outcome()
    with HostKernel() as kernel:
        remove_xtables(kernel, outcome, dry_run=dry_run)
        drop_tables(kernel, (NFT_ARP,), outcome, dry_run=dry_run)
        routes = [route for route in kernel.routes() if route.table == TABLE_MAIN]
        old = old_routes(routes, kernel.names(), pools, bird_runs=bird_runs())
        if old:
            try:
                if not dry_run:
                    kernel.drop_routes(old)
                outcome.removed.append(f"{len(old)} routes: {', '.join(str(route.dst) for route in old[:10])}")
            except OSError as error:
                outcome.left.append(f"routes: {error}")
    return outcome


def remove_xtables(kernel: HostKernel, outcome: Outcome, *, dry_run: bool) -> None:
    found = xtables.tools()
    if not any("legacy" in tool for tool in found) and xtables.legacy_tables():
        outcome.left.append("tables of iptables-legacy: that program is not here, so they were not looked at")
    if not any(tool.endswith("-nft") for tool in found) and not set(found) & set(xtables.PLAIN):
        chains = kernel.iptables_chains(lambda name: name.startswith(CHAIN))
        if chains:
            told = ", ".join(chains)
            outcome.left.append(f"chains of an earlier Calico, which still filter: {told}: iptables-nft is not here")
    for tool in found:
        try:
            text = removal(xtables.save(tool))
            if text and not dry_run:
                xtables.restore(tool, text)
        except xtables.XtablesError as error:
            outcome.left.append(str(error))
            continue
        if text:
            count, rules = counted(text)
            outcome.removed.append(f"{tool}: {count} chains, {rules} rules in chains of others")
    sets, kept = xtables.destroy_ipsets(is_ipset, dry_run=dry_run)
    if sets:
        outcome.removed.append(f"{len(sets)} IP sets")
    outcome.left += [f"IP set {name}: {why}" for name, why in kept.items()]


def drop_tables(
    kernel: HostKernel, wanted: Collection[tuple[str, str]], outcome: Outcome, *, dry_run: bool
) -> None:  # fmt: skip
    for table in kernel.tables(wanted):
        try:
            if not dry_run:
                kernel.drop_table(table)
            outcome.removed.append(f"nftables table {table}")
        except OSError as error:
            outcome.left.append(f"nftables table {table}: {error}")
