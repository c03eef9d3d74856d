"""`calicoctl datastore migrate lock | unlock`: ClusterInformation.spec.datastoreReady.

While it is false CNI refuses requests and no Felix starts; running ones keep forwarding.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from libs.model.cluster import ClusterInformation, ClusterInformationSpec
from libs.resources.api import Resources
from libs.resources.client import MAX_TRIES
from libs.resources.errors import Conflict
from libs.resources.rules import CLUSTER_INFORMATION


async def set_lock(client: Resources, *, locked: bool) -> None:
    """Raises NotFound when the datastore is not initialised, Conflict."""
    await change_cluster(client, lambda spec: msgspec.structs.replace(spec, datastore_ready=not locked))


async def change_cluster(client: Resources, change: Callable[[ClusterInformationSpec], ClusterInformationSpec]) -> None:
    """Read ClusterInformation, change, write; again when somebody else was faster. Raises NotFound, Conflict."""
    for _ in range(MAX_TRIES):
        found = await client.get("ClusterInformation", "default")
        assert isinstance(found, ClusterInformation)
        try:
            await client.update(msgspec.structs.replace(found, spec=change(found.spec)))
        except Conflict:
            continue
        return
    raise Conflict(CLUSTER_INFORMATION)
