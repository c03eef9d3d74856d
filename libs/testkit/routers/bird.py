"""BIRD 2 as a peer: configuration written whole and reread, birdc's answers parsed (doc/bird.sgml of BIRD 2.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import ClassVar

from libs.testkit.netns import CommandFailed
from libs.testkit.routers.model import Family, Neighbour, Route, Router, Session
from libs.testkit.routers.peer import Peer, RouterError, program

_HEAD = re.compile(
    r"^(?P<prefix>\S+/\d+)?\s+(?:unicast|blackhole|unreachable|prohibit)\s+\[(?P<proto>\S+) [^\]]*\](?P<rest>.*)$"
)
_PAIR = re.compile(r"\((\d+),\s?(\d+)\)")
_TRIPLE = re.compile(r"\((\d+), (\d+), (\d+)\)")
_EXTENDED = re.compile(r"\((rt|ro), ([\d.]+), (\d+)\)")


class Bird(Peer):
    daemon: ClassVar[str] = "bird"
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
            "refresh",
            "local-as",
            "link-local",
            "as2",
            "gtsm over ipv6",
            "enhanced-refresh",
            "ext-message",
            "shutdown-message",
            "port",
        }
    )

    def commands(self) -> list[list[str]]:
        recover = ["-R"] if self.recovers else []
        return [[str(program("bird")), "-f", "-c", "bird.conf", "-s", "bird.ctl", *recover]]

    @property
    def recovers(self) -> bool:
        """Whether it says after a start that it kept forwarding."""
        return any(neighbour.graceful_restart for neighbour in self.router.neighbours)

    def start(self) -> None:
        (self.directory / "bird.ctl").unlink(missing_ok=True)  # of one that was killed
        super().start()

    def write_config(self) -> None:
        (self.directory / "bird.conf").write_text(render(self.router))

    def birdc(self, command: str) -> str:
        """birdc -r is not used: `configure` changes things."""
        return self.run(str(program("birdcl")), "-s", str(self.directory / "bird.ctl"), command)

    def ready(self) -> bool:
        try:  # its socket has a name before anybody listens at it
            return (self.directory / "bird.ctl").exists() and "up and running" in self.birdc("show status")
        except CommandFailed:
            return False

    def apply(self) -> None:
        self.write_config()
        said = self.birdc("configure")
        if "Reconfigured" not in said and "Reconfiguration in progress" not in said:
            raise RouterError(f"bird {self.name}: {said}")

    def _protocols(self, neighbour: str) -> list[str]:
        """Names of the protocols that talk to an address, those of dynamic ones included."""
        found = []
        for line in self.birdc("show protocols all").splitlines():
            if match := re.match(r"^(\S+)\s+BGP\s", line):
                name = match.group(1)
            elif (match := re.match(r"^\s+Neighbor address: (\S+)", line)) and match.group(1).split("%")[
                0
            ] == neighbour:
                found.append(name)
        return found

    def session(self, neighbour: str) -> Session:
        best = Session("none")
        for name in self._protocols(neighbour):
            said = self.birdc(f"show protocols all {name}")
            match = re.search(r"BGP state:\s+(\S+)", said)
            hold = re.search(r"Hold timer:\s+[\d.]+/(\d+)", said)
            keep = re.search(r"Keepalive timer:\s+[\d.]+/(\d+)", said)
            best = Session(
                match.group(1).lower() if match else "down",
                int(hold.group(1)) if hold else None,
                int(keep.group(1)) if keep else None,
                said,
            )
            if best.up:
                break
        return best

    def learned(self, family: Family, neighbour: str = "") -> list[Route]:
        text = self.birdc(f"show route all table master{family[-1]}")
        neighbours = {name: address for address in self._known() for name in self._protocols(address)} if text else {}
        found = [route for name, route in parse(text) if name.startswith("p_") or name in neighbours]
        return [r for r in found if not neighbour or neighbours.get(r.neighbour, "") == neighbour]

    def _known(self) -> set[str]:
        said = self.birdc("show protocols all")
        return {match.split("%")[0] for match in re.findall(r"Neighbor address: (\S+)", said)}

    def refresh(self, neighbour: str) -> None:
        for name in self._protocols(neighbour):
            self.birdc(f"reload in {name}")

    def shut(self, neighbour: str, message: str = "") -> None:
        for name in self._protocols(neighbour):
            self.birdc(f'disable {name} "{message}"' if message else f"disable {name}")

    def open(self, neighbour: str) -> None:
        for name in self._protocols(neighbour):
            self.birdc(f"enable {name}")


def render(router: Router) -> str:
    """bird.conf of a router; tables master4 and master6."""
    lines = [
        f"router id {router.router_id};",
        "log stderr all;",
        "" if router.lean else "debug protocols { states, events };",
        # BIRD 2.0.12 waits as long as this for its neighbours when it was started with -R.
        "graceful restart wait 20;",
        "protocol device { scan time 2; }",
        # With what the kernel has, next hops farther away are resolved by it; it never stands before a static route.
        "protocol direct { ipv4 { preference 5; }; ipv6 { preference 5; }; }",
    ]  # fmt: skip
    for digit in "46":
        if router.install:
            back = "import none;" if router.lean else "import all;"
            merge = f"merge paths on limit {router.ecmp};" if router.ecmp > 1 else ""
            lines.append(
                f"protocol kernel k{digit} {{ {'' if router.lean else 'learn;'} {merge} graceful restart on; persist; "
                f"ipv{digit} {{ {back} export where source = RTS_BGP; }}; }}"
            )
        own = [route for route in router.routes if route.family == f"ipv{digit}"]
        body = "\n".join(f"  route {r.prefix} blackhole;" for r in own)
        lines.append(f"protocol static s{digit} {{ ipv{digit};\n{body}\n}}")
        # In the export filter: what a static route carries itself is not told to another AS (MED, for one).
        sets = "\n".join(f"  if net = {r.prefix} then {{ {' '.join(_assignments(r))} }}" for r in own)
        lines.append(
            f"filter own{digit} {{\n  if source = RTS_BGP then accept;\n  if source != RTS_STATIC then reject;\n"
            f"{sets}\n  accept;\n}}"
        )
    lines += [_protocol(router, neighbour) for neighbour in router.neighbours]
    return "\n".join(lines) + "\n"


def _assignments(route: Route) -> Iterator[str]:
    """Attributes of a static route; BIRD has no way to make up aggregator, atomic aggregate or unknown ones."""
    yield f"bgp_origin = ORIGIN_{route.origin.upper()};"
    for number in reversed(route.as_path):
        yield f"bgp_path.prepend({number});"
    if route.med is not None:
        yield f"bgp_med = {route.med};"
    if route.local_pref is not None:
        yield f"bgp_local_pref = {route.local_pref};"
    for pair in sorted(route.communities):
        yield f"bgp_community.add(({pair[0]},{pair[1]}));"
    for text in sorted(route.extended):
        kind, admin, value = text.split(":")
        yield f"bgp_ext_community.add(({'rt' if kind == 'rt' else 'ro'},{admin},{value}));"
    for triple in sorted(route.large):
        yield f"bgp_large_community.add(({triple[0]},{triple[1]},{triple[2]}));"
    if route.next_hop:
        yield f"bgp_next_hop = {route.next_hop};"


def _protocol(router: Router, n: Neighbour) -> str:
    scope = f"%{n.interface}" if n.interface and not n.dynamic else ""
    source = n.local_address or (router.own("ipv6" if ":" in (n.dynamic or n.address) else "ipv4") if not scope else "")
    lines = [f"protocol bgp {n.key} {{"]
    if n.dynamic:
        lines += [f"  neighbor range {n.dynamic} as {n.asn};", '  dynamic name "p_dyn";']
    else:
        lines += [f"  neighbor {n.address}{scope} port {n.port} as {n.asn};"]
    lines.append(f"  local {source} port {router.port} as {n.local_as or router.asn};")
    # Wait 1 s where the defaults are 5 s and more: a test waits for every one of them.
    lines.append("  connect delay time 1; connect retry time 2; error wait time 1, 2; error forget time 1;")
    lines.append(f"  hold time {n.hold_time_s};")
    if n.keepalive_s is not None:
        lines.append(f"  keepalive time {n.keepalive_s};")
    if n.passive:
        lines.append("  passive on;")
    lines.append(f"  multihop {n.multihop};" if n.multihop else "  direct;")
    if n.ttl_security is not None:
        lines.append("  ttl security on;")
    if n.password:
        lines.append(f'  password "{n.password}";')
    if n.graceful_restart is None:
        lines.append("  graceful restart off;")
    else:
        lines.append(f"  graceful restart on; graceful restart time {n.graceful_restart};")
    if n.long_lived is not None:
        lines.append(f"  long lived graceful restart on; long lived stale time {n.long_lived};")
    if n.rr_client:
        lines.append("  rr client;")
        if router.cluster_id:
            lines.append(f"  rr cluster id {router.cluster_id};")
    if not n.as4:
        lines.append("  enable as4 off;")
    if n.allow_local_as:
        lines.append(f"  allow local as {n.allow_local_as};")
    lines.append("  enable extended messages on;")
    own_as = n.local_as or router.asn
    if own_as == n.asn:
        lines.append("  allow bgp_local_pref on;")
    for family in n.spoken:
        lines.append(f"  {family} {{")
        lines += [f"    import {_import(n, family)};"]
        lines.append("    export none;" if n.export_none else f"    export filter own{family[-1]};")
        if n.next_hop_self:
            lines.append("    next hop self on;")
        if n.next_hop_keep:
            lines.append("    next hop keep on;")
        if n.next_hop_extended and family == "ipv4":
            lines.append("    extended next hop on;")
        if n.add_path:
            lines.append(f"    add paths {'on' if n.add_path == 'both' else 'tx' if n.add_path == 'send' else 'rx'};")
        if n.multihop:
            lines.append("    gateway recursive;")
        lines.append("  };")
    return "\n".join([*lines, "}"])


def _import(n: Neighbour, family: Family) -> str:
    prefixes = [f"{reject.prefix}+" for reject in n.imports if (":" in reject.prefix) == (family == "ipv6")]
    return f"where net !~ [{', '.join(prefixes)}]" if prefixes else "all"


def parse(text: str) -> Iterator[tuple[str, Route]]:
    """`show route all` -> (protocol, route); the route's neighbour is the protocol's name."""
    prefix = ""
    head: re.Match[str] | None = None
    attributes: dict[str, str] = {}

    def made() -> Iterator[tuple[str, Route]]:
        if head is not None and "BGP.origin" in attributes:
            yield head["proto"], _route(prefix, head, attributes)

    for line in text.splitlines():
        if match := _HEAD.match(line):
            yield from made()
            head, attributes = match, {}
            prefix = match["prefix"] or prefix
        elif (line.startswith("\t") and ": " in line) or (line.startswith("\t") and line.endswith(":")):
            name, _, value = line.strip().partition(":")
            attributes[name] = value.strip()
    yield from made()


def _route(prefix: str, head: re.Match[str], at: dict[str, str]) -> Route:
    hops = at.get("BGP.next_hop", "").split()
    aggregator = at.get("BGP.aggregator", "").split()
    unknown = {
        (int(match.group(1), 16), value.replace(" ", ""))
        for name, value in at.items()
        if (match := re.match(r"BGP\.([0-9a-f]{2})(?: \[t\])?$", name))
    }
    return Route(
        prefix,
        next_hop=str(ip_address(hops[0])) if hops else "",
        link_local=hops[1] if len(hops) > 1 else "",
        origin=at["BGP.origin"].lower(),
        as_path=_path(at.get("BGP.as_path", "")),
        med=int(at["BGP.med"]) if "BGP.med" in at else None,
        local_pref=int(at["BGP.local_pref"]) if "BGP.local_pref" in at else None,
        communities=frozenset((int(a), int(b)) for a, b in _PAIR.findall(at.get("BGP.community", ""))),
        extended=frozenset(
            f"{'rt' if kind == 'rt' else 'soo'}:{admin}:{value}"
            for kind, admin, value in _EXTENDED.findall(at.get("BGP.ext_community", ""))
        ),
        large=frozenset((int(a), int(b), int(c)) for a, b, c in _TRIPLE.findall(at.get("BGP.large_community", ""))),
        atomic="BGP.atomic_aggr" in at,
        aggregator=(int(aggregator[1].removeprefix("AS")), aggregator[0]) if aggregator else None,
        originator_id=at.get("BGP.originator_id", ""),
        cluster_list=tuple(at.get("BGP.cluster_list", "").split()),
        unknown=frozenset(unknown),
        best=" * " in f"{head['rest']} ",
        stale=re.search(r"\(\d+[^)]*s", head["rest"]) is not None,
        neighbour=head["proto"],
        path_id=int(at["BGP.path_id"]) if "BGP.path_id" in at else None,
    )


def _path(text: str) -> tuple[int | frozenset[int], ...]:
    """`65001 {1 2} 65002` -> (65001, {1, 2}, 65002)."""
    path: list[int | frozenset[int]] = []
    for sequence, members in re.findall(r"(\d+)(?![^{]*\})|\{([^}]*)\}", text):
        path.append(int(sequence) if sequence else frozenset(map(int, members.split())))
    return tuple(path)
