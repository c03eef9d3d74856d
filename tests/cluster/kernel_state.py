"""What a node's kernel holds, as text that can be compared, and what felix says that it wrote."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.conftest import World, until

WRITTEN = ("felix_nft_rules_written_total", "felix_nft_elements_written_total", "felix_nft_calls_total")
_MARKER = "table netdev marker"  # made and removed by ours, one transaction each


async def written(world: World, *nodes: str) -> list[float]:
    """What felix has written to nftables since it started: rules, elements, transactions."""
    return [await world.metric(node, name) for node in nodes for name in WRITTEN]


def handles(world: World, *nodes: str) -> list[str]:
    """Both tables with handles and without counters: a rule that was written anew has another handle."""
    return [
        world.run(node, "nft", "-a", "-s", "list", "table", family, "calico")
        for node in nodes
        for family in ("ip", "ip6")
    ]


def ruleset(world: World, node: str) -> list[str]:
    """Both tables, without handles and counters, as sorted lines: the same again after a repair. [] without a table."""
    shown = world.run(node, "nft", "-s", "list", "ruleset")
    return sorted(shown.replace(",", "\n").replace("elements = {", "elements\n").replace("}", "").split("\n"))


def routes(world: World, *nodes: str) -> list[str]:
    """Those that felix writes. Sorted, because the kernel lists IPv6 routes in the order of their making."""
    return sorted(
        f"{node} {route.strip()}"
        for node in nodes
        for family in ("-4", "-6")
        for protocol in ("80", "boot")
        for route in world.run(node, "ip", family, "route", "show", "proto", protocol).splitlines()
        if protocol == "80" or " dev cali" in route
    )


def elements(world: World, node: str, family: str, name: str, kind: str = "map") -> list[str]:
    """Keys of a map, or the members of a set."""
    shown = json.loads(world.run(node, "nft", "-j", "list", kind, family, "calico", name))
    found = next(item[kind] for item in shown["nftables"] if kind in item).get("elem", [])
    return sorted(str(entry[0]) if kind == "map" else str(entry) for entry in found)


class Transactions:
    """The kernel's own count of nftables transactions in one node, from `nft monitor`."""

    def __init__(self, world: World, node: str, listing: Path) -> None:
        self._world, self._node, self._listing = world, node, listing

    async def mark(self) -> int:
        """Write markers until one is listed; returns how many transactions other than markers were listed before."""
        text = self._listing.read_text()
        seen = text.count(_MARKER)

        async def listed() -> bool:  # a marker from before the monitor listened is not
            nonlocal text
            self._world.run(self._node, "nft", f"add {_MARKER}")
            self._world.run(self._node, "nft", f"delete {_MARKER}")
            text = self._listing.read_text()
            return text.count(_MARKER) >= seen + 2 and text.rstrip().splitlines()[-1].startswith("# new gen")

        await until(listed, 30, "nft monitor lists the marker")
        # As it was then: it may be about to tell of a further marker, whose transaction ends on a line of its own.
        return text.count("# new generation") - text.count(_MARKER)


@contextmanager
def transactions(world: World, node: str) -> Iterator[Transactions]:
    """`nft monitor` in a node, from before its first marker to the end of the block."""
    namespace = world.cluster.node(node).namespace.name
    with tempfile.TemporaryDirectory() as directory:
        listing = Path(directory) / "monitor"
        with listing.open("wb") as output:
            monitor = subprocess.Popen(
                ["stdbuf", "-oL", "ip", "netns", "exec", namespace, "nft", "monitor"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            yield Transactions(world, node, listing)
        finally:
            monitor.kill()
            monitor.wait()


async def settles(world: World, node: str, wanted: Sequence[str], timeout_s: float, what: str) -> None:
    """Until the node's tables are as `wanted` (of `ruleset`)."""

    async def same() -> bool:
        return ruleset(world, node) == wanted

    await until(same, timeout_s, what)
