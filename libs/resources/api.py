"""What can be done with v3 resources, whatever stands behind: etcd (`client.ResourceClient`) or an API server
(`remote.RemoteClient`). One contract suite runs over both (tests/contract/test_resource_access.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from libs.model.base import Resource
from libs.resources.patch import PatchType

if TYPE_CHECKING:
    from libs.resources.client import Listed, Written


@dataclass(frozen=True, slots=True)
class Changed:
    """One resource changed at `revision`. Deleted: `gone`, and `resource` is how it stood last."""

    resource: Resource
    revision: int
    gone: bool = False
    created: bool = False


class Resources(Protocol):
    """All methods raise ResourceError for faults of the request and StoreError when the datastore cannot be had."""

    async def get(self, kind: str, name: str, namespace: str = "") -> Resource: ...

    async def list(self, kind: str, namespace: str = "") -> Listed: ...

    async def create(self, resource: Resource) -> Written: ...

    async def update(self, resource: Resource) -> Written: ...

    async def replace(self, resource: Resource) -> Written: ...

    async def apply(self, resource: Resource) -> Written: ...

    async def patch(
        self, kind: str, name: str, patch: object, patch_type: PatchType, namespace: str = ""
    ) -> Written: ...

    async def delete(self, kind: str, name: str, namespace: str = "", resource_version: str = "") -> Written: ...

    async def ensure_initialized(self, version: str = "", cluster_type: str = "") -> None: ...

    def follow(self, kind: str, listed: Listed, namespace: str = "") -> AsyncGenerator[Changed, None]:
        """What changes after a listing of the same kind and namespace, for ever: over broken connections, restarts, and
        history that is lost (then what differs from what was told before). Nothing is told twice. Values that nobody
        can read are passed over.
        """
        ...
