"""Our own speaker as a peer: settings as a JSON file that SIGHUP rereads, secrets in a directory, questions by its CLI.

The file is what `services.bgp.core.settings.SpeakerSettings` says, field by field; addresses and networks are text,
octets are base64, dictionaries are keyed by numbers as text. It is written here without that module on purpose: this
library imports no service, and a change of the format has to be noticed.
"""

from __future__ import annotations

import base64
import json
import signal
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar

from libs.testkit.netns import CommandFailed
from libs.testkit.routers import raw
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session
from libs.testkit.routers.peer import Peer

_FAMILIES: dict[Family, int] = {"ipv4": 1, "ipv6": 2}
_ORIGINS = ("igp", "egp", "incomplete")
_ROOT = Path(__file__).resolve().parents[3]
Settings = dict[str, Any]


class Ours(Peer):
    """adjust: changes the settings before each writing, for what no other daemon has (filters, pools, communities)."""

    daemon: ClassVar[str] = "ours"
    can: ClassVar[frozenset[str]] = frozenset(
        {
            "kernel",
            "gr",
            "add-path",
            "rr",
            "md5",
            "gtsm",
            "gtsm over ipv6",
            "dynamic",
            "ext-nh",
            "refresh",
            "local-as",
            "attributes",
            "enhanced-refresh",
            "ext-message",
            "shutdown-message",
            "port",
            "link-local",
        }
    )

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.adjust: Callable[[Settings], None] = lambda settings: None

    @property
    def socket_path(self) -> Path:
        return self.directory / "bgp.sock"

    def commands(self) -> list[list[str]]:
        return [
            [
                sys.executable, "-m", "services.bgp", "run", "--settings", str(self.directory / "settings.json"),
                "--secrets-dir", str(self.directory / "secrets"), "--socket", str(self.socket_path),
                "--state-dir", str(self.directory / "state"),
            ]
        ]  # fmt: skip

    def env(self) -> dict[str, str]:
        return super().env() | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}

    def write_config(self) -> None:
        made = settings(self.router)
        self.adjust(made)
        for n in self.router.neighbours:
            path = self.directory / "secrets" / n.key / "password"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(n.password)
        (self.directory / "settings.json").write_text(json.dumps(made, indent=1))

    def ask(self, *words: str) -> Any:
        """What `calico-bgp WORDS -o json` says."""
        return json.loads(
            self.run(sys.executable, "-m", "services.bgp", *words, "--socket", str(self.socket_path), "-o", "json")
        )

    def ready(self) -> bool:
        if not self.socket_path.exists():
            return False
        try:
            self.ask("peers")
        except CommandFailed:
            return False
        return True

    def apply(self) -> None:
        self.write_config()
        self.speaker.signal(signal.SIGHUP)

    def session(self, neighbour: str) -> Session:
        wanted = ip_address(neighbour)
        for one in self.ask("peers"):
            if ip_address(one["address"].partition("%")[0]) == wanted:
                return Session(
                    str(one["state"]).lower(), one.get("hold_time_s"), one.get("keepalive_time_s"), json.dumps(one)
                )
        return Session("none")

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        found = [_route(one) for one in self.ask("rib", "--family", family)]
        return [r for r in found if r.neighbour and (not neighbour or r.neighbour == neighbour)]

    def refresh(self, neighbour: str) -> None:
        self.run(sys.executable, "-m", "services.bgp", "refresh", neighbour, "--socket", str(self.socket_path))

    def shut(self, neighbour: str, message: str = "") -> None:
        words = ["shutdown", neighbour, *(["--message", message] if message else [])]
        self.run(sys.executable, "-m", "services.bgp", *words, "--socket", str(self.socket_path))


def settings(router: Router) -> Settings:
    """SpeakerSettings of a router that tells everything it knows, as the other daemons here do."""
    return {
        "node": "node-a",
        "router_id": int(IPv4Address(router.router_id)),
        "local_as": router.asn,
        "listen_port": router.port,
        "addresses": list(router.addresses),
        "peers": [_peer(router, n) for n in router.neighbours],
        "originated": [_originated(route) for route in router.routes],
        "pools": [{"network": "0.0.0.0/0"}, {"network": "::/0"}],
        "filters": {n.key: _filter(n) for n in router.neighbours if n.imports or n.export_none},
        "route_reflector": bool(router.cluster_id),
        "cluster_id": int(IPv4Address(router.cluster_id)) if router.cluster_id else 0,
    }


