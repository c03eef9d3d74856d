"""Who may send this host the packets of an overlay, and what its own packets into one look like.

    raw prerouting, output   VXLAN is not tracked: it would be a connection for each port that the sender draws
    input -3                 VXLAN and IP in IP from known nodes and listed networks; all others' are dropped
    host endpoints           what passes there does not meet their policy, nor does what goes to known nodes
    nat postrouting          what the host sends into an overlay from an address of another interface wears the tunnel's
                             own, to which the answer finds its way back; so into WireGuard

As in Calico (facts/felix.md section 4.5), with its names for the sets. Everything is there only while an overlay is,
or WireGuard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Expr, Field, Hook, Rule, Set
from libs.policy.output import NodeInfo, Pool
from libs.policy.routes import Vtep
from services.felix.core.dispatch import RAW
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6
from services.felix.core.sink import Section, TableSink

SENDERS, RECEIVERS = "tunnel-senders", "tunnel-receivers"  # chains, also entered from those of host endpoints
ALL_HOSTS, ALL_VXLAN = "all-hosts-net", "all-vxlan-net"
UDP, IPIP = 17, 4
BEFORE_HOSTS = -3
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535


class TunnelRules:
    """One address family's. `devices`: names of the overlays in use, as of the last flush."""

    def __init__(self, family: Family, options: RulesetOptions) -> None:
        self.devices: frozenset[str] = frozenset()
        self._family = family
        self._options = options
        self._section = Section()

    def flush(
        self,
        pools: Mapping[str, Pool],
        nodes: Mapping[str, NodeInfo],
        vteps: Mapping[str, Vtep],
        sink: TableSink,
        *,
        hosts_used: bool,
    ) -> bool:
        """vteps: of `nodes`. hosts_used: other rules look into the set of all hosts as well. True when there are other
        overlays now.
        """
        mine = {VXLAN, TUNL} if self._family.version == 4 else {VXLAN6}
        before, self.devices = self.devices, self._options.overlay.enabled(pools.values()) & mine
        sets = list(self._sets(nodes, vteps, hosts_used=hosts_used))
        self._section.write(sink, self._chains() if self.devices else (), sets)
        return self.devices != before

    def _sets(self, nodes: Mapping[str, NodeInfo], vteps: Mapping[str, Vtep], *, hosts_used: bool) -> Iterable[Set]:
        family, version = self._family, self._family.version
        external = family.mine(self._options.external_nodes)
        key = (family.address,)
        if self._vxlan:
            ends = vteps.values()
            known = {end.parent_device_ipv4 if version == 4 else end.parent_device_ipv6 for end in ends} - {""}
            yield Set(ALL_VXLAN, key, external | known, interval=True)
        if TUNL in self.devices or hosts_used:
            # Networks outside the cluster may only send what is encapsulated for IPv4 (facts: hosts IP set).
            yield Set(ALL_HOSTS, key, family.addresses(nodes.values()) | (external if version == 4 else set()), True)

    @property
    def _vxlan(self) -> str:
        return next((name for name in self.devices if name != TUNL), "")

    def _chains(self) -> Iterable[Chain]:
        senders: list[Rule] = []
        receivers: list[Rule] = []
        for name, packet, known, word in self._kinds():
            if name not in self.devices:
                continue
            from_known = nft.InSet((self._family.saddr,), known)
            to_known = nft.InSet((self._family.daddr,), known)
            senders += [
                Rule((*packet, from_known, nft.TO_LOCAL_ADDRESS, nft.COUNTER, nft.ACCEPT), f"{word} from a known node"),
                Rule((*packet, nft.TO_LOCAL_ADDRESS, nft.COUNTER, nft.DROP), f"{word} from a stranger"),
            ]
            receivers.append(
                Rule((*packet, nft.FROM_LOCAL_ADDRESS, to_known, nft.COUNTER, nft.ACCEPT), f"{word} to a known node")
            )
        yield Chain(SENDERS, tuple(senders))
        yield Chain(RECEIVERS, tuple(receivers))
        yield Chain("hook-tunnels", (Rule((nft.jump(SENDERS),)),), Base(Hook.INPUT, priority=BEFORE_HOSTS))
        if self._vxlan:
            untracked = (Rule((*self._vxlan_packet(), nft.COUNTER, nft.NoTrack()), "VXLAN is not tracked"),)
            yield Chain("hook-tunnels-raw-in", untracked, Base(Hook.PREROUTING, priority=RAW))
            yield Chain("hook-tunnels-raw-out", untracked, Base(Hook.OUTPUT, priority=RAW))

    def _kinds(self) -> Iterable[tuple[str, tuple[Expr, ...], str, str]]:
        """Device, what its packets are, the set of those who may send them, and their name."""
        yield self._vxlan, self._vxlan_packet(), ALL_VXLAN, "VXLAN"
        yield TUNL, (nft.Match(Field.L4PROTO, IPIP),), ALL_HOSTS, "IP in IP"

    def _vxlan_packet(self) -> tuple[Expr, ...]:
        return nft.Match(Field.L4PROTO, UDP), nft.Match(Field.DPORT, self._options.overlay.port)

    def masquerades(self) -> list[Rule]:
        """For nat postrouting. VXLAN's own port must not become the source port of a UDP flow (facts 4.5). Into
        WireGuard too: a peer takes only what comes from addresses that it knows as ours, and a node's is none.
        """
        rules: list[Rule] = []
        wireguard = self._options.wireguard_devices.get(self._family.version)
        for name in (*sorted(self.devices), *((wireguard,) if wireguard else ())):
            foreign: tuple[Expr, ...] = (
                nft.Match(Field.OIFNAME, name),
                nft.Fib("saddr", nft.FibResult.TYPE, nft.RTN_LOCAL, oif=True, negate=True),
                nft.FROM_LOCAL_ADDRESS,
                nft.COUNTER,
            )
            if name == self._vxlan:
                ports = _without(self._options.overlay.port)
                udp = nft.Match(Field.L4PROTO, UDP)
                rules.append(Rule((udp, *foreign, nft.Masquerade(ports=ports, fully_random=True))))
            rules.append(Rule((*foreign, nft.Masquerade(fully_random=True))))
        return rules


def _without(port: int) -> tuple[int, int]:
    """The wider of the two ranges below and above the port, from 1024 on."""
    below, above = (_LOWEST_PORT, port - 1), (max(port + 1, _LOWEST_PORT), _HIGHEST_PORT)
    return below if below[1] - below[0] > above[1] - above[0] else above
