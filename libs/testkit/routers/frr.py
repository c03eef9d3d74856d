"""FRRouting's zebra and bgpd as a peer, asked over the sockets that vtysh uses.

vtysh itself wants the package's users and PAM; its protocol is a command and a zero octet, answered by text, three zero
octets and a status (lib/vty.c, lib/command.h: 0 done, 1 warning, else an error).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from libs.testkit.processes import Process
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session, family_of
from libs.testkit.routers.peer import Peer, RouterError, program, until

_AS_USER = """\
# FRR insists on its group of users of vtysh; here one exists for this process and its children only.
if ! grep -q '^frrvty:' /etc/group; then
    { cat /etc/group; echo 'frrvty:x:99901:root'; } >group
    mount --bind "$PWD/group" /etc/group
fi
exec "$@"
"""


class Frr(Peer):
    daemon: ClassVar[str] = "frr"
    can: ClassVar[frozenset[str]] = frozenset(
        {
            "kernel",
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
            "attributes",
            "as2",
            "gtsm over ipv6",
            "enhanced-refresh",
            "ext-message",
            "shutdown-message",
            "port",
        }
    )

    def commands(self) -> list[list[str]]:
        common = [
            "-u", "root", "-g", "root", "--vty_socket", str(self.directory), "-z", str(self.directory / "zserv.sock"),
            "-P", "0", "--log", "stdout",
        ]  # fmt: skip
        start = ["sh", str(self.directory / "start.sh")]
        zebra = [str(program("zebra", also="/usr/lib/frr")), *common, "-i", "zebra.pid", "-f", "zebra.conf"]
        bgpd = [str(program("bgpd", also="/usr/lib/frr")), *common, "-i", "bgpd.pid", "-f", "bgpd.conf"]
        bgpd += ["-p", str(self.router.port)]
        if not self.router.install:
            bgpd.append("-n")
        return [[*start, *zebra], [*start, *bgpd]]

    def write_config(self) -> None:
        (self.directory / "start.sh").write_text(_AS_USER)
        (self.directory / "zebra.conf").write_text("hostname zebra\n")
        (self.directory / "bgpd.conf").write_text("\n".join(render(self.router)) + "\n")

    def start(self) -> None:
        if not self.processes or not self.speaker.running:
            (self.directory / "bgpd.vty").unlink(missing_ok=True)
        super().start()

    def wait_started(self, process: Process) -> None:
        if process is not self.speaker:
            until(lambda: (self.directory / "zserv.sock").exists(), 60, lambda: f"zebra's socket\n{self.log_tail()}")

    def ready(self) -> bool:
        try:  # its socket has a name before anybody listens at it
            return "routerId" in self.vty("show bgp ipv4 unicast json")
        except (OSError, RouterError):
            return False

    def vty(self, *commands: str, daemon: str = "bgpd") -> str:
        """Commands one after the other in one session; what they said. Raises RouterError."""
        said = ""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(20)
            channel.connect(str(self.directory / f"{daemon}.vty"))
            for command in ("enable", *commands):
                channel.sendall(command.encode() + b"\0")
                answer = b""
                while answer[-4:-1] != b"\0\0\0":
                    part = channel.recv(1 << 16)
                    if not part:
                        raise RouterError(f"frr {self.name}: {command}: closed")
                    answer += part
                text = answer[:-4].decode(errors="replace")
                if answer[-1] not in (0, 1):
                    raise RouterError(f"frr {self.name}: {command}: {text.strip()}")
                said += text
        return said

    def json(self, command: str) -> Any:
        return json.loads(self.vty(command) or "{}")

    def apply(self) -> None:
        """FRR is changed by commands: those that are new since the last time, after those that are to be undone."""
        wanted, before = render(self.router), (self.directory / "bgpd.conf").read_text().splitlines()
        commands = difference(before, wanted)
        self.write_config()
        self.vty("configure terminal", *commands, "end")

    def session(self, neighbour: str) -> Session:
        said = self.json(f"show bgp neighbors {neighbour} json")
        one = said.get(neighbour)
        if one is None:
            return Session("none")
        return Session(
            one.get("bgpState", "none").lower(),
            one.get("bgpTimerHoldTimeMsecs", 0) // 1000,
            one.get("bgpTimerKeepAliveIntervalMsecs", 0) // 1000,
            json.dumps(one),
        )

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        short = self.json(f"show bgp {family} unicast json")["routes"]
        found: list[Route] = []
        for prefix, paths in short.items():
            if any(path.get("peerId", "(unspec)") != "(unspec)" for path in paths):
                told = self.json(f"show bgp {family} unicast {prefix} json")
                found += [
                    _route(prefix, path) for path in told.get("paths", []) if "peer" in path and "sourced" not in path
                ]
        return [route for route in found if route.neighbour and (not neighbour or route.neighbour == neighbour)]

    def routes(self, prefix: str, neighbour: str = "") -> list[Route]:
        told = self.json(f"show bgp {family_of(prefix)} unicast {prefix} json")
        if told.get("prefix") != prefix:
            return []
        found = [_route(prefix, path) for path in told.get("paths", [])]
        return [route for route in found if route.neighbour and (not neighbour or route.neighbour == neighbour)]

    def refresh(self, neighbour: str) -> None:
        self.vty(f"clear bgp {neighbour} soft in")

    def shut(self, neighbour: str, message: str = "") -> None:
        asn = self.router.asn
        command = f"neighbor {neighbour} shutdown" + (f" message {message}" if message else "")
        self.vty("configure terminal", f"router bgp {asn}", command, "end")

    def open(self, neighbour: str) -> None:
        self.vty("configure terminal", f"router bgp {self.router.asn}", f"no neighbor {neighbour} shutdown", "end")


def render(router: Router) -> Iterator[str]:
    """bgpd.conf, line by line, in blocks that begin without a space."""
    for n in router.neighbours:
        for number, reject in enumerate(n.imports):
            kind = "ipv6" if ":" in reject.prefix else "ip"
            longest = 128 if kind == "ipv6" else 32
            yield f"{kind} prefix-list {n.key}_in seq {5 * number + 5} deny {reject.prefix} le {longest}"
        if n.imports:
            yield f"ip prefix-list {n.key}_in seq 900 permit 0.0.0.0/0 le 32"
            yield f"ipv6 prefix-list {n.key}_in seq 900 permit ::/0 le 128"
    # Before what uses them: a route map that comes later takes effect 5 s later.
    for route in router.routes:
        yield f"route-map {_map_name(route)} permit 10"
        yield from _sets(route)
        yield "exit"
    if any(n.export_none for n in router.neighbours):
        yield "route-map nothing deny 10"
        yield "exit"
    yield f"router bgp {router.asn}"
    yield f" bgp router-id {router.router_id}"
    if router.cluster_id:
        yield f" bgp cluster-id {router.cluster_id}"
    yield " no bgp ebgp-requires-policy"
    yield " no bgp default ipv4-unicast"
    yield " no bgp network import-check"
    yield " bgp bestpath as-path multipath-relax"
    if any(n.graceful_restart for n in router.neighbours):
        yield " bgp graceful-restart"
        yield " bgp graceful-restart preserve-fw-state"
        yield f" bgp graceful-restart restart-time {max(n.graceful_restart or 0 for n in router.neighbours)}"
        # Without any neighbour's End-of-RIB it would otherwise hold its own first UPDATE back for six minutes.
        yield " bgp graceful-restart select-defer-time 10"
    if any(n.long_lived for n in router.neighbours):
        yield f" bgp long-lived-graceful-restart stale-time {max(n.long_lived or 0 for n in router.neighbours)}"
    for n in router.neighbours:
        yield from _neighbour(router, n)
    families: tuple[Family, ...] = ("ipv4", "ipv6")
    for family in families:
        yield f" address-family {family} unicast"
        yield f"  maximum-paths {router.ecmp}"
        yield f"  maximum-paths ibgp {router.ecmp}"
        for route in router.routes:
            if route.family == family:
                yield f"  network {route.prefix} route-map {_map_name(route)}"
        for n in router.neighbours:
            if family in n.spoken:
                yield from _activation(n, f" {_target(n)} ", lean=router.lean)
        yield " exit-address-family"
    yield "exit"


def _map_name(route: Route) -> str:
    return "r_" + "".join(c if c.isalnum() else "_" for c in route.prefix)


def _target(n: Neighbour) -> str:
    return n.key if n.dynamic else n.address


def _neighbour(router: Router, n: Neighbour) -> Iterator[str]:
    who = f" neighbor {_target(n)}"
    if n.dynamic:
        yield f"{who} peer-group"
    yield f"{who} remote-as {n.asn}"
    if n.interface:
        yield f"{who} interface {n.interface}"
    if n.local_as:
        yield f"{who} local-as {n.local_as} no-prepend replace-as"
    if n.password:
        yield f"{who} password {n.password}"
    if n.port != 179:
        yield f"{who} port {n.port}"
    if n.passive:
        yield f"{who} passive"
    if n.multihop and n.asn != (n.local_as or router.asn):
        yield f"{who} ebgp-multihop {n.multihop}"
    if n.ttl_security is not None:
        yield f"{who} ttl-security hops {n.ttl_security}"
    if n.local_address:
        yield f"{who} update-source {n.local_address}"
    yield f"{who} advertisement-interval 0"
    keepalive = n.keepalive_s if n.keepalive_s is not None else n.hold_time_s // 3
    yield f"{who} timers {keepalive} {n.hold_time_s}"
    yield f"{who} timers connect 2"
    yield f"{who} graceful-restart" if n.graceful_restart else f"{who} graceful-restart-disable"
    yield f"{who} capability extended-nexthop" if n.next_hop_extended else f" no{who} capability extended-nexthop"
    yield (
        f"{who} disable-connected-check" if n.multihop and n.asn == router.asn else f" no{who} disable-connected-check"
    )
    if not n.as4:
        yield f"{who} dont-capability-negotiate"
    if n.dynamic:
        yield f" bgp listen range {n.dynamic} peer-group {n.key}"


def _activation(n: Neighbour, who: str, *, lean: bool) -> Iterator[str]:
    who = f"  neighbor{who}"
    yield f"{who}activate"
    if not lean:
        yield f"{who}soft-reconfiguration inbound"
    if n.rr_client:
        yield f"{who}route-reflector-client"
    if n.next_hop_self:
        yield f"{who}next-hop-self force"
    if n.next_hop_keep:
        yield f"{who}attribute-unchanged next-hop"
    if n.add_path in ("send", "both"):
        yield f"{who}addpath-tx-all-paths"
    if n.add_path == "send":
        yield f"{who}disable-addpath-rx"
    if n.allow_local_as:
        yield f"{who}allowas-in {n.allow_local_as}"
    if n.imports:
        yield f"{who}prefix-list {n.key}_in in"
    if n.export_none:
        yield f"{who}route-map nothing out"


def _sets(route: Route) -> Iterator[str]:
    yield f" set origin {route.origin}"
    if route.as_path:
        yield f" set as-path prepend {' '.join(str(n) for n in route.as_path)}"
    if route.med is not None:
        yield f" set metric {route.med}"
    if route.local_pref is not None:
        yield f" set local-preference {route.local_pref}"
    if route.communities:
        yield f" set community {' '.join(f'{a}:{b}' for a, b in sorted(route.communities))}"
    for kind in ("rt", "soo"):
        if values := [text.partition(":")[2] for text in sorted(route.extended) if text.startswith(kind)]:
            yield f" set extcommunity {kind} {' '.join(values)}"
    if route.large:
        yield f" set large-community {' '.join(f'{a}:{b}:{c}' for a, b, c in sorted(route.large))}"
    if route.atomic:
        yield " set atomic-aggregate"
    if route.aggregator:
        yield f" set aggregator as {route.aggregator[0]} {route.aggregator[1]}"
    if route.originator_id:
        yield f" set originator-id {route.originator_id}"
    if route.next_hop:
        yield (
            f" set ipv6 next-hop global {route.next_hop}"
            if ":" in route.next_hop
            else f" set ip next-hop {route.next_hop}"
        )


def _blocks(lines: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Configuration lines by the chain of blocks that they stand in: (), ("router bgp 1",), (…, "address-family …")."""
    found: dict[tuple[str, ...], list[str]] = {(): []}
    at: tuple[str, ...] = ()
    for line in lines:
        text = line.strip()
        if text == "exit-address-family":
            at = at[:1]
        elif text == "exit":
            at = ()
        elif text.startswith(("router bgp", "route-map")):
            at = (text,)
            found[at] = []
        elif text.startswith("address-family"):
            at = (*at[:1], text)
            found[at] = []
        else:
            found[at].append(text)
    return found