def _peer(router: Router, n: Neighbour) -> Settings:
    cluster = int(IPv4Address(router.cluster_id or router.router_id))
    made: Settings = {
        "name": f"Global_{(n.dynamic or n.address).replace('.', '_').replace(':', '_').replace('/', '_')}",
        "kind": "Global",
        "address": str(ip_network(n.dynamic).network_address) if n.dynamic else n.address,
        "remote_as": n.asn,
        "local_as": n.local_as or router.asn,
        "port": n.port,
        "passive": n.passive,
        "prefix": n.dynamic or None,
        "source": n.local_address or None,
        "password": {"name": n.key, "key": "password"} if n.password else None,
        "ttl_security": n.ttl_security,
        "restart_time_s": n.graceful_restart,
        "hold_time_s": n.hold_time_s,
        "keepalive_time_s": n.keepalive_s,
        "next_hop_mode": "Self" if n.next_hop_self else "Keep" if n.next_hop_keep else "Auto",
        "rr_client_cluster": cluster if n.rr_client else None,
        "allowed_local_as": n.allow_local_as,
        "filters": [n.key] if n.imports or n.export_none else [],
        "interface": n.interface,
        "families": [_FAMILIES[family] for family in n.spoken],
        "add_path_receive": n.add_path in ("receive", "both"),
        "add_path_send": n.add_path in ("send", "both"),
    }
    return made


def _filter(n: Neighbour) -> Settings:
    rules: dict[str, list[Settings]] = {"1": [], "2": []}
    for reject in n.imports:
        rule = {"action": "Reject", "network": reject.prefix, "match_operator": "In"}
        rules["2" if ":" in reject.prefix else "1"].append(rule)
    nothing: dict[str, list[Settings]] = {"1": [{"action": "Reject"}], "2": [{"action": "Reject"}]}
    return {"imports": rules, "exports": nothing if n.export_none else {}}


def attributes(route: Route) -> Settings:
    path: list[tuple[int, list[int]]] = []
    for item in route.as_path:
        if isinstance(item, frozenset):
            path.append((1, sorted(item)))
        elif path and path[-1][0] == 2:
            path[-1][1].append(item)
        else:
            path.append((2, [item]))
    return {
        "origin": _ORIGINS.index(route.origin),
        "as_path": path,
        "next_hop": _text(ip_address(route.next_hop).packed) if route.next_hop else "",
        "med": route.med,
        "local_pref": route.local_pref,
        "atomic_aggregate": route.atomic,
        "aggregator": [route.aggregator[0], _text(IPv4Address(route.aggregator[1]).packed)]
        if route.aggregator
        else None,
        "communities": sorted(a << 16 | b for a, b in route.communities),
        "extended": [_text(raw.extended_community(text)) for text in sorted(route.extended)],
        "large": sorted(route.large),
        "unknown": [(0xC0, kind, _text(bytes.fromhex(value))) for kind, value in sorted(route.unknown)],
    }


def _originated(route: Route) -> Settings:
    return {
        "family": _FAMILIES[route.family],
        "prefix": _text(raw.prefix(route.prefix)),
        "attributes": attributes(route),
        "service": True,
    }


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _route(one: dict[str, Any]) -> Route:
    """One line of `rib -o json`."""
    at = one.get("attributes", one)
    aggregator = at.get("aggregator")
    return Route(
        one["prefix"],
        next_hop=at.get("next_hop") or "",
        link_local=at.get("link_local") or "",
        origin=str(at.get("origin", "igp")).lower(),
        as_path=tuple(frozenset(item) if isinstance(item, list) else int(item) for item in at.get("as_path", [])),
        med=at.get("med"),
        local_pref=at.get("local_pref"),
        communities=frozenset((int(a), int(b)) for a, b in (text.split(":") for text in at.get("communities", []))),
        extended=frozenset(at.get("extended", [])),
        large=frozenset((int(a), int(b), int(c)) for a, b, c in (text.split(":") for text in at.get("large", []))),
        atomic=bool(at.get("atomic_aggregate")),
        aggregator=(int(aggregator[0]), str(aggregator[1])) if aggregator else None,
        originator_id=at.get("originator_id") or "",
        cluster_list=tuple(at.get("cluster_list", [])),
        unknown=frozenset((int(kind), str(value)) for _, kind, value in at.get("unknown", [])),
        best=bool(one.get("best", True)),
        stale=bool(one.get("stale", False)),
        neighbour=(one.get("peer_address") or one.get("peer") or "").partition("%")[0],
        path_id=one.get("path_id"),
    )


__all__ = ["Ours", "Settings", "attributes", "settings"]
