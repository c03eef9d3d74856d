"""What new settings of a peer that is already there cost: nothing, something without the session noticing, or the
session."""

from __future__ import annotations

from dataclasses import fields
from enum import IntEnum

from services.bgp.core.settings import PeerSettings


class Cost(IntEnum):
    NOTHING = 0
    SOFT = 1  # routes are filtered, announced or timed anew
    RESET = 2  # what TCP or the OPEN said is not true any more


COSTS: dict[str, Cost] = {
    "name": Cost.NOTHING,
    "resource": Cost.NOTHING,
    "kind": Cost.SOFT,
    "address": Cost.RESET,
    "remote_as": Cost.RESET,
    "local_as": Cost.RESET,
    "port": Cost.RESET,
    "passive": Cost.SOFT,
    "prefix": Cost.RESET,
    "source": Cost.RESET,
    "password": Cost.RESET,
    "ttl_security": Cost.RESET,
    "restart_time_s": Cost.RESET,
    "hold_time_s": Cost.RESET,
    "keepalive_time_s": Cost.SOFT,
    "next_hop_mode": Cost.SOFT,
    "keep_ebgp_next_hop": Cost.SOFT,
    "rr_client_cluster": Cost.SOFT,
    "allowed_local_as": Cost.SOFT,
    "filters": Cost.SOFT,
    "gateway": Cost.SOFT,
    "interface": Cost.SOFT,
    "families": Cost.RESET,
    "add_path_receive": Cost.RESET,
    "add_path_send": Cost.RESET,
    "long_lived_time_s": Cost.RESET,
    "delay_open_s": Cost.SOFT,
}


def changed(old: PeerSettings, new: PeerSettings) -> tuple[str, ...]:
    return tuple(one.name for one in fields(PeerSettings) if getattr(old, one.name) != getattr(new, one.name))


def cost_of_change(old: PeerSettings, new: PeerSettings) -> Cost:
    return max((COSTS[name] for name in changed(old, new)), default=Cost.NOTHING)
