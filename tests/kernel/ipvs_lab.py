"""Services that lead through the kernel's IPVS on the pretend node: made by hand, or by a real kube-proxy.

VIP:80, and NODE_PORT of the node   pod s, port 8080
VIP:81                              the node itself, port 8000
VIP:8005                            the host outside, port 80
VIP:53, UDP                         pod s, port 53
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from libs.testkit import packages
from libs.testkit.kube import kube_proxy
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.programs import KubernetesMissing, program
from libs.testkit.kube.runtimes import PACKAGES as RUNTIMES
from libs.testkit.patience import patient
from libs.testkit.processes import Process
from libs.testkit.reach import Protocol
from libs.testkit.stock_kernel.machine import PACKAGES
from services.felix.core import ipvs
from tests.kernel.ruleset_lab import NODE, OUT, Lab, address

VIP = {4: "10.96.0.10", 6: "fd96::10"}
SERVICE, BACKEND, OF_HOST, ON_HOST, OF_OUT, ON_OUT, NODE_PORT = 80, 8080, 81, 8000, 8005, 80, 30080
NAMES = 53
RANGES = "10.96.0.0/16,fd96::/112"
START_S = patient(60.0)

JsonObject = dict[str, Any]


def ways(version: int) -> list[tuple[str, int, str, int]]:
    """(address, port) of services, and (address, port) that they lead to; UDP where both ports are those of names."""
    pod = (address("s", version), BACKEND)
    return [
        (VIP[version], SERVICE, *pod), (NODE[version], NODE_PORT, *pod),
        (VIP[version], OF_HOST, NODE[version], ON_HOST), (VIP[version], OF_OUT, OUT[version], ON_OUT),
        (VIP[version], NAMES, address("s", version), NAMES),
    ]  # fmt: skip


def end(where: str, port: int) -> str:
    return f"[{where}]:{port}" if ":" in where else f"{where}:{port}"


class Services:
    """By hand."""

    masquerades = False
    """What a pod sends to a service that leads back to it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._env = packages.environment(RUNTIMES, PACKAGES)
        self._stack = ExitStack()

    def admin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self.lab.spaces["node"].name, "ipvsadm", *arguments]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)

    def start(self) -> None:
        """Raises pytest.skip: no IPVS here."""
        try:
            if self.admin("-L").returncode:
                pytest.skip("this kernel has no IPVS")
        except FileNotFoundError:
            pytest.skip("this kernel has no IPVS (nor is ipvsadm here)")
        self.lab.spaces["out"].ip([f"route add {VIP[4]}/32 via {NODE[4]}", f"route add {VIP[6]}/128 via {NODE[6]}"])
        self._make()
        for version in (4, 6):
            for where, port, behind, target in ways(version):
                wanted = (end(where, port), end(behind, target))
                self._until(lambda wanted=wanted: wanted in self._listed(), f"service {wanted}")  # type: ignore[misc]

    def close(self) -> None:
        self._stack.close()

    def reached(self, to: dict[int, str], port: int, *, protocol: Protocol = "tcp", **wanted: bool) -> None:
        """wanted: whether it is reached from there, in both families."""
        for version in (4, 6):
            got = {
                sender: self.lab.reach(
                    sender, to[version], port, protocol=protocol, timeout_s=patient(0.6) if expected else 0.6
                )
                for sender, expected in wanted.items()
            }
            assert got == wanted, f"IPv{version}: {got}"

    def _make(self) -> None:
        node = self.lab.spaces["node"]
        node.sysctl({"ipv4.vs.conntrack": 1})
        node.ip([f"link add {ipvs.LINK} type dummy", *(f"addr add {VIP[one]} dev {ipvs.LINK}" for one in (4, 6))])
        for version in (4, 6):
            for where, port, behind, target in ways(version):
                service = ("-u" if port == NAMES else "-t", end(where, port))
                for command in (("-A", *service, "-s", "rr"), ("-a", *service, "-r", end(behind, target), "-m")):
                    done = self.admin(*command)
                    assert done.returncode == 0, done.stderr

    def _listed(self) -> set[tuple[str, str]]:
        """(service, what it leads to)."""
        found, service = set(), ""
        for line in self.admin("-Ln").stdout.splitlines():
            words = line.split()
            if words[:1] in (["TCP"], ["UDP"]):
                service = words[1]
            elif words[:1] == ["->"] and service:
                found.add((service, words[1]))
        return found

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self._listed()}\n{self.told()}"
            time.sleep(0.2)

    def told(self) -> str:
        return ""


class KubeProxy(Services):
    """A real kube-proxy, of Services that a real kube-apiserver has."""

    log: Path
    masquerades = True

    def _make(self) -> None:
        node = self.lab.spaces["node"]
        try:
            binary = program("kube-proxy")
            plane = ControlPlane(
                address=NODE[4], netns=node.name, controllers=(),
                extra_args=(f"--service-cluster-ip-range={RANGES}",),
            )  # fmt: skip
        except KubernetesMissing as error:
            pytest.skip(str(error))
        self._stack.enter_context(plane)
        plane.kubectl.apply(_node())
        plane.kubectl("patch", "node", "node", "--subresource=status", "--type=merge", "-p", _addresses())
        plane.kubectl.apply(_service(), *(one for version in (4, 6) for one in _slices(version)))
        directory = Path(self._stack.enter_context(TemporaryDirectory(prefix="kube-proxy-")))
        self.log = directory / "log"
        config = directory / "config.yaml"
        config.write_text(kube_proxy.configuration("node", NODE[4], "ipvs", plane.user("system:kube-proxy")))
        process = Process(
            "kube-proxy", (str(binary), "--config", str(config)), netns=node, log_path=self.log, env=self._env,
            cwd=directory,
        )  # fmt: skip
        process.start()
        self._stack.callback(process.stop, 10)

    def told(self) -> str:
        return self.log.read_text()[-4000:]


def _node() -> JsonObject:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}


def _addresses() -> str:
    return json.dumps({"status": {"addresses": [{"type": "InternalIP", "address": NODE[one]} for one in (4, 6)]}})


def _service() -> JsonObject:
    ports = (("web", SERVICE), ("host", OF_HOST), ("out", OF_OUT), ("names", NAMES))
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": VIP[4], "clusterIPs": [VIP[4], VIP[6]],
            "ports": [
                {"name": name, "port": port, "nodePort": NODE_PORT + at, "protocol": _protocol(port)}
                for at, (name, port) in enumerate(ports)
            ],
        },
    }  # fmt: skip


def _slices(version: int) -> list[JsonObject]:
    pod = address("s", version)
    behind = (
        ("web", BACKEND, pod, "node"), ("names", NAMES, pod, "node"), ("host", ON_HOST, NODE[version], "node"),
        ("out", ON_OUT, OUT[version], "elsewhere"),
    )  # fmt: skip
    return [
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": f"IPv{version}",
            "metadata": {
                "name": f"{name}-{version}", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [{"name": name, "port": port, "protocol": _protocol(port)}],
            "endpoints": [{"addresses": [where], "nodeName": node, "conditions": {"ready": True}}],
        }
        for name, port, where, node in behind
    ]  # fmt: skip


def _protocol(port: int) -> str:
    return "UDP" if port == NAMES else "TCP"
