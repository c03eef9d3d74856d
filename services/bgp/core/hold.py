"""A bad resource never replaces a good one (features.md, G20): what typha could not make sense of stays, on this node,
as it was when it last could, and is reported.

The last good tables are those of the step before, or those saved on disk. Without any the resource counts as absent,
but for a filter, which lets nothing pass (`plan_filters.py`).
"""

from __future__ import annotations

import msgspec

from libs.policy.bgp_output import (
    BgpEntry,
    BgpFilter,
    BgpNode,
    BgpPeer,
    BgpSettings,
    FelixPart,
    LocalEntry,
    LocalWorkload,
    settings_key,
)
from services.bgp.core.tables import Tables

KINDS = {BgpSettings: "BGPConfiguration", BgpPeer: "BGPPeer", BgpFilter: "BGPFilter"}


def hold(now: Tables, good: Tables | None) -> tuple[Tables, dict[str, str]]:
    """Tables to plan with, and to keep as the next `good`; and what was held, by resource. `now` is left as it is."""
    bgp: dict[str, BgpEntry] = dict(now.bgp)
    held: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key, entry in now.bgp.items():
        if isinstance(entry, BgpNode | FelixPart) or not entry.problem or good is None:
            continue
        before = good.bgp.get(key)
        if isinstance(before, type(entry)) and not before.problem:
            bgp[key] = before
            held[key] = key.partition("/")[2]
            problems[f"{KINDS[type(entry)]}({held[key]})"] = f"{entry.problem}; the version before stays in effect"
    services, local = dict(now.services), dict(now.local)
    if good is not None:
        peers = {name for key, name in held.items() if isinstance(bgp[key], BgpPeer)}
        if peers:
            _keep_selected(bgp, local, now, good, peers)
        if settings_key("default") in held:
            services = dict(good.services)
    return Tables(dict(now.nodes), dict(now.pools), bgp, services, local), problems


def _keep_selected(
    bgp: dict[str, BgpEntry], local: dict[str, LocalEntry], now: Tables, good: Tables, peers: set[str]
) -> None:
    """Whom these peers select is not told any more; it stays as it was, of nodes and workloads that are still there."""
    for key, before in good.bgp.items():
        if not isinstance(before, BgpNode) or key.partition("/")[2] not in now.nodes:
            continue
        entry = bgp.get(key, BgpNode())
        if isinstance(entry, BgpNode):
            bgp[key] = msgspec.structs.replace(
                entry,
                peers=tuple(sorted({*entry.peers, *(peers & {*before.peers})})),
                targets=tuple(sorted({*entry.targets, *(peers & {*before.targets})})),
            )
            if bgp[key] == BgpNode():
                del bgp[key]
    for key, workload in good.local.items():
        if isinstance(workload, LocalWorkload) and workload.peer in peers:
            local.setdefault(key, workload)
