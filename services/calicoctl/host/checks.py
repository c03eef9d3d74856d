"""`calicoctl node checksystem`: what the kernel of this host must have, judged from texts that were read before.

Our dataplane is nftables over netlink, so its expressions are what counts; the iptables and ipset modules that Calico's
other dataplane needs are looked at as well, and their absence is no fault here. A feature counts as there when one of
these says so, in this order: the kernel itself (a rule that it was asked to check), modules.dep, modules.builtin, the
loaded modules, the kernel's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

KERNEL_FLOOR = (5, 10)
"""facts/felix.md; Calico's calicoctl still asks for no more than 2.6.24."""


class Result(StrEnum):
    OK = "OK"
    SKIP = "SKIP"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Feature:
    """modules: any of them will do. option: of the kernel's configuration. rule: an nftables rule that needs it.

    needed: without it the check fails; else why it is looked at.
    """

    name: str
    modules: tuple[str, ...]
    option: str
    rule: str = ""
    needed: bool = True
    purpose: str = ""


_NFT = (
    Feature("nf_tables", ("nf_tables",), "CONFIG_NF_TABLES", "counter accept"),
    Feature("nft_ct", ("nft_ct",), "CONFIG_NFT_CT", "ct state established,related accept"),
    Feature("nft_fib_inet", ("nft_fib_inet",), "CONFIG_NFT_FIB_INET", "fib daddr type local accept"),
    Feature("nft_reject_inet", ("nft_reject_inet",), "CONFIG_NFT_REJECT_INET", "reject"),
    Feature("nft_limit", ("nft_limit",), "CONFIG_NFT_LIMIT", "limit rate 10/second accept"),
    Feature("nft_log", ("nft_log",), "CONFIG_NFT_LOG", 'log prefix "calico-packet: "'),
    Feature("nft_nat", ("nft_nat",), "CONFIG_NFT_NAT", "nat: dnat ip to 192.0.2.1"),
    Feature("nft_masq", ("nft_masq",), "CONFIG_NFT_MASQ", "postrouting: masquerade"),
    Feature("nft_notrack", ("nft_ct",), "CONFIG_NFT_CT", "raw: notrack"),
    Feature("nft_meta", ("nf_tables",), "CONFIG_NF_TABLES", "meta mark set mark or 0x1"),
    Feature("nft_vmap", ("nf_tables",), "CONFIG_NF_TABLES", "iifname vmap { lo : accept }"),
)
_OTHERS = (
    Feature("nf_conntrack", ("nf_conntrack",), "CONFIG_NF_CONNTRACK"),
    Feature("nf_conntrack_netlink", ("nf_conntrack_netlink",), "CONFIG_NF_CT_NETLINK"),
    Feature("veth", ("veth",), "CONFIG_VETH"),
    Feature("vxlan", ("vxlan",), "CONFIG_VXLAN", needed=False, purpose="pools with VXLAN"),
    Feature("ipip", ("ipip",), "CONFIG_NET_IPIP", needed=False, purpose="pools with IP in IP"),
    Feature("wireguard", ("wireguard",), "CONFIG_WIREGUARD", needed=False,
            purpose="encryption by the kernel; wireguard-go does it too"),
)  # fmt: skip
_IPTABLES_PURPOSE = "Calico's iptables dataplane only"
_IPTABLES = tuple(
    Feature(names[0], names, option, needed=False, purpose=_IPTABLES_PURPOSE)
    for names, option in (
        (("ip_set",), "CONFIG_IP_SET"),
        (("ip_tables",), "CONFIG_IP_NF_IPTABLES"),
        (("ip6_tables",), "CONFIG_IP6_NF_IPTABLES"),
        (("ipt_ipvs", "xt_ipvs"), "CONFIG_NETFILTER_XT_MATCH_IPVS"),
        (("vfio-pci",), "CONFIG_VFIO"),
        (("xt_bpf",), "CONFIG_NETFILTER_XT_MATCH_BPF"),
        (("ipt_REJECT", "xt_REJECT"), "CONFIG_IP_NF_TARGET_REJECT"),
        (("xt_rpfilter", "ipt_rpfilter"), "CONFIG_IP_NF_MATCH_RPFILTER"),
        (("xt_addrtype",), "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE"),
        (("xt_conntrack",), "CONFIG_NETFILTER_XT_MATCH_CONNTRACK"),
        (("xt_mark",), "CONFIG_NETFILTER_XT_MARK"),
        (("xt_multiport",), "CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
        (("xt_set",), "CONFIG_NETFILTER_XT_SET"),
        (("xt_u32",), "CONFIG_NETFILTER_XT_MATCH_U32"),
    )
)
FEATURES = (*_NFT, *_OTHERS, *_IPTABLES)

_HOOKS = {
    "": "type filter hook input priority 0;",
    "nat": "type nat hook prerouting priority 0;",
    "postrouting": "type nat hook postrouting priority 0;",
    "raw": "type filter hook prerouting priority -300;",
}


def ruleset(feature: Feature) -> str:
    """For `nft --check`: nothing is changed, the kernel says whether it could."""
    hook, colon, rule = feature.rule.partition(": ")
    if not colon or hook not in _HOOKS:
        hook, rule = "", feature.rule
    return f"table inet calico-checksystem {{ chain c {{ {_HOOKS[hook]} {rule}; }}; }}\n"


@dataclass(frozen=True, slots=True)
class Found:
    """What was read. config: lines `CONFIG_X=y`. asked: by name of feature, what the kernel said to its rule; absent
    when nobody could ask.
    """

    release: str
    modules_dep: str = ""
    modules_builtin: str = ""
    loaded: str = ""
    config: str = ""
    asked: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    result: Result
    note: str = ""


def judge(found: Found) -> tuple[Line, list[Line]]:
    """(kernel version, each feature)."""
    return _kernel(found.release), [_feature(feature, found) for feature in FEATURES]


def good(lines: Sequence[Line]) -> bool:
    return all(line.result is not Result.FAIL for line in lines)


def _kernel(release: str) -> Line:
    parts = re.match(r"(\d+)\.(\d+)", release)
    floor = ".".join(map(str, KERNEL_FLOOR))
    if parts is None:
        return Line(release, Result.FAIL, f"not a kernel version; {floor} or newer is needed")
    if (int(parts[1]), int(parts[2])) < KERNEL_FLOOR:
        return Line(release, Result.FAIL, f"{floor} or newer is needed")
    return Line(release, Result.OK)


def _feature(feature: Feature, found: Found) -> Line:
    asked = found.asked.get(feature.name)
    if asked or (asked is None and _known(feature, found)):
        return Line(feature.name, Result.OK)
    if not feature.needed:
        return Line(feature.name, Result.SKIP, f"not found; {feature.purpose}")
    if asked is False:
        return Line(feature.name, Result.FAIL, f"the kernel refuses the rule: {feature.rule}")
    return Line(
        feature.name, Result.FAIL,
        "not among the modules of this kernel, those loaded, nor in its configuration "
        f"({feature.option}); try: modprobe {feature.modules[0]}",
    )  # fmt: skip


def _known(feature: Feature, found: Found) -> bool:
    for module in feature.modules:
        either = re.escape(module).replace("_", "[_-]").replace(r"\-", "[_-]")  # files and names differ in these
        if re.search(rf"(?:^|/){either}\.ko", found.modules_dep + "\n" + found.modules_builtin, re.MULTILINE):
            return True
        if re.search(rf"^{either}\s", found.loaded, re.MULTILINE):
            return True
    return re.search(rf"^{re.escape(feature.option)}=[ym]", found.config, re.MULTILINE) is not None
