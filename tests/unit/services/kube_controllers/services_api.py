"""A kube-apiserver as the load balancer controller sees it: Services with uids, merge patches of their status, events,
and an informer that hears of changes only when told to. It refuses what the real one refuses (tests/kube has that one).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from libs.kube.api import KubeApi, KubeError
from libs.kube.objects import NAMESPACES, SERVICES, Key
from services.kube_controllers.shell.kubernetes import Kubernetes

Document = dict[str, Any]


@dataclass
class ServicesApi:
    """before, patched: called before each patch and after it."""

    services: dict[Key, Document] = field(default_factory=dict)
    events: list[Document] = field(default_factory=list)
    away: bool = False
    patched: Callable[[Key], None] = lambda key: None
    before: Callable[[Key], None] = lambda key: None
    _version: int = 0
    _uids: int = 0
    _heard: dict[Key, Any] = field(default_factory=dict)

    # --- what a user does ------------------------------------------------------------------------------------------

    def put(self, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        """Create, or change the spec of what there is."""
        key = Key("ns", name)
        found = self.services.get(key)
        if found is None:
            self._uids += 1
            metadata = {"name": name, "namespace": "ns", "uid": f"00000000-0000-0000-0000-{self._uids:012}"}
            found = {"metadata": metadata, "status": {"loadBalancer": {}}}
        found["spec"] = {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"} | spec
        found["metadata"]["annotations"] = annotations or {}
        if found["spec"]["type"] != "LoadBalancer":
            found["status"] = {"loadBalancer": {}}  # as the registry of services does
        self._store(key, found)

    def delete(self, name: str) -> None:
        self.services.pop(Key("ns", name), None)

    def show(self, name: str, *addresses: str) -> None:
        """Somebody writes into the status."""
        found = self.services[Key("ns", name)]
        found["status"] = {"loadBalancer": {"ingress": [{"ip": address} for address in addresses]}}
        self._store(Key("ns", name), found)

    def shown(self, name: str) -> list[str]:
        ingress = self.services[Key("ns", name)]["status"]["loadBalancer"].get("ingress") or []
        return [one["ip"] for one in ingress if "ip" in one]

    def hear(self) -> None:
        self._heard = {key: SERVICES.decode(copy.deepcopy(document)) for key, document in self.services.items()}

    def kubernetes(self) -> Kubernetes:
        namespaces = {Key("", "ns"): NAMESPACES.decode({"metadata": {"name": "ns", "labels": {"team": "a"}}})}

        def follow(source: object) -> object:
            objects = self._heard if source is SERVICES else namespaces
            return SimpleNamespace(objects=objects, unreadable={}, in_sync=True)

        return cast("Kubernetes", SimpleNamespace(api=cast("KubeApi", self), follow=follow))

    def _store(self, key: Key, document: Document) -> None:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self.services[key] = document

    # --- what the controller asks ----------------------------------------------------------------------------------

    async def get(self, path: str) -> Document:
        return copy.deepcopy(self._found(path))

    async def patch(self, path: str, body: Document, kind: str) -> Document:
        assert kind == "application/merge-patch+json"
        assert path.endswith("/status")
        parts = path.split("/")
        self.before(Key(parts[4], parts[6]))
        found = self._found(path.removesuffix("/status"))
        wanted = body["metadata"]
        for name in ("uid", "resourceVersion"):
            assert wanted[name], "a status is written under both, or a leader of before writes over its successor's"
            if wanted[name] != found["metadata"][name]:
                raise KubeError(409, f"precondition failed: {name}", "Conflict")
        found["status"] = {"loadBalancer": {"ingress": body["status"]["loadBalancer"]["ingress"] or []}}
        key = Key(found["metadata"]["namespace"], found["metadata"]["name"])
        self._store(key, found)
        self.patched(key)
        return copy.deepcopy(found)

    async def create(self, path: str, body: Document) -> Document:
        assert path == f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        self.events.append(body)
        return body

    def _found(self, path: str) -> Document:
        if self.away:
            raise KubeError(0, "away")
        parts = path.split("/")
        found = self.services.get(Key(parts[4], parts[6]))
        if found is None:
            raise KubeError(404, f"{path} not found", "NotFound")
        return found
