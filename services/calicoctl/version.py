"""`calicoctl version`: ours, and what the cluster says of itself."""

from __future__ import annotations

from importlib import metadata

from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from services.calicoctl.columns import lookup

DISTRIBUTION = "calico-py"


def client_version() -> str:
    try:
        return f"v{metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:  # run from a tree that was never installed
        return "unknown"


def client_lines() -> list[str]:
    return [f"Client Version:    {client_version()}"]


async def cluster_lines(client: ResourceClient) -> list[str]:
    try:
        found = codec.to_json(await client.get("ClusterInformation", "default"))
    except NotFound:
        return ["Cluster Version:   unknown (the datastore is not initialised)"]
    version = lookup(found, "spec.calicoVersion") or "unknown"
    kind = lookup(found, "spec.clusterType") or "unknown"
    return [f"Cluster Version:   {version}", f"Cluster Type:      {kind}"]
