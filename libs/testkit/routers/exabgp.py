"""ExaBGP as a peer: it has no RIB and no kernel, says every attribute, and hears everything as JSON (exabgp_api.py)."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar

from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session
from libs.testkit.routers.peer import PACKAGES, Peer, RouterError, RouterMissing

_TWICE_QUOTED = re.compile(r'""(\w+)""')  # in ExaBGP 4.2's route-refresh messages
_SCRIPT = Path(__file__).with_name("exabgp_api.py")


class Exabgp(Peer):
    daemon: ClassVar[str] = "exabgp"
    can: ClassVar[frozenset[str]] = frozenset({"md5", "gtsm", "attributes", "add-path", "refresh", "as2", "ext-nh"})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._told: dict[str, Route] = {}

    def commands(self) -> list[list[str]]:
        _installed()
        return [[sys.executable, "-m", "exabgp", "exabgp.conf"]]

    def env(self) -> dict[str, str]:
        return super().env() | {
            "PYTHONPATH": str(_installed()), "exabgp.daemon.drop": "false", "exabgp.daemon.user": "root",
            "exabgp.api.cli": "false", "exabgp.tcp.port": str(self.router.port),
            "exabgp.log.timers": "false", "exabgp.log.network": "true",
            # It listens when it is told to, and then also takes what comes in.
            "exabgp.tcp.bind": " ".join(sorted({n.local_address or self._own(n) for n in self.router.neighbours})),
        }  # fmt: skip

    def _own(self, n: Neighbour) -> str:
        return self.router.own("ipv6" if ":" in n.address else "ipv4")

    def start(self) -> None:
        for name in ("api.sock", "api.sock.new", "heard.jsonl"):
            (self.directory / name).unlink(missing_ok=True)
        super().start()
        self._told = {}
        self._tell()

    def write_config(self) -> None:
        text = f"process api {{ run {sys.executable} {_SCRIPT} {self.directory}; encoder json; }}\n"
        text += "\n".join(_neighbour(self.router, n, n.local_address or self._own(n)) for n in self.router.neighbours)
        (self.directory / "exabgp.conf").write_text(text)

    def command(self, text: str) -> None:
        """One line to its API. Raises RouterError."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(15)
            channel.connect(str(self.directory / "api.sock"))
            channel.sendall(text.encode() + b"\n")
            if (answer := channel.makefile().readline().strip()) != "done":
                raise RouterError(f"exabgp {self.name}: {text}: {answer}")

    def ready(self) -> bool:
        return (self.directory / "api.sock").exists()

    def apply(self) -> None:
        self._tell()

    def _tell(self) -> None:
        wanted = {route.prefix: route for route in self.router.routes}
        for prefix in self._told.keys() - wanted.keys():
            old = self._told[prefix]
            for who in self._takers(old):
                self.command(f"{who} withdraw route {prefix} next-hop {old.next_hop or self.router.own(old.family)}")
        for prefix, route in wanted.items():
            if self._told.get(prefix) != route:
                for who in self._takers(route):
                    self.command(f"{who} {' '.join(_words(route, self.router))}")
        self._told = wanted

    def _takers(self, route: Route) -> list[str]:
        return [f"neighbor {n.address}" for n in self.router.neighbours if route.family in n.spoken]

    def heard(self) -> Iterator[dict[str, Any]]:
        """Every message so far, oldest first."""
        path = self.directory / "heard.jsonl"
        if path.exists():
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    yield json.loads(_TWICE_QUOTED.sub(r'"\1"', line))

    def session(self, neighbour: str) -> Session:
        state, said, hold = "none", "", None
        for message in self.heard():
            one = message.get("neighbor", {})
            if one.get("address", {}).get("peer") != neighbour:
                continue
            if message["type"] == "state":
                state, said = {"up": "established"}.get(one["state"], one["state"]), json.dumps(message)
            elif message["type"] == "open" and one.get("direction") == "receive":
                hold = min(one["open"]["hold_time"], self.neighbour(neighbour).hold_time_s)
        return Session(state, hold, hold // 3 if hold else None, said)

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        table: dict[tuple[str, str], Route] = {}
        for message in self.heard():
            one = message.get("neighbor", {})
            peer = one.get("address", {}).get("peer", "")
            if message["type"] == "state" and one.get("state") != "up":
                table = {key: route for key, route in table.items() if key[0] != peer}
            update = one.get("message", {}).get("update", {}) if message["type"] == "update" else {}
            for withdrawn in update.get("withdraw", {}).values():
                for nlri in withdrawn:
                    table.pop((peer, nlri["nlri"] if isinstance(nlri, dict) else nlri), None)
            for hops in update.get("announce", {}).values():
                link_local = next((hop for hop in hops if hop.startswith("fe80:") and len(hops) > 1), "")
                for hop, nlris in hops.items():
                    for nlri in nlris if hop not in ("null", link_local) else ():
                        prefix = nlri["nlri"] if isinstance(nlri, dict) else nlri
                        made = _route(prefix, hop, update.get("attribute", {}), peer)
                        table[peer, prefix] = replace(made, link_local=link_local)
        return [r for (peer, _), r in table.items() if r.family == family and (not neighbour or peer == neighbour)]

    def refresh(self, neighbour: str) -> None:
        for family in self.neighbour(neighbour).spoken:
            self.command(f"neighbor {neighbour} announce route-refresh {family} unicast")

    def shut(self, neighbour: str, message: str = "") -> None:
        raise NotImplementedError("exabgp tears a session down and opens it again")


def _installed() -> Path:
    for place in (PACKAGES / "usr/lib/python3/dist-packages", Path("/usr/lib/python3/dist-packages")):
        if (place / "exabgp").is_dir():
            return place
    raise RouterMissing("routing daemons are not here: exabgp")


def _neighbour(router: Router, n: Neighbour, source: str) -> str:
    lines = [
        f"neighbor {n.address} {{",
        f"  router-id {router.router_id}; local-address {source};",
        f"  local-as {n.local_as or router.asn}; peer-as {n.asn}; hold-time {n.hold_time_s};",
    ]
    if n.password:
        lines.append(f'  md5-password "{n.password}"; md5-base64 disable;')
    if n.passive:
        lines.append("  passive true;")
    elif n.port != 179:
        lines.append(f"  connect {n.port};")
    if n.ttl_security is not None:
        lines.append(f"  outgoing-ttl 255; incoming-ttl {256 - n.ttl_security};")
    elif n.multihop:
        lines.append(f"  outgoing-ttl {n.multihop};")
    lines.append("  family { " + " ".join(f"{family} unicast;" for family in n.spoken) + " }")
    capabilities = ["route-refresh enable;", f"asn4 {'enable' if n.as4 else 'disable'};"]
    if n.graceful_restart:
        capabilities.append(f"graceful-restart {n.graceful_restart};")
    if n.add_path:
        capabilities.append(f"add-path {'send/receive' if n.add_path == 'both' else n.add_path};")
    if n.next_hop_extended:
        capabilities.append("nexthop enable;")
        lines.append("  nexthop { ipv4 unicast ipv6; }")
    lines.append("  capability { " + " ".join(capabilities) + " }")
    lines.append(
        "  api { processes [ api ]; neighbor-changes; receive { parsed; update; open; notification; refresh; } }"
    )
    return "\n".join([*lines, "}"])


def _words(route: Route, router: Router) -> Iterator[str]:
    """`announce route …` (ExaBGP's configuration grammar for static routes)."""
    yield f"announce route {route.prefix} next-hop {route.next_hop or router.own(route.family)} origin {route.origin}"
    if route.as_path:
        path = [f"( {' '.join(map(str, sorted(n)))} )" if isinstance(n, frozenset) else str(n) for n in route.as_path]
        yield f"as-path [ {' '.join(path)} ]"
    if route.med is not None:
        yield f"med {route.med}"
    if route.local_pref is not None:
        yield f"local-preference {route.local_pref}"
    if route.communities:
        yield f"community [ {' '.join(f'{a}:{b}' for a, b in sorted(route.communities))} ]"
    if route.extended:
        words = (text.replace("rt:", "target:").replace("soo:", "origin:") for text in sorted(route.extended))
        yield f"extended-community [ {' '.join(words)} ]"
    if route.large:
        yield f"large-community [ {' '.join(f'{a}:{b}:{c}' for a, b, c in sorted(route.large))} ]"
    if route.atomic:
        yield "atomic-aggregate"
    if route.aggregator:
        yield f"aggregator ( {route.aggregator[0]}:{route.aggregator[1]} )"
    if route.originator_id:
        yield f"originator-id {route.originator_id}"
    if route.cluster_list:
        yield f"cluster-list [ {' '.join(route.cluster_list)} ]"
    for kind, value in sorted(route.unknown):
        yield f"attribute [ 0x{kind:02x} 0xc0 0x{value} ]"


def _route(prefix: str, hop: str, at: dict[str, Any], peer: str) -> Route:
    aggregator = at.get("aggregator", "")
    path: list[int | frozenset[int]] = [*at.get("as-path", [])]
    if members := at.get("as-set"):
        path.append(frozenset(members))
    return Route(
        prefix,
        next_hop=hop,
        origin=at.get("origin", "igp"),
        as_path=tuple(path),
        med=at.get("med"),
        local_pref=at.get("local-preference"),
        communities=frozenset((a, b) for a, b in at.get("community", [])),
        extended=frozenset(_extended(one["string"]) for one in at.get("extended-community", [])),
        large=frozenset((a, b, c) for a, b, c in at.get("large-community", [])),
        atomic=bool(at.get("atomic-aggregate")),
        aggregator=(int(aggregator.partition(":")[0]), aggregator.partition(":")[2]) if aggregator else None,
        originator_id=at.get("originator-id", ""),
        cluster_list=tuple(at.get("cluster-list", [])),
        unknown=frozenset(
            (int(name.split("-")[1], 16), str(value).removeprefix("0x").lower())
            for name, value in at.items()
            if name.startswith("attribute-0x")
        ),
        neighbour=peer,
    )


def _extended(text: str) -> str:
    """`target:A:B`, `origin:A:0.0.0.B` -> `rt:A:B`, `soo:A:B`."""
    kind, admin, value = text.split(":")
    number = int(IPv4Address(value)) if "." in value else value
    return f"{({'target': 'rt', 'origin': 'soo'}).get(kind, kind)}:{admin}:{number}"
