"""Garbage collection of addresses, the decisions: what is leaked, idle or cold, given what there is. Pure.

    blocks, affinities, users, what earlier rounds suspected, the clock ──► decide() ──► Decision

An address is live while an endpoint lists it. It is *suspect* when its pod is missing, is on another node, or has
addresses and this is none of them. A suspect becomes a leak after the grace period, or at once when its node is gone;
and only when every address of its handle is a leak, because the addresses of a handle belong to one sandbox, which is
either there or not. What does not say whose it is (no pod and no tunnel's type) is never touched, and keeps its node
from being cleaned up. The rules are those of Calico's kube-controllers (facts/ipam.md, section 10), with one addition
on the safe side: an address that any endpoint lists is live, whatever its attributes say.

With Kubernetes' view (`Users.cluster`) an endpoint proves nothing once its pod is gone, has finished or is on another
node: after the same grace the endpoint is to be deleted, and only when no endpoint lists its address any more is that
released. Otherwise two endpoints would have one address, and a node would go on delivering to the dead one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from libs.ipam.affinity import Owner
from libs.ipam.block import Allocation, Block, ReleaseOption, collect
from libs.ipam.handles import WINDOWS_RESERVED
from libs.ipam.pods import Pod
from libs.ipam.tunnels import Tunnel
from libs.ipam.view import Users, Workload
from libs.ipam.wire import Address, Network

VM_GRACE_S = 300.0  # a virtual machine's pod may be away for so long while it restarts or migrates
TUNNEL_TYPES = frozenset(tunnel.type for tunnel in Tunnel)


@dataclass(frozen=True, slots=True)
class Held:
    """One allocation, told from a later one of the same address by its sequence number."""

    address: Address
    handle: str | None
    sequence: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a round leaves to the next: since when things are suspect or idle, in seconds of one monotonic clock."""

    suspects: Mapping[Held, float] = field(default_factory=dict)
    endpoints: Mapping[Workload, float] = field(default_factory=dict)  # whose pod is gone
    idle: Mapping[tuple[str, Network], float] = field(default_factory=dict)  # node, block


@dataclass(frozen=True, slots=True)
class Decision:
    """memory: for the next round. The rest is to be done now, in this order."""

    memory: Memory
    lost_endpoints: tuple[tuple[Pod, Workload], ...] = ()  # to delete, at their revision
    leaks: tuple[ReleaseOption, ...] = ()  # whole handles, handle and sequence number given
    idle_blocks: tuple[tuple[str, Network], ...] = ()  # node, block: to give up if still empty
    cold_blocks: tuple[Network, ...] = ()  # hold addresses whose cooldown is over, or nothing and have no owner
    gone_nodes: tuple[str, ...] = ()  # to clean up: no valid allocation of theirs is left


def decide(
    blocks: Collection[Block],
    affinities: Iterable[tuple[Owner, Network]],
    users: Users,
    earlier: Memory,
    *,
    now_s: float,
    now: datetime,
    grace_s: float,
    cooldown_s: int,
    hosts: Collection[str] = (),
) -> Decision:
    """grace_s: 0 means that time alone confirms nothing. hosts: nodes that have any record in address management."""
    lost = {w: earlier.endpoints.get(w, now_s) for pod, w in users.workloads() if users.lost(pod, w)}
    since, leaked, valid_of = _suspects(blocks, users, earlier, now_s, grace_s)
    kept = [block for block in blocks if block.owner is not None and block.owner.kind == "host"]
    idle = _idle_blocks(kept, users, earlier, now_s)
    due = _past_grace(idle, now_s, grace_s)
    gone = {owner.name for owner, _ in affinities if owner.kind == "host"}
    gone |= {block.owner.name for block in kept if block.owner is not None} | set(hosts)
    return Decision(
        Memory(since, lost, idle),
        tuple(
            (pod, w)
            for pod, w in users.workloads()
            if w in lost and (users.node_gone(w.node) or (grace_s > 0 and now_s - lost[w] >= grace_s))
        ),
        tuple(ReleaseOption(held.address, held.handle, held.sequence) for held in leaked),
        due,
        tuple(sorted((b.cidr for b in blocks if b.superfluous or collect(b, now, cooldown_s) != b), key=str)),
        tuple(sorted(node for node in gone if users.node_gone(node) and node not in valid_of)),
    )


# --- leaks -----------------------------------------------------------------------------------------------------------

_VALID, _SUSPECT, _TUNNEL = "valid", "suspect", "tunnel"


