"""GoBGP as a peer: its configuration as JSON, the gobgp command asked over gRPC on the namespace's loopback."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

from libs.testkit.netns import CommandFailed
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session
from libs.testkit.routers.peer import Peer, program

_ORIGINS = ("igp", "egp", "incomplete")


class Gobgp(Peer):
    daemon: ClassVar[str] = "gobgp"
    can: ClassVar[frozenset[str]] = frozenset(
        {
            "gr",
            "llgr",
            "add-path",
            "rr",
            "md5",
            "gtsm",
            "dynamic",
            "ext-nh",
            "link-local",
            "refresh",
            "local-as",
            "gtsm over ipv6",
            "port",
        }
    )

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._told: dict[str, Route] = {}

    def commands(self) -> list[list[str]]:
        command = [str(program("gobgpd")), "-f", "gobgpd.json", "-t", "json", "--pprof-disable"]
        command += ["-l", "error" if self.router.lean else "debug"]
        command += ["--api-hosts", "127.0.0.1:50051", "--log-plain"]
        if self._told and any(n.graceful_restart for n in self.router.neighbours):
            command.append("-r")  # it runs again: the neighbours hold its routes
        return [command]

    def start(self) -> None:
        again = bool(self._told)
        if again:
            self.processes.clear()  # the command has another argument now
        super().start()
        self._told = {}
        self._tell()

    def write_config(self) -> None:
        (self.directory / "gobgpd.json").write_text(json.dumps(render(self.router), indent=1))

    def ask(self, *words: str) -> str:
        """`gobgp` gives up after some seconds, which a busy machine may take: asked up to three times."""
        command = (str(program("gobgp")), "-u", "127.0.0.1", *words)
        for _ in range(2):
            try:
                return self.run(*command)
            except CommandFailed as error:
                if "context deadline exceeded" not in str(error):
                    raise
        return self.run(*command)

    def json(self, *words: str) -> Any:
        return json.loads(self.ask("-j", *words) or "null")

    def ready(self) -> bool:
        try:
            return "AS:" in self.ask("global")
        except CommandFailed:
            return False

    def apply(self) -> None:
        """Neighbours by rereading the file, routes over its API: they are no part of its configuration."""
        self.write_config()
        self.speaker.signal(signal.SIGHUP)
        self._tell()

    def _tell(self) -> None:
        wanted = {route.prefix: route for route in self.router.routes}
        for prefix in self._told.keys() - wanted.keys():
            self.ask("global", "rib", "del", prefix, "-a", self._told[prefix].family)
        for prefix, route in wanted.items():
            if self._told.get(prefix) != route:
                self.ask("global", "rib", "add", *_words(route, self.router), "-a", route.family)
        self._told = wanted

    def session(self, neighbour: str) -> Session:
        try:
            one = self.json("neighbor", neighbour)
        except CommandFailed:
            return Session("none")
        state = one.get("state", {})
        timers = one.get("timers", {}).get("state", {})
        names = {0: "unknown", 1: "idle", 2: "connect", 3: "active", 4: "opensent", 5: "openconfirm", 6: "established"}
        word = state.get("session_state", state.get("session-state", 0))
        return Session(
            names.get(word, str(word).lower()) if isinstance(word, int) else str(word).lower(),
            timers.get("negotiated_hold_time"), timers.get("keepalive_interval"), json.dumps(one),
        )  # fmt: skip

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        asked = self.json("global", "rib", "-a", family) or {}
        paths = [(prefix, path) for prefix, many in asked.items() for path in many]
        found = [_route(prefix, path) for prefix, path in paths if path.get("source-id") or path.get("neighbor-ip")]
        found = [r for r in found if r.neighbour not in ("", "<nil>", "invalid IP")]
        return [route for route in found if not neighbour or route.neighbour == neighbour]

    def refresh(self, neighbour: str) -> None:
        self.ask("neighbor", neighbour, "softresetin")

    def shut(self, neighbour: str, message: str = "") -> None:
        self.ask("neighbor", neighbour, "shutdown", *([message] if message else []))

    def open(self, neighbour: str) -> None:
        self.ask("neighbor", neighbour, "enable")


def render(router: Router) -> dict[str, Any]:
    made: dict[str, Any] = {
        "global": {
            "config": {"as": router.asn, "router-id": router.router_id, "port": router.port},
            "use-multiple-paths": {"config": {"enabled": True}},
        },
        "neighbors": [_neighbour(router, n) for n in router.neighbours if not n.dynamic],
    }
    dynamic = [n for n in router.neighbours if n.dynamic]
    if dynamic:
        made["peer-groups"] = [_neighbour(router, n) for n in dynamic]
        made["dynamic-neighbors"] = [{"config": {"prefix": n.dynamic, "peer-group": n.key}} for n in dynamic]
    rejects = [(n, reject) for n in router.neighbours for reject in n.imports]
    if rejects or any(n.export_none for n in router.neighbours):
        made |= _policies(router)
    return made


def _neighbour(router: Router, n: Neighbour) -> dict[str, Any]:
    config: dict[str, Any] = {"peer-as": n.asn, "local-as": n.local_as or router.asn}
    config["peer-group-name" if n.dynamic else "neighbor-address"] = n.key if n.dynamic else n.address
    if n.interface:
        config["neighbor-address"] = f"{n.address}%{n.interface}"
    if n.password:
        config["auth-password"] = n.password
    keepalive = n.keepalive_s if n.keepalive_s is not None else n.hold_time_s // 3
    made: dict[str, Any] = {
        "config": config,
        "timers": {
            "config": {
                "connect-retry": 1, "hold-time": n.hold_time_s, "keepalive-interval": keepalive,
                "idle-hold-time-after-reset": 1,
            }
        },
        "transport": {"config": {"passive-mode": n.passive, "remote-port": n.port}},
        "afi-safis": [],
    }  # fmt: skip
    if source := n.local_address:
        made["transport"]["config"]["local-address"] = source
    if n.multihop:
        made["ebgp-multihop"] = {"config": {"enabled": True, "multihop-ttl": n.multihop}}
    if n.ttl_security is not None:
        made["ttl-security"] = {"config": {"enabled": True, "ttl-min": 256 - n.ttl_security}}
    if n.graceful_restart:
        made["graceful-restart"] = {
            "config": {
                "enabled": True, "restart-time": n.graceful_restart, "deferral-time": 10,
                "long-lived-enabled": n.long_lived is not None,
            }
        }  # fmt: skip
    if n.rr_client:
        cluster = router.cluster_id or router.router_id
        made["route-reflector"] = {"config": {"route-reflector-client": True, "route-reflector-cluster-id": cluster}}
    if n.allow_local_as:
        made["as-path-options"] = {"config": {"allow-own-as": n.allow_local_as}}
    for family in n.spoken:
        one: dict[str, Any] = {"config": {"afi-safi-name": f"{family}-unicast", "enabled": True}}
        if n.graceful_restart:
            one["mp-graceful-restart"] = {"config": {"enabled": True}}
        if n.long_lived is not None:
            one["long-lived-graceful-restart"] = {"config": {"enabled": True, "restart-time": n.long_lived}}
        if n.add_path:
            send = 8 if n.add_path in ("send", "both") else 0
            one["add-paths"] = {"config": {"receive": n.add_path in ("receive", "both"), "send-max": send}}
        made["afi-safis"].append(one)
    return made


def _policies(router: Router) -> dict[str, Any]:
    prefix_sets, neighbour_sets, imports, exports = [], [], [], []
    for n in router.neighbours:
        neighbour_sets.append({"neighbor-set-name": n.key, "neighbor-info-list": [n.address]})
        match = {"match-neighbor-set": {"neighbor-set": n.key, "match-set-options": "any"}}
        for number, reject in enumerate(n.imports):
            name = f"{n.key}_{number}"
            longest = 128 if ":" in reject.prefix else 32
            length = f"{reject.prefix.partition('/')[2]}..{longest}"
            prefix_sets.append(
                {"prefix-set-name": name, "prefix-list": [{"ip-prefix": reject.prefix, "masklength-range": length}]}
            )
            conditions = match | {"match-prefix-set": {"prefix-set": name, "match-set-options": "any"}}
            imports.append(
                {"name": f"in_{name}", "conditions": conditions, "actions": {"route-disposition": "reject-route"}}
            )
        if n.export_none:
            exports.append(
                {"name": f"out_{n.key}", "conditions": match, "actions": {"route-disposition": "reject-route"}}
            )
    apply = {
        "import-policy-list": ["imports"], "default-import-policy": "accept-route",
        "export-policy-list": ["exports"], "default-export-policy": "accept-route",
    }  # fmt: skip
    return {
        "defined-sets": {"prefix-sets": prefix_sets, "neighbor-sets": neighbour_sets},
        "policy-definitions": [{"name": "imports", "statements": imports}, {"name": "exports", "statements": exports}],
        "global": {
            "config": {"as": router.asn, "router-id": router.router_id, "port": router.port},
            "apply-policy": {"config": apply},
        },
    }


def _words(route: Route, router: Router) -> Iterator[str]:
    """Arguments of `gobgp global rib add`."""
    yield route.prefix
    yield from ("nexthop", route.next_hop or router.own(route.family))
    yield from ("origin", route.origin)
    if route.as_path:
        sets = ",".join(
            "{" + " ".join(map(str, sorted(n))) + "}" if isinstance(n, frozenset) else str(n) for n in route.as_path
        )
        yield from ("aspath", sets)
    if route.med is not None:
        yield from ("med", str(route.med))
    if route.local_pref is not None:
        yield from ("local-pref", str(route.local_pref))
    if route.communities:
        yield from ("community", ",".join(f"{a}:{b}" for a, b in sorted(route.communities)))
    for kind in ("rt", "soo"):
        if values := [text.partition(":")[2] for text in sorted(route.extended) if text.startswith(kind)]:
            yield from (kind, *values)
    if route.large:
        yield from ("large-community", ",".join(f"{a}:{b}:{c}" for a, b, c in sorted(route.large)))
    if route.aggregator:
        yield from ("aggregator", f"{route.aggregator[0]}:{route.aggregator[1]}")


def _route(prefix: str, path: dict[str, Any]) -> Route:
    """Attributes by their type codes (IANA, BGP path attributes)."""
    at: dict[int, dict[str, Any]] = {attribute["type"]: attribute for attribute in path.get("attrs", [])}
    hop = at.get(3, {}).get("nexthop") or at.get(14, {}).get("nexthop") or ""
    aggregator = at.get(7)
    value: dict[str, Any] = aggregator.get("value", aggregator) if aggregator else {}
    return Route(
        prefix,
        next_hop=hop,
        origin=_ORIGINS[at.get(1, {}).get("value", 0)],
        as_path=tuple(
            item
            for segment in at.get(2, {}).get("as_paths", [])
            for item in ([frozenset(segment["asns"])] if segment["segment_type"] == 1 else segment["asns"])
        ),
        med=at[4]["metric"] if 4 in at else None,
        local_pref=at[5]["value"] if 5 in at else None,
        communities=frozenset((number >> 16, number & 0xFFFF) for number in at.get(8, {}).get("communities", [])),
        extended=frozenset(
            f"{'rt' if one['subtype'] == 2 else 'soo'}:{one['value']}"
            for one in at.get(16, {}).get("value", [])
            if one.get("subtype") in (2, 3)
        ),
        large=frozenset((one["ASN"], one["LocalData1"], one["LocalData2"]) for one in at.get(32, {}).get("value", [])),
        atomic=6 in at,
        aggregator=(value.get("as", value.get("AS", 0)), value.get("address", value.get("Address", "")))
        if value
        else None,
        originator_id=at.get(9, {}).get("value", ""),
        cluster_list=tuple(at.get(10, {}).get("value", [])),
        unknown=frozenset(
            (kind, _hex(one["value"]))
            for kind, one in at.items()
            if kind > 40 and isinstance(one.get("value"), str | list)
        ),
        best=bool(path.get("best", False)),
        stale=bool(path.get("stale", False)),
        neighbour=str(path.get("neighbor-ip", "")),
        path_id=path.get("path-id"),
    )


def _hex(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, list) else base64.b64decode(value).hex()
