"""Services that lead through the kernel's IPVS on the pretend node: made by hand, or by a real kube-proxy.

VIP:80, and NODE_PORT of the node   pod s, port 8080
VIP:81                              the node itself, port 8000
VIP:8005                            the host outside, port 80
VIP:8010                            FAR, port 8080: no host, unless a test makes one
VIP:53, UDP                         pod s, port 53
VIP:54, UDP                         pod s, port 54, where nobody listens
VIP:55, UDP                         BEHIND, port 8080: no host, unless a test makes one
VIP:56, UDP                         nothing: the service has no pod
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from libs.policy.output import Action, Policy, PortRange, Rule, Tier
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
from services.felix.core.options import RulesetOptions
from tests.kernel.ruleset_lab import NODE, OUT, Lab, address, gnp, hosts_of, running_lab

ALLOW, DENY = Rule(action=Action.ALLOW), Rule(action=Action.DENY)
VIP = {4: "10.96.0.10", 6: "fd96::10"}
FAR = {4: "10.77.1.5", 6: "fd77:0:0:1::5"}
BEHIND = {4: "198.51.100.7", 6: "2001:db8:7::7"}
SERVICE, BACKEND, OF_HOST, ON_HOST, OF_OUT, ON_OUT, NODE_PORT = 80, 8080, 81, 8000, 8005, 80, 30080
OF_FAR = 8010
NAMES, CLOSED, OF_BEHIND, EMPTY = 53, 54, 55, 56
OF_UDP = (NAMES, CLOSED, OF_BEHIND, EMPTY)
PORTS = {
    "web": SERVICE, "host": OF_HOST, "out": OF_OUT, "far": OF_FAR, "names": NAMES, "closed": CLOSED,
    "behind": OF_BEHIND, "empty": EMPTY,
}  # fmt: skip
"""Of the service at VIP, by name."""
RANGES = "10.96.0.0/16,fd96::/112"
START_S = patient(60.0)

JsonObject = dict[str, Any]


def ways(version: int) -> list[tuple[str, int, str, int]]:
    """(address, port) of services, and (address, port) that they lead to; UDP for the ports OF_UDP."""
    pod = (address("s", version), BACKEND)
    return [
        (VIP[version], SERVICE, *pod), (NODE[version], NODE_PORT, *pod),
        (VIP[version], OF_HOST, NODE[version], ON_HOST), (VIP[version], OF_OUT, OUT[version], ON_OUT),
        (VIP[version], OF_FAR, FAR[version], BACKEND),
        *((VIP[version], port, address("s", version), port) for port in (NAMES, CLOSED)),
        (VIP[version], OF_BEHIND, BEHIND[version], BACKEND),
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
            if self.masquerades:  # kube-proxy writes that after the services
                self._until(lambda to=VIP[version]: self.lab.reach("s", to, SERVICE), "masquerading")  # type: ignore[misc]

    def close(self) -> None:
        self._stack.close()

    def fresh(self, options: RulesetOptions | None = None) -> None:
        """Nothing from before, and open pods; the IP set `a` is of pod a."""
        self.lab.fresh(options, ipvs=True)
        self.lab.builder.set_ipset("a", hosts_of("a"))
        self.lab.pods()

    def reached(self, to: dict[int, str], port: int, *, protocol: Protocol = "tcp", **wanted: bool) -> None:
        """wanted: whether it is reached from there, in both families."""
        for version in (4, 6):
            got = {
                sender: self.lab.reach(
                    sender,
                    to[version],
                    port,
                    protocol=protocol,
                    timeout_s=patient(0.6) if expected else 0.6,
                    wanted=expected,
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
                service = self._add(where, port)
                self._do("-a", *service, "-r", end(behind, target), "-m")
            self._add(VIP[version], EMPTY)

    def _add(self, where: str, port: int) -> tuple[str, str]:
        service = ("-u" if port in OF_UDP else "-t", end(where, port))
        self._do("-A", *service, "-s", "rr")
        return service

    def _do(self, *arguments: str) -> None:
        done = self.admin(*arguments)
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


@contextmanager
def running(kind: type[Services] = Services) -> Iterator[Services]:
    """On a pretend node of its own. Raises pytest.skip: no IPVS here."""
    with running_lab() as lab:
        services = kind(lab)
        try:
            services.start()
            yield services
        finally:
            services.close()


def policy(lab: Lab, name: str, inbound: tuple[Rule, ...] = (), outbound: tuple[Rule, ...] = ()) -> tuple[Tier, ...]:
    """Tiers with this policy, which takes part in the directions that it has rules for."""
    key = gnp(name)
    lab.builder.set_policy(key, Policy(tier="default", inbound=inbound, outbound=outbound))
    return (Tier(name="default", ingress=(key,) if inbound else (), egress=(key,) if outbound else ()),)


@contextmanager
def unmarked(lab: Lab, *places: str, families: tuple[str, ...] = ("ip", "ip6")) -> Iterator[None]:
    """What passes there meanwhile, and something does, is without our mark. places: a hook, and of which packets in the
    words of nft: `postrouting oifname "eth0"`. They come after our own chains.
    """
    marked = f"meta mark and {RulesetOptions(ipvs=True).mark_ipvs:#x} != 0"
    try:
        for family in families:
            lab.nft("add", "table", family, "watch")
            for at, place in enumerate(places):
                hook, _, match = place.partition(" ")
                chain = (family, "watch", f"place{at}")
                lab.nft("add", "chain", *chain, f"{{ type filter hook {hook} priority 150; }}")
                lab.nft("add", "rule", *chain, f'{match} counter comment "all"')
                lab.nft("add", "rule", *chain, f'{match} {marked} counter comment "marked"')
        yield
        for family in families:
            listed = lab.nft("list", "table", family, "watch")
            assert 'packets 0 bytes 0 comment "all"' not in listed, listed
            assert listed.count('packets 0 bytes 0 comment "marked"') == len(places), listed
    finally:
        for family in families:
            lab.nft("delete", "table", family, "watch")


def udp(*ports: int, action: Action = Action.ALLOW) -> Rule:
    """A rule about these destination ports of UDP."""
    return Rule(action=action, protocol="udp", dst_ports=tuple(PortRange(port, port) for port in ports))


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
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": VIP[4], "clusterIPs": [VIP[4], VIP[6]],
            "ports": [
                {"name": name, "port": port, "nodePort": NODE_PORT + at, "protocol": _protocol(port)}
                for at, (name, port) in enumerate(PORTS.items())
            ],
        },
    }  # fmt: skip


def _slices(version: int) -> list[JsonObject]:
    names, here = {port: name for name, port in PORTS.items()}, (address("s", version), NODE[version])
    return [
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": f"IPv{version}",
            "metadata": {
                "name": f"{names[port]}-{version}", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [{"name": names[port], "port": target, "protocol": _protocol(port)}],
            "endpoints": [{
                "addresses": [behind], "nodeName": "node" if behind in here else "elsewhere",
                "conditions": {"ready": True},
            }],
        }
        for where, port, behind, target in ways(version) if where == VIP[version]
    ]  # fmt: skip


def _protocol(port: int) -> str:
    return "UDP" if port in OF_UDP else "TCP"