def _judge(allocation: Allocation, users: Users, live: Mapping[Address, str]) -> str:
    """A tunnel's address is decided with its node, by whether anything else of that node is valid."""
    attrs = allocation.attrs
    if allocation.address in live:
        return _VALID
    if attrs.get("type") in TUNNEL_TYPES:
        node = attrs.get("node", "")
        return _TUNNEL if node and users.node_gone(node) else _VALID
    namespace, pod = attrs.get("namespace"), attrs.get("pod")
    if not namespace or not pod or namespace in users.blind:
        return _VALID
    node = attrs.get("node", "")
    if users.cluster is not None and users.cluster.may_use((namespace, pod), node, allocation.address):
        return _VALID
    here = [
        workload
        for workload in users.pods.get((namespace, pod), ())
        if workload.node == node and not users.lost((namespace, pod), workload)
    ]
    # An endpoint of the pod on this node that has no address yet: the pod is being made.
    return _VALID if any(not workload.addresses for workload in here) else _SUSPECT


def _suspects(
    blocks: Iterable[Block], users: Users, earlier: Memory, now_s: float, grace_s: float
) -> tuple[dict[Held, float], list[Held], set[str]]:
    """(suspects since when, leaks among them, nodes that have something valid)."""
    live, listed = users.live(), users.listed()
    judged: dict[Held, tuple[Allocation, str]] = {}
    valid_of: set[str] = set()
    for block in blocks:
        for allocation in block.allocated():
            if allocation.released_at is not None or allocation.handle == WINDOWS_RESERVED:
                continue
            verdict = _judge(allocation, users, live)
            held = Held(allocation.address, allocation.handle, allocation.sequence)
            judged[held] = allocation, verdict
            if verdict is _VALID:
                valid_of.add(allocation.attrs.get("node", ""))
                if not allocation.attrs.get("node") and block.owner is not None:
                    valid_of.add(block.owner.name)
    since: dict[Held, float] = {}
    confirmed: dict[Held, bool] = {}
    for held, (allocation, verdict) in judged.items():
        if verdict is _TUNNEL:
            confirmed[held] = allocation.attrs.get("node", "") not in valid_of
        elif verdict is _SUSPECT:
            since[held] = earlier.suspects.get(held, now_s)
            node_gone = bool(allocation.attrs.get("node")) and users.node_gone(allocation.attrs["node"])
            grace = max(grace_s, VM_GRACE_S) if "vmi-name" in allocation.attrs else grace_s
            due = node_gone or (grace_s > 0 and now_s - since[held] >= grace)
            confirmed[held] = due and held.address not in listed  # the endpoint of a lost pod goes first
        else:
            confirmed[held] = False
    spoilt = {held.handle for held, sure in confirmed.items() if not sure and held.handle is not None}
    leaked = [held for held, sure in confirmed.items() if sure and held.handle not in spoilt]
    return since, sorted(leaked, key=lambda held: (held.address.version, int(held.address))), valid_of


# --- blocks ----------------------------------------------------------------------------------------------------------


def _idle_blocks(
    blocks: Iterable[Block], users: Users, earlier: Memory, now_s: float
) -> dict[tuple[str, Network], float]:
    """Empty blocks of nodes that there are, since when they are seen empty."""
    found = {}
    for block in blocks:
        if block.owner is not None and not users.node_gone(block.owner.name) and block.empty:
            key = block.owner.name, block.cidr
            found[key] = earlier.idle.get(key, now_s)
    return _spare_one(blocks, found)


def _spare_one(blocks: Iterable[Block], idle: Mapping[tuple[str, Network], float]) -> dict[tuple[str, Network], float]:
    """A node keeps one block of each IP version, so that its next pod need not claim one. The lowest stays."""
    owned: dict[tuple[str, int], int] = {}
    for block in blocks:
        if block.owner is not None:
            key = block.owner.name, block.cidr.version
            owned[key] = owned.get(key, 0) + 1
    left = dict(owned)
    found = {}
    for (node, cidr), since in sorted(
        idle.items(), key=lambda item: (item[0][0], item[0][1].version, -int(item[0][1].network_address))
    ):
        if left[node, cidr.version] > 1:
            left[node, cidr.version] -= 1
            found[node, cidr] = since
    return found


def _past_grace(
    idle: Mapping[tuple[str, Network], float], now_s: float, grace_s: float
) -> tuple[tuple[str, Network], ...]:
    return tuple(key for key, since in idle.items() if grace_s > 0 and now_s - since >= grace_s)
