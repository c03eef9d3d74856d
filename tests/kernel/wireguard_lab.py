"""One family's WireGuard in a namespace; the device is the kernel's where it has WireGuard, as felix chooses, else
wireguard-go's.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from libs.netlink.wireguard import WgChange, WgPeer
from libs.netlink.wireguard_keys import clamp, public_key
from libs.testkit.netns import call_in, can_make_namespaces, kernel_makes
from libs.testkit.netns import run as run_in
from libs.testkit.topology import Namespace
from services.felix.core.wireguard import Wanted, Way
from services.felix.drivers.wireguard import Devices, FirstOf, KernelDevices
from services.felix.drivers.wireguard_userspace import UserspaceDevices
from services.felix.drivers.wireguard_writer import FamilyWriter

IN_KERNEL = kernel_makes("wireguard")
MARKS = [
    pytest.mark.kernel,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
    pytest.mark.skipif(
        not IN_KERNEL and (shutil.which("wireguard-go") is None or not Path("/dev/net/tun").exists()),
        reason="wireguard-go is not here",
    ),
]

MARK = 0x200000
PEER, OTHER = public_key(clamp(b"\1" * 32)), public_key(clamp(b"\2" * 32))
TUNNEL, THROW, UNREACHABLE = Way.TUNNEL, Way.THROW, Way.UNREACHABLE
NETS = {
    4: ("10.65.1.0/26", "10.65.2.0/26", "10.65.0.0/16", "10.65.1.1", "192.0.2.2"),
    6: ("fd00:65:1::/122", "fd00:65:2::/122", "fd00:65::/48", "fd00:65:1::1", "2001:db8::2"),
}


MAKER: type[KernelDevices] | type[UserspaceDevices] = KernelDevices if IN_KERNEL else UserspaceDevices


class Counting:
    """Devices; notes what is written to them, and what the routes were at that moment."""

    def __init__(self, routes: Callable[[], dict[str, str]]) -> None:
        self._devices: Devices = KernelDevices() if IN_KERNEL else UserspaceDevices("wireguard-go")
        self.kind = self._devices.kind
        self.create, self.read = self._devices.create, self._devices.read
        self.changes = 0
        self.puts: list[dict[str, str]] = []
        self.drops: list[dict[str, str]] = []
        self._routes = routes

    def change(self, name: str, change: WgChange) -> None:
        self.changes += bool(change)
        for peers, noted in ((change.put, self.puts), (change.drop, self.drops)):
            if peers:
                noted.append(self._routes())
        self._devices.change(name, change)


class Stage:
    def __init__(self, space: Namespace, version: int) -> None:
        self.space, self.version, self.table = space, version, 1
        self.name = f"wg{uuid.uuid4().hex[:10]}"
        self.devices = Counting(self.routes)
        self.restart()

    def restart(self) -> None:
        """Another process, which knows nothing."""
        self.writer = FamilyWriter(self.version, FirstOf(self.devices))

    def call(self, function: Callable[[], object]) -> object:
        return call_in(self.space, function)  # type: ignore[arg-type]

    def ensure(self) -> bytes:
        found = self.call(lambda: self.writer.ensure(self.name, make=True))
        assert isinstance(found, bytes)
        return found

    def apply(self, wanted: Wanted) -> object:
        return self.call(lambda: self.writer.apply(wanted, 1380))

    def wanted(self) -> Wanted:
        """Our own block thrown back, the peer's in the tunnel, the pool shut."""
        own, theirs, pool, address, endpoint = NETS[self.version]
        where = (ip_address(endpoint), 51820)
        return Wanted(
            interface=self.name, listen_port=51833, fwmark=MARK, priority=99,
            addresses=frozenset({ip_address(address)}),
            peers={PEER: WgPeer(PEER, where, frozenset({ip_network(theirs)}))},
            routes={ip_network(own): THROW, ip_network(theirs): TUNNEL, ip_network(pool): UNREACHABLE},
        )  # fmt: skip

    def run(self, *command: str) -> str:
        return run_in(self.space, command)  # type: ignore[arg-type]

    def routes(self) -> dict[str, str]:
        """Range → type of route, or device; of those that we could have made."""
        found = {}
        command = ("ip", f"-{self.version}", "route", "show", "table", str(self.table))
        for line in run_in(self.space, command, check=False).splitlines():  # type: ignore[arg-type]  # or no table yet
            words = line.split()
            if words[0] in ("throw", "unreachable"):
                found[words[1]] = words[0]
            else:
                found[words[0]] = words[words.index("dev") + 1]
        return found

    def rules(self) -> list[str]:
        shown = self.run("ip", f"-{self.version}", "rule").splitlines()
        return [line.replace("\t", " ").strip() for line in shown if line.strip().endswith(f"lookup {self.table}")]


def socket_gone(stage: Stage) -> None:
    """wireguard-go ends when it sees that its device has gone; only then can there be another of that name."""
    deadline = time.monotonic() + 20
    while Path(f"/var/run/wireguard/{stage.name}.sock").exists():
        assert time.monotonic() < deadline, "wireguard-go does not end"
        time.sleep(0.01)
