"""Events of the Kubernetes API: what `kubectl describe` shows of an object's troubles."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import uuid4

from libs.kube.api import KubeApi, KubeError
from libs.kube.objects import Meta, Source, T
from libs.model.storage import rfc3339

log = logging.getLogger(__name__)

COMPONENT = "calico-kube-controllers"
_NAME = 200  # of 253: the rest is for what makes it unique


class Events:
    """One that cannot be written is not missed: the log has the same."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._told = False

    async def warn(self, source: Source[T], about: Meta, reason: str, message: str) -> None:
        """reason: one word in CamelCase."""
        now = rfc3339(datetime.now(UTC))
        namespace = about.namespace or "default"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{about.name[:_NAME]}.{uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": source.group_version,
                "kind": source.kind,
                "name": about.name,
                "namespace": about.namespace,
                "uid": about.uid,
                "resourceVersion": about.resource_version,
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": COMPONENT},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(f"/api/v1/namespaces/{namespace}/events", body)
        except KubeError as error:
            if not self._told:
                log.warning("events are not written", extra={"error": str(error)})
            self._told = True
