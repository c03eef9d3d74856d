"""Every expression that the model knows, as rules that are legal in a table of each family."""

from __future__ import annotations

from libs.nftables.model import (
    ACCEPT,
    CONTINUE,
    COUNTER,
    CT_STATUS_DNAT,
    DROP,
    RETURN,
    RPF_FAILED,
    RPF_FAILED_BY_MARK,
    TO_LOCAL_ADDRESS,
    Base,
    Bits,
    Chain,
    ChainType,
    ConnLimit,
    CopyMark,
    CtState,
    DataType,
    Expr,
    Family,
    Fib,
    FibResult,
    Field,
    Hook,
    InSet,
    Limit,
    Log,
    Map,
    Masquerade,
    Match,
    Nat,
    NoTrack,
    Policy,
    Reject,
    RejectKind,
    Rule,
    Ruleset,
    Set,
    SetDscp,
    SetMark,
    Table,
    Vmap,
    ct_state,
    ct_status,
    goto,
    jump,
    mark_and,
    mark_has,
    mark_lacks,
    mark_or,
    mark_set,
    mark_xor,
    rule,
)

TCP = Match(Field.L4PROTO, "tcp")

COMMON: tuple[tuple[Expr, ...], ...] = (
    (Match(Field.IIFNAME, "cali*"),),
    (Match(Field.OIFNAME, "cali*", True),),
    (Match(Field.IIFNAME, "eth0"),),
    (Match(Field.OIFNAME, "eth0.100", True),),
    (Match(Field.L4PROTO, "tcp"),),
    (Match(Field.L4PROTO, 4, True),),
    (TCP, Match(Field.SPORT, 80)),
    (TCP, Match(Field.DPORT, "80-90")),
    (TCP, Match(Field.DPORT, "80-90", True)),
    (TCP, Match(Field.DPORT, 443, True)),
    (Match(Field.ICMP_TYPE, 8),),
    (Match(Field.ICMP_TYPE, 8), Match(Field.ICMP_CODE, 0)),
    (Match(Field.ICMPV6_TYPE, 135),),
    (Match(Field.L4PROTO, "icmpv6"), Match(Field.ICMPV6_TYPE, 130)),
    (ct_state(CtState.ESTABLISHED, CtState.RELATED), ACCEPT),
    (ct_state(CtState.INVALID), DROP),
    (ct_state(CtState.NEW),),
    (ct_status(CT_STATUS_DNAT),),
    (ct_status(CT_STATUS_DNAT, negate=True),),
    (mark_has(0x30000),),
    (mark_lacks(0x30000),),
    (Bits(Field.MARK, 0xFF, 0x12, True),),
    (Match(Field.MARK, 7),),
    (mark_set(5),),
    (mark_set(0x10, 0x30),),
    (mark_or(0x10000),),
    (mark_and(0xFFFDFFFF),),
    (mark_xor(3),),
    (SetMark(0, 9, Field.CT_MARK),),
    (CopyMark(Field.CT_MARK),),
    (CopyMark(Field.MARK),),
    (InSet((Field.MARK,), "marks"),),
    (TCP, InSet((Field.DPORT,), "ports")),
    (TCP, InSet((Field.DPORT,), "ports", True)),
    (Vmap((Field.IIFNAME,), "dispatch"),),
    (Vmap((Field.CT_STATE,), "states"),),
    (RPF_FAILED, DROP),
    (RPF_FAILED_BY_MARK, DROP),
    (TO_LOCAL_ADDRESS, ACCEPT),
    (Fib("saddr", FibResult.TYPE, 2, negate=True),),
    (Fib("saddr", FibResult.TYPE, 2, oif=True, negate=True),),
    (Fib("daddr", FibResult.OIF, 3),),
    (COUNTER,),
    (Limit(10),),
    (Limit(100, "minute", 7, True), DROP),
    (Limit(1, "day", 5),),
    (TCP, ConnLimit(5), Reject(RejectKind.TCP_RESET)),
    (ConnLimit(9, False),),
    (Log("calico-packet: "), COUNTER),
    (Log("x", level="info"),),
    (Log("DPI|default", group=1),),
    (Log("D", group=2, snaplen=80),),
    (ACCEPT,),
    (DROP,),
    (RETURN,),
    (CONTINUE,),
    (jump("t"),),
    (goto("t"),),
    (NoTrack(),),
)