def difference(before: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Commands that lead from one `render` to another: undo first, route maps before what uses them."""
    have, want = _blocks(before), _blocks(wanted)
    undo: list[str] = []
    maps: list[str] = []
    rest: list[str] = []

    def inside(commands: list[str], at: tuple[str, ...], lines: list[str]) -> None:
        if lines:
            commands += [*at, *lines, *(["exit"] * len(at))]

    for at, lines in have.items():
        gone = [line for line in lines if line not in want.get(at, []) and not line.startswith("no ")]
        if not at or not at[0].startswith("route-map"):
            inside(undo, at, [f"no {line}" for line in gone if not _overwritten(line)])
        elif at not in want:
            maps.append(f"no {at[0]}")
    for at, lines in want.items():
        new = [line for line in lines if line not in have.get(at, [])]
        if at and at[0].startswith("route-map"):
            if have.get(at) != lines:
                maps += [f"no {at[0]}"] if at in have else []
                maps += [*at, *lines, "exit"]
        else:
            inside(rest, at, new)
    return undo + maps + rest


def _overwritten(line: str) -> bool:
    """A setting that has a value: written anew, not taken back."""
    return any(f" {word} " in line for word in ("timers", "advertisement-interval", "remote-as", "maximum-paths"))


def _route(prefix: str, path: dict[str, Any]) -> Route:
    hops = {hop.get("scope", "global"): hop["ip"] for hop in path.get("nexthops", []) if "ip" in hop}
    aggregator = path.get("aggregatorAs")
    extended = path.get("extendedCommunity", {}).get("string", "").split()
    return Route(
        prefix,
        next_hop=hops.get("global", hops.get("link-local", "")),
        link_local=hops.get("link-local", ""),
        origin=path.get("origin", "").lower(),
        as_path=_path(path.get("aspath", {}).get("segments", [])),
        med=path.get("metric", path.get("med")),
        local_pref=path.get("locPrf", path.get("localPref")),
        communities=frozenset(_communities(path.get("community", {}).get("string", ""))),
        extended=frozenset(
            text.replace("RT:", "rt:").replace("SoO:", "soo:") for text in extended if text.startswith(("RT:", "SoO:"))
        ),
        large=frozenset(
            (int(a), int(b), int(c))
            for a, b, c in (text.split(":") for text in path.get("largeCommunity", {}).get("string", "").split())
        ),
        atomic=bool(path.get("atomicAggregate")),
        aggregator=(aggregator, path.get("aggregatorId", "")) if aggregator else None,
        originator_id=path.get("originatorId", ""),
        cluster_list=tuple(path.get("clusterList", {}).get("list", [])),
        best=bool(path.get("bestpath", {}).get("overall")),
        stale=bool(path.get("stale")),
        neighbour="" if path.get("sourced") else path.get("peer", {}).get("peerId", ""),
        path_id=path.get("addpath", {}).get("rxId") if isinstance(path.get("addpath"), dict) else None,
    )


def _path(segments: list[dict[str, Any]]) -> tuple[int | frozenset[int], ...]:
    path: list[int | frozenset[int]] = []
    for segment in segments:
        if segment["type"] == "as-set":
            path.append(frozenset(segment["list"]))
        else:
            path.extend(segment["list"])
    return tuple(path)


_WELL_KNOWN = {
    "no-export": (0xFFFF, 0xFF01), "no-advertise": (0xFFFF, 0xFF02), "local-AS": (0xFFFF, 0xFF03),
    "llgr-stale": (0xFFFF, 6), "no-llgr": (0xFFFF, 7),
}  # fmt: skip


def _communities(text: str) -> Iterator[tuple[int, int]]:
    for word in text.split():
        if word in _WELL_KNOWN:
            yield _WELL_KNOWN[word]
        else:
            with contextlib.suppress(ValueError):
                first, second = map(int, word.split(":"))
                yield first, second
