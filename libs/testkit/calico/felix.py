"""A running Felix of a real Calico (3.28.5, in its iptables mode), in a namespace that is its host.

It needs iptables, ipsets and what matches on them; tunnels and WireGuard as the kernel has them.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from libs.netlink.netns import in_netns
from libs.testkit import packages
from libs.testkit.http_probe import http_get
from libs.testkit.patience import patient
from libs.testkit.processes import Process
from libs.testkit.topology import Namespace

PROGRAM = packages.CACHE / "calico" / "calico-felix"
_FOUND = packages.environment(packages.CACHE / "runtimes", packages.CACHE / "stock-kernel")
_NAMES = ("PATH", "LD_LIBRARY_PATH", "XTABLES_LIBDIR")
TOOLS: dict[str, str] = {name: _FOUND[name] for name in _NAMES if name in _FOUND}
"""What finds iptables and ipset."""
_START_ME_AGAIN = 129  # its daemon.go: settings or encapsulations are others; runit does so in the real image


class FelixMissing(RuntimeError):
    """It is not here, or cannot run here."""


def program() -> Path:
    """Raises FelixMissing."""
    if not PROGRAM.exists():
        raise FelixMissing("a real Felix is not here")
    try:
        listed = subprocess.run(["ipset", "list"], env=_FOUND, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FelixMissing("a real Felix is not here: ipset is missing") from None
    if listed.returncode:
        raise FelixMissing(f"this kernel has no ipsets: {listed.stderr}")
    return PROGRAM


class RealFelix:
    def __init__(
        self, host: str, netns: Namespace, *, etcd: str, directory: Path, address: str = "127.0.0.1",
        port: int = 9099, **settings: str,
    ) -> None:  # fmt: skip
        """host: its Node's name. etcd: an endpoint, as seen from the namespace. directory: of its log. address, port:
        where it tells of its health. settings: further ones, `DefaultEndpointToHostAction="ACCEPT"`. Raises
        FelixMissing.
        """
        self._netns, self._health = netns, (address, port)
        self._wanted = False
        given = {f"FELIX_{name.upper()}": value for name, value in settings.items()}
        self._process = Process(
            f"Calico's felix on {host}", (str(program()),), netns=netns, cwd=directory,
            log_path=directory / "calico-felix.log",
            env=TOOLS | given | {
                "DATASTORE_TYPE": "etcdv3",
                "ETCD_ENDPOINTS": etcd,
                "FELIX_FELIXHOSTNAME": host,
                "FELIX_HEALTHENABLED": "true",
                "FELIX_HEALTHHOST": address,
                "FELIX_HEALTHPORT": str(port),
                "FELIX_IPTABLESBACKEND": "nft",
                "FELIX_LOGFILEPATH": "none",
                "FELIX_LOGSEVERITYSCREEN": "info",
                "FELIX_USAGEREPORTINGENABLED": "false",
            },
        )  # fmt: skip

    def start(self) -> None:
        self._wanted = True
        self._process.start()

    def kill(self) -> None:
        """As the kubelet ends calico-node: no grace, and nothing is taken away."""
        self._wanted = False
        self._process.kill()

    async def keep(self) -> None:
        """Starts it again as often as it asks for, without an end."""
        while True:
            if self._wanted and self._process.status == _START_ME_AGAIN:
                self._process.start()
            await asyncio.sleep(0.05)

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Until all that there was in etcd at its start is in the kernel. Raises ProcessError, TimeoutError."""
        deadline = asyncio.get_running_loop().time() + patient(timeout_s)
        while not await self._is_ready():
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"Calico's felix is not ready\n{self._process.log_tail(40)}")
            await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        if self._process.status != _START_ME_AGAIN:
            self._process.require_running()
        try:
            answer = await http_get(self._netns, *self._health, "/readiness", timeout_s=patient(5))
        except (OSError, TimeoutError):
            return False
        return answer.status in (200, 204)

    def run(self, *command: str) -> str:
        """One of iptables' or ipset's programs on its host. Raises CalledProcessError."""
        with in_netns(self._netns.path):
            return subprocess.run(command, env=_FOUND, capture_output=True, text=True, check=True).stdout

    def left(self) -> list[str]:
        """Lines of its rules and chains, and names of sets."""
        rules = [line for tool in ("iptables-save", "ip6tables-save") for line in self.run(tool).splitlines()]
        return [line for line in rules if "cali" in line] + self.run("ipset", "list", "-name").split()
