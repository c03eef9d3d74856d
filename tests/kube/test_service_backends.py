"""calicoctl's idea of a service's backends against a real kube-proxy, of Services of a real kube-apiserver."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libs import model
from libs.kube.objects import Key
from libs.model import keys
from libs.store.api import KeyValue
from libs.testkit import packages, topology
from libs.testkit.kube import kube_proxy
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.kube.programs import program
from libs.testkit.kube.runtimes import PACKAGES
from libs.testkit.netns import Namespace, can_make_namespaces, namespace
from libs.testkit.patience import patient
from libs.testkit.processes import Process
from services.calicoctl.explain import cluster as reading
from services.calicoctl.explain import endpoints, services
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import End
from services.calicoctl.explain.services import Front
from services.kube_controllers.core.services import EndpointSlices, Services
from services.kube_controllers.core.translation import Translation
from tests.kube.conftest import needs

NODE, ADDRESS, NUMBERS = "n1", "172.31.77.1", {"tcp": 6, "udp": 17}
READY = {"ready": True, "serving": True, "terminating": False}
DOWN = {"ready": False, "serving": False, "terminating": False}
LEAVING = {"ready": False, "serving": True, "terminating": True}
LEFT = {"ready": False, "serving": False, "terminating": True}
UNTOLD = {"ready": False, "terminating": True}
HTTP, DNS = {"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}
LOCAL = {"internalTrafficPolicy": "Local"}
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, bool]]]]] = {
    "ready": ({}, [("n1", READY), ("n2", READY), ("n2", DOWN), ("n1", LEAVING)]),
    "leaving": ({}, [("n1", LEAVING), ("n2", UNTOLD), ("n2", DOWN), ("n1", LEFT)]),
    "none": ({}, [("n1", DOWN), ("n2", LEFT)]),
    "empty": ({}, []),
    "own": (LOCAL, [("n1", READY), ("n2", READY), ("n1", LEAVING)]),
    "own-leaving": (LOCAL, [("n1", LEAVING), ("n2", READY), ("n1", DOWN)]),
    "others": (LOCAL, [("n1", DOWN), ("n2", READY), ("", READY)]),
    "others-leaving": (LOCAL, [("n1", LEFT), ("n2", LEAVING)]),
    "nobody": (LOCAL, [("n1", DOWN), ("n2", LEFT)]),
}
Found = dict[tuple[str, int], set[str] | str]
"""(cluster IP/protocol, port) → backends, or what becomes of the packet."""


def objects() -> Iterator[dict[str, Any]]:
    yield {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    for at, (name, (spec, ends)) in enumerate(CASES.items(), 1):
        metadata = {"name": name, "namespace": "default"}
        kind = {"type": "NodePort", "ports": [HTTP, DNS], "ipFamilies": ["IPv4"], **spec}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": kind}
        yield {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [
                {"addresses": [f"10.1.{at}.{number}"], "conditions": conditions, **({"nodeName": on} if on else {})}
                for number, (on, conditions) in enumerate(ends, 1)
            ],
            "ports": [{"name": "dns", "protocol": "UDP", "port": 5353}, {"name": "http", "port": 8080 + at}],
        }  # fmt: skip


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, Namespace]]:
    """With kube-proxy, in its mode nftables, on NODE."""
    needs("kubectl", "kube-apiserver", "kube-proxy")
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    directory: Path = tmp_path_factory.mktemp("proxy")
    with ExitStack() as stack:
        ns = stack.enter_context(namespace("proxy"))
        ns.run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        plane = stack.enter_context(ControlPlane(address=ADDRESS, netns=ns.name, controllers=()))
        plane.kubectl.apply(*objects())
        status = {"status": {"addresses": [{"type": "InternalIP", "address": ADDRESS}]}}
        plane.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps(status))
        config = directory / "config.yaml"
        config.write_text(kube_proxy.configuration(NODE, ADDRESS, "nftables", plane.user("system:kube-proxy")))
        process = Process(
            "kube-proxy", (str(program("kube-proxy")), "--config", str(config)), netns=topology.Namespace(ns.name),
            log_path=directory / "log", cwd=directory, env=packages.environment(PACKAGES),
        )  # fmt: skip
        process.start()
        stack.callback(process.stop, 10)
        yield plane, ns


def stored(plane: ControlPlane) -> Cluster:
    """What kube_controllers makes of it."""
    found: list[KeyValue] = []
    translations: tuple[Translation[Any], ...] = (Services(), EndpointSlices())
    for translation in translations:
        source = translation.source
        for document in json.loads(plane.kubectl("get", source.plural, "-n", "default", "-o", "json"))["items"]:
            if document["metadata"]["name"] == "kubernetes":
                continue
            name = Key("default", document["metadata"]["name"])
            for at, resource in translation.desired(name, source.decode(document), {}).resources.items():
                value = model.to_storage(resource, now=datetime(2026, 1, 1, tzinfo=UTC), uid="u")
                found.append(KeyValue(keys.resource_key(at.kind, at.name, at.namespace), value, 1, 1, 1))
    return reading.of_listing(found, 1)


def told(known: Cluster, target: str, protocol: str, port: int) -> set[str] | str:
    found = services.target(target, known, "default", str(port), NUMBERS[protocol])
    assert not isinstance(found, End)
    (front,) = found
    try:
        chosen = endpoints.choose(front, 4, NUMBERS[protocol], str(port), known, NODE)
    except endpoints.NoBackends as problem:
        return "drop" if "kube-proxy there drops" in str(problem) else "reject"
    return {one.shown for one in chosen.backends}


def programmed(ns: Namespace) -> Found:
    """By kube-proxy, for cluster IPs."""
    text = ns.run("nft", "list", "table", "ip", "kube-proxy", check=False)
    chains = dict(re.findall(r"\tchain (\S+) \{(.*?)\n\t\}", text, re.S))
    elements = re.findall(r"([\d.]+) \. (tcp|udp) \. (\d+)(?: comment \"[^\"]*\")? : (?:goto )?([^\s,]+)", text)
    return {
        (f"{address}/{protocol}", int(port)): what if what == "drop" else "reject" if "reject" in what
        else {":".join(one) for one in re.findall(r"__([\d.]+)/(\d+)", chains[what])}
        for address, protocol, port, what in elements
    }  # fmt: skip


def test_backends_are_those_that_a_real_kube_proxy_programs(proxied: tuple[ControlPlane, Namespace]) -> None:
    plane, ns = proxied
    known = stored(plane)
    wanted: Found = {}
    for name in CASES:
        front = services.target(f"service:{name}", known, "default")
        assert isinstance(front, tuple)
        for protocol, port in (("tcp", 80), ("udp", 53)):
            wanted[f"{front[0].addresses[4]}/{protocol}", port] = told(known, f"service:{name}", protocol, port)
    kinds = {one if isinstance(one, str) else "some" for one in wanted.values()}
    assert kinds == {"some", "drop", "reject"}
    deadline = time.monotonic() + patient(60.0)
    while not wanted.keys() <= programmed(ns).keys():
        assert time.monotonic() < deadline, ns.run("nft", "list", "ruleset")
        time.sleep(0.2)
    really = programmed(ns)
    assert {at: really[at] for at in wanted} == wanted


def test_node_ports_lead_to_the_services_that_a_real_kube_proxy_gives_them(
    proxied: tuple[ControlPlane, Namespace],
) -> None:
    plane, ns = proxied
    node = {"kind": "Node", "metadata": {"name": NODE}, "spec": {"bgp": {"ipv4Address": f"{ADDRESS}/32"}}}
    kvs = KeyValue(keys.resource_key("Node", NODE), json.dumps(node).encode(), 1, 1, 1)
    known = stored(plane)
    known.resources |= reading.of_listing([kvs], 1).resources
    known.calculator.update(kvs.key, known.resources[kvs.key])
    known.calculator.flush()

    def given() -> dict[tuple[str, int], str]:
        text = ns.run("nft", "list", "map", "ip", "kube-proxy", "service-nodeports", check=False)
        found = re.findall(r"(tcp|udp) \. (\d+)(?: comment \"[^\"]*\")? : goto \w+-\w+-default/([\w-]+)/", text)
        return {(protocol, int(port)): name for protocol, port, name in found}

    usable = 2 * (len(CASES) - 3)  # "none", "empty" and "nobody" have no endpoints anywhere
    deadline = time.monotonic() + patient(60.0)
    while len(given()) < usable:
        assert time.monotonic() < deadline, ns.run("nft", "list", "ruleset")
        time.sleep(0.2)
    for (protocol, port), name in given().items():
        front = services.target(ADDRESS, known, "default", str(port), NUMBERS[protocol])
        assert isinstance(front, tuple)
        assert [(type(one), one.name, one.ports[0].protocol) for one in front] == [(Front, name, protocol)]
