"""What only one node's speaker must know: its own blocks, and the workloads it peers with. Addresses of workloads
outside its blocks it sees in the kernel, once they are reachable.

A block is a node's own when the block says so and the node's affinity to it is confirmed: neither a block about to be
given up is announced, nor one whose claim may yet fail (facts/cni-typha-node-bgp-ctl.md section 10).
"""

from __future__ import annotations

from collections.abc import Callable

from libs.policy.bgp_inputs import Selection
from libs.policy.bgp_nodes import NodeSelection
from libs.policy.bgp_output import LocalEntry, LocalWorkload, OwnBlock
from libs.policy.index import Entry, LabelIndex
from libs.policy.output import Block, Workload, WorkloadKey

Put = Callable[[str, str, LocalEntry | None], None]
"""put(node, key, entry or None)"""
Endpoint = tuple[str, WorkloadKey]
"""Node and key of a workload endpoint."""


class LocalBlocks:
    def __init__(self, put: Put) -> None:
        self._put = put
        self._blocks: dict[str, Block] = {}
        self._confirmed: set[tuple[str, str]] = set()  # (node, cidr)

    def put_block(self, cidr: str, block: Block | None) -> None:
        old = self._blocks.pop(cidr, None)
        if block is not None:
            self._blocks[cidr] = block
        for node in {one.node for one in (old, block) if one is not None and one.node}:
            self._own(node, cidr)

    def put_affinity(self, node: str, cidr: str, *, confirmed: bool) -> None:
        if confirmed:
            self._confirmed.add((node, cidr))
        else:
            self._confirmed.discard((node, cidr))
        self._own(node, cidr)

    def _own(self, node: str, cidr: str) -> None:
        block = self._blocks.get(cidr)
        own = block is not None and block.node == node and (node, cidr) in self._confirmed
        self._put(node, f"block/{cidr}", OwnBlock(cidr=cidr) if own else None)


class LocalWorkloads:
    """Shares the index of endpoints' labels with the policies. Of several peers that select a workload the first by
    name counts, as in Felix.
    """

    def __init__(self, index: LabelIndex, nodes: NodeSelection, put: Put) -> None:
        self._index = index
        self._nodes = nodes
        self._put = put
        self._entries: dict[str, Entry] = {}  # peer -> its selector
        self._users: dict[Entry, int] = {}
        self._endpoints: dict[int, tuple[Endpoint, Workload]] = {}
        self._numbers: dict[Endpoint, int] = {}
        self._on_node: dict[str, set[int]] = {}
        self._dirty: set[int] = set()

    def put_peer(self, peer: str, chosen: Selection | None) -> None:
        old = self._entries.pop(peer, None)
        if old is not None:
            self._dirty.update(old.matched | old.flipped)
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old]
            self._index.drop_selector(old)
        if chosen is not None and chosen.workloads is not None:
            entry = self._entries[peer] = self._index.add_selector(chosen.workloads)
            self._users[entry] = self._users.get(entry, 0) + 1
            self._dirty.update(entry.matched)

    def put_endpoint(self, number: int, node: str, key: WorkloadKey, base: Workload) -> None:
        """number: of the item in the index, stable while the endpoint is there."""
        self._endpoints[number] = ((node, key), base)
        self._numbers[node, key] = number
        self._on_node.setdefault(node, set()).add(number)
        if self._entries:
            self._dirty.add(number)

    def drop_endpoint(self, number: int) -> None:
        (node, key), _ = self._endpoints.pop(number)
        del self._numbers[node, key]
        self._on_node[node].discard(number)
        if not self._on_node[node]:
            del self._on_node[node]
        self._dirty.discard(number)
        self._put(node, f"workload/{key}", None)

    def touch_node(self, node: str) -> None:
        """Its peers are different now."""
        if self._entries:
            self._dirty.update(self._on_node.get(node, ()))

    def flush(self, changed: list[Entry]) -> None:
        """changed: selectors whose `flipped` tells what is different, as the index gave them."""
        for entry in changed:
            if entry in self._users:
                self._dirty.update(entry.flipped)
        dirty, self._dirty = self._dirty, set()
        peers = sorted(self._entries.items())
        for number in dirty:
            known = self._endpoints.get(number)
            if known is None:
                continue  # a network set, or gone
            (node, key), base = known
            peer = next(
                (name for name, entry in peers if number in entry.matched and self._nodes.has(node, name)), None
            )
            self._put(
                node,
                f"workload/{key}",
                None
                if peer is None
                else LocalWorkload(peer=peer, interface=base.name, nets=(*base.nets4, *base.nets6)),
            )
