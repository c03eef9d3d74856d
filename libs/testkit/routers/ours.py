"""Our own speaker as a peer: settings as a JSON file that SIGHUP rereads, secrets in a directory, its control socket.

The file is what `services.bgp.core.settings_file` reads. It is written here without that module on purpose: this
library imports no service, and a change of the format has to be noticed.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

from libs.runtime.unix_http import UnixConnection
from libs.testkit.routers import raw
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session, family_of
from libs.testkit.routers.peer import Peer, RouterError, until

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
            "llgr",
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
        at = self.directory
        return [
            [
                sys.executable, "-m", "services.bgp", "run", "--settings", str(at / "settings.json"),
                "--secrets-dir", str(at / "secrets"), "--state-dir", str(at / "state"),
                "--control-socket", str(self.socket_path), "--log-level", "warning" if self.router.lean else "debug",
            ]
        ]  # fmt: skip

    def env(self) -> dict[str, str]:
        return super().env() | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        self.socket_path.unlink(missing_ok=True)  # of one that was killed
        super().start()

    def write_config(self) -> None:
        made = settings(self.router)
        self.adjust(made)
        for n in self.router.neighbours:
            path = self.directory / "secrets" / n.key / "password"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(n.password)
        target = self.directory / "settings.json"
        target.with_suffix(".new").write_text(json.dumps(made, indent=1))
        target.with_suffix(".new").rename(target)

    def ask(self, path: str, method: str = "GET", **query: str) -> Any:
        """What the control socket answers, as `calico-bgp` asks it. Raises RouterError."""
        with closing(UnixConnection(self.socket_path)) as connection:
            connection.request(method, f"{path}?{urlencode(query)}")
            response = connection.getresponse()
            body = response.read()
        if response.status != 200:
            raise RouterError(f"ours {self.name}: {method} {path}: {response.status} {body.decode()}")
        return json.loads(body)

    def cli(self, *words: str) -> str:
        """`calico-bgp WORDS` on this node."""
        return self.run(sys.executable, "-m", "services.bgp", *words, "--socket", str(self.socket_path))

    def ready(self) -> bool:
        try:
            self.ask("/peers")
        except (OSError, RouterError):
            return False
        return True

    def apply(self) -> None:
        before = self._configured()
        self.write_config()
        self.speaker.signal(signal.SIGHUP)
        until(lambda: self._configured() != before, 60, lambda: f"new settings are taken\n{self.log_tail()}")

    def _configured(self) -> int:
        text = self.log_path.read_text(errors="replace")
        return text.count("settings read again") + text.count("settings not taken")

    def _peers(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.ask("/peers")}

    def _name(self, neighbour: str) -> str:
        return next(name for name, one in self._peers().items() if _same(one["address"], neighbour))

    def session(self, neighbour: str) -> Session:
        for one in self._peers().values():
            if _same(one["address"], neighbour):
                agreed = one.get("negotiated") or {}
                return Session(
                    str(one.get("state", "idle")).lower(), agreed.get("hold_time_s"), agreed.get("keepalive_time_s"),
                    json.dumps(one),
                )  # fmt: skip
        return Session("none")

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        """Accepted paths; the first of a prefix is the best one."""
        addresses = {name: one["address"] for name, one in self._peers().items()}
        found: list[Route] = []
        seen: set[str] = set()
        for one in self.ask("/rib", family=family, table="loc"):
            if "rejected" in one:
                continue
            best = one["prefix"] not in seen
            seen.add(one["prefix"])
            if (peer := addresses.get(one["from"])) and (not neighbour or _same(peer, neighbour)):
                found.append(_route(one, peer.partition("%")[0], best))
        return found

    def refresh(self, neighbour: str) -> None:
        self.ask("/refresh", "POST", peer=self._name(neighbour))

    def shut(self, neighbour: str, message: str = "") -> None:
        """Ends the session; it begins again by itself."""
        self.ask("/reset", "POST", peer=self._name(neighbour), message=message)


def _same(one: str, other: str) -> bool:
    return ip_address(one.partition("%")[0]) == ip_address(other.partition("%")[0])


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
        "long_lived_time_s": n.long_lived,
        "hold_time_s": n.hold_time_s,
        "keepalive_time_s": n.keepalive_s,
        "next_hop_mode": "Self" if n.next_hop_self else "Keep" if n.next_hop_keep else "Auto",
        "rr_client_cluster": cluster if n.rr_client else None,
        "allowed_local_as": n.allow_local_as,
        "filters": [n.key] if n.imports or n.export_none else [],
        "interface": n.interface,
        "families": list(n.spoken),
        "add_path_receive": n.add_path in ("receive", "both"),
        "add_path_send": n.add_path in ("send", "both"),
    }
    return made


def _filter(n: Neighbour) -> Settings:
    rules: dict[str, list[Settings]] = {"ipv4": [], "ipv6": []}
    for reject in n.imports:
        rule = {"action": "Reject", "network": reject.prefix, "match_operator": "In"}
        rules[family_of(reject.prefix)].append(rule)
    nothing: dict[str, list[Settings]] = {"ipv4": [{"action": "Reject"}], "ipv6": [{"action": "Reject"}]}
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
        "next_hop": ip_address(route.next_hop).packed.hex() if route.next_hop else "",
        "med": route.med,
        "local_pref": route.local_pref,
        "atomic_aggregate": route.atomic,
        "aggregator": [route.aggregator[0], IPv4Address(route.aggregator[1]).packed.hex()]
        if route.aggregator
        else None,
        "communities": sorted(a << 16 | b for a, b in route.communities),
        "extended": [raw.extended_community(text).hex() for text in sorted(route.extended)],
        "large": sorted(route.large),
        "unknown": [(0xC0, kind, value) for kind, value in sorted(route.unknown)],
    }


def _originated(route: Route) -> Settings:
    return {"prefix": route.prefix, "attributes": attributes(route), "service": True}


def _route(one: dict[str, Any], neighbour: str, best: bool) -> Route:
    """One path of /rib."""
    at = one["attributes"]
    aggregator = at.get("aggregator", "").split()
    return Route(
        one["prefix"],
        next_hop=at.get("next_hop", ""),
        link_local=at.get("link_local", ""),
        origin=at["origin"].lower(),
        as_path=_path(at["as_path"]),
        med=at.get("med"),
        local_pref=at.get("local_pref"),
        communities=frozenset((int(a), int(b)) for a, b in (text.split(":") for text in at.get("communities", [])))
        | (frozenset({(65535, 6)}) if one.get("long_lived_stale") else frozenset()),  # LLGR_STALE, which it tells
        extended=frozenset(map(_extended, at.get("extended_communities", []))),
        large=frozenset(
            (int(a), int(b), int(c)) for a, b, c in (text.split(":") for text in at.get("large_communities", []))
        ),
        atomic=at.get("atomic_aggregate", False),
        aggregator=(int(aggregator[0]), aggregator[1]) if aggregator else None,
        originator_id=at.get("originator_id", ""),
        cluster_list=tuple(at.get("cluster_list", [])),
        unknown=frozenset((item["type"], item["value"]) for item in at.get("unknown", [])),
        best=best,
        stale=one.get("stale", False),
        neighbour=neighbour,
        path_id=one.get("path_id"),
    )


def _path(text: str) -> tuple[int | frozenset[int], ...]:
    """`65001 65002 {1,2}` -> (65001, 65002, {1, 2})."""
    return tuple(
        frozenset(map(int, word.strip("{}").split(","))) if word.startswith("{") else int(word) for word in text.split()
    )


def _extended(text: str) -> str:
    kind, subtype, admin, value = struct.unpack("!BBHI", bytes.fromhex(text))
    return f"{({(0, 2): 'rt', (0, 3): 'soo'}).get((kind, subtype), text)}:{admin}:{value}"