IPV4: tuple[tuple[Expr, ...], ...] = (
    (Match(Field.IP_SADDR, "10.0.0.1"), ACCEPT),
    (Match(Field.IP_DADDR, "10.0.0.1", True),),
    (Match(Field.IP_SADDR, "10.0.0.0/8"),),
    (Match(Field.IP_SADDR, "10.0.0.0/24", True),),
    (Match(Field.IP_DADDR, "10.0.0.64/27"),),
    (Match(Field.IP_SADDR, "10.0.0.1-10.0.0.7"),),
    (Match(Field.IP_SADDR, "10.0.0.1-10.0.0.7", True),),
    (InSet((Field.IP_SADDR,), "a4"), TCP, Match(Field.DPORT, 80), COUNTER, ACCEPT),
    (InSet((Field.IP_SADDR,), "n4", True),),
    (InSet((Field.IIFNAME, Field.IP_SADDR), "w4", True), COUNTER, DROP),
    (InSet((Field.IP_DADDR, Field.L4PROTO, Field.DPORT), "p4"),),
    (SetDscp(Family.IP, 10),),
)
IPV6: tuple[tuple[Expr, ...], ...] = (
    (Match(Field.IP6_SADDR, "fd00::1"), ACCEPT),
    (Match(Field.IP6_DADDR, "fd00::1", True),),
    (Match(Field.IP6_SADDR, "fd00::/64"),),
    (Match(Field.IP6_SADDR, "fd00::/8", True),),
    (Match(Field.IP6_DADDR, "fd00::8000:0:0:0/65"),),
    (Match(Field.IP6_DADDR, "fd00::1-fd00::9"),),
    (InSet((Field.IP6_SADDR,), "a6"), COUNTER),
    (InSet((Field.IP6_SADDR,), "n6", True),),
    (InSet((Field.IIFNAME, Field.IP6_SADDR), "w6", True),),
    (InSet((Field.IP6_DADDR, Field.L4PROTO, Field.DPORT), "p6"),),
    (SetDscp(Family.IP6, 46),),
)
REJECTS: dict[Family, tuple[tuple[Expr, ...], ...]] = {
    Family.IP: ((Reject(RejectKind.ICMP, 13),), (Reject(RejectKind.ICMP, 3),)),
    Family.IP6: ((Reject(RejectKind.ICMPV6, 1),),),
    Family.INET: ((Reject(RejectKind.ICMPX, 3),), (Match(Field.NFPROTO, "ipv4"), Match(Field.IP_SADDR, "10.0.0.1"))),
}


def nat_rules(family: Family) -> tuple[tuple[Expr, ...], ...]:
    address = "fd00::99" if family is Family.IP6 else "192.0.2.9"
    return (
        (Masquerade(),),
        (Masquerade(fully_random=True),),
        (TCP, Masquerade((1024, 65535))),
        (TCP, Masquerade((1024, 65535), True)),
        (Nat(True, address),),
        (TCP, Nat(True, address, (100, 200))),
        (TCP, Nat(True, address, (100, 100), True)),
    )


def sample(family: Family) -> Ruleset:
    """Legal in that family, and using every set, map and expression."""
    d = DataType
    exprs = [*COMMON, *REJECTS[family]]
    sets = [
        Set("marks", (d.MARK,), frozenset({"0x00000010", "0x00020000"})),
        Set("ports", (d.PORT,), frozenset({"80", "443", "8000-8080", "65535"}), interval=True),
        Set("gone", (d.MARK,), timeout_s=60),
    ]
    if family in (Family.IP, Family.INET):
        exprs += IPV4
        sets += [
            Set("a4", (d.IPV4,), frozenset({"10.0.0.1", "10.0.0.2"})),
            Set("n4", (d.IPV4,), frozenset({"0.0.0.0/8", "10.0.0.0/8", "11.0.0.0/8", "255.0.0.0/8"}), interval=True),
            Set("w4", (d.IFNAME, d.IPV4), frozenset({"cali1 . 10.0.0.1", "cali2 . 10.0.0.2"})),
            Set("p4", (d.IPV4, d.PROTO, d.PORT), frozenset({"10.0.0.1 . tcp . 80", "10.0.0.1 . udp . 53"})),
            Set("c4", (d.IFNAME, d.IPV4), frozenset({"cali1 . 10.0.0.0/8", "cali2 . 10.1.0.0/16"}), interval=True),
            Set("k4", (d.IPV4,), frozenset({"10.0.0.1"}), constant=True),
        ]
    if family in (Family.IP6, Family.INET):
        exprs += IPV6
        sets += [
            Set("a6", (d.IPV6,), frozenset({"fd00::1", "::"})),
            Set("n6", (d.IPV6,), frozenset({"fd00::/64", "::/96", "ff00::/8"}), interval=True),
            Set("w6", (d.IFNAME, d.IPV6), frozenset({"cali1 . fd00::1"})),
            Set("p6", (d.IPV6, d.PROTO, d.PORT), frozenset({"fd00::1 . sctp . 80"})),
        ]
    maps = (
        Map("dispatch", (d.IFNAME,), {"cali1": goto("t"), "cali2": jump("t"), "drop": DROP}),
        Map("states", (d.CT_STATE,), {"established": ACCEPT, "related": ACCEPT, "invalid": DROP}),
        Map("byport", (d.PORT,), {"1-5": jump("t"), "80": ACCEPT}, interval=True),
    )
    rules = tuple(rule(*e, comment=f"rule {i}: é") for i, e in enumerate(exprs))
    chains = (
        Chain("t", (Rule((COUNTER,), "t"),)),
        Chain("pi-np/ns1/web", (rule(COUNTER),)),
        Chain("cali-all", rules),
        Chain("fwd-from", (rule(jump("cali-all")), rule(jump("pi-np/ns1/web"))), Base(Hook.FORWARD, priority=-1)),
        Chain("fwd-to", (rule(DROP),), Base(Hook.FORWARD, policy=Policy.DROP)),
        Chain("raw-pre", (rule(NoTrack()),), Base(Hook.PREROUTING, priority=-300)),
        Chain("mangle-out", (), Base(Hook.OUTPUT, ChainType.ROUTE, -150)),
        Chain("nat-post", tuple(rule(*e) for e in nat_rules(family)), Base(Hook.POSTROUTING, ChainType.NAT, 110)),
    )
    return Ruleset(Table(family, "sample"), chains, tuple(sets), maps)
