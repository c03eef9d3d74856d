"""Resources as etcd holds them, and a typha without its tasks: calculation, publisher, and what it sent."""

from __future__ import annotations

from typing import Any

import msgspec

from libs import model
from libs.bus import subjects, wire
from libs.model import keys
from libs.policy.calculator import Calculator
from services.typha.core.publisher import Outgoing, Publisher

EPOCH = wire.Epoch("t1", 1, 7)
NODES = ("node1", "node2")


def value(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **metadata: Any) -> tuple[str, bytes]:
    """etcd key and value."""
    document = {"kind": kind, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}
    return keys.resource_key(kind, name, namespace), msgspec.json.encode(document)


def endpoint(node: str, pod: str, app: str, host: int, namespace: str = "ns1") -> tuple[str, bytes]:
    spec = {
        "orchestrator": "k8s", "node": node, "containerID": "c", "pod": pod, "endpoint": "eth0",
        "ipNetworks": [f"10.65.{host // 250}.{host % 250}/32"], "profiles": [f"kns.{namespace}"],
        "interfaceName": f"cali{pod}",
    }  # fmt: skip
    labels = {"app": app, "projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s"}
    return value("WorkloadEndpoint", f"{node}-k8s-{pod}-eth0", spec, namespace, labels=labels)


def policy(name: str, app: str, peer: str, **extra: Any) -> tuple[str, bytes]:
    rule = {"action": "Allow", "source": {"selector": f"app == '{peer}'"}}
    spec = {"tier": "default", "order": 1, "selector": f"app == '{app}'", "types": ["Ingress"], "ingress": [rule]}
    return value("GlobalNetworkPolicy", name, spec | extra)


def network_set(name: str, app: str, nets: list[str]) -> tuple[str, bytes]:
    return value("GlobalNetworkSet", name, {"nets": nets}, labels={"app": app})


def many_nets(count: int) -> list[str]:
    return [f"172.{number // 65536 + 16}.{number // 256 % 256}.{number % 256}/32" for number in range(count)]


class Writer:
    """`publish(put, …)` is one revision; `sent` what it put on the bus, decoded, by stream or node."""

    def __init__(self, *beginning: tuple[str, bytes]) -> None:
        self.calculator = Calculator()
        self.publisher = Publisher(EPOCH, self.calculator)
        self.rev = 0
        self.now = 0.0
        self.publish(*beginning)

    def put(self, key: str, data: bytes | None) -> None:
        self.calculator.update(key, None if data is None else model.from_storage(key, data, self.rev + 1))

    def publish(self, *changes: tuple[str, bytes | None], config: dict[str, Any] | None = None) -> list[Any]:
        for key, data in changes:
            self.put(key, data)
        self.rev += 1
        return self.decoded(self.publisher.publish(self.calculator.flush(), config or {}, self.rev, self.now))

    @staticmethod
    def decoded(out: list[Outgoing]) -> list[tuple[str, Any]]:
        """(stream, message); the stream is `node.<name>` for what goes to one node, `bgp.<name>` to its speaker."""
        found: list[tuple[str, Any]] = []
        for subject, data in out:
            stream = subjects.stream_of(subject)
            commits = stream.partition(".")[0] in subjects.COMMIT_FAMILIES
            kind = wire.NodeMessage if commits else wire.StreamMessage
            found.append((stream, wire.decoder(kind).decode(data)))
        return found
