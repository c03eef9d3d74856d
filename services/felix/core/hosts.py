"""Host endpoints: which interface each one protects, and the stages that its policy has around those of workloads.

    raw      prerouting -299, output -299   untracked policy (doNotTrack): allowed packets never meet conntrack
    mangle   prerouting -150                pre-DNAT policy, on the address and port as the sender wrote them
    forward  -2 and +1                      applyOnForward policy, by incoming and by outgoing interface
    input    -2                             ingress policy, for what comes to the host itself
    output    0                             egress policy, for what the host itself sends
    mangle   postrouting -150               the same for what was given another destination (DNAT): only here is the
                                            interface known that it leaves by. With deny action Reject, which the
                                            kernel does not have here, the output stage judges it by the old one

As everywhere (docs/adr/0007), each stage is a base chain of its own, lets established packets out first, finds the
endpoint by a verdict map and goes to its chain, whose verdicts are final for the stage. Only an allow by untracked or
pre-DNAT policy must be known to later stages: it sets the accept mark (facts/felix.md section 4.5). A stage exists
while some host endpoint needs it. With kube-proxy's mode IPVS input comes later and forward has a second way (ipvs.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, CtState, Field, Hook, Rule
from libs.policy.output import Host
from services.felix.core import failsafe, ipvs, names
from services.felix.core.dispatch import ESTABLISHED, MANGLE, TierList, neighbour_discovery, tier_lists
from services.felix.core.failsafe import FAILSAFE_IN, FAILSAFE_IN_RAW, FAILSAFE_OUT, FAILSAFE_OUT_RAW
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.tunnel_rules import RECEIVERS, SENDERS

ANY = "*"  # the host endpoint of every interface that has none of its own
UNTRACKED = -299
LOOPBACK = "lo"
NEIGHBOUR_TYPES = "host-icmpv6"
# Multicast listeners, router and neighbour discovery: a host needs router advertisements too.
NEIGHBOUR_DISCOVERY = frozenset({"130", "131", "132", "133", "134", "135", "136", "143"})


@dataclass(frozen=True, slots=True)
class StageKind:
    """One of the places where host endpoints act. prefix: of the chains of its endpoints, as Calico's where it has
    the chain."""

    prefix: str
    inbound: bool
    hook: Hook
    priority: int
    failsafe: str = ""
    profiles: bool = False

    @property
    def base(self) -> str:
        return f"hook-{self.prefix}"

    @property
    def map(self) -> str:
        return f"{self.prefix}-dispatch"

    @property
    def field(self) -> Field:
        return Field.IIFNAME if self.inbound else Field.OIFNAME


RAW_FROM = StageKind("fh-raw", True, Hook.PREROUTING, UNTRACKED, FAILSAFE_IN_RAW)
RAW_TO = StageKind("th-raw", False, Hook.OUTPUT, UNTRACKED, FAILSAFE_OUT_RAW)
PRE_DNAT = StageKind("fh-dnat", True, Hook.PREROUTING, MANGLE, FAILSAFE_IN)
FORWARD_FROM = StageKind("fhfw", True, Hook.FORWARD, -2)
FORWARD_TO = StageKind("thfw", False, Hook.FORWARD, 1)
INPUT = StageKind("fh", True, Hook.INPUT, -2, FAILSAFE_IN, profiles=True)
OUTPUT = StageKind("th", False, Hook.OUTPUT, 0, FAILSAFE_OUT, profiles=True)
STAGES = (RAW_FROM, RAW_TO, PRE_DNAT, FORWARD_FROM, FORWARD_TO, INPUT, OUTPUT)
# Second ways into the chains of OUTPUT, and for what IPVS sends on (ipvs.py) of FORWARD's.
AFTER_DNAT = StageKind("th-dnat", False, Hook.POSTROUTING, MANGLE)
IPVS_FROM = StageKind("fhfw-ipvs", True, Hook.POSTROUTING, FORWARD_FROM.priority)
IPVS_TO = StageKind("thfw-ipvs", False, Hook.POSTROUTING, FORWARD_TO.priority)
RAW = (RAW_FROM, RAW_TO)
FORWARD = (FORWARD_FROM, FORWARD_TO)
IPVS = (IPVS_FROM, IPVS_TO)
MARKING = (*RAW, PRE_DNAT)  # an allow there is remembered


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    """A host endpoint that has an interface: the lists of each stage in which it has a say, and its profiles."""

    name: str
    profiles: tuple[str, ...]
    lists: Mapping[StageKind, tuple[TierList, ...]]

    def tier_lists(self) -> Iterable[TierList]:
        for lists in self.lists.values():
            yield from lists


def endpoint(name: str, host: Host, *, wildcard: bool) -> HostEndpoint:
    """Stages of normal policy always act, with profiles and a final drop; the others when they hold a policy.

    wildcard: then untracked policy is ignored (facts/felix.md section 4.6).
    """
    lists: dict[StageKind, tuple[TierList, ...]] = {
        INPUT: tier_lists(host.tiers, True),
        OUTPUT: tier_lists(host.tiers, False),
    }
    for stage, tiers in (
        (RAW_FROM, () if wildcard else host.untracked_tiers),
        (RAW_TO, () if wildcard else host.untracked_tiers),
        (PRE_DNAT, host.pre_dnat_tiers),
        (FORWARD_FROM, host.forward_tiers),
        (FORWARD_TO, host.forward_tiers),
    ):
        found = tier_lists(tiers, stage.inbound)
        if found:
            lists[stage] = found
    return HostEndpoint(name, host.profiles, lists)


def resolve(hosts: Mapping[str, Host], addresses: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """interface, or ANY → host endpoint that it belongs to (facts/felix.md section 3.13).

    addresses: those of each interface of this host that is no workload's. A name that is given wins over an address
    that is expected; of several candidates the lowest name does.
    """
    out: dict[str, str] = {}
    for name in sorted(hosts):
        if hosts[name].name:
            out.setdefault(hosts[name].name, name)
    for name in sorted(hosts):
        host = hosts[name]
        if host.name:
            continue
        expected = {*host.expected4, *host.expected6}
        for interface in sorted(addresses):
            if addresses[interface] & expected:
                out.setdefault(interface, name)
    return out


def expects_addresses(hosts: Mapping[str, Host]) -> bool:
    """True when an interface must be found by its addresses, or these are what is marked."""
    return any(not host.name or host.dscp is not None for host in hosts.values())


def marks(
    hosts: Mapping[str, Host], addresses: Mapping[str, frozenset[str]], refused: Collection[str] = ()
) -> dict[int, frozenset[str]]:
    """DSCP → sources of what is marked: the addresses that a host endpoint expects, as in Calico, else those of the
    interfaces that it acts on. addresses: as in `resolve`. refused: names of those that must do without.
    """
    found: dict[int, set[str]] = {}
    acting = resolve(hosts, addresses)
    for name, host in sorted(hosts.items()):
        if host.dscp is None or name in refused:
            continue
        sources = {*host.expected4, *host.expected6}
        if not sources:
            for interface, its_own in addresses.items():
                if acting.get(interface, acting.get(ANY)) == name and interface != LOOPBACK:
                    sources |= its_own
        if sources:
            found.setdefault(host.dscp, set()).update(sources)
    return {dscp: frozenset(sources) for dscp, sources in found.items()}


def chain_name(stage: StageKind, interface: str) -> str:
    return names.interface_chain(stage.prefix, "any-interface-at-all" if interface == ANY else interface)


def endpoint_chain(stage: StageKind, interface: str, host: HostEndpoint, deny: Rule, options: RulesetOptions) -> Chain:
    """invalid → failsafe ports → tiers in order → for normal policy: profiles, then drop."""
    rules: list[Rule] = []
    if stage not in MARKING and options.check_invalid:
        rules.append(Rule((nft.ct_state(CtState.INVALID), nft.COUNTER, nft.DROP), "invalid"))
    if stage.failsafe:
        rules.append(Rule((nft.jump(stage.failsafe),)))
    rules += [Rule((nft.jump(tier_list.chain),)) for tier_list in host.lists[stage]]
    if stage.profiles:
        rules += [Rule((nft.jump(names.profile_chain(profile, stage.inbound)),)) for profile in host.profiles]
        rules.append(deny)
    return Chain(chain_name(stage, interface), tuple(rules))


def entries(stage: StageKind, options: RulesetOptions) -> tuple[StageKind, ...]:
    """Where packets come into a stage's chains."""
    if stage is OUTPUT and options.deny_action != "Reject":  # the kernel cannot reject after routing
        return OUTPUT, AFTER_DNAT
    if stage in FORWARD and options.mark_ipvs:
        return stage, IPVS[FORWARD.index(stage)]
    return (stage,)


