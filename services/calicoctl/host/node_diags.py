"""`calicoctl node diags`: what this node's kernel, its Calico services and its logs say, as files of a bundle.

Only reads. Outputs that would show keys are not asked for (`wg showconf`), and all text is scrubbed besides.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from libs.runtime.unix_http import UnixConnection
from services.calicoctl.host.bundle import Bundle
from services.calicoctl.host.runner import output

COMMANDS: Final = (
    ("date", "date"),
    ("hostname", "hostname"),
    ("uname", "uname -a"),
    ("os-release", "cat /etc/os-release"),
    ("ipv4_route", "ip -4 route show table all"),
    ("ipv6_route", "ip -6 route show table all"),
    ("ipv4_rule", "ip -4 rule"),
    ("ipv6_rule", "ip -6 rule"),
    ("ipv4_addr", "ip -4 addr"),
    ("ipv6_addr", "ip -6 addr"),
    ("links", "ip -details -statistics link"),
    ("ipv4_neigh", "ip -4 neigh show nud all"),
    ("ipv6_neigh", "ip -6 neigh show nud all"),
    ("fdb", "bridge fdb show"),
    ("tunnels", "ip -details tunnel show"),
    ("wireguard", "wg show all"),
    ("nft_ruleset", "nft -n -a list ruleset"),
    ("iptables_save", "iptables-save -c"),
    ("ip6tables_save", "ip6tables-save -c"),
    ("ipset_list", "ipset list"),
    ("sysctl_net", "sysctl -a --pattern ^net\\."),
    ("sockets", "ss -tulpn"),
    ("conntrack_stats", "conntrack -S"),
    ("conntrack_count", "conntrack -C"),
    ("interrupted_syscalls", "nstat -az"),
    ("disk", "df -h"),
    ("journal/calico-node", "journalctl -u calico-node.service --no-pager --lines 20000"),
    ("journal/calico-felix", "journalctl -u calico-felix.service --no-pager --lines 20000"),
    ("journal/calico-bgp", "journalctl -u calico-bgp.service --no-pager --lines 20000"),
    ("journal/kernel", "journalctl -k --no-pager --lines 5000"),
)
"""(file, command)."""
RUNTIMES: Final = (
    ("docker", "docker ps -a --filter name=calico --format {{.Names}}", "docker logs --tail 20000 {}"),
    ("nerdctl", "nerdctl ps -a --filter name=calico --format {{.Names}}", "nerdctl logs --tail 20000 {}"),
    ("crictl", "crictl ps -a --name calico -q", "crictl logs --tail 20000 {}"),
)
BGP_SOCKET: Final = Path("/var/run/calico/bgp.sock")
BGP_PATHS: Final = ("/state", "/peers", "/settings")
CONFIGURATION: Final = (Path("/etc/calico"), Path("/etc/cni/net.d"))
STATE: Final = (Path("/var/lib/calico"), Path("/var/run/calico"))
SERVICES: Final = ("felix", "typha", "bgp", "node", "kube_controllers", "apiserver", "cni")
AT_ONCE: Final = 6
HTTP_S: Final = 5.0


async def collect(bundle: Bundle, logs: Path) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def run(name: str, command: str) -> None:
        async with limit:
            status, text = await output(command.split())
        note = "" if status == 0 else f"\nexit status {status}\n"
        bundle.add(name, f"$ {command}\n".encode() + text + note.encode())

    await asyncio.gather(*(run(name, command) for name, command in COMMANDS))
    await asyncio.gather(*(_containers(bundle, limit, *runtime) for runtime in RUNTIMES))
    await asyncio.to_thread(_files, bundle, logs)
    there = await asyncio.to_thread(lambda: list(services()))
    await asyncio.gather(*(_service(bundle, limit, *found) for found in there))


async def _containers(bundle: Bundle, limit: asyncio.Semaphore, runtime: str, listing: str, logs: str) -> None:
    status, text = await output(listing.split())
    if status == 127:
        return
    if status:
        bundle.add(f"containers/{runtime}", text)
        return
    for name in text.decode(errors="replace").split():
        async with limit:
            _, found = await output(logs.format(name).split())
        bundle.add(f"containers/{runtime}-{name.replace('/', '_')}.log", found)


def _files(bundle: Bundle, logs: Path) -> None:
    bundle.copy_tree("logs", logs)
    for directory in CONFIGURATION:
        bundle.copy_tree(f"config{directory}", directory)
    for directory in STATE:
        bundle.add(f"state{directory}.txt", "".join(f"{line}\n" for line in _listing(directory)))
    for path in BGP_PATHS:
        bundle.add(f"bgp{path}.json", _answer(UnixConnection(BGP_SOCKET), path))


async def _service(
    bundle: Bundle, limit: asyncio.Semaphore, pid: int, name: str, arguments: list[str], environment: dict[str, str]
) -> None:
    about = [f"pid {pid}", " ".join(arguments), *sorted(f"{key}={value}" for key, value in environment.items())]
    bundle.add(f"services/{name}-{pid}.txt", "\n".join(about) + "\n")
    if port := health_port(arguments, environment):
        for path in ("/readiness", "/liveness", "/metrics"):
            connection = HTTPConnection("localhost", port, timeout=HTTP_S)
            async with limit:
                answer = await asyncio.to_thread(_answer, connection, path)
            bundle.add(f"services/{name}-{pid}{path}.txt", answer)


def _listing(directory: Path) -> Iterator[str]:
    try:
        for path in sorted(directory.rglob("*")):
            status = path.lstat()
            yield f"{status.st_mode:o} {status.st_size:>10} {status.st_mtime:.0f} {path}"
    except OSError as error:
        yield f"{directory}: {error.strerror or error}"


def _answer(connection: HTTPConnection, path: str) -> bytes:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read()
    except (OSError, HTTPException) as error:
        return f"{path}: {error or type(error).__name__}\n".encode()
    finally:
        connection.close()


def services(proc: Path = Path("/proc")) -> Iterator[tuple[int, str, list[str], dict[str, str]]]:
    """(pid, service, command line, environment) of every service of this project on the host that we may look at."""
    for directory in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            arguments = (directory / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            name = service_of(arguments)
            if name is None or int(directory.name) == os.getpid():
                continue
            text = (directory / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        pairs = (entry.partition("=") for entry in text.split("\0") if "=" in entry)
        yield int(directory.name), name, arguments, {key: value for key, _, value in pairs}


def service_of(arguments: list[str]) -> str | None:
    """`python -m services.felix`, `…/calico-felix`, and a script of that name run by Python."""
    for first, second in zip(arguments, [*arguments[1:], ""], strict=True):
        if first == "-m" and second.startswith("services.") and second.removeprefix("services.") in SERVICES:
            return second.removeprefix("services.")
    for argument in arguments[:2]:
        name = Path(argument).name.removeprefix("calico-").replace("-", "_")
        if Path(argument).name.startswith("calico-") and name in SERVICES:
            return name
    return None


def health_port(arguments: list[str], environment: dict[str, str]) -> int:
    """0: it serves none, or a free one that only its log names."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--health-port":
            text = value if equals else "".join(arguments[index + 1 : index + 2])
            return int(text) if text.isdecimal() else 0
    for key, value in environment.items():
        if key.upper().replace("_", "").endswith("HEALTHPORT") and value.isdecimal():
            return int(value)
    return 0
