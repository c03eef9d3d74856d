"""A running Felix of a real Calico (3.28.5, in its iptables mode) on a node of the cluster.

It needs iptables, ipsets and what matches on them. `calico_node` makes what the other programs of calico-node would.
"""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from libs.netlink.netns import in_netns
from libs.testkit import packages
from libs.testkit.cluster import FELIX_PORT, PROJECT, Node
from libs.testkit.http_probe import http_get
from libs.testkit.processes import Process
from tests.cluster.conftest import until

PROGRAM = packages.CACHE / "calico" / "calico-felix"
_FOUND = packages.environment(packages.CACHE / "runtimes", packages.CACHE / "stock-kernel")
TOOLS = {name: _FOUND[name] for name in ("PATH", "LD_LIBRARY_PATH", "XTABLES_LIBDIR") if name in _FOUND}
"""What finds iptables and ipset."""
_START_ME_AGAIN = 129  # its daemon.go: settings or encapsulations are others; runit does so in the real image


def require() -> None:
    """Raises pytest.skip."""
    if not PROGRAM.exists():
        pytest.skip("a real Felix is not here")
    listed = subprocess.run(["ipset", "list"], env=os.environ | TOOLS, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"this kernel has no ipsets: {listed.stderr}")


class RealFelix:
    def __init__(self, node: Node) -> None:
        self.node = node
        self._process = Process(
            f"Calico's felix on {node.name}", (str(PROGRAM),), netns=node.namespace, cwd=PROJECT,
            log_path=node.directory / "calico-felix.log",
            env=TOOLS | {
                "DATASTORE_TYPE": "etcdv3",
                "ETCD_ENDPOINTS": node.env["ETCD_ENDPOINTS"],
                "FELIX_FELIXHOSTNAME": node.name,
                "FELIX_HEALTHENABLED": "true",
                "FELIX_HEALTHHOST": str(node.ipv4.ip),
                "FELIX_HEALTHPORT": str(FELIX_PORT),
                "FELIX_IPTABLESBACKEND": "nft",
                "FELIX_LOGFILEPATH": "none",
                "FELIX_LOGSEVERITYSCREEN": "info",
                "FELIX_USAGEREPORTINGENABLED": "false",
            },
        )  # fmt: skip

    def start(self) -> None:
        self._process.start()

    def kill(self) -> None:
        """As the kubelet ends calico-node: no grace, and nothing is taken away."""
        self._process.kill()

    async def keep(self) -> None:
        """Starts it again as often as it asks for, without an end."""
        while True:
            if self._process.status == _START_ME_AGAIN:
                self._process.start()
            await asyncio.sleep(0.05)

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Until all that it knew at its start is in the kernel."""

        async def is_ready() -> bool:
            if self._process.status != _START_ME_AGAIN:
                self._process.require_running()
            try:
                answer = await http_get(
                    self.node.namespace, str(self.node.ipv4.ip), FELIX_PORT, "/readiness", timeout_s=5
                )
            except OSError:
                return False
            return answer.status in (200, 204)

        try:
            await until(is_ready, timeout_s, "Calico's felix is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._process.log_tail(40)}") from None

    def run(self, *command: str) -> str:
        """One of iptables' or ipset's programs on its node."""
        with in_netns(self.node.namespace.path):
            return subprocess.run(command, env=os.environ | TOOLS, capture_output=True, text=True, check=True).stdout

    def left(self) -> list[str]:
        """Lines of its rules, chains and sets."""
        rules = [line for tool in ("iptables-save", "ip6tables-save") for line in self.run(tool).splitlines()]
        return [line for line in rules if "cali" in line] + self.run("ipset", "list", "-name").split()
