"""What a kubelet and its runtime do for networking, and no more: pods bound to a node become network namespaces that
the compiled CNI plugin connects, with a probe server in each; their status goes back to the API.

It acts as `system:node:NAME`, so kube-apiserver holds it to what a node may do. Containers are not run: a pod serves
the ports that its containers declare, or the cluster's usual ones. A pod in the host's network serves them there.
Sandboxes outlive the agent, as those of a real one do: `run` may be ended and begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

from libs.kube.api import STRATEGIC, JsonObject, KubeApi, KubeError
from libs.kube.informer import Informer
from libs.kube.objects import Key
from libs.testkit.cluster import Cluster, Node
from libs.testkit.pods import CniError, Pod
from libs.testkit.processes import Probe, ProcessError
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.topology import Namespace

log = logging.getLogger(__name__)

LEASE_S = 10.0
RETRY_S = 0.5
HOOK = "test.calico/ready"  # annotation: "false" keeps a pod from being ready
_MAX_AT_ONCE = 16  # sandboxes in the making; a kubelet's own limit depends on the machine


@dataclass
class Sandbox:
    """One pod that runs here. probe: of a pod in the host's network; others' stands in `pod`."""

    uid: str
    pod: Pod | None
    addresses: list[IPv4Address | IPv6Address]
    ready: bool = True
    started: str = field(default_factory=lambda: _now())
    host_probe: Probe | None = None


class Kubelet:
    """api: with the node's own credentials. Failures of the plugin stand in `errors`, by pod, until it succeeds."""

    def __init__(self, cluster: Cluster, node: Node, api: KubeApi, random: Random) -> None:
        self._cluster, self._node, self._api, self._random = cluster, node, api, random
        self.name = node.name
        self.sandboxes: dict[Key, Sandbox] = {}
        self.errors: dict[Key, str] = {}
        self._work: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._pods: Informer[JsonObject] | None = None

    # --- the agent -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Raises KubeError when the node cannot be registered."""
        await self._register()
        self._pods = Informer(
            self._api, "/api/v1/pods", dict, self._changed, self._random,
            query={"fieldSelector": f"spec.nodeName={self.name}"},
        )  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pods.run(), name=f"{self.name}-pods")
                group.create_task(self._lease_forever(), name=f"{self.name}-lease")
        finally:
            work = list(self._work.values())
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._work.clear()

    def _changed(self, keys: frozenset[Key]) -> None:
        for key in keys | (self.sandboxes.keys() - set(self._known())):
            if key in self._work:
                self._again.add(key)
            else:
                self._work[key] = asyncio.create_task(self._sync_until_done(key), name=f"{self.name}-{key.name}")

    def _known(self) -> Mapping[Key, JsonObject]:
        return self._pods.objects if self._pods is not None else {}

    async def _sync_until_done(self, key: Key) -> None:
        try:
            while True:
                self._again.discard(key)
                try:
                    await self._sync(key)
                except (CniError, KubeError, ProcessError, OSError) as error:
                    self.errors[key] = str(error)
                    log.info("pod not in order", extra={"node": self.name, "pod": "/".join(key), "error": str(error)})
                    await asyncio.sleep(RETRY_S)
                    continue
                self.errors.pop(key, None)
                if key not in self._again:
                    return
        finally:
            self._work.pop(key, None)

    async def _sync(self, key: Key) -> None:
        """The pod as it should be now. Raises CniError, KubeError, ProcessError, OSError; then it is tried again."""
        wanted, have = self._known().get(key), self.sandboxes.get(key)
        if have is not None and (wanted is None or wanted["metadata"]["uid"] != have.uid or _ending(wanted)):
            async with self._slots:
                await self._tear_down(key, have)
            have = None
        if wanted is None:
            return
        if _ending(wanted):
            await self._confirm_deleted(key, wanted)
            return
        if wanted.get("status", {}).get("phase") in ("Failed", "Succeeded"):
            return
        if have is None:
            async with self._slots:
                have = await self._set_up(key, wanted)
        have.ready = wanted["metadata"].get("annotations", {}).get(HOOK) != "false" and await self._answers(
            wanted, have
        )
        if not have.ready and _probed(wanted):
            self._again.add(key)
        await self._report(key, wanted, have)
        if key in self._again:
            await asyncio.sleep(RETRY_S)

    # --- sandboxes -------------------------------------------------------------------------------------------------

    async def _set_up(self, key: Key, wanted: JsonObject) -> Sandbox:
        uid = wanted["metadata"]["uid"]
        tcp, udp = self._ports(wanted)
        if wanted["spec"].get("hostNetwork"):
            probe = Probe(key.name, self._node.namespace, tcp, udp)
            made = Sandbox(uid, None, [self._node.ipv4.ip, self._node.ipv6.ip], host_probe=probe)
        else:
            space = Namespace(f"cal-{self._cluster.id}-{self.name}-{key.namespace}-{key.name}-pod")
            pod = Pod(key.name, key.namespace, self.name, space, uid=uid)
            await self._cluster.plug(pod, tcp=tcp, udp=udp)
            made = Sandbox(uid, pod, pod.addresses)
        self.sandboxes[key] = made
        return made

    async def _tear_down(self, key: Key, have: Sandbox) -> None:
        if have.host_probe is not None:
            have.host_probe.stop()
        if have.pod is not None:
            await self._cluster.unplug(have.pod)
        del self.sandboxes[key]

    def _ports(self, wanted: JsonObject) -> tuple[Sequence[int], Sequence[int]]:
        ports: dict[str, list[int]] = {"TCP": [], "UDP": []}
        for container in wanted["spec"]["containers"]:
            for port in container.get("ports", []):
                ports.setdefault(port.get("protocol", "TCP"), []).append(port["containerPort"])
        if not any(ports.values()) and not wanted["spec"].get("hostNetwork"):
            return self._cluster.tcp_ports, self._cluster.udp_ports
        return sorted(set(ports["TCP"])), sorted(set(ports["UDP"]))

    async def _answers(self, wanted: JsonObject, have: Sandbox) -> bool:
        """The readiness probes, from the node itself."""
        flows = [Flow(self._node.namespace.path, have.addresses[0], port) for port in _probed(wanted) if have.addresses]
        verdicts = await asyncio.to_thread(check, flows, timeout_s=1.0) if flows else []
        return all(verdict == Verdict.ALLOW for verdict in verdicts)

    # --- what the API is told --------------------------------------------------------------------------------------

    async def _report(self, key: Key, wanted: JsonObject, have: Sandbox) -> None:
        status = self._status(wanted, have)
        if _says(wanted.get("status", {}), status):
            return
        path = f"/api/v1/namespaces/{key.namespace}/pods/{key.name}/status"
        body = {"metadata": {"uid": have.uid}, "status": status}
        with _gone_is_fine():
            await self._api.patch(path, body, STRATEGIC)

    def _status(self, wanted: JsonObject, have: Sandbox) -> JsonObject:
        ready = "True" if have.ready else "False"
        conditions = {"PodScheduled": "True", "Initialized": "True", "ContainersReady": ready, "Ready": ready}
        running = {"running": {"startedAt": have.started}}
        return {
            "phase": "Running",
            "startTime": have.started,
            "hostIP": str(self._node.ipv4.ip),
            "hostIPs": [{"ip": str(self._node.ipv4.ip)}, {"ip": str(self._node.ipv6.ip)}],
            "podIP": str(have.addresses[0]) if have.addresses else "",
            "podIPs": [{"ip": str(address)} for address in have.addresses],
            "conditions": [
                {"type": kind, "status": value, "lastTransitionTime": have.started}
                for kind, value in conditions.items()
            ],
            "containerStatuses": [
                {
                    "name": one["name"], "image": one["image"], "imageID": one["image"], "ready": have.ready,
                    "started": True, "restartCount": 0, "state": running, "containerID": f"test://{have.uid}",
                }
                for one in wanted["spec"]["containers"]
            ],
        }  # fmt: skip

    async def _confirm_deleted(self, key: Key, wanted: JsonObject) -> None:
        """The last word on a pod is its node's."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": wanted["metadata"]["uid"]}}
        with _gone_is_fine():
            await self._api.delete(f"/api/v1/namespaces/{key.namespace}/pods/{key.name}", body)

    async def _register(self) -> None:
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}
        try:
            await self._api.create("/api/v1/nodes", body)
        except KubeError as error:
            if error.code != 409:
                raise
        room = {"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "100Gi"}
        status = {
            # Two of one type: a strategic patch would take them for one.
            "addresses": [
                {"type": "InternalIP", "address": str(self._node.ipv4.ip)},
                {"type": "InternalIP", "address": str(self._node.ipv6.ip)},
                {"type": "Hostname", "address": self.name},
            ],
            "capacity": room,
            "allocatable": room,
            "nodeInfo": {
                "kubeletVersion": "v1.34.4", "containerRuntimeVersion": "test://1", "osImage": "test",
                "kernelVersion": "test", "operatingSystem": "linux", "architecture": "amd64", "machineID": self.name,
                "systemUUID": self.name, "bootID": self.name, "kubeProxyVersion": "",
            },
        }  # fmt: skip
        await self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})
        await self._heartbeat()

    async def _heartbeat(self) -> None:
        """Only the conditions that are a kubelet's: NetworkUnavailable is not."""
        now = _now()
        healthy = {"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"}
        conditions = [
            {"type": kind, "status": value, "lastHeartbeatTime": now, "reason": "Test", "message": ""}
            for kind, value in healthy.items()
        ]
        await self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": {"conditions": conditions}}, STRATEGIC)

    async def _lease_forever(self) -> None:
        """The node is alive. When it was deleted, it comes back as a real one does."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        while True:
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": _now(micro=True)}
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name},
                "spec": spec,
            }
            try:
                try:
                    await self._api.patch(f"{path}/{self.name}", {"spec": spec})
                except KubeError as error:
                    if error.code != 404:
                        raise
                    await self._api.create(path, body)
                await self._heartbeat()
            except KubeError as error:
                log.info("no sign of life given", extra={"node": self.name, "error": str(error)})
                if error.code == 404:
                    await self._register()
                await asyncio.sleep(RETRY_S)
                continue
            await asyncio.sleep(LEASE_S)


def _ending(wanted: JsonObject) -> bool:
    return bool(wanted["metadata"].get("deletionTimestamp"))


def _probed(wanted: JsonObject) -> list[int]:
    """TCP ports of the readiness probes."""
    found = []
    for container in wanted["spec"]["containers"]:
        probe = container.get("readinessProbe", {})
        at = probe.get("httpGet") or probe.get("tcpSocket")
        if at is not None:
            found.append(int(at["port"]))
    return found


def _says(status: Mapping[str, Any], wanted: JsonObject) -> bool:
    """Does the API know already? Times do not matter."""
    plain = ("phase", "podIP", "podIPs", "hostIP")
    if any(status.get(name) != wanted[name] for name in plain):
        return False
    conditions = {one["type"]: one["status"] for one in status.get("conditions", [])}
    return all(conditions.get(one["type"]) == one["status"] for one in wanted["conditions"])


@contextlib.contextmanager
def _gone_is_fine() -> Any:
    try:
        yield
    except KubeError as error:
        if error.code not in (404, 409):
            raise


def _now(*, micro: bool = False) -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
