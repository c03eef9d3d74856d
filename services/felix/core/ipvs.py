"""What the ruleset does otherwise while kube-proxy leads packets to services by IPVS; its interface tells that it does.

IPVS takes what is sent to a service where it comes in for the host, after the filters there, writes a pod's address
into it and sends it as if it were the host's own: the forward hook never sees it. So every packet that comes in bears a
mark while it may be one of these, and is judged once its receiver is known:

    input 97              the mark
    input 98 and 99       IPVS (net/netfilter/ipvs/ip_vs_core.c, ip_vs_ops4): what it takes goes on with output
    input 100             without the mark: it was left, so it is for the host
    input 108 to 110      the stages of input, -2 to 0 without IPVS; those at -3 stay before it
    forward -150          marks of what pods answer: at 100 IPVS gives it the service's address
    output -3             limits of the receiver
    postrouting -2 to 1   the stages of forward, for what has the mark: the kernel still knows where it came in (since
                          5.7)
    postrouting 2         the mark goes, before an overlay wraps the packet

Calico judges such packets at output, by marks that stand for the endpoint (features S07); there, what looks like a
service's and is for the host after all meets no policy. Here it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Hook, Rule
from services.felix.core.options import RulesetOptions

LINK = "kube-ipvs0"
"""The interface that has the services' addresses, in kube-proxy's mode IPVS alone."""
BEFORE_IPVS, LEFT_BY_IPVS, AFTER_POLICY = 97, 100, 2
AFTER_IPVS = 110
"""How much later the stages of input come."""


def adapted(options: RulesetOptions) -> RulesetOptions:
    """The same for a host with IPVS, as far as that goes; `problems` says what does not."""
    return replace(options, ipvs=True, deny_action="Drop")  # the kernel cannot reject after routing


def problems(options: RulesetOptions) -> tuple[str, ...]:
    """options: as configured."""
    found = []
    if not options.spare_bit:
        found.append("nftablesMarkMask: has no bit left for kube-proxy's mode IPVS: what is for services is dropped")
    if options.deny_action == "Reject":
        found.append("nftablesFilterDenyAction: is Drop while kube-proxy is in its mode IPVS")
    return tuple(found)


def priority(hook: Hook, usual: int, options: RulesetOptions) -> int:
    """Of the base chain of a stage that decides."""
    return usual + AFTER_IPVS if options.ipvs and hook is Hook.INPUT else usual


def skip_others(options: RulesetOptions) -> Rule:
    """For base chains at postrouting."""
    return Rule((nft.mark_lacks(options.mark_ipvs), nft.ACCEPT), "not sent on by IPVS")


def skip_sent_on(options: RulesetOptions) -> Rule:
    """For base chains at output that are about the host's own packets."""
    return Rule((nft.mark_has(options.mark_ipvs), nft.ACCEPT), "sent on by IPVS")


def chains(options: RulesetOptions, sender: Sequence[Rule], receiver: Sequence[Rule]) -> Iterable[Chain]:
    """sender, receiver: rules of the two stages that workloads have at forward. Nothing without IPVS; without a bit for
    its mark, what it sends on is dropped.
    """
    if not options.ipvs:
        return
    bit = options.mark_ipvs
    if not bit:
        closed = Rule((nft.FROM_FOREIGN_ADDRESS, nft.COUNTER, nft.DROP), "sent on by IPVS, with no mark bit for policy")
        yield Chain("hook-ipvs-closed", (sender[0], closed), Base(Hook.OUTPUT))
        return
    gone = (Rule((nft.mark_has(bit), nft.mark_and(~bit))),)
    yield Chain("hook-ipvs-mark", (Rule((nft.mark_or(bit),)),), Base(Hook.INPUT, priority=BEFORE_IPVS))
    yield Chain("hook-ipvs-left", gone, Base(Hook.INPUT, priority=LEFT_BY_IPVS))
    skip = skip_others(options)
    yield Chain("hook-ipvs-from", (skip, *sender), Base(Hook.POSTROUTING, priority=-1))
    yield Chain("hook-ipvs-to", (skip, *receiver), Base(Hook.POSTROUTING, priority=0))
    yield Chain("hook-ipvs-end", gone, Base(Hook.POSTROUTING, priority=AFTER_POLICY))
