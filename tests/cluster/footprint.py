"""All that a CNI request may leave on a node, to be compared before and after one that must leave nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from libs.ipam.client import IpamClient
from libs.testkit.cluster import Node
from services.felix.shell.journal import read_journal
from tests.cluster.conftest import World, until
from tests.cluster.kernel_state import ruleset

# What stays with a node once it had a pod: its blocks, and which they are.
_STAYS = re.compile(r"^/calico/ipam/v2/(assignment|host)/|^/calico/felix/|^/calico/ipam/v2/config")


@dataclass
class Footprint:
    links: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    nft: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # of etcd
    addresses: list[str] = field(default_factory=list)  # that IPAM has given, with handles
    journal: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # of plugins that keep addresses in a directory

    def __sub__(self, other: Footprint) -> dict[str, list[str]]:
        """What is here and not there, by kind."""
        more = {name: sorted(set(mine) - set(getattr(other, name))) for name, mine in vars(self).items()}
        return {name: items for name, items in more.items() if items}


async def footprint(world: World, node: Node, data_dir: Path | None = None) -> Footprint:
    def ip(*words: str) -> list[str]:
        shown = world.run(node.name, "ip", *words).splitlines()
        # A blackhole is that of a block, which stays with the node as well.
        return sorted(line.strip() for line in shown if not line.startswith("blackhole"))

    blocks = await IpamClient(world.store).blocks()
    keys = [kv.key for kv in (await world.store.list("/calico/")).kvs]
    return Footprint(
        links=sorted(link["ifname"] for link in json.loads(world.run(node.name, "ip", "-j", "link"))),
        routes=ip("-4", "route", "show", "table", "all") + ip("-6", "route", "show", "table", "all"),
        rules=ip("-4", "rule") + ip("-6", "rule"),
        nft=ruleset(world, node.name),
        keys=sorted(key for key in keys if not _STAYS.search(key)),
        addresses=sorted(f"{one.address} {one.handle}" for block in blocks for one in block.allocated()),
        journal=[entry.container for entry in read_journal(node.directory / "state" / "cni-journal")[0].values()],
        files=_files(data_dir),
    )


def _files(data_dir: Path | None) -> list[str]:
    """Reservations are named after addresses."""
    found = [] if data_dir is None else data_dir.rglob("*")
    return sorted(path.name for path in found if re.fullmatch(r"[0-9a-f.:]+", path.name))


async def leaves_nothing(world: World, node: Node, before: Footprint, data_dir: Path | None = None) -> None:
    """Nothing is there that was not there before. What the ruleset still has of a pod goes a moment later."""
    more: dict[str, list[str]] = {}

    async def same() -> bool:
        more.clear()
        more.update(await footprint(world, node, data_dir) - before)
        return not more

    try:
        await until(same, 30, "")
    except AssertionError:
        raise AssertionError(f"left behind: {more}") from None