def base_chains(
    used: Collection[StageKind],
    options: RulesetOptions,
    *,
    named: bool,
    wildcard: Collection[StageKind],
    tunnels: bool = False,
) -> Iterable[Chain]:
    """Where packets enter each stage in use. named: some interface has a host endpoint of its own. wildcard: stages in
    which the host endpoint of all other interfaces has a say. tunnels: packets of overlays between known nodes are
    none of policy's business.
    """
    marks = any(stage in MARKING for stage in used)
    for stage in used:
        dispatch: list[Rule] = []
        if named:
            dispatch.append(Rule((nft.Vmap((stage.field,), stage.map),)))
        if stage in wildcard:
            if stage not in FORWARD:
                loopback = nft.Match(stage.field, LOOPBACK)
                dispatch.append(Rule((loopback, nft.ACCEPT), "loopback is not among all interfaces"))
            dispatch.append(Rule((nft.goto(chain_name(stage, ANY)),)))
        for entry in entries(stage, options):
            rules = (*_before(entry, options, marks=marks, tunnels=tunnels), *dispatch)
            priority = ipvs.priority(entry.hook, entry.priority, options)
            yield Chain(entry.base, rules, Base(entry.hook, priority=priority))


def _before(stage: StageKind, options: RulesetOptions, *, marks: bool, tunnels: bool) -> list[Rule]:
    """What leaves the stage before any host endpoint is looked for. marks: an earlier stage may have set the mark."""
    rules: list[Rule] = []
    if stage in IPVS:
        rules.append(ipvs.skip_others(options))
    elif options.mark_ipvs and stage in (RAW_TO, OUTPUT, AFTER_DNAT):
        rules.append(ipvs.skip_sent_on(options))
    if stage in RAW:
        rules.append(Rule((nft.mark_and(~options.mark_accept),)))
    else:
        if marks and stage not in (FORWARD_TO, IPVS_TO):
            rules.append(
                Rule((nft.mark_has(options.mark_accept), nft.COUNTER, nft.ACCEPT), "allowed before tracking or DNAT")
            )
        rules.append(ESTABLISHED)
    if tunnels and stage in (INPUT, OUTPUT):
        rules.append(Rule((nft.jump(SENDERS if stage is INPUT else RECEIVERS),)))
    if stage is OUTPUT and options.deny_action != "Reject":
        rules.append(Rule((nft.ct_status(nft.CT_STATUS_DNAT), nft.ACCEPT), "DNATed: see hook-th-dnat"))
    if stage is AFTER_DNAT:
        # It has no DNAT status that could be matched: the next rule would pass it by. Nor is the one after that enough:
        # IPVS gives the address of a service, which is the host's, to what pods answer.
        no_flow = nft.ct_state(CtState.UNTRACKED, CtState.INVALID)
        rules.append(Rule((no_flow, nft.ACCEPT), "of no flow, so not DNATed: see hook-th"))
        rules.append(Rule((nft.ct_status(nft.CT_STATUS_DNAT, negate=True), nft.ACCEPT), "not DNATed: see hook-th"))
        rules.append(Rule((nft.FROM_FOREIGN_ADDRESS, nft.ACCEPT), "forwarded"))
    if stage not in (*FORWARD, *IPVS):
        rules += [
            Rule((nft.Match(stage.field, f"{prefix}*"), nft.ACCEPT), "workload interface")
            for prefix in options.interface_prefixes
        ]
    return rules


def failsafe_chains(family: Family, options: RulesetOptions, *, raw: bool) -> list[Chain]:
    """IPv6 hosts lose each other without neighbour discovery, and with it every failsafe port."""
    always = (neighbour_discovery(NEIGHBOUR_TYPES),) if family.version == 6 else ()
    remote = (family.saddr, family.daddr)
    return failsafe.chains(family.version, remote, options.failsafe_in, options.failsafe_out, always, raw=raw)
